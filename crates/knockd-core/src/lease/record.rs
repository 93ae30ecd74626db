//! A stored lease: a small text that a person can read.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use super::{Access, LeaseId, LeaseKey};
use crate::command::CommandLine;
use crate::text::DoorName;
use crate::time::{Milliseconds, UnixTime};

/// The last line, which only a complete record has.
const FOOTER: &str = "# end";

/// The name of the value that only the record of a lease with a running start command has.
const RUNS: &str = "start_process";

/// The name of the value that only the record of a caller who knows the run of the system has.
const BOOT: &str = "boot";

/// Stands in place of the commands.
const FIREWALL: &str = "firewall = true";
const NETWORK: &str = "firewall = network";

/// Stands for a process that is not known.
const UNKNOWN: &str = "unknown";

/// Everything needed to close a door after a restart of the daemon.
///
/// Its text form has one line per value between a header and a footer, so no part of it is a record. The line about a
/// running start command is there only if it was running, and the one about the run of the system only if that is
/// known.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LeaseRecord {
    /// The lease's ID. It is not part of the text, but of the file's name.
    pub id: LeaseId,
    /// What distinguishes the lease.
    pub key: Arc<LeaseKey>,
    /// `Cmd_Timeout` as of the opening or the latest extension, or the time that a request gave instead, in whole
    /// milliseconds; the deadline is never further away than that.
    pub cmd_timeout: Milliseconds,
    /// When the stop command is due; while the start command is still running, when it would be due if that had
    /// already ended.
    pub until: UnixTime,
    /// Whether the start command failed, so another knock runs it again.
    pub failed: bool,
    /// Whether the start command was running when this was stored.
    pub start: StartState,
    /// The run of the system in which this was stored, such as the kernel's boot ID. The caller fills it in, if it can
    /// tell, before it stores the record; `None` also if an earlier version did not store this.
    pub boot: Option<u128>,
}

/// What the start command of a stored lease was doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum StartState {
    /// It had ended, or an earlier version did not store this.
    #[default]
    Ended,
    /// It was about to run, or running. The caller fills in the process, if it can tell, before it stores the record.
    Running(Option<ProcessId>),
}

/// Identifies a process for ever, even when its number belongs to another one.
///
/// Its text form has the four numbers in this order, separated by spaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProcessId {
    /// The number of the process, which is also that of its process group.
    pub number: u32,
    /// When it started, in the kernel's unit.
    pub started: u64,
    /// The namespace that the number belongs to.
    pub namespace: u64,
    /// The run of the system, such as the kernel's boot ID.
    pub boot: u128,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, started, namespace, boot } = self;
        write!(f, "{number} {started} {namespace} {boot:032x}")
    }
}

impl FromStr for ProcessId {
    type Err = ProcessIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or(ProcessIdError);
        let number = word()?.parse().map_err(|_| ProcessIdError)?;
        let started = word()?.parse().map_err(|_| ProcessIdError)?;
        let namespace = word()?.parse().map_err(|_| ProcessIdError)?;
        let boot = u128::from_str_radix(word()?, 16).map_err(|_| ProcessIdError)?;
        words.next().is_none().then_some(Self { number, started, namespace, boot }).ok_or(ProcessIdError)
    }
}

/// A text is not a [`ProcessId`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected four numbers")]
pub struct ProcessIdError;

/// Why a text is not a lease.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseRecordError {
    /// It does not start as a record does.
    #[error("expected {:?} as the first line", LeaseRecord::HEADER)]
    Header,
    /// It does not end as a record does.
    #[error("expected {FOOTER:?} as the last line")]
    Footer,
    /// Another line is in the place of this value.
    #[error("expected `{name} = …`, found {found:?}")]
    Line {
        /// The name of the value.
        name: &'static str,
        /// The line, or an empty text at the end.
        found: String,
    },
    /// A value is invalid.
    #[error("`{name}`: expected {expected}, found {found:?}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// There is an extra line before the last one.
    #[error("unexpected line {0:?}")]
    Surplus(String),
}

impl LeaseRecord {
    /// The first line of a record's text, without its line end.
    pub const HEADER: &str = "# knockd lease, version 1";

    /// Parses the text of the lease with this ID.
    ///
    /// # Errors
    /// When anything is missing, duplicate or invalid.
    pub fn parse(id: LeaseId, text: &str) -> Result<Self, LeaseRecordError> {
        let body = text.strip_prefix(Self::HEADER).and_then(|text| text.strip_prefix('\n'));
        let body = body.ok_or(LeaseRecordError::Header)?.strip_suffix('\n');
        let body = body.and_then(|text| text.strip_suffix(FOOTER)).ok_or(LeaseRecordError::Footer)?;
        let mut lines = Lines(body.split_terminator('\n'));
        let door = lines.read::<DoorName>("door", "the name of a door")?;
        let source = lines.read::<IpAddr>("source", "an address")?;
        let until = lines.read::<UnixTime>("until", "milliseconds")?;
        let cmd_timeout = lines.read::<Milliseconds>("cmd_timeout", "milliseconds")?;
        let failed = lines.read("failed", "true or false")?;
        let access = lines.access()?;
        let start = lines.start()?;
        let boot = lines.boot()?;
        if let Some(line) = lines.0.next() {
            return Err(LeaseRecordError::Surplus(line.to_owned()));
        }
        let key = LeaseKey { door, source, access };
        Ok(Self { id, key: Arc::new(key), cmd_timeout, until, failed, start, boot })
    }

