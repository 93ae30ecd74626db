//! Knockd's own table under a hammer of connections: nobody gets in, whatever happens to the firewall and to knockd.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod common;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use common::{CONFIG, KNOCKD, Knockd, SOON, has_ipv6, knock, send, sh, status_json, wait_until};
use nix::sys::signal::Signal;
use testbed::{Flags, Frame, Net, Running};

const DOOR: &str = "[options]\nFirewall = nftables\nOnExit = keep\n\
     [ssh]\nSequence = 7101,8202:udp,9303\nOpen = tcp/22\nLease = 600\n";

const KNOCK: &str = "10.9.0.1 7101 8202:udp 9303";

/// Somebody at the client's second address who tries to connect to port 22 all the time, a hundred times at once, and counts how
/// often that worked.
struct Hammer(Running);

impl Hammer {
    fn start(net: &Net) -> Self {
        sh(&net.client, "ip address replace 10.9.0.3/24 dev eth0; rm -f /run/stop");
        let script = "import os, select, socket\n\
            tried = entered = 0\n\
            while not os.path.exists('/run/stop') or tried < 5000:\n\
            \x20   poll, sockets = select.poll(), {}\n\
            \x20   for _ in range(100):\n\
            \x20       s = socket.socket(); s.setblocking(False); s.bind(('10.9.0.3', 0))\n\
            \x20       s.connect_ex(('10.9.0.1', 22)); poll.register(s, select.POLLOUT); sockets[s.fileno()] = s\n\
            \x20   tried += 100\n\
            \x20   ready = [sockets[fd] for fd, _ in poll.poll(20)]\n\
            \x20   entered += sum(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 for s in ready)\n\
            \x20   for s in sockets.values(): s.close()\n\
            \x20   if tried == 1000: print('under way', flush=True)\n\
            print('entered', entered, 'of', tried, flush=True)";
        let mut hammer = Self(net.client.spawn(&["python3", "-c", script]).unwrap());
        hammer.0.wait_for_line("under way", SOON).unwrap();
        hammer
    }

    /// Stops it, and returns how often it got in.
    fn stop(mut self, net: &Net) -> usize {
        net.client.write_file("/run/stop", "").unwrap();
        let line = self.0.wait_for_line("entered ", SOON).unwrap().text;
        let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(numbers[1] >= 5000, "{line}");
        numbers[0]
    }
}

fn reaches(net: &Net) -> bool {
    net.client.can_connect(IpAddr::V4(net.server.ipv4), 22).unwrap()
}

fn reload(net: &Net, knockd: &Knockd, config: &str, is_done: impl Fn(&str) -> bool) {
    net.server.write_file(CONFIG, config).unwrap();
    knockd.signal(Signal::SIGHUP);
    wait_until("the reload", || is_done(&sh(&net.server, "nft list table inet knockd")));
}

#[test]
fn twenty_flushes_under_five_thousand_connections_let_nobody_in_and_keep_the_leases() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let fault = Hammer::start(&net);
    assert!(fault.stop(&net) > 0, "without a guard, the hammer gets in");
    let mut knockd = Knockd::start(&net, DOOR);
    knock(&net.client, KNOCK);
    knockd.wait_for("let in for 600 s");
    let before = sh(&net.server, "nft -s list table inet knockd");
    let hammer = Hammer::start(&net);
    net.server.write_file("/run/reloaded.nft", "flush ruleset\ntable inet filter { }\n").unwrap();
    for _ in 0..20 {
        sh(&net.server, "nft flush ruleset; nft -f /run/reloaded.nft");
        let refused = sh(&net.server, "nft delete table inet knockd 2>&1 || true");
        assert!(refused.contains("Operation not permitted"), "{refused}");
    }
    assert_eq!(hammer.stop(&net), 0);
    assert!(reaches(&net));
    let table = sh(&net.server, "nft -s list table inet knockd");
    assert_eq!(table, before);
    assert!(table.contains("10.9.0.2"), "{table}");
}

