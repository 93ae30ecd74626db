//! Counters as a file in the Prometheus text format, for a textfile collector.
//!
//! A separate thread writes the file, so a slow or full disk delays nothing else. Everybody on the machine can read it,
//! so it has no number that a packet changes, unless the packet completes a knock: whoever sees a counter move after a
//! hit at one port after the other finds the steps one by one. That includes packets that pass the kernel filter, and
//! those it drops, because only doors' ports pass it, and scanners, because doors' ports are no strays. Nor has it
//! addresses: who opened a door is nobody else's business.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use jiff::Timestamp;
use tempfile::NamedTempFile;

use crate::control::socket::{Answer, QueuedRequest, Who};
use crate::control::{Problem, ProblemKind, Reply, Request, Status};
use crate::log::Line;
use crate::system::helper::{Named, Rights};

/// How often the thread writes the file.
const INTERVAL: Duration = Duration::from_secs(15);

/// A file that is kept up to date; dropping this removes it.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    rights: Rights,
    /// Dropping it ends the thread.
    _wanted: Sender<()>,
}

impl Metrics {
    /// Starts the thread; the first part of `engine` takes requests, the second log lines.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(
        path: PathBuf,
        engine: (Sender<QueuedRequest>, Sender<Line>),
        rights: Rights,
    ) -> anyhow::Result<Self> {
        let (wanted, unwanted) = bounded(0);
        let (file, its_rights) = (path.clone(), rights.clone());
        crate::system::spawn("metrics", move || {
            keep_up_to_date(&file, &its_rights, &engine.0, &engine.1, &unwanted);
        })?;
        Ok(Self { path, rights, _wanted: wanted })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // Old numbers would look current.
        match &self.rights {
            Rights::Own => drop(fs::remove_file(&self.path)),
            Rights::Helper(helper) => helper.remove(Named::Metrics(self.path.clone())),
        }
    }
}

