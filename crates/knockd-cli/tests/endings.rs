//! What ends with a door (`At_End`), and what ends a door (`Uses`), in the real kernel.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::sessions::{
    door, echo, forget_connections, listener, open, reaches, server_sockets, session, session_with, shown,
    talker,
};
use common::{CONFIG, KNOCKD, Knockd, SOON, has_ipv6, knock, sh, status_json, wait_until};
use testbed::Net;

#[test]
fn a_connection_that_another_firewall_drops_does_not_use_a_door_up() {
    let net = Net::new().unwrap();
    let mut echo = echo(&net.server);
    let mut knockd = Knockd::start(&net, &door("Lease = 600\nUses = 1"));
    sh(
        &net.server,
        "nft add table inet other; nft add chain inet other input '{ type filter hook input priority 10; }'
         nft add rule inet other input tcp dport 22 drop",
    );
    open(&net, &mut knockd);
    assert!(!reaches(&net) && !reaches(&net));
    sh(&net.server, "nft delete table inet other");
    assert!(reaches(&net));
    echo.wait_for_line("accepted", SOON).unwrap();
    assert!(!reaches(&net));
}

#[test]
fn a_door_for_one_use_leads_to_a_container_once() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &door("Lease = 600\nUses = 1"));
    // As a published port of a container.
    sh(
        &net.server,
        "ip netns add inner && ip link add outer type veth peer name inner netns inner
         ip address add 10.8.7.1/24 dev outer && ip link set outer up
         ip -n inner address add 10.8.7.2/24 dev inner && ip -n inner link set inner up
         ip -n inner route add default via 10.8.7.1
         echo 1 >/proc/sys/net/ipv4/ip_forward
         nft add table ip docker
         nft add chain ip docker pre '{ type nat hook prerouting priority dstnat; }'
         nft add rule ip docker pre tcp dport 22 dnat to 10.8.7.2:80",
    );
    let serve = "import socket; s = socket.create_server(('', 80)); print('ready', flush=True)\n\
                 while True: s.accept()";
    let mut inner = net.server.spawn(&["ip", "netns", "exec", "inner", "python3", "-c", serve]).unwrap();
    inner.wait_for_line("ready", SOON).unwrap();
    assert!(!reaches(&net));
    for _ in 0..3 {
        open(&net, &mut knockd);
        assert!(reaches(&net));
        assert!(!reaches(&net));
    }
}

#[test]
fn a_door_that_cuts_ends_a_talking_session_at_once_and_the_socket_of_its_server() {
    let net = Net::new().unwrap();
    let _echo = echo(&net.server);
    net.client.write_file("/run/talk", "").unwrap();
    for (lease, closes) in [("600", true), ("3", false)] {
        let mut knockd = Knockd::start(&net, &door(&format!("Lease = {lease}\nAt_End = cut")));
        open(&net, &mut knockd);
        let mut session = session(&net);
        assert_eq!(server_sockets(&net), 1);
        if closes {
            net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
        }
        let closed = knockd.wait_for("10.9.0.2: ssh: let in no longer").at;
        let broken = session.wait_for_line("broken: ", SOON).unwrap().at;
        let later = broken.saturating_duration_since(closed);
        assert!(later < Duration::from_secs(testbed::scale(10, 1)), "{later:?}");
        knockd.wait_for("10.9.0.2: ssh: cut 1 connection");
        assert_eq!(server_sockets(&net), 0);
        knockd.stop();
    }
}

#[test]
fn deleting_the_entry_of_a_connection_in_place_of_the_rule_cuts_no_session_whose_server_talks() {
    for (at_end, deletes) in [("cut", false), ("keep", true)] {
        let net = Net::new().unwrap();
        let _service = talker(&net.server);
        let mut knockd = Knockd::start(&net, &door(&format!("Lease = 600\nAt_End = {at_end}")));
        open(&net, &mut knockd);
        let mut session = listener(&net);
        net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
        knockd.wait_for("10.9.0.2: ssh: let in no longer");
        if !deletes {
            session.wait_for_line("broken: ", SOON).unwrap();
            assert_eq!(server_sockets(&net), 0);
            continue;
        }
        wait_until("it is deleted", || forget_connections(&net));
        let heard = session.lines().len();
        wait_until("the session goes on", || session.lines().len() > heard + 50);
        assert_eq!(server_sockets(&net), 1);
        assert!(!reaches(&net), "the door is closed");
    }
}

#[test]
fn a_door_that_cuts_ends_a_silent_session_and_that_of_a_source_that_never_knocked() {
    let net = Net::new().unwrap();
    let mut echo = echo(&net.server);
    let mut stranger = session(&net);
    let mut knockd = Knockd::start(&net, &door("Lease = 600\nAt_End = cut"));
    net.client.write_file("/run/talk", "").unwrap();
    stranger.wait_for_line("broken: ", SOON).unwrap();
    sh(&net.client, "rm /run/talk");
    open(&net, &mut knockd);
    let mut silent = session(&net);
    net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
    echo.wait_for_line("broken", SOON).unwrap();
    net.client.write_file("/run/talk", "").unwrap();
    silent.wait_for_line("broken: ", SOON).unwrap();
}

