//! Doors that connections keep open (`Extend`), in the real kernel and with a real SSH session.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::sessions::{door, echo, forget_connections, listener, open, reaches, session, shown, talker};
use common::{CONFIG, Knockd, SOON, is_root, sh, status_json, wait_until};
use testbed::{Host, Net, Running};

/// Waits for what a person sees of the only lease.
fn wait_for_shown(net: &Net, text: &str) {
    let mut last = String::new();
    let end = Instant::now() + SOON;
    while !last.contains(text) {
        assert!(Instant::now() < end, "{last}");
        last = shown(net);
    }
}

/// Starts a real SSH server, and returns it with a session of the client that is silent until `/run/bye` exists on the server.
fn ssh(net: &Net, knockd: &mut Knockd) -> Option<(Running, Running)> {
    if net.server.run(&["sh", "-c", "command -v ssh && command -v ssh-keygen && command -v sshd"]).is_err() {
        testbed::skip_until_installed("an SSH server");
        return None;
    }
    // Only the package that is installed makes this user; one that is just unpacked does not.
    let user = "sshd:x:64999:65534::/run/sshd:/usr/sbin/nologin";
    let script = format!(
        "cp /etc/passwd /run/passwd; grep -q ^sshd: /run/passwd || echo {user} >>/run/passwd
         mount --bind /run/passwd /etc/passwd
         mkdir -m 755 /run/sshd; ssh-keygen -q -t ed25519 -N '' -f /run/key
         ssh-keygen -q -t ed25519 -N '' -f /run/person; cp /run/person.pub /run/authorized; chmod 600 /run/authorized"
    );
    sh(&net.server, &script);
    let person = sh(&net.server, "cat /run/person");
    net.client.write_file("/run/person", &person).unwrap();
    let options = "-o PidFile=none -o AuthorizedKeysFile=/run/authorized -o StrictModes=no -o PermitRootLogin=yes -o UsePAM=no";
    let start = format!("exec \"$(command -v sshd)\" -D -e -f /dev/null -h /run/key {options}");
    let mut sshd = net.server.spawn(&["sh", "-c", &start]).unwrap();
    sshd.wait_for_line("Server listening on 0.0.0.0 port 22", SOON).unwrap();
    assert!(!reaches(net));
    open(net, knockd);
    let command = "ssh -i /run/person -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes \
                   -o ServerAliveInterval=0 -o TCPKeepAlive=no root@10.9.0.1 \
                   'echo logged in; while ! test -e /run/bye; do sleep 0.05; done; echo bye'";
    let mut session = net.client.spawn(&["sh", "-c", command]).unwrap();
    session.wait_for_line("logged in", SOON).unwrap();
    Some((sshd, session))
}

#[test]
fn an_idle_ssh_session_keeps_a_connected_door_open_and_its_end_closes_it_although_the_kernel_remembers_it() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &door("Lease = 10\nExtend = connected 5"));
    let Some((_sshd, mut session)) = ssh(&net, &mut knockd) else { return };
    let begin = Instant::now();
    let full = testbed::scale(12, 30);
    while begin.elapsed() < Duration::from_secs(full) {
        assert!(reaches(&net), "closed after {:?}", begin.elapsed());
    }
    wait_for_shown(&net, "open  1 connection keeps it open for ");
    let lease = &status_json(&net)["leases"]["listed"][0];
    assert_eq!(
        (&lease["kept_open_by"], &lease["connections"]),
        (&"connections".into(), &1.into()),
        "{lease}"
    );
    assert_eq!(knockd.count("10.9.0.2: ssh: let in for "), 1, "that it stays open is no news");
    net.server.write_file("/run/bye", "").unwrap();
    session.wait_for_line("bye", SOON).unwrap();
    session.wait(SOON).unwrap();
    let end = Instant::now();
    knockd.wait_for("10.9.0.2: ssh: let in no longer");
    let closed = end.elapsed();
    assert!(closed < Duration::from_secs(testbed::scale(30, 6)), "{closed:?}");
    assert!(!reaches(&net));
    // It was not the kernel that has forgotten the session.
    let entries = sh(&net.server, "cat /proc/net/nf_conntrack");
    assert!(entries.lines().any(|it| it.contains("TIME_WAIT") && it.contains("dport=22 ")), "{entries}");
    wait_until("no lease", || status_json(&net)["leases"]["total"] == 0);
}

