//! The commands of `knock`; the doc comments here are their help text.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::engine::ArgValueCandidates;
use knockd_core::TcpFlags;

use super::profiles;
use crate::profile::check_name;
use crate::uri;
use crate::value::{Families, HitList, NOT_OWN_ADDRESS, Service, host, milliseconds, seconds, tcp_flags};

/// What `knock` does besides knocking.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Add a profile
    Add(Add),
    /// List all profiles
    List,
    /// Show a profile, without its ports
    Show(Show),
    /// Change a profile: by options, or all profiles in an editor
    Edit(Edit),
    /// Remove a profile
    Remove(Remove),
    /// Make profiles of the doors in a knockd.conf
    Import(Import),
    /// Hand a profile on to another program or device
    Export(Export),
    /// Be the `ProxyCommand` of ssh: connect, and knock first if the service does not answer
    Proxy(Proxy),
    /// Print the script with which a shell completes options and profiles
    Completions(Completions),
}

/// Add a profile
///
/// Without ports, knock asks for the sequence and does not show it, or reads it from a pipe.
#[derive(Parser, Debug)]
pub struct Add {
    /// Name of the new profile
    #[arg(value_parser = name)]
    pub name: String,

    /// Host name or address; or a knock:// link, which holds everything
    #[arg(value_parser = host_or_link, value_hint = ValueHint::Hostname)]
    pub host: String,

    /// The sequence. The shell's history keeps it, and other users can see it while knock runs
    #[arg(value_name = "PORT[:PROTO]")]
    pub ports: Vec<String>,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take it for the help text of the command")]
    pub keys: Keys,
}

/// Be the `ProxyCommand` of ssh: connect, and knock first if the service does not answer
#[derive(Parser, Debug)]
pub struct Proxy {
    /// Knock as this profile says [default: the profile whose name or host is HOST]
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(profiles))]
    pub profile: Option<String>,

    /// Host to connect to, or a profile, whose host it is then; ssh puts it in place of %h
    #[arg(value_hint = ValueHint::Hostname, add = ArgValueCandidates::new(profiles))]
    pub host: String,

    /// Port to connect to; ssh puts it in place of %p
    #[arg(value_parser = Service::parse)]
    pub port: Service,
}

/// Show a profile, without its ports
#[derive(Parser, Debug)]
pub struct Show {
    /// Name of the profile
    #[arg(add = ArgValueCandidates::new(profiles))]
    pub name: String,

    /// Show its ports as well
    #[arg(long)]
    pub reveal: bool,
}

/// Change a profile: by options, or all profiles in an editor
///
/// Without options, knock opens the file with the profiles in $VISUAL or $EDITOR and replaces it only by a valid one.
#[derive(Parser, Debug)]
pub struct Edit {
    /// Name of the profile
    #[arg(add = ArgValueCandidates::new(profiles))]
    pub name: Option<String>,

    /// Name or address of the host
    #[arg(long, requires = "name", value_parser = host, value_hint = ValueHint::Hostname)]
    pub host: Option<String>,

    /// The sequence; without a value, knock asks for it and does not show it
    #[arg(long, requires = "name", value_name = "PORT,...", num_args = 0..=1, value_parser = HitList::parse)]
    pub sequence: Option<Option<HitList>>,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take it for the help text of the command")]
    pub keys: Keys,
}

/// Remove a profile
#[derive(Parser, Debug)]
pub struct Remove {
    /// Name of the profile
    #[arg(add = ArgValueCandidates::new(profiles))]
    pub name: String,
}

/// Make profiles of the doors in a knockd.conf
///
/// The sequence, its TCP flags, the lease and the service that the door opens become keys of the profile. Existing
/// profiles stay as they are.
#[derive(Parser, Debug)]
pub struct Import {
    /// The configuration of a server
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,

    /// The door to import; all without it
    pub door: Option<String>,

    /// Name or address of the server; Target of the door without it
    #[arg(long, value_parser = host, value_hint = ValueHint::Hostname)]
    pub host: Option<String>,

    /// The door whose sequence closes the imported one again
    #[arg(long, value_name = "DOOR", requires = "door")]
    pub close: Option<String>,

    /// Name of the new profile; the door's name without it
    #[arg(long, requires = "door", value_parser = name)]
    pub name: Option<String>,
}

/// Hand a profile on to another program or device
#[derive(Parser, Debug)]
pub struct Export {
    /// Name of the profile
    #[arg(add = ArgValueCandidates::new(profiles))]
    pub name: String,

    /// What to write
    #[arg(long, value_enum)]
    pub format: Format,

    /// Write to this file, which only you can read; a QR code becomes a picture if the name ends in .png or .svg
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}

/// What `knock export` writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// A knockd.conf with this door
    Knockd,
    /// A file that the Android app Knock on Ports imports
    Knockonports,
    /// A knock:// link, which `knock add` takes
    Uri,
    /// The link as a QR code
    Qr,
    /// All keys of the profile
    Json,
}

/// Print the script with which a shell completes options and profiles
#[derive(Parser, Debug)]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

/// A shell that completes words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[allow(missing_docs, reason = "names")]
pub enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

/// The keys of a profile that can be given as options.
#[derive(Parser, Debug)]
pub struct Keys {
    /// The sequence that closes the door again
    #[arg(long, value_name = "PORT,...", value_parser = HitList::parse)]
    pub close: Option<HitList>,

    /// Wait this many milliseconds after each hit
    #[arg(long, short, value_name = "MS", value_parser = milliseconds)]
    pub delay: Option<Duration>,

    /// Use ipv4, ipv6, or both one after the other
    #[arg(long, value_parser = Families::parse)]
    pub family: Option<Families>,

    /// After a knock, try this service, such as tcp/22
    #[arg(long, value_name = "SERVICE", value_parser = Service::parse)]
    pub verify: Option<Service>,

    /// Knock again up to this many times if the service stays closed
    #[arg(long, value_name = "N")]
    pub retries: Option<u32>,

    /// Wait this many seconds for the service each time
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,

    /// Send TCP hits with exactly these flags, such as fin or syn,ack
    #[arg(long, value_name = "FLAG,...", value_parser = tcp_flags)]
    pub tcpflags: Option<TcpFlags>,

    /// The door closes after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub lease: Option<Duration>,

    /// Take each sequence from the next unused line of this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub one_time: Option<PathBuf>,

    /// Complete the connections of TCP hits
    #[arg(long)]
    pub connect: bool,

    /// Send from this interface
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,

    /// Send from this address
    #[arg(long, value_name = "ADDRESS", value_parser = own_address)]
    pub source: Option<IpAddr>,

    /// Run this command after the knock; takes the rest of the line
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true)]
    #[arg(value_hint = ValueHint::CommandName)]
    pub then: Vec<String>,
}

fn own_address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| NOT_OWN_ADDRESS)
}

fn host_or_link(text: &str) -> Result<String, &'static str> {
    // What is in a link is checked when it is read.
    if uri::is_link(text) { Ok(text.to_owned()) } else { host(text) }
}

fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}
