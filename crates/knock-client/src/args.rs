//! The command line of `knock`; the doc comments here are its help text.
//!
//! There are two forms. The one of knock 0.8 has a host and ports, or a profile that stands for them ([`Args`]); the other
//! begins with the name of a [`Command`]. A line that 0.8 would have sent is of the first form even if its host has the
//! name of a command.

mod command;

use std::ffi::OsString;
use std::net::IpAddr;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, ValueEnum, ValueHint};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use knockd_core::{TcpFlags, pasted};

pub use self::command::{
    Add, Command, Completions, Edit, Export, Format, Import, Keys, Proxy, Remove, Shell, Show,
};
use crate::hosts::Hosts;
use crate::profile::{Profile, check_name};
use crate::value::{Families, Service, milliseconds, tcp_flags};
use crate::{Family, Hit, Target, Tcp, Verify};

/// Port-knock client: hits ports of a host in order, each with one TCP SYN or UDP datagram
#[derive(Parser, Debug)]
#[command(name = "knock", version, infer_long_args = true, args_override_self = true)]
#[command(override_usage = USAGE, after_help = AFTER_HELP)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Everything {
    #[command(flatten)]
    knock: Option<Args>,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What a command line asks for.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one")]
pub enum Invocation {
    /// Knock.
    Knock(Args),
    /// Something else.
    Command(Command),
}

impl Invocation {
    /// Parses the command line of this process. After an error, `--help` or `--version`, the process exits.
    pub fn of_process() -> Self {
        let line: Vec<OsString> = std::env::args_os().collect();
        Self::parse(&line).unwrap_or_else(|error| with_our_tips(error).exit())
    }

    fn parse(line: &[OsString]) -> Result<Self, clap::Error> {
        if let [_, help, command @ ..] = line
            && help == "help"
            && command.iter().all(|word| word.to_str().is_some_and(is_command))
        {
            let words = std::iter::once("knock".into()).chain(command.iter().cloned());
            Everything::try_parse_from(words.chain(["--help".into()]))?;
        }
        let knock = Args::try_parse_from(line);
        let names_a_command = line.get(1).and_then(|word| word.to_str()).is_some_and(is_command);
        if names_a_command && !knock.as_ref().is_ok_and(Args::was_sent_by_0_8) {
            let everything = Everything::try_parse_from(line)?;
            if let Some(command) = everything.command {
                return Ok(Self::Command(command));
            }
        }
        match knock {
            Err(error) if error.kind() == ErrorKind::DisplayHelp => {
                Err(Everything::try_parse_from(["knock", "--help"]).err().unwrap_or(error))
            }
            parsed => parsed.map(Self::Knock),
        }
    }
}

/// The whole command line, for completions and the manual page.
pub fn command() -> clap::Command {
    Everything::command()
}

fn is_command(name: &str) -> bool {
    command().find_subcommand(name).is_some()
}

/// Returns the names of all profiles with their hosts, for completions; nothing if they cannot be read.
fn profiles() -> Vec<CompletionCandidate> {
    let Ok(hosts) = Hosts::read() else { return Vec::new() };
    let candidate = |name: &str| {
        let host = hosts.profile(name).ok().map(|profile| profile.host.into());
        CompletionCandidate::new(name).help(host)
    };
    // A name that nobody could add is not put onto a command line.
    hosts.names().filter(|name| check_name(name).is_ok()).map(candidate).collect()
}

/// How to report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Report {
    /// Text for people, on stderr
    #[default]
    Text,
    /// A JSON object on stdout
    Json,
}

/// Port-knock client: hits ports of a host in order, each with one TCP SYN or UDP datagram
#[derive(Parser, Debug)]
#[command(name = "knock", version, infer_long_args = true, args_override_self = true)]
#[command(override_usage = USAGE)]
#[allow(clippy::struct_excessive_bools, reason = "one for each option without a value")]
pub struct Args {
    /// Send every hit over UDP, whatever the port argument says
    #[arg(short, long)]
    pub udp: bool,

    /// Wait this many milliseconds after each hit, including the last; 0 unless the profile says otherwise
    #[arg(short, long, value_name = "MS", value_parser = milliseconds)]
    #[arg(allow_negative_numbers = true)]
    pub delay: Option<Duration>,

    /// Use IPv4 only
    #[arg(short = '4', long, overrides_with = "ipv6")]
    pub ipv4: bool,

    /// Use IPv6 only
    #[arg(short = '6', long, overrides_with = "ipv4")]
    pub ipv6: bool,

