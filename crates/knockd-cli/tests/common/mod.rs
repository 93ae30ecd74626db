//! What the end-to-end tests share: a knockd on the server of a testbed, and ways to knock at it.
//!
//! What must happen is waited for with patience. That something does not happen is shown by what comes after it: the
//! kernel hands packets to knockd in order, so the answer to a later packet tells that an earlier one had none.

#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::indexing_slicing, reason = "tests")]

pub(crate) mod firewalls;
pub(crate) mod machine;
pub(crate) mod pages;
pub(crate) mod processes;
pub(crate) mod sessions;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testbed::{Flags, Frame, Host, Line, Net, Running, Stream};

/// How long to wait for what must happen.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const KNOCKD: &str = env!("CARGO_BIN_EXE_knockd");
pub(crate) const CONFIG: &str = "/run/knockd.conf";

/// `knockd`, with the program beside it that `check`, `replay` and `watch` need.
pub(crate) fn knockd_and_tools() -> &'static str {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| drop(testbed::build("knockd-tools", "knockd-tools").unwrap()));
    KNOCKD
}

/// A knockd in the foreground; killed when dropped.
pub(crate) struct Knockd {
    pub(crate) running: Running,
    /// How many lines [`Knockd::wait_for`] has passed, for stdout and for stderr.
    passed: [usize; 2],
    /// How many lines on stdout [`Knockd::take_lines`] has returned.
    taken: usize,
}

impl Knockd {
    /// Starts `knockd -v` on the server's `eth0` with this configuration; returns once it listens.
    pub(crate) fn start(net: &Net, config: &str) -> Self {
        Self::start_with(net, config, &["-v"])
    }

    /// Starts it with other arguments, of which one has to be `-v`.
    pub(crate) fn start_with(net: &Net, config: &str, arguments: &[&str]) -> Self {
        net.server.write_file(CONFIG, config).unwrap();
        Self::run(net.server.command(KNOCKD).args(["-c", CONFIG]).args(arguments))
    }

    /// Starts it by this command, of which one argument has to be `-v`.
    pub(crate) fn run(command: &mut std::process::Command) -> Self {
        let mut knockd = Self { running: Running::start(command).unwrap(), passed: [0; 2], taken: 0 };
        knockd.wait_for("listening on ");
        knockd.take_lines();
        knockd
    }

    /// Waits for a line with this text, after the one on the same output that the call before has found.
    ///
    /// Lines on different outputs are collected in any order.
    pub(crate) fn wait_for(&mut self, text: &str) -> Line {
        self.wait_for_line(text, |line| line.contains(text))
    }

    /// Waits for a line that is this and no more: what a command has printed, not that it is run.
    pub(crate) fn wait_for_output(&mut self, text: &str) -> Line {
        self.wait_for_line(text, |line| line == text)
    }

    fn wait_for_line(&mut self, text: &str, is_it: impl Fn(&str) -> bool) -> Line {
        let mut found = None;
        let end = Instant::now() + SOON;
        while found.is_none() {
            let lines = self.running.lines();
            found = lines
                .into_iter()
                .enumerate()
                .find(|(index, line)| *index >= self.passed[line.stream as usize] && is_it(&line.text));
            assert!(found.is_some() || Instant::now() < end, "no line with `{text}` in {:#?}", self.lines());
            std::thread::sleep(Duration::from_millis(2));
        }
        let (index, line) = found.unwrap();
        self.passed[line.stream as usize] = index + 1;
        line
    }

    /// Every line so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.running.lines().into_iter().map(|line| line.text).collect()
    }

    /// The lines on stdout that the calls before have not returned, without those about the machine.
    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        let lines = self.running.lines();
        let lines = lines
            .into_iter()
            .filter(|line| line.stream == Stream::Stdout && !is_about_the_machine(&line.text));
        let lines: Vec<_> = lines.skip(self.taken).map(|line| line.text).collect();
        self.taken += lines.len();
        lines
    }

    /// How many lines so far have this text.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(text)).count()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.running.signal(signal).unwrap();
    }

    /// Replaces the configuration, sends SIGHUP, and waits for the line that ends the reading of it.
    pub(crate) fn reload(&mut self, net: &Net, config: &str, until: &str) {
        net.server.write_file(CONFIG, config).unwrap();
        self.signal(Signal::SIGHUP);
        self.wait_for("re-reading config file: /run/knockd.conf");
        self.wait_for(until);
    }

    /// Ends it with SIGTERM, and shows that it ends well.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.running.wait(SOON).unwrap();
        assert_eq!(status.code(), Some(0), "{:#?}", self.lines());
    }
}

/// Whether this line is there only because the machine does not offer everything that knockd would use.
pub(crate) fn is_about_the_machine(line: &str) -> bool {
    // The kernel adds the link-local address of IPv6 when it likes.
    line.contains("packet decoder is not fully sandboxed") || line.contains("eth0 now has ")
}

/// Whether the hosts have IPv6. The test that asks shows less than its name says if not, so it is counted as skipped
/// then.
pub(crate) fn has_ipv6(net: &Net) -> bool {
    if !net.has_ipv6() {
        testbed::skip("IPv6 is switched off in the kernel");
    }
    net.has_ipv6()
}

/// Whether this is root. The test that asks is counted as skipped if not.
pub(crate) fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        testbed::skip("it takes root");
    }
    is_root
}

