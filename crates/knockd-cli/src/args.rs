//! The command line of `knockd`; the doc comments here are its help text.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand, ValueEnum, ValueHint};
use knockd_core::config::Options;
use knockd_core::pasted;

/// The configuration file, unless the command line names another.
const CONFIG: &str = "/etc/knockd.conf";

/// Port-knock daemon: runs a command when a source hits a secret sequence of ports
#[derive(Parser, Clone, Debug)]
#[command(name = "knockd", version, infer_long_args = true, args_override_self = true, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true)]
#[allow(clippy::struct_excessive_bools, reason = "one for each option without a value")]
pub struct Args {
    /// Listen on these interfaces: a name, a list (`eth0,wg0`), a pattern (`eth*`) or `any`; overrides `Interface` in
    /// the configuration [default: eth0]
    #[arg(short, long, value_name = "INT")]
    pub interface: Option<String>,

    /// Wait for missing interfaces instead of failing at startup
    #[arg(long)]
    pub wait: bool,

    /// Detach, run in the background, and write the PID file
    #[arg(short, long)]
    pub daemon: bool,

    /// Read the configuration from this file
    #[arg(short, long, value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    /// Print debug messages on standard output
    #[arg(short = 'D', long)]
    pub debug: bool,

    /// Look up host names and log them; the owner of an address chooses its name, so do not trust it
    #[arg(short, long)]
    pub lookup: bool,

    /// With -d, write the process ID to this file; `PidFile` overrides it [default: /var/run/knockd.pid]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub pidfile: Option<PathBuf>,

    /// Log to this file; `LogFile` overrides it
    #[arg(short = 'g', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub logfile: Option<PathBuf>,

    /// Also print log lines on standard output
    #[arg(short, long)]
    pub verbose: bool,

    /// Ignore IPv6
    #[arg(short = '4', long)]
    pub only_ip_v4: bool,

    /// Check the configuration and exit, like `knockd check FILE`
    #[arg(short = 't')]
    pub test: bool,

    /// Ignored; accepted for compatibility with knockd 0.8.2
    #[arg(short, long, hide = true)]
    pub save_mem: bool,

    /// The command to run instead of the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Args {
    /// Parses the command line of this process. After an error, `--help` or `--version`, the process exits.
    pub fn of_process() -> Self {
        Self::try_parse().unwrap_or_else(|error| with_our_tips(error, hint().as_deref()).exit())
    }
}

/// Returns a hint about the first word of the command line with a character that is not what it looks like.
pub fn hint() -> Option<String> {
    std::env::args_os().skip(1).find_map(|word| {
        let word = word.to_string_lossy();
        pasted(&word).map(|pasted| format!("in {word:?}, {pasted}"))
    })
}

/// Drops clap's advice to pass an unknown option as a value, which is always wrong here; a hint is all the advice there
/// is.
fn with_our_tips(mut error: clap::Error, hint: Option<&str>) -> clap::Error {
    error.remove(ContextKind::Suggested);
    if let Some(hint) = hint {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.to_owned().into()]));
    }
    error
}

/// What `knockd` can do besides running the daemon.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Check a configuration file for errors and unwise settings
    Check(CheckArgs),
    /// Show what the daemon would have done with the packets in a capture file, and why; nothing is executed
    Replay(ReplayArgs),
    /// Show the state of the running daemon
    Status(StatusArgs),
    /// Show the state of the running daemon live
    Watch(WatchArgs),
    /// Trace an address's packets live
    Trace(TraceArgs),
    /// Close an open door now
    Close(CloseArgs),
    /// Keep an open door open longer
    Extend(ExtendArgs),
    /// Open a door for an address as if it had knocked
    Open(OpenArgs),
    /// Stop reporting that a door may still be open, after you have closed it by hand
    Dismiss(DismissArgs),
    /// List the addresses that are ignored because they scan ports
    Scanners(ScannersArgs),
    /// Stop ignoring an address that has scanned ports
    Forgive(ForgiveArgs),
    /// Tell the running daemon to read its configuration again
    Reload(ReloadArgs),
    /// Close the ports of doors with `Open`, try that, or open them again
    Guard(GuardArgs),
}

/// The control socket of the running daemon.
#[derive(clap::Args, Clone, Debug)]
pub struct Socket {
    /// Use this control socket
    #[arg(
        long = "socket",
        value_name = "PATH",
        default_value = Options::DEFAULT_CONTROL_SOCKET,
        value_hint = ValueHint::FilePath
    )]
    pub path: PathBuf,
}

/// How to reach the running daemon, and how to print its reply.
#[derive(clap::Args, Clone, Debug)]
pub struct ControlArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub socket: Socket,

    /// Print text for people or JSON for programs
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

/// The command line of `knockd status`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct StatusArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: ControlArgs,
}

