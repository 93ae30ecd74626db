//! Both programs on one interface.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use conformance::Subject;
use knockd_core::Packet;
use testbed::{Flags, Frame, Net, Running, Stream};

use crate::scene::{self, Scene};

/// So many packets fit into the queues of the kernel and of both programs; before the next the programs must have
/// looked at them.
const AT_ONCE: usize = 500;
const SOON: Duration = Duration::from_secs(60);

/// The first is begun before everything else and never completed, because knockd 0.8 forgets everybody's attempts when
/// the oldest of them ends. The second, for a witness, shows that a program has looked at everything sent before.
const GUARDS: &str = "
[guard]
sequence = 65001:udp,65002:udp
seq_timeout = 100000
[seen]
sequence = 65000
";
const GUARD: &str = "198.51.100.251";
const WITNESSES: &str = "198.51.101.";
/// How long to wait for the answer to a witness before it is sent again.
const ANSWER: Duration = Duration::from_secs(2);

/// A server on which both programs listen to the same packets, ours first.
pub(crate) struct Pair {
    net: Net,
    programs: [Option<&'static str>; 2],
}

/// What a program has printed.
pub(crate) struct Said {
    /// Its lines, without those about the guards.
    pub(crate) lines: Vec<String>,
    /// The indices of the doors that each source has opened, in order.
    pub(crate) opens: BTreeMap<IpAddr, Vec<usize>>,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let net = Net::new().expect("two hosts");
        net.server.run(&["ip", "address", "add", &format!("{}/24", scene::OWN[1]), "dev", "eth0"]).unwrap();
        let programs = [Subject::Ours, Subject::Theirs]
            .map(|subject| subject.knockd().map(|path| path.to_str().unwrap()));
        if programs[1].is_none() {
            println!("There is no knockd 0.8 here: ours is compared with the models alone.");
        }
        Self { net, programs }
    }

    /// Starts the programs with the doors of the scene, sends the packets, and ends the programs.
    pub(crate) fn run(&mut self, scene: &Scene, packets: &[Packet]) -> [Option<Said>; 2] {
        let doors = format!("{}{GUARDS}", scene.config);
        // Ours would take some of the sources for scanners, which 0.8 does not know.
        let configs = [format!("[options]\nScanLimit = 0\n{doors}"), doors];
        let paths = ["/run/ours.conf", "/run/theirs.conf"];
        let mut running: [Option<Running>; 2] = [0, 1].map(|index| {
            let program = self.programs[index]?;
            self.net.server.write_file(paths[index], &configs[index]).unwrap();
            Some(self.net.server.spawn(&[program, "-v", "-c", paths[index]]).unwrap())
        });
        for running in running.iter_mut().flatten() {
            running.wait_for_line("listening on ", SOON).unwrap();
        }

        let own = scene::OWN[0];
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let guard = Frame::udp(address(GUARD), own, 65001, b"\0").bytes().unwrap();
        let mut frames = vec![guard];
        let mut packets = packets.iter().map(scene::frame);
        for number in 1.. {
            // Each has an address of its own, so that no late answer counts for the next.
            let witness = format!("{WITNESSES}{number}");
            let seen = Frame::tcp(address(&witness), own, 65000, Flags::SYN).bytes().unwrap();
            frames.push(seen.clone());
            self.net.client.send_frames(&frames).unwrap();
            for running in running.iter_mut().flatten() {
                let answer = format!("{witness}: seen: OPEN SESAME");
                let deadline = Instant::now() + SOON;
                while let Err(error) = running.wait_for_line(&answer, ANSWER) {
                    assert!(Instant::now() < deadline, "{error:#}");
                    self.net.client.send_frames(std::slice::from_ref(&seen)).unwrap();
                }
            }
            frames = packets.by_ref().take(AT_ONCE).collect();
            if frames.is_empty() {
                break;
            }
        }
        running.map(|running| running.as_ref().map(said))
    }
}

fn said(running: &Running) -> Said {
    let is_about_doors =
        |text: &str| !text.starts_with("listening on") && !text.contains(GUARD) && !text.contains(WITNESSES);
    let printed = running.lines();
    let lines: Vec<String> = printed
        .into_iter()
        .filter(|line| line.stream == Stream::Stderr || is_about_doors(&line.text))
        .map(|line| line.text)
        .collect();
    let mut opens: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
    for line in lines.iter().filter_map(|line| line.strip_suffix(": OPEN SESAME")) {
        let (source, door) = line.split_once(": d").expect("address and door");
        opens.entry(source.parse().expect("an address")).or_default().push(door.parse().expect("a number"));
    }
    Said { lines, opens }
}
