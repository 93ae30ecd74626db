//! The guard beside ufw, firewalld and a published port of a container: whoever else lets a packet through or drops it,
//! only those who have knocked reach a guarded service, and knockd opens nothing that another firewall closes.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use common::{KNOCKD, Knockd, SOON, firewalls, has_ipv6, knock, sh, status_json, wait_until};
use nix::sys::signal::Signal;
use testbed::{Flags, Frame, Net, Running, Stranger};

const DOOR: &str = "[options]\nFirewall = nftables\n\
     [services]\nSequence = 7101,8202:udp,9303\nOpen = tcp/22, tcp/8080, udp/60001\nLease = 600\n";

/// As Docker does for `-p 8080:80 -p 8081:80`, with the container behind eth1.
const PUBLISHED: &str = r#"
for version in '' 6; do
    tables=ip${version}tables
    inner=10.9.1.2; outer=$inner
    [ -z "$version" ] || { inner=fd00:9:1::2; outer="[$inner]"; }
    $tables -t nat -N DOCKER
    $tables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
    $tables -N DOCKER
    $tables -I FORWARD -i eth1 ! -o eth1 -j ACCEPT
    $tables -I FORWARD -o eth1 -j DOCKER
    $tables -I FORWARD -o eth1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $tables -A DOCKER -d $inner ! -i eth1 -o eth1 -p tcp -m tcp --dport 80 -j ACCEPT
    for port in 8080 8081; do
        $tables -t nat -A DOCKER ! -i eth1 -p tcp -m tcp --dport $port -j DNAT --to-destination $outer:80
    done
done"#;

/// Answers UDP on port 60001, and on port 7 only after what came before it on the other.
const UDP: &str = "import os, select, socket
def listening(port):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(('::', port))
    sock.setblocking(False)
    return sock
def waiting(sock):
    try:
        while True:
            yield sock.recvfrom(9)
    except BlockingIOError:
        pass
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
guarded, control = listening(60001), listening(7)
print('ready', flush=True)
while True:
    select.select([guarded, control], [], [])
    later = list(waiting(control))
    for sock, came in [(guarded, list(waiting(guarded))), (control, later)]:
        for data, source in came:
            sock.sendto(data, source)";

/// Tries every service from two addresses, and then one beside each that everybody reaches: once that has answered, so
/// has every other one that will.
const WHO: &str = "import os, select, socket, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
families = {4: (socket.AF_INET, '10.9.0.1', {'knocker': '10.9.0.2', 'neighbour': '10.9.0.3'})}
if sys.argv[1] == '6':
    families[6] = (socket.AF_INET6, 'fd00:9::1', {'knocker': 'fd00:9::2', 'neighbour': 'fd00:9::3'})
def attempts(services):
    for name, kind, port in services:
        for version, (family, server, sources) in families.items():
            for who, source in sources.items():
                sock = socket.socket(family, kind)
                sock.setblocking(False)
                sock.bind((source, 0))
                sock.connect_ex((server, port))
                if kind == socket.SOCK_DGRAM:
                    sock.send(b'?')
                yield who, name + str(version), sock
def answered(sock):
    try:
        if sock.type == socket.SOCK_DGRAM:
            return sock.recv(9) == b'?'
        sock.getpeername()
        return True
    except OSError:
        return False
tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
tried = list(attempts([('tcp', tcp, 22), ('udp', udp, 60001), ('published', tcp, 8080)]))
waiting = [entry[2] for entry in attempts([('', tcp, 7), ('', udp, 7), ('', tcp, 8081)])]
end = time.monotonic() + 60
while waiting and time.monotonic() < end:
    waiting = [sock for sock in waiting if not answered(sock)]
    time.sleep(.01)
assert not waiting, waiting
for who in 'knocker', 'neighbour':
    reached = [name for whose, name, sock in tried if whose == who and answered(sock)]
    print(who + ':', *sorted(reached))";

struct World {
    net: Net,
    versions: &'static str,
    _container: Stranger,
    _services: [Running; 3],
    _inner: Running,
}

