//! Knockd's own table in the real nftables: who reaches a guarded service, and when.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::net::IpAddr;

use common::{CONFIG, KNOCKD, Knockd, SOON, has_ipv6, knock, sh, status_json, wait_until};
use nix::sys::signal::Signal;
use testbed::{Host, Net, Running};

const PORT: u16 = 22;

/// A door to port 22 that closes by itself after a long time, or with `replace` after a short one.
const DOOR: &str =
    "[options]\nFirewall = nftables\n[ssh]\nSequence = 7101,8202:udp,9303\nOpen = tcp/22\nLease = 60\n";

const KNOCK: &str = "7101 8202:udp 9303";

fn listening(net: &Net) -> Running {
    net.server.listen(PORT).unwrap()
}

/// Starts knockd, and returns when the client has opened the door.
fn start_and_open(net: &Net) -> Knockd {
    let mut knockd = Knockd::start(net, DOOR);
    knock(&net.client, &format!("10.9.0.1 {KNOCK}"));
    knockd.wait_for("let in for 60 s");
    knockd
}

fn reaches(net: &Net, address: IpAddr) -> bool {
    net.client.can_connect(address, PORT).unwrap()
}

/// Gives the client a second address, and says whether that reaches the service.
fn neighbour_reaches(net: &Net) -> bool {
    sh(&net.client, "ip address replace 10.9.0.3/24 dev eth0");
    reaches_from(&net.client, "10.9.0.3", net.server.ipv4)
}

/// Whether this address of a host reaches the service.
fn reaches_from(host: &Host, source: &str, target: impl Into<IpAddr>) -> bool {
    let script = format!(
        "import socket\n\
         try: socket.create_connection(('{}', {PORT}), 1, ('{source}', 0)); print('yes')\n\
         except OSError: print('no')",
        target.into()
    );
    match host.run(&["python3", "-c", &script]).unwrap().trim() {
        "yes" => true,
        "no" => false,
        other => panic!("{other:?}"),
    }
}

/// The table as nft prints it, without its flags: this nft may have no word for one of them.
fn table(server: &Host) -> String {
    let text = sh(server, "nft -s list table inet knockd");
    let (_, body) = text.split_once("\tset ").unwrap();
    format!("table inet knockd {{\n\tset {body}")
}

/// Replaces the configuration and has it read.
fn reload(net: &Net, knockd: &Knockd, config: &str) {
    net.server.write_file(CONFIG, config).unwrap();
    knockd.signal(Signal::SIGHUP);
}

#[test]
fn a_guarded_port_is_open_for_the_knocker_alone_and_closes_again() {
    let net = Net::new().unwrap();
    let _service = listening(&net);
    let (v4, v6) = (net.server.ipv4.into(), net.server.ipv6.into());
    assert!(reaches(&net, v4) && neighbour_reaches(&net), "there is no guard yet");
    let mut knockd = Knockd::start(&net, &DOOR.replace("Lease = 60", "Lease = 5"));
    assert!(!reaches(&net, v4));
    knock(&net.client, &format!("10.9.0.1 {KNOCK}"));
    knockd.wait_for("10.9.0.2: ssh: let in for 5 s");
    assert!(reaches(&net, v4));
    assert!(!neighbour_reaches(&net));
    if has_ipv6(&net) {
        assert!(!reaches(&net, v6), "it has knocked over IPv4");
        knock(&net.client, &format!("-6 {} {KNOCK}", net.server.ipv6));
        knockd.wait_for(&format!("{}: ssh: let in for 5 s", net.client.ipv6));
        assert!(reaches(&net, v6));
        wait_until("closed", || !reaches(&net, v6));
    }
    wait_until("closed", || !reaches(&net, v4));
    wait_until("no lease", || status_json(&net)["leases"]["total"] == 0);
}