    /// Send TCP hits with exactly these flags: a list of fin, syn, rst, psh, ack, urg, or none; needs root
    #[arg(long, value_name = "FLAG,...", value_parser = tcp_flags)]
    pub tcpflags: Option<TcpFlags>,

    /// Complete the connection of each TCP hit if it is answered, and keep it open until the next hit
    #[arg(long, conflicts_with = "tcpflags")]
    pub connect: bool,

    /// Send through this interface
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,

    /// Send from this address of this machine
    #[arg(long, value_name = "ADDRESS")]
    pub source: Option<IpAddr>,

    /// Exit with status 1 if a hit could not be sent, such as without a route to the host
    #[arg(long)]
    pub strict: bool,

    /// Try this TCP service after the knock, such as tcp/22, and knock again if it stays closed
    #[arg(long, value_name = "SERVICE", value_parser = Service::parse)]
    pub verify: Option<Service>,

    /// Knock again at most N times [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=100))]
    pub retries: Option<u32>,

    /// Wait S seconds for the service after each knock [default: 3]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub timeout: Option<Duration>,

    /// Knock over IPv4 and IPv6, at the first address of each
    #[arg(long, conflicts_with_all = ["ipv4", "ipv6"])]
    pub both: bool,

    /// Report as text, or as json on stdout
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    pub format: Report,

    /// Knock the profile's closing sequence
    #[arg(long)]
    pub close: bool,

    /// Stay, and knock the profile again when this side's address changes or the lease is about to end
    #[arg(long, conflicts_with_all = ["close", "then"])]
    pub watch: bool,

    /// Print each hit; of a profile, without its ports
    #[arg(short, long)]
    pub verbose: bool,

    /// Run this command if the knock succeeds; takes the rest of the line
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    pub then: Vec<OsString>,

    /// Host name or address; or, without ports, the name of a profile
    #[arg(value_hint = ValueHint::Hostname, add = ArgValueCandidates::new(profiles))]
    pub host: String,

    /// Port number or service name, and how to hit it; or a list of these, as `Sequence` of the door has it
    #[arg(value_name = "PORT[:PROTO]")]
    pub ports: Vec<String>,
}

impl Args {
    /// Makes the command line with a profile and nothing else.
    pub fn without_options(profile: &str) -> Self {
        Self {
            udp: false,
            delay: None,
            ipv4: false,
            ipv6: false,
            tcpflags: None,
            connect: false,
            interface: None,
            source: None,
            strict: false,
            verify: None,
            retries: None,
            timeout: None,
            both: false,
            format: Report::Text,
            close: false,
            watch: false,
            verbose: false,
            then: Vec::new(),
            host: profile.to_owned(),
            ports: Vec::new(),
        }
    }

    /// Says whether knock 0.8 sends something for this line: hits that it knows, to a host that resolves.
    fn was_sent_by_0_8(&self) -> bool {
        !self.ports.is_empty()
            && self.ports.iter().all(|text| Hit::parse(text, self.udp).is_ok())
            && Target::resolve(&self.host, self.family()).is_ok()
    }

    /// Returns the families to knock over, if the line says so.
    pub fn families(&self) -> Option<Families> {
        if self.both { Some(Families::Both) } else { self.family().map(Families::Only) }
    }

    /// Returns how to verify the knock, if the line or the profile says what to verify.
    pub fn verify(&self, profile: Option<&Profile>) -> Option<Verify> {
        let of_profile = profile.and_then(|profile| profile.verify.clone());
        Some(Verify {
            service: self.verify.clone().or(of_profile)?,
            retries: self.retries.or(profile.and_then(|it| it.retries)).unwrap_or(Verify::RETRIES),
            timeout: self.timeout.or(profile.and_then(|it| it.timeout)).unwrap_or(Verify::TIMEOUT),
        })
    }

    /// Returns how TCP hits are sent that do not say so themselves, if the line says so.
    pub(crate) fn tcp(&self) -> Option<Tcp> {
        if self.connect { Some(Tcp::Connection) } else { self.tcpflags.map(Tcp::Flags) }
    }

    /// Returns the family that `-4` or `-6` selects; the last one wins.
    pub const fn family(&self) -> Option<Family> {
        match (self.ipv4, self.ipv6) {
            (true, _) => Some(Family::V4),
            (_, true) => Some(Family::V6),
            _ => None,
        }
    }
}