impl World {
    fn new() -> Self {
        let net = Net::new().unwrap();
        let container = net.stranger().unwrap();
        let versions = if has_ipv6(&net) { "6" } else { "4" };
        let (mac, client) = (net.client.mac, &net.client);
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        sh(client, "ip address add 10.9.0.3/24 dev eth0");
        sh(
            &net.server,
            &format!(
                "ip neighbour add 10.9.0.3 lladdr {mac} dev eth0 nud permanent
                 echo 1 >/proc/sys/net/ipv4/ip_forward"
            ),
        );
        sh(&container.host, "ip route add 10.9.0.0/24 via 10.9.1.1");
        if versions == "6" {
            sh(client, "ip address add fd00:9::3/64 dev eth0 nodad preferred_lft 0");
            sh(
                &net.server,
                &format!(
                    "ip neighbour add fd00:9::3 lladdr {mac} dev eth0 nud permanent
                     echo 0 >/proc/sys/net/ipv6/conf/eth1/disable_ipv6
                     echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
                     ip address add fd00:9:1::1/64 dev eth1 nodad"
                ),
            );
            sh(
                &container.host,
                "echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
                 ip address add fd00:9:1::2/64 dev eth0 nodad
                 ip route add fd00:9::/64 via fd00:9:1::1",
            );
        }
        let mut udp = net.server.spawn(&["python3", "-c", UDP]).unwrap();
        udp.wait_for_line("ready", SOON).unwrap();
        let services = [net.server.listen(22).unwrap(), net.server.listen(7).unwrap(), udp];
        let inner = container.host.listen(80).unwrap();
        Self { net, versions, _container: container, _services: services, _inner: inner }
    }

    /// Shows which services the knocker reaches, and which its neighbour.
    fn show(&self, knocker: &[&str], neighbour: &[&str]) {
        let found = self.net.client.run(&["python3", "-c", WHO, self.versions]).unwrap();
        let versions = if self.versions == "6" { &["4", "6"][..] } else { &["4"] };
        let expected = [("knocker:", knocker), ("neighbour:", neighbour)].map(|(who, services)| {
            let services = services
                .iter()
                .flat_map(|service| versions.iter().map(move |version| format!("{service}{version}")));
            [who.to_owned()].into_iter().chain(services).collect::<Vec<_>>().join(" ") + "\n"
        });
        assert_eq!(found, expected.concat());
    }

    fn publish(&self) {
        sh(&self.net.server, PUBLISHED);
    }

    /// Knocks over both families.
    fn knock(&self, knockd: &mut Knockd) {
        let mut servers = vec!["10.9.0.1"];
        servers.extend((self.versions == "6").then_some("-6 fd00:9::1"));
        for server in servers {
            knock(&self.net.client, &format!("{server} 7101 8202:udp 9303"));
            knockd.wait_for("services: let in for 600 s");
        }
    }

    fn close(&self) {
        self.net.server.run(&[KNOCKD, "close", "services", "--all"]).unwrap();
    }

    /// Stops knockd and removes the guard.
    fn remove(&self, mut knockd: Knockd) {
        knockd.stop();
        self.net.server.run(&[KNOCKD, "guard", "--remove"]).unwrap();
    }
}

const ALL: [&str; 3] = ["published", "tcp", "udp"];
const NONE: [&str; 0] = [];
/// What firewalls for the host itself do not look at.
const PUBLISHED_ONLY: [&str; 1] = ["published"];

#[test]
fn without_another_firewall_only_the_knocker_reaches_services_and_published_ports() {
    let world = World::new();
    world.publish();
    world.show(&ALL, &ALL);
    let mut knockd = Knockd::start(&world.net, DOOR);
    world.show(&NONE, &NONE);
    world.knock(&mut knockd);
    world.show(&ALL, &NONE);
    world.close();
    world.show(&NONE, &NONE);
    world.remove(knockd);
    world.show(&ALL, &ALL);
}

/// ufw that lets nobody reach the guarded ports. Containers publish theirs past it.
fn ufw(world: &World) -> bool {
    if !firewalls::unpacked(&world.net) {
        return false;
    }
    firewalls::run(&world.net, "ufw allow 7 && ufw --force enable");
    world.publish();
    world.show(&PUBLISHED_ONLY, &PUBLISHED_ONLY);
    true
}

#[test]
fn beside_ufw_only_the_knocker_gets_in_where_ufw_lets_it_also_after_a_reload_and_without_ufw() {
    let world = World::new();
    if !ufw(&world) {
        return;
    }
    let mut knockd = Knockd::start(&world.net, DOOR);
    world.show(&NONE, &NONE);
    world.knock(&mut knockd);
    world.show(&PUBLISHED_ONLY, &NONE);
    firewalls::run(&world.net, "ufw allow 22/tcp && ufw allow 60001/udp");
    world.show(&ALL, &NONE);
    firewalls::run(&world.net, "ufw reload");
    world.show(&ALL, &NONE);
    world.close();
    world.show(&NONE, &NONE);
    firewalls::run(&world.net, "ufw disable");
    world.show(&NONE, &NONE);
    world.knock(&mut knockd);
    world.show(&ALL, &NONE);
    firewalls::run(&world.net, "ufw --force enable");
    world.show(&ALL, &NONE);
    world.remove(knockd);
    world.show(&ALL, &ALL);
}