    /// Returns the record as it has to be restored in this run of the system.
    ///
    /// What opened the door, such as a firewall rule, usually ends with the run in which it was stored. So a record of
    /// another run is overdue: its stop command runs, in case something has survived, and the next knock runs the
    /// start command. A record without a run, or any if the present run is unknown, stays as it is.
    #[must_use]
    pub fn in_boot(self, boot: Option<u128>) -> Self {
        if self.is_of_other_boot(boot) {
            Self { until: UnixTime::default(), failed: true, ..self }
        } else {
            self
        }
    }

    /// Says whether this was stored in another run of the system than this one; `false` if either is unknown.
    pub fn is_of_other_boot(&self, boot: Option<u128>) -> bool {
        self.boot.zip(boot).is_some_and(|(stored, present)| stored != present)
    }
}

/// Prints what [`LeaseRecord::parse`] reads.
impl fmt::Display for LeaseRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LeaseKey { door, source, access } = &*self.key;
        writeln!(f, "{}", Self::HEADER)?;
        writeln!(f, "door = {door}\nsource = {source}\nuntil = {}", self.until)?;
        writeln!(f, "cmd_timeout = {}\nfailed = {}", self.cmd_timeout, self.failed)?;
        match access {
            Access::Commands { start, stop } => {
                writeln!(f, "start_command = {start}\nstop_command = {stop}")?;
            }
            Access::Firewall => writeln!(f, "{FIREWALL}")?,
            Access::Network => writeln!(f, "{NETWORK}")?,
        }
        match self.start {
            StartState::Ended => {}
            StartState::Running(None) => writeln!(f, "{RUNS} = {UNKNOWN}")?,
            StartState::Running(Some(process)) => writeln!(f, "{RUNS} = {process}")?,
        }
        if let Some(boot) = self.boot {
            writeln!(f, "{BOOT} = {boot:032x}")?;
        }
        writeln!(f, "{FOOTER}")
    }
}

/// The unread lines of a record.
struct Lines<'a>(std::str::SplitTerminator<'a, char>);

impl<'a> Lines<'a> {
    fn access(&mut self) -> Result<Access, LeaseRecordError> {
        for (line, access) in [(FIREWALL, Access::Firewall), (NETWORK, Access::Network)] {
            if self.0.clone().next() == Some(line) {
                self.0.next();
                return Ok(access);
            }
        }
        let start = self.read::<CommandLine>("start_command", "a command without a NUL byte")?;
        let stop = self.read::<CommandLine>("stop_command", "a command without a NUL byte")?;
        Ok(Access::Commands { start, stop })
    }

    /// Reads the optional value about the start command.
    fn start(&mut self) -> Result<StartState, LeaseRecordError> {
        if !self.begins_with(RUNS) {
            return Ok(StartState::Ended);
        }
        let found = self.value(RUNS)?;
        if found == UNKNOWN {
            return Ok(StartState::Running(None));
        }
        let process = found.parse().map_err(|_| LeaseRecordError::Value {
            name: RUNS,
            expected: "four numbers",
            found: found.to_owned(),
        })?;
        Ok(StartState::Running(Some(process)))
    }

    /// Reads the optional value about the run of the system.
    fn boot(&mut self) -> Result<Option<u128>, LeaseRecordError> {
        if !self.begins_with(BOOT) {
            return Ok(None);
        }
        let found = self.value(BOOT)?;
        let is_hexadecimal = found.bytes().all(|byte| byte.is_ascii_hexdigit());
        let boot = u128::from_str_radix(found, 16).ok().filter(|_| is_hexadecimal);
        boot.map(Some).ok_or_else(|| LeaseRecordError::Value {
            name: BOOT,
            expected: "a hexadecimal number",
            found: found.to_owned(),
        })
    }

    fn begins_with(&self, name: &str) -> bool {
        self.0.clone().next().is_some_and(|line| line.starts_with(name))
    }

    fn value(&mut self, name: &'static str) -> Result<&'a str, LeaseRecordError> {
        let line = self.0.next().unwrap_or_default();
        let value = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(" = "));
        value.ok_or_else(|| LeaseRecordError::Line { name, found: line.to_owned() })
    }

