//! A server and a client for one test, with the program under test on the server.
//!
//! A method that cannot do what it promises panics, so the test fails and shows the transcript of its session.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::{Debug, Write as _};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testbed::{Frame, Net, Running, Stream};

use crate::Subject;
use crate::hits::{self, Hit};

/// How long to wait for something that must happen.
pub const SOON: Duration = Duration::from_secs(60);
/// Where [`Session::start`] puts the configuration.
pub const CONFIG: &str = "/run/knockd.conf";
/// Where tests that look at a log file put it.
pub const LOG: &str = "/run/knockd.log";

/// Two doors that are added to every configuration of [`Session::start`].
///
/// A knock at the second ends the output of [`Session::hits`]: packets arrive in order, so whatever knockd has not
/// printed by then, it does not print. The first always has an attempt in progress, because knockd 0.8 forgets
/// everybody's attempts when the oldest of them ends.
const GUARDS: &str = "
[guard]
sequence = 65001:udp,65002:udp
seq_timeout = 100000
[last]
sequence = 65000:udp
";
const GUARD_HIT: &str = "65001u<198.51.100.251";
const GUARD_SOURCES: &str = "198.51.100.";
/// How long to wait for the answer to a packet before sending another.
const ANSWER: Duration = Duration::from_secs(1);

/// How our lines start that are about the machine: what it does not allow, and addresses, to which the kernel adds
/// the link-local one of IPv6 at any time. The tests ignore such lines.
const ABOUT_THE_MACHINE: [&str; 2] = ["packet decoder is not fully sandboxed", "eth0 now has "];

/// How many lines of a talkative program a failed test shows.
const TRANSCRIPT_LINES: usize = 60;

/// How a program ended, and what it printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The exit status; `None` after a death by a signal.
    pub code: Option<i32>,
    /// Its lines on stdout.
    pub stdout: Vec<String>,
    /// Its lines on stderr.
    pub stderr: Vec<String>,
}

/// What a rule's check works with.
pub struct Session {
    /// The program under test.
    pub subject: Subject,
    /// The two hosts; the test can run its own programs there as well.
    pub net: Net,
    may_differ: bool,
    has_differed: Cell<bool>,
    knockd: Option<Running>,
    /// The lines that [`Session::wait_for`] has found.
    found: BTreeSet<usize>,
    /// How many lines [`Session::lines`] has returned.
    taken: usize,
    /// How many times [`Session::settle`] was called.
    settled: u8,
    transcript: String,
}

impl Session {
    /// Creates the hosts. Only a session that may differ may use [`Session::pick`].
    pub fn new(subject: Subject, may_differ: bool) -> Self {
        Self {
            subject,
            net: Net::new().expect("two hosts"),
            may_differ,
            has_differed: Cell::new(false),
            knockd: None,
            found: BTreeSet::new(),
            taken: 0,
            settled: 0,
            transcript: String::new(),
        }
    }

    /// Returns the expectation for this program if the two deliberately differ.
    pub fn pick<T: PartialEq + Debug>(&self, ours: T, theirs: T) -> T {
        assert!(self.may_differ, "a rule that is the same may not tell the programs apart");
        assert_ne!(ours, theirs, "there is no difference");
        self.has_differed.set(true);
        match self.subject {
            Subject::Ours => ours,
            Subject::Theirs => theirs,
        }
    }

    /// Starts `knockd -v` in the foreground with this configuration; returns once it listens.
    pub fn start(&mut self, config: &str) {
        self.start_with("-v", config);
    }

    /// Starts it with these arguments. Without `-v` among them, the configuration or the arguments must name [`LOG`]
    /// as the log file, because that shows when knockd listens.
    pub fn start_with(&mut self, arguments: &str, config: &str) {
        self.write(CONFIG, &format!("{config}\n{GUARDS}"));
        self.start_listening(arguments);
        self.send(GUARD_HIT);
    }

    /// Starts `knockd -v` as [`Session::start`] does, but with no attempt in progress.
    pub fn start_unguarded(&mut self, config: &str) {
        self.write(CONFIG, &format!("{config}\n{GUARDS}"));
        self.start_listening("-v");
    }

    fn start_listening(&mut self, arguments: &str) {
        let arguments: Vec<_> = ["-c", CONFIG].into_iter().chain(arguments.split_whitespace()).collect();
        let verbose = arguments.iter().any(|word| word.starts_with('-') && word.contains('v'));
        let mut command = self.net.server.command(self.program());
        command.args(&arguments);
        self.launch(&mut command);
        if verbose {
            self.wait_for("listening on ");
            self.lines();
        } else {
            self.wait_for_file(LOG, "starting up, listening on ");
        }
    }