fn keep_up_to_date(
    path: &Path,
    rights: &Rights,
    asking: &Sender<QueuedRequest>,
    speak: &Sender<Line>,
    unwanted: &Receiver<()>,
) {
    let mut is_failing = false;
    loop {
        let Some(status) = ask(asking) else { return };
        let result = write(path, &MetricsText(&status).to_string(), rights);
        if let Err(error) = &result
            && !is_failing
        {
            let text = format!("cannot write metrics to {}: {error}", path.display());
            let _ = speak.send(Line::warning(text));
        }
        is_failing = result.is_err();
        if unwanted.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// Returns the status, unless the daemon is shutting down.
fn ask(asking: &Sender<QueuedRequest>) -> Option<Status> {
    let (reply, replies) = bounded(1);
    let ask = QueuedRequest {
        request: Request::Status {},
        who: Who { user: None, text: "metrics".to_owned() },
        reply,
        connected: Weak::new(),
    };
    asking.send(ask).ok()?;
    match replies.recv() {
        Ok(Answer::Reply(Reply::Status(status))) => Some(*status),
        Ok(Answer::Reply(_) | Answer::Traced(_)) | Err(_) => None,
    }
}

/// Replaces the file atomically, so no reader sees half of it.
fn write(path: &Path, text: &str, rights: &Rights) -> io::Result<()> {
    match rights {
        Rights::Own => {
            let mut file = unfinished(path)?;
            file.write_all(text.as_bytes())?;
            file.persist(path)?;
            Ok(())
        }
        Rights::Helper(helper) => {
            let file = Named::Metrics(path.to_owned());
            let (unfinished, _) = helper.open(file.clone())?;
            File::from(unfinished).write_all(text.as_bytes())?;
            helper.publish(file)
        }
    }
}

/// Makes a file that is to replace the one with this path.
///
/// # Errors
/// When the directory does not exist, or nothing can be made there.
pub(crate) fn unfinished(path: &Path) -> io::Result<NamedTempFile> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    tempfile::Builder::new()
        .prefix(".knockd-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(directory)
}

/// The status in the Prometheus text format, version 0.0.4.
struct MetricsText<'a>(&'a Status);

impl fmt::Display for MetricsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status {
            problems, version, uptime, interfaces, doors, leases, counters, commands, health, ..
        } = self.0;
        let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
            writeln!(f, "# HELP knockd_{name} {help}\n# TYPE knockd_{name} {kind}")?;
            samples.iter().try_for_each(|(labels, value)| writeln!(f, "knockd_{name}{labels} {value}"))
        };
        let one = |value: u64| [(String::new(), value)];
        let size = |value: usize| one(u64::try_from(value).unwrap_or(u64::MAX));
        let labelled = |name: &str, value: &str| format!("{{{name}=\"{}\"}}", escaped(value));
        metric("problems", "gauge", "Problems that a person has to look at.", &size(problems.len()))?;
        let left_open = LeftOpen::among(problems);
        let help = "Doors that may still be open although their time is over, until they are dismissed.";
        metric("doors_left_open", "gauge", help, &size(left_open.count))?;
        let since: Vec<_> =
            left_open.since.iter().map(|(door, &since)| (labelled("door", door), since)).collect();
        let help = "Since when, at the longest, a door may be open although its time is over.";
        metric("door_left_open_timestamp_seconds", "gauge", help, &since)?;
        metric("info", "gauge", "Version of the daemon.", &[(labelled("version", version), 1)])?;
        metric("uptime_seconds", "gauge", "Seconds since the daemon started.", &one(*uptime))?;
        let up: Vec<_> = interfaces
            .iter()
            .map(|interface| (labelled("interface", &interface.name), u64::from(interface.up)))
            .collect();
        metric(
            "interface_up",
            "gauge",
            "Whether the interface is up, for each interface that knockd listens on.",
            &up,
        )?;
        let read: Vec<_> = interfaces
            .iter()
            .map(|interface| (labelled("interface", &interface.name), u64::from(interface.listening)))
            .collect();
        metric("interface_read", "gauge", "Whether the packets of the interface are read.", &read)?;
        metric("doors", "gauge", "Configured doors.", &size(doors.len()))?;
        let states = [
            ("starting", leases.starting),
            ("open", leases.open),
            ("closing", leases.closing),
            ("retrying", leases.retrying),
        ];
        let states =
            states.map(|(state, count)| (labelled("state", state), u64::try_from(count).unwrap_or(u64::MAX)));
        metric("leases", "gauge", "Open doors by state.", &states)?;
        metric("commands_running", "gauge", "Start commands running.", &size(commands.starting))?;
        metric("commands_waiting", "gauge", "Commands waiting for others.", &size(commands.waiting))?;
        metric(
            "filter_exact",
            "gauge",
            "Whether the kernel filter passes only wanted packets.",
            &one(health.filter_exact.into()),
        )?;
        metric(
            "state_ok",
            "gauge",
            "Whether open doors can be stored, if necessary.",
            &one(health.state_problem.is_none().into()),
        )?;
        for (name, help, value) in [
            ("opens", "Knocks that opened a door.", counters.opens),
            ("commands", "Commands run.", commands.run),
            ("commands_failed", "Commands that failed.", commands.failed),
            ("closed", "Doors closed by their stop command.", commands.closed),
            ("given_up", "Doors whose stop command failed for good.", commands.given_up),
        ] {
            metric(&format!("{name}_total"), "counter", help, &one(value))?;
        }
        Ok(())
    }
}

/// The doors that may still be open although their time is over.
#[derive(Default)]
struct LeftOpen<'a> {
    count: usize,
    /// For each door by name, since when at the longest, in seconds since the epoch.
    since: BTreeMap<&'a str, u64>,
}

impl<'a> LeftOpen<'a> {
    fn among(problems: &'a [Problem]) -> Self {
        let mut all = Self::default();
        for problem in problems {
            match &problem.kind {
                ProblemKind::LeftOpen { door, since, .. } => {
                    all.count += 1;
                    let since = since.parse::<Timestamp>().unwrap_or_default().as_second();
                    let since = u64::try_from(since).unwrap_or_default();
                    all.since.entry(door).and_modify(|first| *first = since.min(*first)).or_insert(since);
                }
                ProblemKind::Unreadable { .. } => all.count += 1,
                ProblemKind::MoreLeftOpen { count } => all.count += count,
                ProblemKind::Configuration { .. }
                | ProblemKind::Guard
                | ProblemKind::State
                | ProblemKind::Capture => {}
            }
        }
        all
    }
}