    fn read<T: FromStr>(
        &mut self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<T, LeaseRecordError> {
        let found = self.value(name)?;
        found.parse().map_err(|_| LeaseRecordError::Value { name, expected, found: found.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// As version 0.9 wrote it before this module.
    const STORED: &str = "# knockd lease, version 1\ndoor = ssh\nsource = 192.0.2.7\nuntil = 1795777200123\ncmd_timeout = 10000\n\
         failed = false\nstart_command = open 192.0.2.7\nstop_command = close 192.0.2.7 # now\n# end\n";

    fn parse(text: &str) -> Result<LeaseRecord, LeaseRecordError> {
        LeaseRecord::parse(LeaseId(7), text)
    }

    #[test]
    fn what_an_earlier_version_stored_is_read_and_written_as_it_was() {
        let record = parse(STORED).unwrap();
        let command = |text| CommandLine::new(text).unwrap();
        let (start, stop) = (command("open 192.0.2.7"), command("close 192.0.2.7 # now"));
        let access = Access::Commands { start, stop };
        let source = "192.0.2.7".parse().unwrap();
        assert_eq!(*record.key, LeaseKey { door: DoorName::new("ssh").unwrap(), source, access });
        assert_eq!(
            (record.id, record.cmd_timeout.duration(), record.failed),
            (LeaseId(7), Duration::from_secs(10), false)
        );
        assert_eq!(record.until.since_epoch().as_millis(), 1_795_777_200_123);
        assert_eq!(record.to_string(), STORED);
    }

    fn running(process: &str) -> String {
        STORED.replace("# end", &format!("start_process = {process}\n# end"))
    }

    #[test]
    fn no_part_of_a_record_is_a_record() {
        let running = running("4711 815 4026531836 9c1f0000000000000000000000000001");
        for text in [STORED.to_owned(), running.replace("# end", BOOTED), running] {
            assert!(parse(&text).is_ok());
            for end in 0..text.len() {
                assert!(text.get(..end).is_none_or(|part| parse(part).is_err()), "{end}");
            }
        }
    }

    #[test]
    fn a_running_start_command_is_stored_with_its_process_if_that_is_known() {
        assert_eq!(parse(STORED).unwrap().start, StartState::Ended);
        let unknown = parse(&running("unknown")).unwrap();
        assert_eq!((unknown.start, unknown.to_string()), (StartState::Running(None), running("unknown")));
        let text = running("4711 815 4026531836 00000000000000000000000000000abc");
        let process = ProcessId { number: 4711, started: 815, namespace: 4_026_531_836, boot: 0xabc };
        let known = parse(&text).unwrap();
        assert_eq!((known.start, known.to_string()), (StartState::Running(Some(process)), text));
        for bad in ["", "4711", "4711 815 1", "4711 815 1 x", "-1 815 1 0", "4711 815 1 0 0", "4711  815 1 0"]
        {
            let error = parse(&running(bad)).unwrap_err().to_string();
            assert_eq!(error, format!("`start_process`: expected four numbers, found {bad:?}"));
        }
    }

    const BOOTED: &str = "boot = 9c1f0000000000000000000000000001\n# end";

    #[test]
    fn a_record_says_in_which_run_of_the_system_it_was_stored_if_that_is_known() {
        assert_eq!(parse(STORED).unwrap().boot, None);
        for text in [STORED.to_owned(), running("unknown")].map(|text| text.replace("# end", BOOTED)) {
            let record = parse(&text).unwrap();
            assert_eq!(
                (record.boot, record.to_string()),
                (Some(0x9c1f_0000_0000_0000_0000_0000_0000_0001), text)
            );
        }
        for bad in ["", "x", "+1", "-1", "1 2", "100000000000000000000000000000000"] {
            let error = parse(&STORED.replace("# end", &format!("boot = {bad}\n# end"))).unwrap_err();
            assert_eq!(error.to_string(), format!("`boot`: expected a hexadecimal number, found {bad:?}"));
        }
    }

    #[test]
    fn a_record_is_overdue_in_another_run_of_the_system_and_in_no_other_case() {
        for (stored, present, is_overdue) in [
            (Some(1), Some(2), true),
            (Some(1), Some(1), false),
            (None, Some(1), false),
            (Some(1), None, false),
            (None, None, false),
        ] {
            let record = LeaseRecord { boot: stored, ..parse(STORED).unwrap() };
            let overdue = LeaseRecord { until: UnixTime::default(), failed: true, ..record.clone() };
            let restored = record.clone().in_boot(present);
            assert_eq!(restored, if is_overdue { overdue } else { record }, "{stored:?} in {present:?}");
        }
    }

    #[test]
    fn an_error_names_the_value_and_what_was_expected() {
        for (from, to, message) in [
            ("192.0.2.7\nuntil", "here\nuntil", "`source`: expected an address, found \"here\""),
            ("until", "until_", "expected `until = …`, found \"until_ = 1795777200123\""),
            ("failed = false", "failed = no", "`failed`: expected true or false, found \"no\""),
            (
                "close 192.0.2.7 # now",
                " ",
                "`stop_command`: expected a command without a NUL byte, found \" \"",
            ),
            ("# end", "more\n# end", "unexpected line \"more\""),
        ] {
            assert_eq!(parse(&STORED.replacen(from, to, 1)).unwrap_err().to_string(), message);
        }
    }
}
