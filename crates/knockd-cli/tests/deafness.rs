//! A daemon that does not read packets knows it, says it and mends it, or ends with an error.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};
use std::{io, thread};

use common::processes::{next_decoder, proc_status, processes, signal};
use common::{
    CONFIG, KNOCKD, Knockd, SOON, has_ipv6, hit, is_root, send, sh, status_json, wait_for_file, wait_until,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use testbed::{Flags, Frame, Net, Running};

const DOOR: &str = "[door]\nsequence = 1,2,3\ntcpflags = syn\n";

const DEAF: &str = "eth0: packet decoder has stopped reading; retrying";

fn opens(net: &Net, knockd: &mut Knockd) {
    hit(net, 9, &[1, 2, 3]);
    knockd.wait_for("10.9.0.9: door: OPEN SESAME");
}

/// Hides the processes, so nothing can start another decoder.
fn hide_proc(net: &Net) {
    sh(&net.server, "mount -t tmpfs -o ro tmpfs /proc");
}

/// Returns the decoder's end of the socket for its records, as if it had been taken over.
fn take_over(decoder: i32) -> rustix::fd::OwnedFd {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let process = pidfd_open(Pid::from_raw(decoder).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_getfd(process, 1, PidfdGetfdFlags::empty()).unwrap()
}

/// A record that has only a kind, as in record.rs.
fn record(kind: u8) -> [u8; 40] {
    let mut record = [0; 40];
    record[0] = kind;
    record
}

#[test]
fn a_decoder_that_was_taken_over_cannot_fill_the_log_and_what_it_says_of_links_means_nothing() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    let (_, decoder) = processes(&knockd);
    let output = take_over(decoder);
    // This kind was "the interface is gone" once.
    for _ in 0..1000 {
        rustix::io::write(&output, &record(2)).unwrap();
    }
    opens(&net, &mut knockd);
    assert_eq!((knockd.count("eth0 is down"), processes(&knockd).1), (0, decoder));
    // "Ready" can have a line.
    while rustix::io::write(&output, &record(4)).is_ok() {}
    knockd.wait_for("eth0: packet decoder sent malformed records; retrying");
    next_decoder(&knockd, decoder);
    opens(&net, &mut knockd);
    assert!(knockd.lines().len() < 20, "{:#?}", knockd.lines());
}

#[test]
fn a_decoder_that_was_taken_over_can_open_a_door_with_a_fixed_sequence_for_anybody() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, DOOR);
    let (_, decoder) = processes(&knockd);
    let output = take_over(decoder);
    for port in [1, 2, 3] {
        let mut hit = record(1);
        hit[1..6].copy_from_slice(&[0x40, 6, Flags::SYN.0, 0, port]);
        hit[8..12].copy_from_slice(&[192, 0, 2, 77]);
        hit[24..28].copy_from_slice(&net.server.ipv4.octets());
        rustix::io::write(&output, &hit).unwrap();
    }
    knockd.wait_for("192.0.2.77: door: OPEN SESAME");
}

/// A service manager's socket, in a directory that the hosts see as well.
fn service_manager() -> (TempDir, UnixDatagram) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    manager.set_nonblocking(true).unwrap();
    (directory, manager)
}

#[test]
fn without_proc_the_start_ends_with_an_error_that_says_what_to_do() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, &format!("[options]\nlogfile = /run/log\n{DOOR}")).unwrap();
    hide_proc(&net);
    let (directory, manager) = service_manager();
    for detach in ["-v", "-d"] {
        let mut command = net.server.command(KNOCKD);
        command
            .args(["-c", CONFIG, "-i", "eth0", detach])
            .env("NOTIFY_SOCKET", directory.path().join("notify"));
        let mut knockd = Running::start(&mut command).unwrap();
        assert_eq!(knockd.wait(SOON).unwrap().code(), Some(1));
        let lines: Vec<_> = knockd.lines().into_iter().map(|line| line.text).collect();
        let what = if detach == "-d" { "detach" } else { "listen on eth0: cannot start the packet decoder" };
        let error = format!("knockd: cannot {what} without /proc; run: mount -t proc proc /proc");
        assert_eq!(lines, [error]);
        let told = manager.recv(&mut [0; 512]).unwrap_err();
        assert_eq!(told.kind(), io::ErrorKind::WouldBlock, "the service manager is told nothing");
    }
}

#[test]
fn while_no_decoder_can_be_started_everybody_is_told_and_the_watchdog_is_not_fed() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, DOOR).unwrap();
    let (directory, manager) = service_manager();
    let told = || {
        let mut all = String::new();
        let mut buffer = [0; 512];
        loop {
            match manager.recv(&mut buffer) {
                Ok(length) => all.extend([&String::from_utf8_lossy(&buffer[..length]), "\n"]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return all;
                }
            }
        }
    };
    let mut command = net.server.command(KNOCKD);
    command
        .args(["-c", CONFIG, "-v"])
        .env("NOTIFY_SOCKET", directory.path().join("notify"))
        .env("WATCHDOG_USEC", "1000000");
    let mut knockd = Knockd::run(&mut command);
    let (_, decoder) = processes(&knockd);
    wait_until("a beat", || told().contains("WATCHDOG=1"));
    hide_proc(&net);
    signal(decoder, Signal::SIGKILL);
    knockd.wait_for("eth0: packet decoder killed by signal 9; retrying");
    knockd.wait_for(
        "eth0: cannot start the packet decoder without /proc; run: mount -t proc proc /proc; retrying",
    );
    wait_until("the service manager is told", || told().contains("STATUS=Listening on no interface"));
    let status = status_json(&net);
    assert_eq!(status["interfaces"][0]["listening"], false);
    assert!(status["health"]["capture_problem"].as_str().unwrap().starts_with("eth0: "), "{status}");
    wait_until("no beat for six times as long as they take", || {
        drop(told());
        thread::sleep(Duration::from_secs(3));
        !told().contains("WATCHDOG=1")
    });
    // What comes meanwhile waits.
    hit(&net, 7, &[1, 2, 3]);
    sh(&net.server, "umount /proc");
    knockd.wait_for("10.9.0.7: door: OPEN SESAME");
    wait_until("a beat again", || told().contains("WATCHDOG=1"));
    let status = status_json(&net);
    assert_eq!(status["interfaces"][0]["listening"], true);
    opens(&net, &mut knockd);
    assert_eq!(knockd.count("cannot start the packet decoder"), 1, "it was tried many times");
}