#[test]
fn no_restart_and_no_reload_lets_anybody_in_and_the_doors_that_stay_keep_their_leases() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    knock(&net.client, KNOCK);
    knockd.wait_for("let in for 600 s");
    let hammer = Hammer::start(&net);
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        knockd.signal(signal);
        knockd.running.wait(SOON).unwrap();
        assert!(reaches(&net), "the lease needs no knockd: {signal}");
        knockd = Knockd::start(&net, DOOR);
        assert_eq!(status_json(&net)["leases"]["listed"][0]["source"], "10.9.0.2", "{signal}");
    }
    let other = "[web]\nSequence = 4000\nOpen = tcp/80\n";
    reload(&net, &knockd, &format!("{DOOR}{other}"), |table| table.contains("tcp dport 80 "));
    knock(&net.client, "10.9.0.1 4000");
    knockd.wait_for("10.9.0.2: web: let in for 30 s");
    let changed = other.replace("tcp/80", "tcp/8080");
    reload(&net, &knockd, &format!("{DOOR}{changed}"), |table| table.contains("tcp dport 8080 "));
    reload(&net, &knockd, &format!("{changed}{DOOR}").replace("600", "500"), |table| {
        table.contains("dport 22 ")
    });
    let table = sh(&net.server, "nft list table inet knockd");
    assert_eq!(table.matches("10.9.0.2").count(), 2, "{table}");
    reload(&net, &knockd, DOOR, |table| !table.contains("tcp dport 8080 "));
    let table = sh(&net.server, "nft list table inet knockd");
    assert_eq!(table.matches("10.9.0.2").count(), 1, "{table}");
    assert!(!table.contains("web"), "{table}");
    reload(&net, &knockd, &format!("{DOOR}{other}"), |table| table.contains("tcp dport 80 "));
    let table = sh(&net.server, "nft list table inet knockd");
    assert_eq!(table.matches("10.9.0.2").count(), 1, "a door that comes back is closed: {table}");
    assert!(reaches(&net));
    assert_eq!(hammer.stop(&net), 0);
    let closing = DOOR.replace("OnExit = keep\n", "");
    reload(&net, &knockd, &closing, |table| !table.contains("tcp dport 80 "));
    knockd.stop();
    assert!(!reaches(&net), "with OnExit = close, the end of knockd closes the doors");
}

#[test]
fn ten_thousand_extensions_refuse_none_of_a_thousand_connections() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let mut knockd = Knockd::start(&net, &DOOR.replace("7101,8202:udp,9303", "7101"));
    let hit = Frame::tcp([10, 9, 0, 2], net.server.ipv4, 7101, Flags::SYN);
    let dropped = || {
        let chain = sh(&net.server, "nft list chain inet knockd tcp_doors");
        chain.split("counter packets ").nth(1).unwrap().split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    assert!(!reaches(&net));
    let before_knock = dropped();
    assert!(before_knock > 0, "the guard counts what it drops");
    send(&net, std::slice::from_ref(&hit));
    knockd.wait_for("let in for 600 s");
    let connect = "import socket\n\
         for _ in range(1000):\n\
         \x20   s = socket.create_connection(('10.9.0.1', 22), 60); s.close()\n\
         print('connected', flush=True)";
    let before = status_json(&net);
    let mut client = net.client.spawn(&["python3", "-c", connect]).unwrap();
    for _ in 0..100 {
        send(&net, &vec![hit.clone(); 100]);
    }
    client.wait_for_line("connected", SOON).unwrap();
    let packets = |status: &serde_json::Value| status["counters"]["packets"].as_u64();
    wait_until("every hit", || {
        packets(&status_json(&net)).unwrap_or(0) >= packets(&before).unwrap_or(0) + 10_000
    });
    assert!(reaches(&net));
    // That a connection takes long might have other reasons, so this does not measure its time.
    assert_eq!(dropped(), before_knock);
}

