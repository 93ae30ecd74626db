//! The daemon is killed at random moments, again and again, and in the end every door is closed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use common::{CONFIG, KNOCKD, Knockd, SOON, sh, syn, wait_until};
use nix::sys::signal::Signal;
use testbed::{Net, Running, scale};

const DOOR: &str = "
[options]
logfile = /run/knockd.log
[door]
sequence = 1000,2000
start_command = echo start %IP% >> /run/commands
cmd_timeout = 1
stop_command = echo stop %IP% >> /run/commands
[slow]
sequence = 3000,4000
start_command = sleep 0.5; echo start slow-%IP% >> /run/commands
cmd_timeout = 0
stop_command = echo stop slow-%IP% >> /run/commands
";

/// Numbers that differ from run to run; the seed is printed when the test fails.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u32) -> u32 {
        // The generator of Knuth's MMIX; its upper bits are good enough to choose a moment.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 33).unwrap() % limit
    }
}

mod at_scale {
    use super::*;

    #[test]
    fn after_many_kills_every_start_command_is_followed_by_its_stop_command() {
        let rounds = scale(20, 2000);
        let seed: u64 = RandomState::new().hash_one(());
        println!("seed {seed}");
        let mut chance = Chance(seed);
        let net = Net::new().unwrap();
        // With the numbers of the server's own processes, as on every machine.
        sh(&net.server, "mount -t proc proc /proc");
        net.server.write_file(CONFIG, DOOR).unwrap();
        // On a busy machine few knocks are heard before the kill.
        let has_opened_enough = || {
            sh(&net.server, "grep -c start /run/commands || true")
                .trim()
                .parse::<u32>()
                .is_ok_and(|n| n > rounds / 4)
        };
        for round in 0.. {
            if round >= rounds && has_opened_enough() {
                break;
            }
            assert!(round < 10 * rounds, "hardly a door was opened");
            let mut running = Running::start(net.server.command(KNOCKD).args(["-c", CONFIG, "-v"])).unwrap();
            // In some rounds it has not even begun to listen when it is killed.
            if chance.below(10) > 0 {
                wait_until("it listens", || {
                    running.lines().iter().any(|line| line.text.contains("listening on"))
                });
            }
            let knockers: Vec<_> =
                (0..=chance.below(4)).map(|_| 3 + u8::try_from(chance.below(200)).unwrap()).collect();
            let frames: Vec<_> = knockers
                .iter()
                .flat_map(|&knocker| {
                    [1000, 2000, 3000, 4000].map(|port| syn(&net, knocker, port).bytes().unwrap())
                })
                .collect();
            net.client.send_frames(&frames).unwrap();
            std::thread::sleep(Duration::from_micros(u64::from(chance.below(20_000))));
            running.signal(Signal::SIGKILL).unwrap();
            // On a busy machine, the kernel takes its time to close what it had open.
            running.wait(SOON).unwrap();
        }

        let mut last = Knockd::start(&net, DOOR);
        wait_until("every lease is over", || {
            sh(&net.server, "ls /var/lib/knockd").lines().all(|name| name == "lock")
        });
        last.stop();
        let log = sh(&net.server, "cat /run/knockd.log");
        assert!(!log.contains("damaged") && !log.contains("cannot"), "{log}");

        let commands = sh(&net.server, "cat /run/commands");
        let mut last_of = HashMap::new();
        for line in commands.lines() {
            let (command, knocker) = line.split_once(' ').unwrap();
            last_of.insert(knocker, command);
        }
        let open: Vec<_> = last_of.iter().filter(|(_, command)| **command != "stop").collect();
        assert!(open.is_empty(), "still open: {open:?}\n{commands}");
    }
}