#[test]
fn over_ipv6_a_door_follows_connections_and_cuts_them_as_well() {
    let net = Net::new().unwrap();
    if !has_ipv6(&net) {
        return;
    }
    let (server, client) = (net.server.ipv6, net.client.ipv6);
    let _echo = echo(&net.server);
    let mut knockd = Knockd::start(&net, &door("Lease = 60\nExtend = idle 6\nAt_End = cut"));
    knock(&net.client, &format!("-6 {server} 7101 8202:udp 9303"));
    knockd.wait_for(&format!("{client}: ssh: let in for "));
    net.client.write_file("/run/talk", "").unwrap();
    let mut six = session_with(&net, server.into());
    open(&net, &mut knockd);
    // Its server's socket is one of IPv6.
    let mut four = session(&net);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(14) {
        assert_eq!(server_sockets(&net), 2);
    }
    sh(&net.client, "rm /run/talk");
    wait_until("both are cut", || knockd.count("ssh: cut 1 connection") == 2);
    assert_eq!(server_sockets(&net), 0);
    net.client.write_file("/run/talk", "").unwrap();
    six.wait_for_line("broken: ", SOON).unwrap();
    four.wait_for_line("broken: ", SOON).unwrap();
}

#[test]
fn without_the_right_to_end_sockets_a_door_that_cuts_says_so_and_refuses_packets() {
    let net = Net::new().unwrap();
    let _echo = echo(&net.server);
    net.client.write_file("/run/talk", "").unwrap();
    net.server.write_file(CONFIG, &door("Lease = 600\nAt_End = cut")).unwrap();
    let filter = "import ctypes, os, struct, sys\n\
        # socket(AF_NETLINK, ..., NETLINK_SOCK_DIAG) fails with EPROTONOSUPPORT.\n\
        code = [(0x20, 0, 0, 0), (0x15, 0, 5, 41), (0x20, 0, 0, 16), (0x15, 0, 3, 16), (0x20, 0, 0, 32),\n\
        \x20       (0x15, 0, 1, 4), (0x06, 0, 0, 0x00050000 | 93), (0x06, 0, 0, 0x7fff0000)]\n\
        text = b''.join(struct.pack('HBBI', *line) for line in code)\n\
        buffer = ctypes.create_string_buffer(text)\n\
        program = struct.pack('HxxxxxxP', len(code), ctypes.addressof(buffer))\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        assert libc.prctl(22, 2, program) == 0, ctypes.get_errno()\n\
        os.execv(sys.argv[1], sys.argv[1:])";
    let mut command = net.server.command("python3");
    command.args(["-c", filter, KNOCKD, "-v", "-c", CONFIG]);
    let mut knockd = Knockd::run(&mut command);
    open(&net, &mut knockd);
    let mut session = session(&net);
    net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
    knockd.wait_for(
        "10.9.0.2: ssh: cannot end its connections on this host, only refuse their packets: Protocol not supported",
    );
    session.wait_for_line("broken: ", SOON).unwrap();
}

mod at_scale {
    use super::*;

    #[test]
    fn the_first_connection_closes_a_door_for_one_use_however_many_come_at_once() {
        let net = Net::new().unwrap();
        let mut echo = echo(&net.server);
        let mut knockd = Knockd::start(&net, &door("Lease = 600\nUses = 1"));
        let script = "import select, socket\n\
            poll, sockets = select.poll(), {}\n\
            for _ in range(40):\n\
        \x20   s = socket.socket(); s.setblocking(False); s.connect_ex(('10.9.0.1', 22))\n\
        \x20   poll.register(s, select.POLLOUT); sockets[s.fileno()] = s\n\
            entered = set()\n\
            while not entered or poll.poll(300):\n\
        \x20   for fd, _ in poll.poll(60000):\n\
        \x20       poll.unregister(fd); entered.add(fd)\n\
            print(sum(sockets[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 for fd in entered))";
        for round in 0..testbed::scale(10, 50) {
            open(&net, &mut knockd);
            if round == 0 {
                assert!(shown(&net).contains("or with the first connection"), "{}", shown(&net));
            }
            let entered = net.client.run(&["python3", "-c", script]).unwrap();
            assert_eq!(entered.trim(), "1", "knock {round}");
            echo.wait_for_line("accepted", SOON).unwrap();
        }
        assert!(shown(&net).contains("used  its one connection was made"), "{}", shown(&net));
        assert_eq!(status_json(&net)["leases"]["listed"][0]["state"], "used");
    }
}