#[test]
fn the_shared_user_nobody_is_named_as_a_risk_and_a_user_of_its_own_is_none() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let risk = "runs as user nobody, whose other processes can stop it; create the user knockd";
    let start = |log: &str| {
        let config = format!("[options]\nlogfile = {log}\n{DOOR}");
        let mut knockd = Knockd::start(&net, &config);
        let (_, decoder) = processes(&knockd);
        opens(&net, &mut knockd);
        let user = proc_status(decoder, "Uid").split(' ').next().unwrap().to_owned();
        let health = status_json(&net)["health"]["decoder"].as_str().unwrap_or_default().contains(risk);
        assert_eq!(wait_for_file(&net.server, log, "OPEN SESAME").contains(risk), health);
        (user, health)
    };
    sh(&net.server, "sed /^knockd:/d /etc/passwd >/run/users; mount --bind /run/users /etc/passwd");
    assert_eq!(start("/run/log"), ("65534".to_owned(), true));
    let own = common::with_own_user(&net);
    assert_eq!(start("/run/other"), (own.to_owned(), false));
}

mod at_scale {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_decoder_that_does_not_read_is_replaced_soon_after_the_first_packet() {
        let net = Net::new().unwrap();
        let mut knockd = Knockd::start(&net, DOOR);
        opens(&net, &mut knockd);
        for _ in 0..2 {
            let (_, decoder) = processes(&knockd);
            signal(decoder, Signal::SIGSTOP);
            wait_until("the stop", || proc_status(decoder, "State").starts_with('T'));
            let sent = Instant::now();
            hit(&net, 9, &[1]);
            let line = knockd.wait_for(DEAF);
            let after = line.at - sent;
            println!("said {after:?} after the packet");
            assert!(after < testbed::scale(SOON, Duration::from_secs(2)));
            next_decoder(&knockd, decoder);
            opens(&net, &mut knockd);
        }
        assert_eq!(status_json(&net)["health"]["capture_problem"], serde_json::Value::Null);
    }

    #[test]
    #[ignore = "a decoder without a processor for 1.4 s is deaf; cargo xtask test --long runs it"]
    fn a_decoder_that_reads_nothing_but_junk_is_not_deaf() {
        let net = Net::new().unwrap();
        if !has_ipv6(&net) {
            return;
        }
        let mut knockd = Knockd::start(&net, DOOR);
        let (_, decoder) = processes(&knockd);
        // The filter does not look behind extension headers, and later fragments have no ports.
        let junk = Frame::tcp(net.client.ipv6, net.server.ipv6, 1, Flags::SYN).fragment(100, false);
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            send(&net, &vec![junk.clone(); 20]);
        }
        opens(&net, &mut knockd);
        assert_eq!(status_json(&net)["counters"]["packets"], 3, "the others were junk");
        assert_eq!((knockd.count(DEAF), processes(&knockd).1), (0, decoder));
    }

    /// A kill can cost the knock that is under way, and no other: packets wait from a moment later on, and not for
    /// long.
    #[test]
    fn knocks_open_while_the_decoder_is_killed_at_random() {
        let count = testbed::scale(10, 100);
        let net = Net::new().unwrap();
        let knockd = Knockd::start(&net, DOOR);
        let (daemon, _) = processes(&knockd);
        let has_ended = AtomicBool::new(false);
        let mut ends = Vec::new();
        let kills = thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let mut kills = 0_usize;
                while !has_ended.load(Ordering::Relaxed) {
                    let chance = RandomState::new().hash_one(kills) % 2000;
                    thread::sleep(Duration::from_millis(chance));
                    for decoder in common::processes::decoders(daemon) {
                        let pid = nix::unistd::Pid::from_raw(decoder);
                        // It may be gone.
                        kills += usize::from(nix::sys::signal::kill(pid, Signal::SIGKILL).is_ok());
                    }
                }
                kills
            });
            for neighbour in 10..10 + count {
                for port in [1, 2, 3] {
                    thread::sleep(Duration::from_millis(100));
                    hit(&net, neighbour, &[port]);
                }
                ends.push((format!("10.9.0.{neighbour}: door: OPEN SESAME"), Instant::now()));
            }
            has_ended.store(true, Ordering::Relaxed);
            killer.join().unwrap()
        });
        let mut opened = 0;
        wait_until("what waits is read", || {
            let before = std::mem::replace(&mut opened, knockd.count("OPEN SESAME"));
            thread::sleep(Duration::from_secs(1));
            opened == before && status_json(&net)["interfaces"][0]["listening"] == true
        });
        let lines = knockd.running.lines();
        let in_time = |(text, end): &&(String, Instant)| {
            let line = lines.iter().find(|line| line.text == *text);
            line.is_some_and(|line| line.at < *end + Duration::from_millis(2500))
        };
        let soon = ends.iter().filter(in_time).count();
        println!("{opened} of {count} knocks opened, {soon} of them soon; {kills} kills");
        assert!(soon + kills >= count.into(), "{soon} of {count}; {kills} kills");
    }
}