    /// Starts a command, for instance from `self.net.server.command`, as the knockd that the other methods observe.
    pub fn launch(&mut self, command: &mut Command) {
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        writeln!(self.transcript, "$ {}", arguments.join(" ")).unwrap();
        self.found.clear();
        self.taken = 0;
        self.knockd = Some(Running::start(command).unwrap());
    }

    /// Starts `knockd -v` with the existing configuration at [`CONFIG`].
    pub fn launch_plain(&mut self) {
        let mut command = self.net.server.command(self.program());
        self.launch(command.args(["-v", "-c", CONFIG]));
    }

    /// Runs knockd with this configuration, which it should refuse, and returns how it ended.
    pub fn refused(&mut self, config: &str) -> Ended {
        self.write(CONFIG, config);
        self.run(&format!("-v -c {CONFIG}"))
    }

    /// Runs knockd with exactly these arguments to its end.
    pub fn run(&mut self, arguments: &str) -> Ended {
        let mut command = self.net.server.command(self.program());
        command.args(arguments.split_whitespace());
        self.launch(&mut command);
        self.ended()
    }

    /// Waits until knockd has ended by itself or because of an earlier signal.
    pub fn ended(&mut self) -> Ended {
        let running = self.knockd.as_mut().expect("a running knockd");
        let status = running.wait(SOON).unwrap();
        let of = |stream| -> Vec<_> {
            let lines = running.lines().into_iter().filter(|line| line.stream == stream);
            lines.map(|line| line.text).collect()
        };
        Ended { code: status.code(), stdout: of(Stream::Stdout), stderr: of(Stream::Stderr) }
    }

    /// Says whether knockd listens with this configuration, then ends it.
    pub fn accepts(&mut self, config: &str) -> bool {
        self.write(CONFIG, config);
        self.launch_plain();
        let running = self.knockd.as_mut().expect("a running knockd");
        let listens = running.wait_for_line("listening on ", SOON).is_ok();
        if !listens {
            self.ended();
        }
        self.knockd = None;
        listens
    }

    /// Sends packets in the notation of [`hits`] from the client.
    pub fn send(&mut self, hits: &str) {
        let mut frames = Vec::new();
        for hit in hits::parse(hits) {
            match hit {
                Hit::Packet(frame) => frames.push(frame),
                Hit::Pause(duration) => {
                    self.send_frames(&frames);
                    frames.clear();
                    thread::sleep(duration);
                }
            }
        }
        self.send_frames(&frames);
        writeln!(self.transcript, "hits: {hits}").unwrap();
    }

    /// Sends frames from the client.
    pub fn send_frames(&self, frames: &[Frame]) {
        if !frames.is_empty() {
            let bytes: Vec<_> = frames.iter().map(|frame| frame.bytes().unwrap()).collect();
            self.net.client.send_frames(&bytes).unwrap();
        }
    }

    /// Sends packets and returns what knockd, started with `-v`, prints on stdout until it has processed them all.
    pub fn hits(&mut self, hits: &str) -> Vec<String> {
        self.send(hits);
        self.settle();
        self.lines()
    }

    /// Sends packets and returns the names of the doors that they open, separated by spaces.
    pub fn opened_by(&mut self, hits: &str) -> String {
        let lines = self.hits(hits);
        let opened = lines.iter().filter_map(|line| line.strip_suffix(": OPEN SESAME"));
        let doors: Vec<_> = opened.map(|line| line.split_once(": ").map_or("?", |(_, door)| door)).collect();
        doors.join(" ")
    }

    /// Waits until knockd, started with `-v`, has processed everything sent before.
    ///
    /// The knock is repeated while there is no answer, because knockd 0.8 has been seen to lose one, most likely
    /// while it changed its filter, as it does at a reload and after each one-time sequence. Every call has its own
    /// source, so no late answer counts for the next.
    pub fn settle(&mut self) {
        self.settled += 1;
        let source = format!("{GUARD_SOURCES}{}", self.settled);
        let deadline = Instant::now() + SOON;
        loop {
            self.send(&format!("65000u<{source}"));
            if self.find(&format!("{source}: last: OPEN SESAME"), ANSWER).is_some() {
                return;
            }
            assert!(Instant::now() < deadline, "knockd no longer answers");
        }
    }

    /// Waits for a line that contains `text`, on stdout or stderr. Each line is found once.
    pub fn wait_for(&mut self, text: &str) -> testbed::Line {
        self.find(text, SOON).ok_or_else(|| format!("no line with `{text}`")).unwrap()
    }