#[test]
fn packets_keep_an_idle_door_open_and_silence_closes_it() {
    let net = Net::new().unwrap();
    let _echo = echo(&net.server);
    let mut knockd = Knockd::start(&net, &door("Lease = 60\nExtend = idle 6"));
    open(&net, &mut knockd);
    assert!(shown(&net).contains("open  closes in "), "{}", shown(&net));
    net.client.write_file("/run/talk", "").unwrap();
    let mut session = session(&net);
    let left = || status_json(&net)["leases"]["listed"][0]["left"].as_u64().unwrap();
    wait_until("packets count instead of the lease", || left() <= 6);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(14) {
        assert!(sh(&net.server, "nft list set inet knockd d1_4").contains("10.9.0.2 timeout"));
        assert!((1..=6).contains(&left()));
    }
    assert!(shown(&net).contains("s unless packets come"), "{}", shown(&net));
    assert!(reaches(&net));
    sh(&net.client, "rm /run/talk");
    let silent = Instant::now();
    knockd.wait_for("10.9.0.2: ssh: let in no longer");
    let closed = silent.elapsed();
    assert!(closed > Duration::from_secs(5), "{closed:?}");
    assert!(!reaches(&net));
    // The session itself goes on, and opens nothing.
    net.client.write_file("/run/talk", "").unwrap();
    net.client.write_file("/run/end", "").unwrap();
    session.wait_for_line("closed", SOON).unwrap();
    assert!(!reaches(&net));
}

#[test]
fn a_udp_flow_in_both_directions_keeps_a_connected_door_open() {
    let net = Net::new().unwrap();
    let echo = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 22)); print('ready', flush=True)\n\
                while True: s.sendto(*s.recvfrom(99))";
    let mut service = net.server.spawn(&["python3", "-c", echo]).unwrap();
    service.wait_for_line("ready", SOON).unwrap();
    let directives = "Lease = 10\nExtend = connected 4\nIdle_Limit = 10";
    let mut knockd = Knockd::start(&net, &door(directives).replace("tcp/22", "udp/22"));
    open(&net, &mut knockd);
    let talk = "import os, socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('10.9.0.1', 22))\n\
        while not os.path.exists('/run/end'): s.send(b'word'); s.recv(99); time.sleep(0.2)\n\
        print('silent', flush=True)";
    let mut client = net.client.spawn(&["python3", "-c", talk]).unwrap();
    wait_for_shown(&net, "1 connection keeps it open for ");
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(14) {
        assert_eq!(status_json(&net)["leases"]["total"], 1);
    }
    net.client.write_file("/run/end", "").unwrap();
    client.wait_for_line("silent", SOON).unwrap();
    knockd.wait_for("10.9.0.2: ssh: let in no longer");
}

#[test]
fn a_reload_changes_what_keeps_a_door_open_and_shuts_nobody_out() {
    let net = Net::new().unwrap();
    let _echo = echo(&net.server);
    let mut knockd = Knockd::start(&net, &door("Lease = 600"));
    open(&net, &mut knockd);
    net.client.write_file("/run/talk", "").unwrap();
    let _session = session(&net);
    for (directives, table, text) in [
        ("Lease = 600\nExtend = idle 300", "timeout 5m ", "unless packets come"),
        ("Lease = 600\nUses = 1", "delete @d1_4 ", "or with the first connection"),
        ("Lease = 600\nExtend = connected 5\nAt_End = cut", "with tcp reset", "unless connected"),
        ("Lease = 600", "ct state established accept", "open  closes in "),
    ] {
        net.server.write_file(CONFIG, &door(directives)).unwrap();
        knockd.signal(nix::sys::signal::Signal::SIGHUP);
        wait_until(directives, || {
            let rules = sh(&net.server, "nft list table inet knockd");
            rules.contains(table) && rules.contains("10.9.0.2 timeout")
        });
        wait_for_shown(&net, text);
    }
    assert!(reaches(&net));
}

#[test]
fn a_killed_knockd_leaves_followed_doors_open_and_the_next_one_follows_them() {
    let net = Net::new().unwrap();
    let _echo = echo(&net.server);
    let config = door("Lease = 10\nExtend = connected 3");
    let mut knockd = Knockd::start(&net, &config);
    open(&net, &mut knockd);
    let mut session = session(&net);
    wait_for_shown(&net, "1 connection keeps it open for ");
    knockd.signal(nix::sys::signal::Signal::SIGKILL);
    knockd.running.wait(SOON).unwrap();
    let mut knockd = Knockd::start(&net, &config);
    wait_for_shown(&net, "1 connection keeps it open for ");
    assert!(reaches(&net));
    net.client.write_file("/run/end", "").unwrap();
    session.wait_for_line("closed", SOON).unwrap();
    knockd.wait_for("10.9.0.2: ssh: let in no longer");
    assert!(!reaches(&net));
}

#[test]
fn a_client_that_vanishes_keeps_a_connected_door_open_no_longer_than_the_idle_limit() {
    let net = Net::new().unwrap();
    let _echo = echo(&net.server);
    let mut knockd = Knockd::start(&net, &door("Lease = 10\nExtend = connected 2\nIdle_Limit = 6"));
    open(&net, &mut knockd);
    net.client.write_file("/run/talk", "").unwrap();
    let _session = session(&net);
    wait_for_shown(&net, "1 connection keeps it open for ");
    sh(&net.client, "rm /run/talk; sleep 0.5");
    let cut = Instant::now();
    sh(&net.client, "ip link set eth0 down");
    knockd.wait_for("10.9.0.2: ssh: let in no longer");
    let closed = cut.elapsed();
    assert!(closed > Duration::from_secs(4), "{closed:?}");
    let entries = sh(&net.server, "cat /proc/net/nf_conntrack");
    assert!(entries.lines().any(|it| it.contains("ESTABLISHED") && it.contains("dport=22 ")), "{entries}");
}

