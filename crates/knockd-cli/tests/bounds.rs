//! What strangers and other users of the machine cannot do to the log and to the loop, however fast they are.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::{CONFIG, KNOCKD, Knockd, hit, send, sh, status_json, wait_for_file, wait_until};
use testbed::{Flags, Frame, Net, Running, scale};

fn packets(net: &Net) -> u64 {
    status_json(net)["counters"]["packets"].as_u64().unwrap()
}

/// Sends so many SYNs to a port, each from another source; never more at once than have room in the kernel's buffer.
fn flood(net: &Net, count: u32, port: u16) {
    let before = packets(net);
    for chunk in (0..count).collect::<Vec<_>>().chunks(4000) {
        let source = |number: &u32| Ipv4Addr::from_bits(0x1000_0000 + number);
        let frames = chunk.iter().map(|number| Frame::tcp(source(number), net.server.ipv4, port, Flags::SYN));
        send(net, &frames.collect::<Vec<_>>());
        let sent = u64::from(chunk.last().unwrap() + 1);
        wait_until("all of them are read", || packets(net) >= before + sent);
    }
}

fn flood_of_openings(count: u32) {
    let net = Net::new().unwrap();
    let config = "[options]\nlogfile = /run/log\n[door]\nsequence = 1\n";
    let mut knockd = Knockd::start(&net, config);
    let start = Instant::now();
    flood(&net, count, 1);
    assert_eq!(status_json(&net)["counters"]["opens"], count);
    knockd.stop();
    let minutes = usize::try_from(start.elapsed().as_secs() / 60).unwrap() + 1;
    let log = sh(&net.server, "cat /run/log");
    let written = log.lines().filter(|line| line.ends_with(": door: OPEN SESAME")).count();
    let summaries: Vec<_> =
        log.lines().filter_map(|line| Some(line.split_once(" about openings (")?.1)).collect();
    let openings = |summary: &&str| summary.split(' ').next().unwrap().parse::<usize>().unwrap();
    let left_out: usize = summaries.iter().map(openings).sum();
    assert!(written >= 6000 && written <= 6000 * minutes, "{written} in {minutes} minutes");
    assert_eq!(written + left_out, count as usize, "{summaries:?}");
    assert!(summaries.iter().all(|summary| summary.contains(" 1 door, ")), "{summaries:?}");
    println!("{count} openings in {:?}: {} bytes in the log", start.elapsed(), log.len());
}

/// Starts `knockd -v` with a reader of its output that takes a page of the pipe every 0.4 seconds.
fn with_slow_reader(net: &Net, config: &str) -> Running {
    net.server.write_file(CONFIG, &format!("[options]\nlogfile = /run/log\n{config}")).unwrap();
    let reader = "import os, time\nwhile os.read(0, 4096): time.sleep(0.4)";
    let script = format!("'{KNOCKD}' -v -c {CONFIG} | python3 -c '{reader}'");
    let running = net.server.spawn(&["sh", "-c", &script]).unwrap();
    wait_for_file(&net.server, "/run/log", "starting up, listening on eth0");
    running
}

#[test]
fn a_slow_reader_of_the_output_holds_up_no_knock() {
    let net = Net::new().unwrap();
    // Long lines, so that they soon fill the pipe.
    let config = format!("[door]\nsequence = 1\ncommand = echo %IP% >>/run/opened # {}\n", "x".repeat(3000));
    let _running = with_slow_reader(&net, &config);
    for knocker in (2..=250).chain(2..=52) {
        hit(&net, knocker, &[1]);
    }
    // A daemon that waits for its reader starts about one a second.
    wait_until("300 commands have run", || {
        let opened = net.server.run(&["cat", "/run/opened"]).unwrap_or_default();
        opened.lines().count() == 300
    });
    assert_is_quick(&net);
}

/// Shows that the loop was never away for long. It would be for 8 seconds if it read the ports of 60,000 sockets
/// itself, and for a second with each line of a batch if it waited for the reader.
fn assert_is_quick(net: &Net) {
    let longest = Duration::from_micros(status_json(net)["health"]["longest_iteration_us"].as_u64().unwrap());
    assert!(longest > Duration::ZERO && longest < Duration::from_secs(scale(10, 3)), "{longest:?}");
    println!("longest iteration: {longest:?}");
}