    fn find(&mut self, text: &str, patience: Duration) -> Option<testbed::Line> {
        let running = self.knockd.as_ref().expect("a running knockd");
        let deadline = Instant::now() + patience;
        loop {
            let mut lines = running.lines().into_iter().enumerate();
            let is_new = |index| !self.found.contains(&index);
            if let Some((index, line)) =
                lines.find(|(index, line)| is_new(*index) && line.text.contains(text))
            {
                self.found.insert(index);
                return Some(line);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns the lines on stdout that earlier calls have not returned.
    pub fn lines(&mut self) -> Vec<String> {
        let lines = self.running_lines().split_off(self.taken);
        self.taken += lines.len();
        let stdout = lines.into_iter().filter(|line| line.stream == Stream::Stdout).map(|line| line.text);
        stdout.filter(|line| is_of_test(line)).collect()
    }

    /// Returns all lines on stderr.
    pub fn stderr(&self) -> Vec<String> {
        let lines = self.running_lines().into_iter().filter(|line| line.stream == Stream::Stderr);
        lines.map(|line| line.text).collect()
    }

    /// Sends knockd a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.knockd.as_ref().expect("a running knockd").signal(signal).unwrap();
        writeln!(self.transcript, "signal: {signal}").unwrap();
    }

    /// Replaces the configuration, keeping the doors that [`Session::start`] added, and sends SIGHUP.
    pub fn reload(&mut self, config: &str) {
        self.write(CONFIG, &format!("{config}\n{GUARDS}"));
        self.signal(Signal::SIGHUP);
    }

    /// Waits until knockd listens again after a SIGHUP, and restarts the guard's attempt.
    pub fn wait_for_reload(&mut self) {
        self.wait_for("re-reading config file: ");
        self.settle();
        self.send(GUARD_HIT);
    }

    /// Runs a shell script on the server to its end and returns its output, without the last line feed.
    pub fn sh(&self, script: &str) -> String {
        self.net.server.run(&["sh", "-c", script]).unwrap().trim_end_matches('\n').to_owned()
    }

    /// Writes a file on the server; only `/run` is private unless the test changes that.
    pub fn write(&mut self, path: &str, text: &str) {
        self.net.server.write_file(path, text).unwrap();
        writeln!(self.transcript, "{path}:\n{}", text.strip_suffix(GUARDS).unwrap_or(text).trim_end())
            .unwrap();
    }

    /// Waits for a file on the server to contain `text`, and returns all of it.
    pub fn wait_for_file(&self, path: &str, text: &str) -> String {
        let mut content = String::new();
        self.wait_until(&format!("`{text}` in {path}"), |session| {
            content = session.net.server.run(&["cat", path]).unwrap_or_default();
            content.contains(text)
        });
        content
    }

    /// Waits until the answer is yes.
    pub fn wait_until(&self, what: &str, mut happened: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !happened(self) {
            assert!(Instant::now() < deadline, "in vain: {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the lines of the log file at [`LOG`] so far, each without its date and time.
    pub fn log(&self) -> Vec<String> {
        let text = self.net.server.run(&["cat", LOG]).unwrap();
        let lines = text.lines().filter(|line| is_of_test(line));
        lines
            .map(|line| {
                let Some((date, rest)) = line.split_at_checked("[YYYY-MM-DD HH:MM] ".len()) else {
                    assert_eq!(line, "");
                    return String::new();
                };
                let form: String =
                    date.chars().map(|char| if char.is_ascii_digit() { '0' } else { char }).collect();
                assert_eq!(form, "[0000-00-00 00:00] ", "{line}");
                rest.to_owned()
            })
            .collect()
    }

    /// Returns the process ID of knockd in the foreground, as this process sees it.
    pub fn pid(&self) -> u32 {
        self.knockd.as_ref().expect("a running knockd").pid().unwrap()
    }

    /// Returns the path of the program under test.
    pub fn program(&self) -> &'static str {
        self.subject.knockd().expect("the program").to_str().expect("a path in UTF-8")
    }

    /// Returns what was configured, sent and printed, for people.
    pub(crate) fn transcript(&self) -> String {
        let mut text = self.transcript.clone();
        let mut lines = self.running_lines();
        lines.retain(|line| !line.text.contains(GUARD_SOURCES));
        let skipped = lines.len().saturating_sub(TRANSCRIPT_LINES);
        for line in lines.iter().skip(skipped) {
            writeln!(text, "{} {}", if line.stream == Stream::Stdout { "out|" } else { "err|" }, line.text)
                .unwrap();
        }
        text
    }

    pub(crate) fn has_differed(&self) -> bool {
        self.has_differed.get()
    }

    fn running_lines(&self) -> Vec<testbed::Line> {
        self.knockd.as_ref().map_or_else(Vec::new, Running::lines)
    }
}

/// Says whether a line concerns neither the doors that the session adds nor the machine.
pub fn is_of_test(line: &str) -> bool {
    !line.contains(GUARD_SOURCES) && !ABOUT_THE_MACHINE.iter().any(|about| line.contains(about))
}