/// The command line of `knockd watch`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = WATCH_AFTER_HELP)]
pub struct WatchArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub socket: Socket,
}

/// The command line of `knockd trace`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct TraceArgs {
    /// Trace only packets from this address [default: all]
    pub address: Option<IpAddr>,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: ControlArgs,
}

/// The command line of `knockd close`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct CloseArgs {
    /// Name of the door; omit it with `--all` to close every door
    #[arg(required_unless_present = "all")]
    pub door: Option<String>,

    /// Close the door for this address
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub address: Option<IpAddr>,

    /// Close the door for every address
    #[arg(long)]
    pub all: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: ControlArgs,
}

/// The command line of `knockd extend`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct ExtendArgs {
    /// Name of the door
    pub door: String,

    /// Address for which it is open
    pub address: IpAddr,

    /// Keep it open for at least this many seconds from now [default: the door's `Cmd_Timeout`]
    pub seconds: Option<u32>,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: ControlArgs,
}

/// The command line of `knockd open`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct OpenArgs {
    /// Name of the door
    pub door: String,

    /// Address for which to open it
    pub address: IpAddr,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: ControlArgs,
}

/// The command line of `knockd dismiss`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct DismissArgs {
    /// Name of the door; omit it with `--all` to dismiss everything
    #[arg(required_unless_present = "all")]
    pub door: Option<String>,

    /// Address for which the door may still be open
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub address: Option<IpAddr>,

    /// Dismiss the door for every address
    #[arg(long)]
    pub all: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: ControlArgs,
}

/// The command line of `knockd scanners`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct ScannersArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: ControlArgs,
}

/// The command line of `knockd forgive`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct ForgiveArgs {
    /// Address to forgive; an IPv6 address stands for its whole /64
    pub address: IpAddr,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: ControlArgs,
}

/// The command line of `knockd reload`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct ReloadArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: ControlArgs,
}

/// The command line of `knockd guard`.
#[derive(clap::Args, Clone, Debug)]
pub struct GuardArgs {
    /// Read the doors from this configuration file
    #[arg(short, long, value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    /// Print the nftables rules instead of loading them
    #[arg(long, conflicts_with_all = ["trial", "remove"])]
    pub check: bool,

    /// Open the ports again after this time (`90s`, `5m`, `1h`), unless a knock lets a TCP connection in or you confirm
    #[arg(
        long = "try",
        value_name = "TIME",
        num_args = 0..=1,
        default_missing_value = "5m",
        value_parser = seconds,
        conflicts_with = "remove"
    )]
    pub trial: Option<u32>,

    /// Open the ports for everybody: remove all rules, whether knockd runs, hangs or is dead
    #[arg(long)]
    pub remove: bool,
}

/// Parses a number of seconds, or of minutes or hours, up to a day.
fn seconds(text: &str) -> Result<u32, String> {
    const DAY: u32 = 24 * 3600;
    let units = [("s", 1), ("m", 60), ("h", 3600), ("", 1)];
    let found = units.into_iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
    let (number, unit) = found.unwrap_or((text, 1));
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let seconds =
        number.parse::<u32>().ok().filter(|_| is_number).and_then(|number| number.checked_mul(unit));
    match seconds {
        Some(seconds @ 1..=DAY) => Ok(seconds),
        _ => Err("expected a time of up to a day, such as 90s, 5m or 1h".to_owned()),
    }
}

/// The command line of `knockd check`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CHECK_AFTER_HELP)]
pub struct CheckArgs {
    /// Configuration file to check
    #[arg(value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
    file: PathBuf,

    /// Check this configuration file, like `knockd check FILE`
    #[arg(short, long, value_name = "FILE", conflicts_with = "file", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,

    /// Treat warnings as errors
    #[arg(long)]
    pub strict: bool,

    /// Treat it as a warning if no door opens ssh, which is closed: there is another way in
    #[arg(long)]
    pub accept_lockout: bool,

    /// Print text for people or JSON for programs
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

impl CheckArgs {
    /// Returns the path of the file to check.
    pub fn path(&self) -> &Path {
        self.config.as_ref().unwrap_or(&self.file)
    }
}

/// The command line of `knockd replay`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = REPLAY_AFTER_HELP)]
pub struct ReplayArgs {
    /// Capture file in pcap or pcapng format, or `-` for standard input
    #[arg(value_name = "CAPTURE", value_hint = ValueHint::FilePath)]
    pub capture: PathBuf,

    /// Read the doors from this configuration file
    #[arg(short, long, value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    /// Treat these as the addresses of the machine that runs knockd [default: those of this machine or, if no packet
    /// in the file is from or for it, every destination]
    #[arg(short, long, value_name = "ADDRESS,...", value_delimiter = ',')]
    pub address: Vec<IpAddr>,