#[test]
fn data_that_is_not_acknowledged_yet_makes_no_session_idle() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &door("Lease = 10\nExtend = connected 2\nIdle_Limit = 200"));
    let pour = "import socket, time; s = socket.create_server(('', 22)); print('ready', flush=True); c = s.accept()[0]\n\
                while True: c.sendall(b'word'); time.sleep(0.2)";
    let mut service = net.server.spawn(&["python3", "-c", pour]).unwrap();
    service.wait_for_line("ready", SOON).unwrap();
    open(&net, &mut knockd);
    net.client.write_file("/run/nothing", "").unwrap();
    let _session = session(&net);
    wait_for_shown(&net, "1 connection keeps it open for ");
    // The client hears nothing any more, so what the server sends is never acknowledged.
    sh(
        &net.client,
        "nft add table inet deaf; nft add chain inet deaf input '{ type filter hook input priority 0; }'
                     nft add rule inet deaf input tcp sport 22 drop",
    );
    let unanswered = || sh(&net.server, "grep dport=22 /proc/net/nf_conntrack | grep ESTABLISHED");
    let seconds = |line: &str| line.split_whitespace().nth(4).unwrap().parse::<u32>().unwrap();
    wait_until("a short memory of the kernel", || seconds(&unanswered()) <= 300);
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        let listed = status_json(&net)["leases"]["listed"].clone();
        assert_eq!(listed[0]["connections"], 1, "{listed}; {}", unanswered());
    }
}

#[test]
fn a_connection_whose_entry_somebody_deletes_goes_on_and_keeps_its_door_open_no_longer() {
    let net = Net::new().unwrap();
    let _service = talker(&net.server);
    let mut knockd = Knockd::start(&net, &door("Lease = 10\nExtend = connected 2"));
    open(&net, &mut knockd);
    let session = listener(&net);
    wait_for_shown(&net, "1 connection keeps it open for ");
    // The next packet makes a new entry; nearly always it is one of the server, whose connection it then is.
    wait_until("closed", || {
        forget_connections(&net);
        knockd.count("10.9.0.2: ssh: let in no longer") == 1
    });
    assert!(!reaches(&net));
    let heard = session.lines().len();
    wait_until("the session goes on", || session.lines().len() > heard + 20);
}

/// Gives the server's kernel this many UDP flows of others.
fn fill(server: &Host, number: u32) {
    sh(server, "echo 3600 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout");
    let script = format!(
        "import socket\n\
         left = {number}\n\
         for host in range(1, 250):\n\
         \x20   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0))\n\
         \x20   for port in range(1024, 65000):\n\
         \x20       s.sendto(b'', (f'127.0.1.{{host}}', port)); left -= 1\n\
         \x20       if left == 0: raise SystemExit",
    );
    server.run(&["python3", "-c", &script]).unwrap();
}

/// How long the daemon has used a processor so far.
fn cpu_time(knockd: &Knockd) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", knockd.running.pid().unwrap())).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = rest.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

mod at_scale {
    use super::*;

    #[test]
    fn a_hundred_thousand_connections_of_others_cost_little_and_nobody_listens_to_the_kernel() {
        let net = Net::new().unwrap();
        let _echo = echo(&net.server);
        let mut knockd = Knockd::start(&net, &door("Lease = 10\nExtend = connected 1"));
        let others = u32::try_from(testbed::scale(10_000, 100_000)).unwrap();
        fill(&net.server, others);
        open(&net, &mut knockd);
        let _session = session(&net);
        wait_for_shown(&net, "1 connection keeps it open for ");
        let (cpu, begin) = (cpu_time(&knockd), Instant::now());
        std::thread::sleep(Duration::from_secs(20));
        let (used, took) = (cpu_time(&knockd).saturating_sub(cpu), begin.elapsed());
        let share = used.as_secs_f64() / took.as_secs_f64();
        println!("{others} connections of others: {:.1} % of a processor", share * 100.0);
        assert!(share <= 0.06, "{share}");
        assert_eq!(status_json(&net)["leases"]["listed"][0]["connections"], 1);
        let count =
            sh(&net.server, "cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse::<u32>().unwrap();
        assert!(count >= others, "{count}");
        // Each line is a netlink socket: its protocol (12 is netfilter), process, and groups, of which conntrack has six.
        let sockets = sh(&net.server, "cat /proc/net/netlink");
        let is_of_netfilter = |line: &&str| line.split_whitespace().nth(1) == Some("12");
        let groups = |line: &str| u32::from_str_radix(line.split_whitespace().nth(3).unwrap(), 16).unwrap();
        let all: Vec<_> = sockets.lines().filter(is_of_netfilter).map(groups).collect();
        assert!(!all.is_empty() && all.iter().all(|groups| groups.trailing_zeros() >= 6), "{sockets}");
    }
}