#[test]
fn what_guard_prints_is_what_is_loaded_and_what_nft_loads() {
    let net = Net::new().unwrap();
    let config = "[options]\nFirewall = nftables\nMark = 0x01000000\n\
         GuardExcept = lo, docker0, br-*, 10.0.0.0/8, 172.16.0.0/12, 192.0.2.7, fd00::/8, fe80::/10, fd00::7\n\
         [ssh]\nSequence = 1\nOpen = tcp/22, udp/60000-61000\n\
         [web]\nSequence = 2\nOpen = tcp/80, tcp/443, tcp/8000-8080, udp/443, tcp/65535\nClosed = reject\n\
         [one]\nSequence = 3\nTarget = 10.9.0.7\nOpen = tcp/22, tcp/23\n\
         [six]\nSequence = 4\nTarget = fd00:9::7\nOpen = udp/53\n\
         [idle]\nSequence = 5\nOpen = tcp/24, udp/24-25\nExtend = idle 93784\n\
         [cut]\nSequence = 6\nOpen = tcp/26, tcp/28, udp/26\nExtend = connected 60\nAt_End = cut\n\
         [once]\nSequence = 7\nOpen = tcp/27, tcp/30, udp/60000-61000\nUses = 1\n\
         [inner]\nSequence = 8\nOpen = tcp/27\nUses = 1\nTarget = 10.9.0.8\n\
         [inner6]\nSequence = 9\nOpen = tcp/27\nUses = 1\nTarget = fd00:9::8\n";
    net.server.write_file(CONFIG, config).unwrap();
    let printed = net.server.run(&[KNOCKD, "guard", "--check", "-c", CONFIG]).unwrap();
    for _ in 0..2 {
        net.server.run(&[KNOCKD, "guard", "-c", CONFIG]).unwrap();
        assert_eq!(table(&net.server), printed);
    }
    net.server.run(&[KNOCKD, "guard", "--remove"]).unwrap();
    assert_eq!(sh(&net.server, "nft list ruleset"), "");
    net.server.run(&[KNOCKD, "guard", "--remove"]).unwrap();
    net.server.run_with_input(&["nft", "-f", "-"], printed.as_bytes()).unwrap();
    assert_eq!(table(&net.server), printed);
}

#[test]
fn nobody_can_flush_the_guard_while_knockd_runs() {
    let net = Net::new().unwrap();
    let _service = listening(&net);
    let mut knockd = Knockd::start(&net, DOOR);
    let before = table(&net.server);
    sh(&net.server, "nft flush ruleset");
    assert_eq!(table(&net.server), before);
    let refused = sh(&net.server, "nft delete table inet knockd 2>&1 || true");
    assert!(refused.contains("Operation not permitted"), "{refused}");
    assert!(!reaches(&net, net.server.ipv4.into()));
    knockd.stop();
}