/// Returns a hint about the first word of the command line with a character that is not what it looks like.
pub fn hint() -> Option<String> {
    std::env::args_os().skip(1).find_map(|word| {
        let word = word.to_string_lossy();
        pasted(&word).map(|pasted| format!("in {word:?}, {pasted}"))
    })
}

/// Drops clap's advice about an unknown option, which is to pass it as a host or a port.
fn with_our_tips(mut error: clap::Error) -> clap::Error {
    error.remove(ContextKind::Suggested);
    error.remove(ContextKind::SuggestedArg);
    if let Some(hint) = hint() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
    }
    error
}

const USAGE: &str = "knock [OPTIONS] HOST PORT[:PROTO]...
       knock [OPTIONS] PROFILE
       knock COMMAND ...";

const AFTER_HELP: &str = "\
Hits:
  7000, 7000:tcp, ssh   one SYN
  7000:tcp-connect      a connection, as with --connect
  7000:flags=syn+ack    one segment with exactly these flags, as with --tcpflags
  8000:udp              a datagram with a zero byte
  8000:udp:hex=c0ffee   a datagram with these bytes; also text=... and base64=...
  icmp:size=64          an ICMP echo request with 64 bytes
  7000:delay=300        wait 300 milliseconds after this hit, instead of --delay

Exit status:
  0  the service to verify is open; or, with nothing to verify, every hit was sent or reported as
     not sent
  1  nothing was sent: the host does not resolve, a file is unusable, the interface or source
     address is not of this machine, or the system does not permit such packets; or, with --strict,
     a hit could not be sent
  2  the command line is invalid, or there is no such profile; nothing was sent
  3  the service to verify is still closed
  4  the host is unreachable
  The command of --then gives its own status.

Examples:
  knock myserver.example.com 123:tcp 456:udp 789:tcp
  knock add home myserver.example.com
  knock home";

/// Parses seconds, which may have a fraction.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "expected seconds, from 0.1 to 3600";
    let seconds: f64 = text.parse().map_err(|_| EXPECTED)?;
    if (0.1..=3600.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(EXPECTED) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::profile::COMMANDS;

    fn parse(line: &str) -> Args {
        Args::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_derived_command_line_is_consistent() {
        Args::command().debug_assert();
        command().debug_assert();
    }

    #[test]
    fn no_profile_can_have_the_name_of_a_command() {
        let commands: Vec<_> = command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
        for command in &commands {
            assert!(COMMANDS.contains(&&**command), "{command}");
        }
    }

    #[test]
    fn every_abbreviation_of_0_8_still_means_the_same() {
        let options = ["udp", "delay", "ipv4", "ipv6", "verbose", "version", "help"];
        for option in options {
            for length in 1..=option.len() {
                let start = option.get(..length).unwrap();
                if options.iter().filter(|other| other.starts_with(start)).count() > 1 {
                    continue;
                }
                let told = |option: &str| {
                    let value = if option.starts_with('d') { "=5" } else { "" };
                    let parsed = Args::try_parse_from(["knock", &format!("--{option}{value}"), "host", "1"]);
                    parsed.map_or_else(|error| error.kind().to_string(), |args| format!("{args:?}"))
                };
                assert_eq!(told(start), told(option), "--{start}");
            }
        }
    }

    #[test]
    fn options_stand_before_between_or_after_the_ports() {
        for line in
            ["knock -d 500 -v host 1 2:udp", "knock host 1 -v -d 500 2:udp", "knock host 1 2:udp -vd500"]
        {
            let args = parse(line);
            assert_eq!(args.ports, ["1", "2:udp"], "{line}");
            assert_eq!(args.delay, Some(Duration::from_millis(500)), "{line}");
            assert!(args.verbose, "{line}");
        }
    }

    #[test]
    fn options_can_be_repeated_and_shortened_as_with_getopt_long() {
        let args = parse("knock -u -u --del 1 --delay=2 --verb host 1");
        assert!(args.udp && args.verbose);
        assert_eq!(args.delay, Some(Duration::from_millis(2)));
    }

    #[test]
    fn the_last_of_the_two_family_options_counts() {
        assert_eq!(parse("knock -4 -6 host 1").family(), Some(Family::V6));
        assert_eq!(parse("knock -6 host 1 -4").family(), Some(Family::V4));
        assert_eq!(parse("knock host 1").family(), None);
    }

    #[test]
    fn more_than_32_ports_are_taken() {
        let line = format!("knock host{}", " 7000".repeat(100));
        assert_eq!(parse(&line).ports.len(), 100);
    }
}