/// Gives the server a user `knockd`, for the decoder alone; returns its number.
pub(crate) fn with_own_user(net: &Net) -> &'static str {
    let script = "grep -v '^knockd:' /etc/passwd >/run/passwd
                  echo knockd:x:64999:64999::/nonexistent:/usr/sbin/nologin >>/run/passwd
                  mount --bind /run/passwd /etc/passwd";
    sh(&net.server, script);
    "64999"
}

/// Runs our `knock` with these arguments to its end.
pub(crate) fn knock(host: &Host, arguments: &str) {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    let program =
        PROGRAM.get_or_init(|| testbed::build("knock-client", "knock").unwrap().to_str().unwrap().to_owned());
    let words: Vec<_> = std::iter::once(program.as_str()).chain(arguments.split_whitespace()).collect();
    host.run(&words).unwrap();
}

/// A SYN from one of the client's neighbours, 10.9.0.`neighbour`, to the server.
pub(crate) fn syn(net: &Net, neighbour: u8, port: u16) -> Frame {
    Frame::tcp([10, 9, 0, neighbour], net.server.ipv4, port, Flags::SYN)
}

/// Sends SYNs to these ports of the server, from 10.9.0.`neighbour`.
pub(crate) fn hit(net: &Net, neighbour: u8, ports: &[u16]) {
    let frames: Vec<_> = ports.iter().map(|&port| syn(net, neighbour, port)).collect();
    send(net, &frames);
}

/// Sends frames from the client.
pub(crate) fn send(net: &Net, frames: &[Frame]) {
    let frames: Vec<_> = frames.iter().map(|frame| frame.bytes().unwrap()).collect();
    net.client.send_frames(&frames).unwrap();
}

/// Runs a shell script on a host to its end and returns what it printed.
pub(crate) fn sh(host: &Host, script: &str) -> String {
    host.run(&["sh", "-c", script]).unwrap()
}

/// What `knockd status` says on the server, as JSON.
pub(crate) fn status_json(net: &Net) -> serde_json::Value {
    serde_json::from_str(&net.server.run(&[KNOCKD, "status", "--format", "json"]).unwrap()).unwrap()
}

/// Asks until the answer is yes.
pub(crate) fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !happened() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a file on a host to be this. A one-time file is written to by a thread of its own.
pub(crate) fn wait_for_content(host: &Host, path: &str, text: &str) {
    wait_until(&format!("{path} is {text:?}"), || host.run(&["cat", path]).unwrap() == text);
}

/// Waits for a file on a host to have this text somewhere, and returns all of it.
pub(crate) fn wait_for_file(host: &Host, path: &str, text: &str) -> String {
    let mut content = String::new();
    wait_until(&format!("`{text}` in {path}"), || {
        content = host.run(&["cat", path]).unwrap_or_default();
        content.contains(text)
    });
    content
}

/// The door that ends a list of packets, see [`Ear`].
const LAST: &str = "\n[last]\nsequence = 65000:udp\n";

/// A knockd whose lines about packets are compared.
pub(crate) struct Ear {
    pub(crate) net: Net,
    pub(crate) knockd: Knockd,
}

impl Ear {
    /// Starts `knockd -v` with this configuration and one more door.
    pub(crate) fn new(config: &str) -> Self {
        Self::with(config, &["-v"])
    }

    /// Starts it with other arguments.
    pub(crate) fn with(config: &str, arguments: &[&str]) -> Self {
        Self::of(Net::new().unwrap(), config, arguments)
    }

    /// Starts it with other arguments on a net that was prepared for it.
    pub(crate) fn of(net: Net, config: &str, arguments: &[&str]) -> Self {
        let knockd = Knockd::start_with(&net, &format!("{config}{LAST}"), arguments);
        Self { net, knockd }
    }

    /// Returns what knockd says to these frames.
    pub(crate) fn hear(&mut self, frames: &[Frame]) -> Vec<String> {
        self.hear_bytes(frames.iter().map(|frame| frame.bytes().unwrap()).collect())
    }

    /// Returns what knockd says to these bytes.
    pub(crate) fn hear_bytes(&mut self, mut frames: Vec<Vec<u8>>) -> Vec<String> {
        let nobody = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 250));
        frames.push(Frame::udp(nobody, self.net.server.ipv4, 65000, b"").bytes().unwrap());
        self.net.client.send_frames(&frames).unwrap();
        self.knockd.wait_for("198.51.100.250: last: OPEN SESAME");
        let mut lines = self.knockd.take_lines();
        // Where the decoder cannot give up everything, as in a user namespace, knockd says so once.
        lines.retain(|line| {
            !line.contains("last: ") && !line.starts_with("packet decoder is not fully sandboxed")
        });
        lines
    }

    /// Returns which doors these frames open, and for whom.
    pub(crate) fn opened(&mut self, frames: &[Frame]) -> Vec<String> {
        opened(self.hear(frames))
    }
}

/// Of the lines that a door opened: its knocker and name.
pub(crate) fn opened(lines: Vec<String>) -> Vec<String> {
    lines.into_iter().filter_map(|line| line.strip_suffix(": OPEN SESAME").map(str::to_owned)).collect()
}

/// A pcap file with these frames, one every half second.
pub(crate) fn pcap(frames: &[Frame]) -> Vec<u8> {
    let mut file = Vec::new();
    for number in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
        file.extend(number.to_le_bytes());
    }
    for (frame, index) in frames.iter().zip(0..) {
        let bytes = frame.bytes().unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        for number in [1_790_000_000 + index / 2, index % 2 * 500_000, length, length] {
            file.extend(u32::to_le_bytes(number));
        }
        file.extend(bytes);
    }
    file
}
