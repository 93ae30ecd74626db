//! The way of README.md to a guarded port, and the recipes of docs/guard.md, word for word: open for everybody at first,
//! then closed, and open for whoever knocks and for nobody else.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use common::pages::{GUARD, README, block, section};
use common::{CONFIG, KNOCKD, Knockd, SOON, firewalls, knock, send, sh, syn, wait_until};
use testbed::{Frame, Net, Stranger};

/// A server with a service on port 22, a client that knocks, and a stranger on another interface.
struct World {
    net: Net,
    stranger: Stranger,
    /// What everybody wants to reach.
    address: &'static str,
    port: u16,
    knockd: Option<Knockd>,
}

impl World {
    fn new(address: &'static str, port: u16) -> Self {
        let net = Net::new().unwrap();
        let stranger = net.stranger().unwrap();
        sh(&net.client, "ip address add 10.9.0.3/24 dev eth0");
        Self { net, stranger, address, port, knockd: None }
    }

    /// Whether a connection from this address of the client succeeds.
    fn reaches(&self, source: &str) -> bool {
        let script = format!(
            "import socket
try:
    socket.create_connection(('{}', {}), 1, ('{source}', 0))
    print('open')
except OSError:
    print('closed')",
            self.address, self.port
        );
        self.net.client.run(&["python3", "-c", &script]).unwrap() == "open\n"
    }

    fn is_open_for_all(&self) -> bool {
        self.reaches("10.9.0.2") && self.reaches("10.9.0.3")
    }

    fn is_closed_for_all(&self) -> bool {
        !self.reaches("10.9.0.2") && !self.reaches("10.9.0.3")
    }

    /// Follows a recipe that closes a port which is open for all.
    fn guard(&mut self, config: &str) {
        wait_until("open for all", || self.is_open_for_all());
        self.let_the_knocker_in(config);
    }

    /// Starts knockd with this configuration, and shows that the port is closed and opens for the knocker alone.
    fn let_the_knocker_in(&mut self, config: &str) {
        let mut knockd = Knockd::start_with(&self.net, config, &["-v", "-i", "any"]);
        assert!(self.is_closed_for_all());
        let (_, command) = section(README, "### 3. Try it, with a way back")
            .split_once("\n    knock -d 200 server.example.com ")
            .unwrap();
        let (ports, _) = command.split_once(" && ssh").unwrap();
        knock(&self.net.client, &format!("-d 200 {} {ports}", self.address));
        knockd.wait_for("let in for ");
        assert!(self.reaches("10.9.0.2") && !self.reaches("10.9.0.3"));
        self.knockd = Some(knockd);
    }

    fn remove(&mut self) {
        self.knockd.take().unwrap().stop();
        self.net.server.run(&[KNOCKD, "guard", "--remove"]).unwrap();
    }
}

#[test]
fn the_two_lines_of_the_readme_close_the_port_and_let_the_knocker_in() {
    let config = block(section(README, "### 2. Describe the door"), "ini", "[ssh]");
    let same = block(section(GUARD, "### A service of this machine"), "ini", "[ssh]");
    assert_eq!(same, format!("{config}\n    Lease    = 30"), "the page has the defaults of the README");
    let mut world = World::new("10.9.0.1", 22);
    let _service = world.net.server.listen(22).unwrap();
    world.guard(&config);
    world.remove();
    assert!(world.is_open_for_all());
}