#[test]
fn a_killed_knockd_leaves_the_guard_and_the_next_one_keeps_its_doors() {
    let net = Net::new().unwrap();
    let _service = listening(&net);
    let address = net.server.ipv4.into();
    let mut knockd = start_and_open(&net);
    knockd.signal(Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    assert!(reaches(&net, address), "the door stays open");
    assert!(!neighbour_reaches(&net), "and closed for others");
    let mut knockd = Knockd::start(&net, DOOR);
    assert!(reaches(&net, address));
    let leases = status_json(&net)["leases"]["listed"].clone();
    assert_eq!(leases[0]["source"], "10.9.0.2", "{leases}");
    net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
    knockd.wait_for("10.9.0.2: ssh: let in no longer");
    assert!(!reaches(&net, address));
    knockd.stop();
    assert!(!reaches(&net, address), "the guard stays");
}

#[test]
fn a_reload_keeps_the_doors_that_stay_and_closes_those_that_go() {
    let net = Net::new().unwrap();
    let _service = listening(&net);
    let address = net.server.ipv4.into();
    let knockd = start_and_open(&net);
    let other = "[web]\nSequence = 1\nOpen = tcp/80\n";
    let before = DOOR.replace("[ssh]", &format!("{other}[ssh]"));
    reload(&net, &knockd, &before);
    wait_until("the guard of the other door", || table(&net.server).contains("tcp dport 80 "));
    assert!(reaches(&net, address));
    reload(&net, &knockd, &format!("[options]\nFirewall = nftables\n{other}"));
    wait_until("no guard of the first door", || !table(&net.server).contains("tcp dport 22 "));
    assert!(reaches(&net, address), "nothing guards it any more");
    reload(&net, &knockd, DOOR);
    wait_until("closed", || !reaches(&net, address));
}

#[test]
fn an_established_connection_goes_on_when_the_door_closes() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    let echo = "import socket; s = socket.create_server(('', 22)); print('ready', flush=True); c = s.accept()[0]\n\
                while data := c.recv(99): c.sendall(data)";
    let mut service = net.server.spawn(&["python3", "-c", echo]).unwrap();
    service.wait_for_line("ready", SOON).unwrap();
    knock(&net.client, &format!("10.9.0.1 {KNOCK}"));
    knockd.wait_for("let in for 60 s");
    let talk = "import socket, sys; c = socket.create_connection(('10.9.0.1', 22)); c.settimeout(9)\n\
                print('connected', flush=True)\n\
                import os; [0 for _ in iter(lambda: os.path.exists('/run/go'), True)]\n\
                c.sendall(b'still there'); print(c.recv(99).decode(), flush=True)";
    let mut client = net.client.spawn(&["python3", "-c", talk]).unwrap();
    client.wait_for_line("connected", SOON).unwrap();
    net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
    knockd.wait_for("let in no longer");
    assert!(!reaches(&net, net.server.ipv4.into()));
    net.client.write_file("/run/go", "").unwrap();
    client.wait_for_line("still there", SOON).unwrap();
}

#[test]
fn without_the_right_to_change_the_firewall_knockd_does_not_start() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, DOOR).unwrap();
    let mut command = net.server.command("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-all", KNOCKD, "-v", "-c", CONFIG]);
    let mut knockd = Running::start(&mut command).unwrap();
    assert_eq!(knockd.wait(SOON).unwrap().code(), Some(1));
    let lines: Vec<_> = knockd.lines().into_iter().map(|line| line.text).collect();
    assert_eq!(
        lines.last().unwrap(),
        "knockd: cannot guard the services of doors: permission denied; CAP_NET_ADMIN is missing"
    );
}

#[test]
fn what_the_guard_excepts_reaches_the_service_and_nothing_else_does() {
    let net = Net::new().unwrap();
    let _service = listening(&net);
    let v4 = net.server.ipv4;
    net.server.write_file(CONFIG, DOOR).unwrap();
    let guard = |exceptions: &str| {
        let config = DOOR.replace("[ssh]", &format!("GuardExcept = {exceptions}\n[ssh]"));
        net.server.write_file(CONFIG, &config).unwrap();
        net.server.run(&[KNOCKD, "guard", "-c", CONFIG]).unwrap();
    };
    net.server.run(&[KNOCKD, "guard", "-c", CONFIG]).unwrap();
    assert!(!reaches(&net, v4.into()) && reaches_from(&net.server, "0.0.0.0", v4), "the host itself");
    guard("docker0");
    assert!(!reaches(&net, v4.into()) && !reaches_from(&net.server, "0.0.0.0", v4));
    guard("10.9.0.3, fd00::/8");
    assert!(!reaches(&net, v4.into()) && neighbour_reaches(&net));
    assert!(!has_ipv6(&net) || reaches(&net, net.server.ipv6.into()));
    guard("10.9.0.2/31");
    assert!(reaches(&net, v4.into()) && neighbour_reaches(&net));
    guard("10.9.0.0/31");
    assert!(!reaches(&net, v4.into()));
    for interface in ["eth0", "e*", "nothing, eth*"] {
        guard(interface);
        assert!(reaches(&net, v4.into()), "{interface}");
    }
    guard("eth, eth0x, f*");
    assert!(!reaches(&net, v4.into()));
}
