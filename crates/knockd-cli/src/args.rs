//! The command line of `knockd`; the doc comments here are its help text.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum, ValueHint};
use knockd_core::config::Options;

/// Where the configuration is unless the command line names another file.
const CONFIG: &str = "/etc/knockd.conf";

/// Listens for secret sequences of port hits and runs a command for whoever knocks one
#[derive(Parser, Clone, Debug)]
#[command(name = "knockd", version, infer_long_args = true, args_override_self = true, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true)]
#[allow(clippy::struct_excessive_bools, reason = "one for each option without a value")]
pub struct Args {
    /// Listen on this interface, on several (`eth0,wg0`), on those of a pattern (`eth*`) or on `any`; wins over the
    /// configuration's `Interface` [default: eth0]
    #[arg(short, long, value_name = "INT")]
    pub interface: Option<String>,

    /// Wait for interfaces that do not exist yet, instead of failing at the start
    #[arg(long)]
    pub wait: bool,

    /// Run in the background and write the pid file
    #[arg(short, long)]
    pub daemon: bool,

    /// Read this configuration file
    #[arg(short, long, value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    /// Print debug messages
    #[arg(short = 'D', long)]
    pub debug: bool,

    /// Put the host names of knockers into the log; whoever owns an address chooses its name
    #[arg(short, long)]
    pub lookup: bool,

    /// Write the pid file here, unless the configuration names another [default: /var/run/knockd.pid]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub pidfile: Option<PathBuf>,

    /// Log to this file, unless the configuration names another
    #[arg(short = 'g', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub logfile: Option<PathBuf>,

    /// Print what is logged
    #[arg(short, long)]
    pub verbose: bool,

    /// Ignore IPv6
    #[arg(short = '4', long)]
    pub only_ip_v4: bool,

    /// Only check the configuration, as `knockd check FILE` does
    #[arg(short = 't')]
    pub test: bool,

    /// Accepted for the sake of command lines written for knockd 0.8.2; has no effect
    #[arg(short, long, hide = true)]
    pub save_mem: bool,

    /// What to do instead of running the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What `knockd` does when it is not to run the daemon.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Say what is wrong with a configuration, and what is unwise
    Check(Check),
    /// Say what would have happened to the packets of a capture file, and why; nothing is executed
    Replay(Replay),
    /// Show what the running daemon is doing
    Status(Status),
    /// Show what the running daemon is doing, again and again
    Watch(Watch),
    /// Tell live what becomes of the packets of an address, or of all
    Trace(Trace),
    /// Close a door before its time
    Close(Close),
    /// Keep an open door open longer
    Extend(Extend),
    /// Open a door as if it had been knocked at
    Open(Open),
    /// Let the running daemon read its configuration again
    Reload(Reload),
}

/// Where the running daemon can be asked.
#[derive(clap::Args, Clone, Debug)]
pub struct Socket {
    /// Ask the daemon that has this control socket
    #[arg(
        long = "socket",
        value_name = "PATH",
        default_value = Options::DEFAULT_CONTROL_SOCKET,
        value_hint = ValueHint::FilePath
    )]
    pub path: PathBuf,
}

/// How to ask the running daemon, and how to print the answer.
#[derive(clap::Args, Clone, Debug)]
pub struct Control {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub socket: Socket,

    /// Print a text for people or JSON for programs
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

/// The command line of `knockd status`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct Status {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: Control,
}

/// The command line of `knockd watch`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = WATCH_AFTER_HELP)]
pub struct Watch {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub socket: Socket,
}

/// The command line of `knockd trace`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct Trace {
    /// Tell only about this address
    pub address: Option<IpAddr>,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: Control,
}

/// The command line of `knockd close`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct Close {
    /// The door's name; with `--all` alone, every door
    #[arg(required_unless_present = "all")]
    pub door: Option<String>,

    /// Close it for this address
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub address: Option<IpAddr>,

    /// Close it for everybody
    #[arg(long)]
    pub all: bool,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: Control,
}

/// The command line of `knockd extend`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct Extend {
    /// The door's name
    pub door: String,

    /// The address it is open for
    pub address: IpAddr,

    /// How long it stays open from now at least [default: the door's `Cmd_Timeout`]
    pub seconds: Option<u32>,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: Control,
}

/// The command line of `knockd open`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct Open {
    /// The door's name
    pub door: String,

    /// The address to open it for
    pub address: IpAddr,

    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: Control,
}

/// The command line of `knockd reload`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CONTROL_AFTER_HELP)]
pub struct Reload {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its type says it")]
    pub control: Control,
}

/// The command line of `knockd check`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = CHECK_AFTER_HELP)]
pub struct Check {
    /// Check this configuration file
    #[arg(value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
    pub file: PathBuf,

    /// Fail when there is a warning, too
    #[arg(long)]
    pub strict: bool,

    /// Print a text for people or JSON for programs
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

/// The command line of `knockd replay`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = REPLAY_AFTER_HELP)]
pub struct Replay {
    /// Read the packets of this file, of the format pcap or pcapng; `-` is standard input
    #[arg(value_name = "CAPTURE", value_hint = ValueHint::FilePath)]
    pub capture: PathBuf,

    /// Take the doors from this configuration file
    #[arg(short, long, value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    /// Take these addresses for those of the machine that knockd runs on [default: the addresses of this machine or, if no
    /// packet goes to one of them, every destination in the file]
    #[arg(short, long, value_name = "ADDRESS,...", value_delimiter = ',')]
    pub address: Vec<IpAddr>,

    /// Tell what became of every packet of this source, in place of what happened to all sources
    #[arg(short, long, value_name = "ADDRESS")]
    pub explain: Option<IpAddr>,

    /// Print a text for people or JSON for programs
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

/// How the answer to a question is printed.
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
  INT, TERM  run the stop commands of all open doors, unless `OnExit` is `keep`, and end

Exit status:
  0  knockd was stopped by a signal, or the command succeeded
  1  it could not start, or the command failed; the reason is on standard error
  2  the command line is wrong";

const CHECK_AFTER_HELP: &str = "\
Exit status:
  0  the configuration can be used
  1  it cannot be used, or there is a warning and --strict is given
  2  the command line is wrong";

const CONTROL_AFTER_HELP: &str = "\
Exit status:
  0  it is done
  1  it is not done; the reason is on standard error
  2  the command line is wrong";

const WATCH_AFTER_HELP: &str = "\
Keys:
  q, Esc, Ctrl-C  end

Exit status:
  0  it was ended
  1  there is no daemon that can be asked, or no terminal
  2  the command line is wrong";

const REPLAY_AFTER_HELP: &str = "\
Exit status:
  0  the whole file was read
  1  the configuration or the file cannot be used, or the file is damaged
  2  the command line is wrong";

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
    fn several_own_addresses_can_be_given_in_either_way() {
        let line = "knockd replay a.pcap --address 192.0.2.1,2001:db8::1 -a 192.0.2.2";
        let Some(Command::Replay(replay)) = parse(line).unwrap().command else { panic!("{line}") };
        assert_eq!(replay.address.len(), 3, "{replay:?}");
    }
}