#[test]
fn the_first_command_of_the_readme_closes_on_trial_and_who_comes_in_after_a_knock_ends_that() {
    let mut world = World::new("10.9.0.1", 22);
    let server = &world.net.server;
    // It looks for connections there.
    sh(server, "mount -t proc proc /proc");
    let keep = "import socket; server = socket.create_server(('', 22)); print('ready', flush=True)\n\
                sessions = []\n\
                while True: sessions.append(server.accept())";
    let mut service = server.spawn(&["python3", "-c", keep]).unwrap();
    service.wait_for_line("ready", SOON).unwrap();
    let config = block(section(README, "### 2. Describe the door"), "ini", "[ssh]");
    server.write_file(CONFIG, &config).unwrap();
    let page = section(README, "### 3. Try it, with a way back");
    let typed = |start: &str| {
        let line = page.split_once(start).unwrap().1.split(['\n', '`']).next().unwrap().to_owned();
        [KNOCKD, "guard", "-c", CONFIG]
            .into_iter()
            .chain(line.split(' '))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(world.is_open_for_all());
    let mut trial = server.spawn(&typed("    sudo knockd guard ")).unwrap();
    trial.wait_for_line("or run: knockd guard", SOON).unwrap();
    assert!(world.is_closed_for_all());
    let mut knockd = Knockd::start_with(&world.net, &config, &["-v", "-i", "any"]);
    knock(&world.net.client, "10.9.0.1 7101 8202:udp 9303");
    knockd.wait_for("let in for ");
    assert!(!world.reaches("10.9.0.3"));
    let session = "import socket, time; s = socket.create_connection(('10.9.0.1', 22)); time.sleep(300)";
    let _session = world.net.client.spawn(&["python3", "-c", session]).unwrap();
    trial.wait_for_line("the guard stands", SOON).unwrap();
    assert_eq!(trial.wait(SOON).unwrap().code(), Some(0));
    assert!(!world.reaches("10.9.0.3"));
    world.net.server.run(&typed("**The way out, whatever happened: `sudo knockd guard ")).unwrap();
    assert!(world.is_open_for_all());
    world.knockd = Some(knockd);
}

#[test]
fn beside_ufw_the_port_is_allowed_there_or_its_mark() {
    let mut world = World::new("10.9.0.1", 22);
    if !firewalls::unpacked(&world.net) {
        return;
    }
    let _service = world.net.server.listen(22).unwrap();
    firewalls::run(&world.net, "ufw --force enable");
    assert!(world.is_closed_for_all());
    let page = section(GUARD, "### ufw");
    let allow = block(page, "sh", "ufw allow");
    assert!(section(README, "### 2. Describe the door").contains(&format!("sudo {allow}`")), "{allow}");
    firewalls::inside(&world.net, &allow);
    world.guard(&block(section(README, "### 2. Describe the door"), "ini", "[ssh]"));
    world.remove();

    let mark = block(page, "sh", "before.rules");
    firewalls::inside(&world.net, &mark);
    world.guard(&block(page, "ini", "Mark"));
    let (_, delete) = page.split_once("close the port in ufw: `sudo ").unwrap();
    let (delete, _) = delete.split_once('`').unwrap();
    firewalls::inside(&world.net, delete);
    assert!(world.reaches("10.9.0.2") && !world.reaches("10.9.0.3"));
    world.remove();
    assert!(world.is_closed_for_all(), "also without the guard");
}

#[test]
fn beside_firewalld_the_service_is_allowed_there() {
    let mut world = World::new("10.9.0.1", 22);
    if !firewalls::unpacked(&world.net) {
        return;
    }
    let _service = world.net.server.listen(22).unwrap();
    let _firewalld = firewalls::firewalld(&world.net);
    assert!(world.is_open_for_all(), "the page says that firewalld lets ssh in");
    firewalls::run(&world.net, "firewall-cmd --permanent --remove-service=ssh && firewall-cmd --reload");
    assert!(world.is_closed_for_all());
    let allow = block(section(GUARD, "### firewalld"), "sh", "firewall-cmd");
    for line in allow.lines() {
        assert!(section(README, "### 2. Describe the door").contains(&format!("sudo {line}`")), "{line}");
    }
    firewalls::inside(&world.net, &allow);
    world.guard(&block(section(README, "### 2. Describe the door"), "ini", "[ssh]"));
}

#[test]
fn the_port_that_a_container_publishes_is_guarded_and_containers_still_reach_it() {
    let mut world = World::new("10.9.0.1", 8080);
    let (server, container) = (&world.net.server, &world.stranger.host);
    let _inner = container.listen(80).unwrap();
    // Docker has a process on the port that it publishes.
    let _proxy = server.listen(8080).unwrap();
    sh(
        server,
        "ip link set eth1 down && ip link set eth1 name docker0 && ip link set docker0 up
         echo 1 >/proc/sys/net/ipv4/ip_forward
         iptables -t nat -A PREROUTING -p tcp --dport 8080 ! -i docker0 -j DNAT --to-destination 10.9.1.2:80",
    );
    sh(container, "ip route add 10.9.0.0/24 via 10.9.1.1");
    let config = block(section(GUARD, "### A port that a container publishes"), "ini", "GuardExcept");
    let except = "    GuardExcept = lo, docker0\n";
    let container_reaches = |world: &World| world.stranger.host.can_connect([10, 9, 1, 1], 8080).unwrap();
    world.guard(&config.replace(except, ""));
    assert!(!container_reaches(&world), "without GuardExcept");
    world.remove();
    world.guard(&config);
    assert!(container_reaches(&world));
}

#[test]
fn a_router_guards_the_port_of_a_machine_behind_it() {
    let mut world = World::new("192.0.2.7", 22);
    let inner = &world.stranger.host;
    let _service = inner.listen(22).unwrap();
    sh(inner, "ip address add 192.0.2.7/32 dev eth0 && ip route add 10.9.0.0/24 via 10.9.1.1");
    sh(&world.net.server, "echo 1 >/proc/sys/net/ipv4/ip_forward && ip route add 192.0.2.7 via 10.9.1.2");
    sh(&world.net.client, "ip route add 192.0.2.7 via 10.9.0.1");
    world.guard(&block(section(GUARD, "### A router"), "ini", "Target"));
}

#[test]
fn a_port_that_leads_elsewhere_is_there_for_the_knocker_alone() {
    let mut world = World::new("10.9.0.1", 2222);
    let inner = &world.stranger.host;
    let _service = inner.listen(22).unwrap();
    // It has no way back to the client.
    sh(inner, "ip address add 192.168.7.2/32 dev eth0");
    sh(&world.net.server, "echo 1 >/proc/sys/net/ipv4/ip_forward && ip route add 192.168.7.2 via 10.9.1.2");
    let page = section(GUARD, "### A port that leads elsewhere");
    world.let_the_knocker_in(&block(page, "ini", "Forward"));
}

#[test]
fn what_fail2ban_bans_stays_out_although_it_has_knocked() {
    let mut world = World::new("10.9.0.1", 22);
    if !firewalls::unpacked(&world.net) {
        return;
    }
    let server = &world.net.server;
    let _service = server.listen(22).unwrap();
    let page = section(GUARD, "### fail2ban");
    for (name, text) in [
        ("filter.d", include_str!("../../../packaging/fail2ban/filter.d/knockd.conf")),
        ("jail.d", include_str!("../../../packaging/fail2ban/jail.d/knockd.conf")),
    ] {
        sh(server, &format!("mkdir -p /run/packaging/fail2ban/{name}"));
        server.write_file(&format!("/run/packaging/fail2ban/{name}/knockd.conf"), text).unwrap();
    }
    // Its jail for sshd needs a log that there is not.
    sh(
        server,
        "rm -f /run/etc/fail2ban/jail.d/*
         mkdir -p /run/fail2ban /run/root/var/lib/fail2ban
         touch /run/root/var/log/knockd.log",
    );
    let config = block(page, "ini", "LogFile");
    // For longer than the test takes.
    world.guard(&format!("{}\n    Lease = 600\n", config.replace("/var/log", "/run/root/var/log")));
    let set_up = format!("cd /run\n{}", block(page, "sh", "fail2ban"));
    for banaction in ["iptables-allports", "nftables[type=allports]"] {
        let default = format!("[DEFAULT]\nbanaction_allports = {banaction}\n");
        world.net.server.write_file("/run/etc/fail2ban/jail.local", &default).unwrap();
        sh(&world.net.server, "rm -f /run/fail2ban/*");
        let start = ["chroot", "/run/root", "fail2ban-server", "-f", "--logtarget", "stdout", "start"];
        let mut fail2ban = world.net.server.spawn(&start).unwrap();
        fail2ban.wait_for_line("Server ready", SOON).unwrap();
        firewalls::inside(&world.net, &set_up);
        firewalls::inside(&world.net, "fail2ban-client set knockd banip 10.9.0.3");
        let frames = [
            syn(&world.net, 3, 7101),
            Frame::udp([10, 9, 0, 3], [10, 9, 0, 1], 8202, b""),
            syn(&world.net, 3, 9303),
        ];
        send(&world.net, &frames);
        world.knockd.as_mut().unwrap().wait_for("10.9.0.3: ssh: let in for 600 s");
        // It bans in its own time.
        wait_until("banned", || !world.reaches("10.9.0.3"));
        assert!(world.reaches("10.9.0.2"), "{banaction}");
        firewalls::inside(&world.net, "fail2ban-client set knockd unbanip 10.9.0.3");
        wait_until("no longer banned", || world.reaches("10.9.0.3"));
    }
}