#[test]
fn with_a_mark_ufw_lets_the_knocker_in_and_nobody_when_the_guard_is_gone() {
    let world = World::new();
    if !ufw(&world) {
        return;
    }
    let rule = "-A ufwVERSION-before-input -m mark --mark 0x01000000/0x01000000 -j ACCEPT";
    for version in ["", "6"] {
        let rule = rule.replace("VERSION", version);
        let file = format!("/run/etc/ufw/before{version}.rules");
        sh(&world.net.server, &format!("sed -i 's|^COMMIT|{rule}\\n&|' {file}; grep -c '^{rule}' {file}"));
    }
    firewalls::run(&world.net, "ufw reload");
    world.show(&PUBLISHED_ONLY, &PUBLISHED_ONLY);
    let config = DOOR.replace("nftables\n", "nftables\nMark = 0x01000000\n");
    let mut knockd = Knockd::start(&world.net, &config);
    world.show(&NONE, &NONE);
    world.knock(&mut knockd);
    world.show(&ALL, &NONE);
    world.remove(knockd);
    world.show(&PUBLISHED_ONLY, &PUBLISHED_ONLY);
}

#[test]
fn beside_firewalld_only_the_knocker_gets_in_where_it_lets_it_also_after_a_reload() {
    let world = World::new();
    if !firewalls::unpacked(&world.net) {
        return;
    }
    let _firewalld = firewalls::firewalld(&world.net);
    let configure = |what: &str| {
        firewalls::run(&world.net, &format!("firewall-cmd --permanent {what} && firewall-cmd {what}"));
    };
    let reload = || {
        firewalls::run(&world.net, "firewall-cmd --reload");
        // It flushes what Docker has made, and Docker, which it tells, makes that again.
        sh(
            &world.net.server,
            "for tables in iptables ip6tables; do $tables -F; $tables -X; $tables -t nat -F; $tables -t nat -X; done",
        );
        world.publish();
    };
    configure("--add-port=7/tcp --add-port=7/udp");
    configure("--remove-service=ssh");
    world.publish();
    world.show(&PUBLISHED_ONLY, &PUBLISHED_ONLY);
    let mut knockd = Knockd::start(&world.net, DOOR);
    world.show(&NONE, &NONE);
    world.knock(&mut knockd);
    world.show(&PUBLISHED_ONLY, &NONE);
    configure("--add-service=ssh");
    configure("--add-port=60001/udp");
    world.show(&ALL, &NONE);
    reload();
    world.show(&ALL, &NONE);
    world.close();
    world.show(&NONE, &NONE);
    reload();
    world.show(&NONE, &NONE);
    world.remove(knockd);
    world.show(&ALL, &ALL);
}

#[test]
fn only_a_connection_that_the_server_has_answered_passes_the_guard() {
    let world = World::new();
    world.publish();
    let mut knockd = Knockd::start(&world.net, DOOR);
    let counted = || sh(&world.net.server, "nft list chain inet knockd tcp_doors");
    let dropped = |text: &str| -> u64 {
        let (_, rest) = text.rsplit_once("counter packets ").unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let before = dropped(&counted());
    // Of each kind, twice: the first may be what makes the kernel follow a connection.
    let kinds = [Flags::SYN, Flags::ACK, Flags::SYN_ACK, Flags(0x11), Flags(0x18), Flags(0x04), Flags(0)];
    let frames: Vec<_> = kinds.iter().flat_map(|&kind| [kind; 2]).collect();
    let frames: Vec<_> =
        frames.into_iter().map(|kind| Frame::tcp([10, 9, 0, 7], [10, 9, 0, 1], 22, kind)).collect();
    let count = u64::try_from(frames.len()).unwrap();
    common::send(&world.net, &frames);
    wait_until("all are dropped", || dropped(&counted()) == before + count);
    world.knock(&mut knockd);
    world.show(&ALL, &NONE);
}

#[test]
fn what_root_puts_into_a_table_that_was_left_over_is_a_lease_that_status_lists_and_close_ends() {
    let world = World::new();
    world.publish();
    let mut knockd = Knockd::start(&world.net, DOOR);
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    let script = "nft add element inet knockd d1_4 '{ 10.9.0.3 timeout 600s }'
                  nft add element inet knockd d1_6 '{ fd00:9::3 timeout 600s }'";
    sh(&world.net.server, script);
    world.show(&NONE, &ALL);
    let _knockd = Knockd::start(&world.net, DOOR);
    world.show(&NONE, &ALL);
    let leases = &status_json(&world.net)["leases"]["listed"];
    let sources: Vec<_> = leases.as_array().unwrap().iter().map(|lease| &lease["source"]).collect();
    assert!(sources.contains(&&"10.9.0.3".into()) && sources.contains(&&"fd00:9::3".into()), "{leases}");
    world.close();
    world.show(&NONE, &NONE);
}