/// Escapes a label's value for use between quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::control::status::tests::example;
    use crate::control::{AttemptsStatus, CountersStatus};

    /// Reads the text format strictly (Prometheus, "Exposition formats") and returns the samples.
    fn samples(text: &str) -> Vec<(String, u64)> {
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        };
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let mut lines = text.strip_suffix('\n').unwrap().split('\n').peekable();
        while let Some(help) = lines.next() {
            let (name, help) = help.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
            assert!(is_name(name) && help.ends_with('.') && seen.insert(name.to_owned()), "{name}: {help}");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let labels = sample.strip_prefix(name).unwrap();
                if !labels.is_empty() {
                    let label = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix('}')).unwrap();
                    let (label, value) = label.split_once("=\"").unwrap();
                    let value = value.strip_suffix('"').unwrap();
                    let unescaped = value.replace("\\\\", "").replace("\\\"", "").replace("\\n", "");
                    assert!(is_name(label) && !unescaped.contains(['"', '\\', '\n']), "{line}");
                }
                found.push((sample.to_owned(), value.parse().unwrap()));
            }
        }
        found
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut status = example();
        if let Some(interface) = status.interfaces.first_mut() {
            interface.name = "a\"b\\c\n".to_owned();
        }
        let samples = samples(&MetricsText(&status).to_string());
        let value = |name: &str| samples.iter().find(|(sample, _)| sample == name).map(|&(_, value)| value);
        assert_eq!(samples[0], ("knockd_problems".to_owned(), 2), "what matters most comes first");
        assert_eq!(value("knockd_doors_left_open"), Some(1));
        assert_eq!(value("knockd_door_left_open_timestamp_seconds{door=\"ssh\"}"), Some(1_795_777_200));
        assert_eq!(value("knockd_opens_total"), Some(7));
        assert_eq!(value("knockd_leases{state=\"open\"}"), Some(1));
        assert_eq!(value("knockd_interface_up{interface=\"wg0\"}"), Some(0));
        assert_eq!(value("knockd_interface_up{interface=\"a\\\"b\\\\c\\n\"}"), Some(1));
        assert_eq!(samples.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), samples.len());
    }

    #[test]
    fn of_the_times_since_when_a_door_may_be_open_the_earliest_is_told_and_no_address() {
        let mut status = example();
        let earlier = |since: &str| {
            let mut problem = example().problems[0].clone();
            if let ProblemKind::LeftOpen { since: of_this, .. } = &mut problem.kind {
                since.clone_into(of_this);
            }
            problem
        };
        status.problems.extend(["2026-11-27T10:00:00Z", "2026-11-27T10:30:00Z"].map(earlier));
        let kind = ProblemKind::MoreLeftOpen { count: 4 };
        status.problems.push(Problem { text: String::new(), details: Vec::new(), kind });
        let text = MetricsText(&status).to_string();
        assert!(text.contains("\nknockd_doors_left_open 7\n"), "{text}");
        assert!(text.contains("{door=\"ssh\"} 1795773600\n"), "{text}");
        assert!(!text.contains("203.0.113.9"), "{text}");
    }

    #[test]
    fn no_number_tells_of_packets_and_stages() {
        let before = example();
        let mut after = before.clone();
        after.attempts = AttemptsStatus { total: 7, listed: Vec::new() };
        after.counters = CountersStatus {
            packets: 1,
            dropped: 2,
            visible: 3,
            attempts: 4,
            opens: before.counters.opens,
            timeouts: 5,
            spoiled: 6,
            evicted: 7,
            scanners: 8,
        };
        assert_eq!(MetricsText(&before).to_string(), MetricsText(&after).to_string());
        after.counters.opens += 1;
        assert_ne!(MetricsText(&before).to_string(), MetricsText(&after).to_string());
    }

    #[test]
    fn the_file_is_replaced_as_a_whole_and_a_directory_that_is_missing_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.prom");
        for text in ["long text", "text"] {
            write(&path, text, &Rights::Own).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(write(&directory.path().join("no/such"), "", &Rights::Own).is_err());
    }

    #[test]
    fn a_problem_is_told_once_and_the_file_goes_when_it_is_not_wanted() {
        let (asking, asks) = bounded::<QueuedRequest>(1);
        let (speak, heard) = bounded(10);
        std::thread::spawn(move || {
            for ask in asks {
                let _ = ask.reply.try_send(Answer::Reply(Reply::Status(Box::new(example()))));
            }
        });
        let _bad =
            Metrics::start("/no/such/file".into(), (asking.clone(), speak.clone()), Rights::Own).unwrap();
        let told = heard.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(format!("{told:?}").contains("/no/such/file"));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.prom");
        let good = Metrics::start(path.clone(), (asking, speak), Rights::Own).unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !path.exists() {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(good);
        assert!(!path.exists());
    }
}