/// Keeps sockets open, subscribes fifteen times, and does not read the output.
fn attack_the_loop(sockets: u32, count: u32) {
    let net = Net::new().unwrap();
    let server = &net.server;
    let _running = with_slow_reader(&net, "[door]\nsequence = 1:udp,2,3\ncommand = echo open >/run/opened\n");
    // One process may have no more than a thousand. All end with the first.
    let script = format!(
        "import os, socket, time
alive, end = os.pipe()
bound, done = os.pipe()
for first in range(2000, {sockets} + 2000, 500):
    if os.fork() == 0:
        os.close(end)
        sockets = []
        for port in range(first, min(first + 500, {sockets} + 2000)):
            sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sockets[-1].bind(('127.0.0.1', port))
        os.write(done, b'.')
        os.read(alive, 1)
        os._exit(0)
    os.read(bound, 1)
print('bound', flush=True)
time.sleep(1000)"
    );
    let mut user = server.spawn(&["python3", "-c", &script]).unwrap();
    user.wait_for_line("bound", common::SOON).unwrap();
    // One seat is left for the status.
    let tracers: Vec<_> = (0..15).map(|_| server.spawn(&[KNOCKD, "trace"]).unwrap()).collect();
    wait_until("all listen", || tracers.iter().all(|tracer| !tracer.lines().is_empty()));
    flood(&net, count, 2);
    send(&net, &[Frame::udp([10, 9, 0, 3], server.ipv4, 1, b"")]);
    hit(&net, 3, &[2, 3]);
    wait_for_file(server, "/run/opened", "open");
    assert_is_quick(&net);
}

mod at_scale {
    use super::*;

    #[test]
    fn openings_at_full_speed_write_6000_lines_a_minute_and_one_that_counts_the_rest() {
        flood_of_openings(scale(10_000, 700_000));
    }

    #[test]
    fn no_reader_tracer_or_socket_keeps_the_loop_away_for_long() {
        // Few users may have more ports.
        attack_the_loop(scale(600, 60_000), scale(20_000, 200_000));
    }

    #[test]
    #[ignore = "it needs two idle processors; cargo xtask test --long runs it"]
    fn fifteen_tracers_cost_few_packets() {
        let (none, many) = (read_with_tracers(0), read_with_tracers(15));
        println!("of all packets, {none:.1} % are read without a tracer, {many:.1} % with fifteen");
        // If each tracer were told of every packet, fifteen would cost nine tenths of those that are read.
        assert!(many >= none * 0.7);
    }

    /// How many percent of the packets that the generator sends at its full speed are read.
    #[allow(clippy::cast_precision_loss, reason = "a percentage")]
    fn read_with_tracers(count: usize) -> f64 {
        let net = Net::new().unwrap();
        let config = "[options]\nlogfile = /run/log\n[door]\nsequence = 1,2,3\ntcpflags = syn\n";
        net.server.write_file(CONFIG, config).unwrap();
        let _knockd = net.server.spawn(&["taskset", "-c", "1", KNOCKD, "-c", CONFIG]).unwrap();
        wait_for_file(&net.server, "/run/log", "starting up, listening on eth0");
        let tracer = format!("exec '{KNOCKD}' trace >/dev/null");
        let trace = |_| net.server.spawn(&["taskset", "-c", "1", "sh", "-c", &tracer]).unwrap();
        let _tracers: Vec<_> = (0..count).map(trace).collect();
        wait_until("all listen", || sh(&net.server, "cat /run/log").matches(": trace").count() == count);
        let flood = testbed::build("bench", "flood").unwrap();
        let flood = format!("{} --rate 0 --count 3000000 --ports 1,2", flood.to_str().unwrap());
        let said = sh(&net.client, &flood);
        // It stops after a minute, however many it has sent.
        let sent: u64 = said.lines().last().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let counter = |name: &str| status_json(&net)["counters"][name].as_u64().unwrap();
        // The drops are counted a second after the first.
        wait_until("every packet is read or dropped", || counter("packets") + counter("dropped") >= sent);
        100.0 * counter("packets") as f64 / sent as f64
    }
}