    /// Explain what became of every packet from this source, instead of showing what happened to all sources
    #[arg(short, long, value_name = "ADDRESS")]
    pub explain: Option<IpAddr>,

    /// Print text for people or JSON for programs
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

/// The format of a reply.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people; its wording may change.
    Text,
    /// For programs; docs/json.md describes it.
    Json,
}

const AFTER_HELP: &str = "\
Signals:
  HUP        read the configuration again and reopen the log file
  INT, TERM  run the stop commands of all open doors, unless `OnExit` is `keep`, and exit

Exit status:
  0  a signal stopped knockd, or the command succeeded
  1  knockd could not start, or the command failed; the reason is on standard error
  2  the command line is invalid";

const CHECK_AFTER_HELP: &str = "\
Exit status:
  0  the configuration is usable
  1  the configuration has errors or, with --strict, warnings
  2  the command line is invalid";

const CONTROL_AFTER_HELP: &str = "\
Exit status:
  0  success
  1  failure; the reason is on standard error
  2  the command line is invalid";

const WATCH_AFTER_HELP: &str = "\
Keys:
  Tab, Shift-Tab  show the next list, or the previous one
  arrows, Page Up, Page Down, Home, End
                  select a line, and scroll
  c, e            close or extend the selected open door, after a yes
  f               forgive the selected scanner, after a yes
  d               dismiss the selected problem, after a yes
  q, Esc, Ctrl-C  quit

Exit status:
  0  success
  1  the daemon cannot be reached, or there is no terminal
  2  the command line is invalid";

const REPLAY_AFTER_HELP: &str = "\
Exit status:
  0  the whole file was read
  1  the configuration or the capture file is unusable, or the capture file is damaged
  2  the command line is invalid";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_derived_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_are_read_as_getopt_long_reads_them() {
        let args = parse("knockd -dvieth1 --conf k.conf --only-ip-v4 -v -l -D -s").unwrap();
        assert_eq!(args.interface.as_deref(), Some("eth1"));
        assert_eq!(args.config, PathBuf::from("k.conf"));
        assert!(args.daemon && args.verbose && args.only_ip_v4 && args.lookup && args.debug);
    }

    #[test]
    fn the_time_of_a_trial_has_a_unit_or_is_in_seconds() {
        let trial = |line: &str| match parse(format!("knockd guard {line}").trim_end()).unwrap().command {
            Some(Command::Guard(arguments)) => arguments.trial,
            other => panic!("{other:?}"),
        };
        for (line, expected) in [("", None), ("--try", Some(300)), ("--try 90", Some(90))] {
            assert_eq!(trial(line), expected);
        }
        for (line, expected) in [("--try=2s", 2), ("--try 1m -c x", 60), ("--try 24h", 86400)] {
            assert_eq!(trial(line), Some(expected));
        }
        for time in ["0", "-1", "+5m", "m", "5 m", "25h", "71582789m", "5d", "1.5h"] {
            assert_eq!(parse(&format!("knockd guard --try={time}")).unwrap_err().exit_code(), 2, "{time}");
        }
        for both in ["--try --remove", "--check --try", "--check --remove"] {
            assert_eq!(parse(&format!("knockd guard {both}")).unwrap_err().exit_code(), 2, "{both}");
        }
    }

    #[test]
    fn extra_arguments_and_unknown_options_are_errors() {
        for line in [
            "knockd extra",
            "knockd --what",
            "knockd -i",
            "knockd -d eth0",
            "knockd check a b",
            "knockd replay",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn what_belongs_to_the_daemon_is_no_option_of_a_command() {
        for line in ["knockd -d check", "knockd -c k.conf check", "knockd check -d"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert!(parse("knockd -i eth1").unwrap().command.is_none());
    }

    #[test]
    fn the_configuration_to_check_can_be_named_as_for_the_daemon_and_for_replay() {
        for (line, expected) in [
            ("knockd check", CONFIG),
            ("knockd check k.conf", "k.conf"),
            ("knockd check -c k.conf", "k.conf"),
            ("knockd check --strict --config=k.conf", "k.conf"),
        ] {
            let Some(Command::Check(check)) = parse(line).unwrap().command else { panic!("{line}") };
            assert_eq!(check.path(), Path::new(expected), "{line}");
        }
        assert!(parse("knockd check -c k.conf other.conf").is_err());
    }

    #[test]
    fn several_own_addresses_can_be_given_in_either_way() {
        let line = "knockd replay a.pcap --address 192.0.2.1,2001:db8::1 -a 192.0.2.2";
        let Some(Command::Replay(replay)) = parse(line).unwrap().command else { panic!("{line}") };
        assert_eq!(replay.address.len(), 3, "{replay:?}");
    }
}