#[test]
fn neither_fragments_nor_extension_headers_pass_the_guard_and_no_flush_of_conntrack_opens_it() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let ear = "import socket\n\
         s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 53))\n\
         print('ready', flush=True)\n\
         while True: data, peer = s.recvfrom(9999); print('got', len(data), data[:5].decode(), flush=True)";
    let mut ear = net.server.spawn(&["python3", "-c", ear]).unwrap();
    ear.wait_for_line("ready", SOON).unwrap();
    let addresses: Vec<String> = [net.server.ipv4.to_string()]
        .into_iter()
        .chain(has_ipv6(&net).then(|| net.server.ipv6.to_string()))
        .collect();
    let datagram = |word: &str, address: &str| {
        let family = if address.contains(':') { "AF_INET6" } else { "AF_INET" };
        let script = format!(
            "import socket; s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n\
             s.sendto(b'{word}'.ljust(4000, b'.'), ('{address}', 53))"
        );
        net.client.run(&["python3", "-c", &script]).unwrap();
    };
    // IPV6_HOPOPTS and IPV6_DSTOPTS with one padding option.
    let with_header = |option: u8| {
        let script = format!(
            "import socket; s = socket.socket(socket.AF_INET6); s.settimeout(1)\n\
             s.setsockopt(socket.IPPROTO_IPV6, {option}, bytes([0, 0, 1, 4, 0, 0, 0, 0]))\n\
             try: s.connect(('{}', 22)); print('in')\n\
             except TimeoutError: print('out')",
            net.server.ipv6
        );
        net.client.run(&["python3", "-c", &script]).unwrap().trim().to_owned()
    };
    for address in &addresses {
        datagram("first", address);
        ear.wait_for_line("got 4000 first", SOON).unwrap();
    }
    if addresses.len() > 1 {
        assert_eq!((with_header(54), with_header(59)), ("in".to_owned(), "in".to_owned()));
    }
    let config = DOOR.replace("tcp/22", "tcp/22, udp/53");
    let mut knockd = Knockd::start(&net, &config);
    let flush_conntrack = "import socket, struct; s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)\n\
         s.send(struct.pack('=IHHIIBBH', 20, 1 << 8 | 2, 5, 1, 0, 0, 0, 0)); \
         assert struct.unpack_from('=i', s.recv(999), 16)[0] == 0";
    // The sender's earlier datagrams are a flow, which goes on.
    net.server.run(&["python3", "-c", flush_conntrack]).unwrap();
    for address in &addresses {
        datagram("later", address);
    }
    if addresses.len() > 1 {
        assert_eq!((with_header(54), with_header(59)), ("out".to_owned(), "out".to_owned()));
    }
    assert!(!reaches(&net));
    knock(&net.client, KNOCK);
    knockd.wait_for("let in for 600 s");
    net.server.run(&["python3", "-c", flush_conntrack]).unwrap();
    datagram("known", &addresses[0]);
    ear.wait_for_line("got 4000 known", SOON).unwrap();
    let lines: Vec<_> = ear.lines().into_iter().map(|line| line.text).collect();
    assert!(!lines.iter().any(|line| line.contains("later")), "{lines:?}");
    assert!(reaches(&net));
}

#[test]
fn a_door_of_the_firewall_opens_and_closes_without_executing_anything() {
    let net = Net::new().unwrap();
    if net.server.run(&["sh", "-c", "command -v strace"]).is_err() {
        return testbed::skip_until_installed("strace");
    }
    net.server.write_file(CONFIG, DOOR).unwrap();
    let mut command = net.server.command("strace");
    command.args([
        "-f",
        "-e",
        "trace=execve,execveat,fork,vfork",
        "-o",
        "/run/trace",
        KNOCKD,
        "-v",
        "-c",
        CONFIG,
    ]);
    let mut knockd = Knockd::run(&mut command);
    let calls = || {
        let trace = sh(&net.server, "cat /run/trace");
        trace.lines().filter(|line| line.contains("exec") || line.contains("fork")).count()
    };
    let before = calls();
    assert!(before > 0, "that of knockd itself");
    knock(&net.client, KNOCK);
    knockd.wait_for("let in for 600 s");
    net.server.run(&[KNOCKD, "close", "ssh", "10.9.0.2"]).unwrap();
    knockd.wait_for("let in no longer");
    assert_eq!(calls(), before);
}

#[test]
fn with_a_hundred_thousand_leases_the_next_knocker_gets_in_and_the_status_comes_soon() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let config = DOOR.replace("7101,8202:udp,9303", "7101").replace("[ssh]", "MaxOpen = 200000\n[ssh]");
    let _knockd = Knockd::start(&net, &config);
    let frame = |n: u32| Frame::tcp((0x0a10_0000 + n).to_be_bytes(), net.server.ipv4, 7101, Flags::SYN);
    let total = || status_json(&net)["leases"]["total"].as_u64().unwrap();
    for part in 0..200 {
        let frames: Vec<_> = (0..500).map(|n| frame(part * 500 + n)).collect();
        send(&net, &frames);
    }
    wait_until("100,000 leases", || total() >= 99_000);
    let start = Instant::now();
    let leases = total();
    println!("the status of {leases} leases took {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(10));
    let script = "import socket, time\n\
         def syn(port):\n\
         \x20   s = socket.socket(); s.setblocking(False); s.connect_ex(('10.9.0.1', port)); return s\n\
         start = time.monotonic(); knock = syn(7101)\n\
         while True:\n\
         \x20   s = socket.socket(); s.settimeout(0.002)\n\
         \x20   try: s.connect(('10.9.0.1', 22)); break\n\
         \x20   except OSError: pass\n\
         print('in after', round((time.monotonic() - start) * 1000, 1), 'ms', flush=True)";
    let said = net.client.run(&["python3", "-c", script]).unwrap();
    println!("{said}");
    assert!(reaches(&net));
}
