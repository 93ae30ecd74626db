//! What `knock` prints and how it ends. Nothing here resolves a name or sends a packet.
#![allow(clippy::needless_raw_string_hashes, reason = "snapbox writes its snapshots with them")]

use snapbox::cmd::{Command, OutputAssert, cargo_bin};
use snapbox::str;

fn knock(line: &str) -> OutputAssert {
    Command::new(cargo_bin!("knock")).env_remove("COLUMNS").args(line.split_whitespace()).assert()
}

#[test]
fn help_is_printed_with_status_0() {
    for line in ["-h", "--help", "--help 192.0.2.1 1"] {
        knock(line).code(0).stderr_eq("").stdout_eq(str![[r#"
Port-knock client: hits ports of a host in order, each with one TCP SYN or UDP datagram

Usage: knock [OPTIONS] HOST PORT[:PROTO]...
       knock [OPTIONS] PROFILE
       knock COMMAND ...

Commands:
  add          Add a profile
  list         List all profiles
  show         Show a profile, without its ports
  edit         Change a profile: by options, or all profiles in an editor
  remove       Remove a profile
  import       Make profiles of the doors in a knockd.conf
  export       Hand a profile on to another program or device
  proxy        Be the `ProxyCommand` of ssh: connect, and knock first if the service does not answer
  completions  Print the script with which a shell completes options and profiles

Arguments:
  <HOST>             Host name or address; or, without ports, the name of a profile
  [PORT[:PROTO]]...  Port number or service name, and how to hit it; or a list of these, as
                     `Sequence` of the door has it

Options:
  -u, --udp                  Send every hit over UDP, whatever the port argument says
  -d, --delay <MS>           Wait this many milliseconds after each hit, including the last; 0
                             unless the profile says otherwise
  -4, --ipv4                 Use IPv4 only
  -6, --ipv6                 Use IPv6 only
      --tcpflags <FLAG,...>  Send TCP hits with exactly these flags: a list of fin, syn, rst, psh,
                             ack, urg, or none; needs root
      --connect              Complete the connection of each TCP hit if it is answered, and keep it
                             open until the next hit
      --interface <NAME>     Send through this interface
      --source <ADDRESS>     Send from this address of this machine
      --strict               Exit with status 1 if a hit could not be sent, such as without a route
                             to the host
      --verify <SERVICE>     Try this TCP service after the knock, such as tcp/22, and knock again
                             if it stays closed
      --retries <N>          Knock again at most N times [default: 2]
      --timeout <S>          Wait S seconds for the service after each knock [default: 3]
      --both                 Knock over IPv4 and IPv6, at the first address of each
      --format <FORMAT>      Report as text, or as json on stdout [default: text]
      --close                Knock the profile's closing sequence
      --watch                Stay, and knock the profile again when this side's address changes or
                             the lease is about to end
  -v, --verbose              Print each hit; of a profile, without its ports
      --then <CMD>...        Run this command if the knock succeeds; takes the rest of the line
  -h, --help                 Print help
  -V, --version              Print version

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
  knock home

"#]]);
    }
}

#[test]
fn the_version_is_printed_with_status_0() {
    for line in ["-V", "--version"] {
        knock(line).code(0).stderr_eq("").stdout_eq(format!("knock {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn no_argument_is_a_usage_error() {
    knock("").code(2).stdout_eq("").stderr_eq(str![[r#"
error: the following required arguments were not provided:
  <HOST>

Usage: knock [OPTIONS] HOST PORT[:PROTO]...
       knock [OPTIONS] PROFILE
       knock COMMAND ...

For more information, try '--help'.

"#]]);
}

#[test]
fn an_unknown_option_is_named_and_nothing_else() {
    for (line, option) in [
        ("--bogus 192.0.2.1 1", "--bogus"),
        ("192.0.2.1 1 --through eth0", "--through"),
        ("--ipv5 192.0.2.1 1", "--ipv5"),
        ("192.0.2.1 -x 1", "-x"),
    ] {
        let expected = format!(
            "error: unexpected argument '{option}' found\n\nUsage: knock [..]\n       knock [..]\n       knock [..]\n\n\
             For more information, try '--help'.\n"
        );
        knock(line).code(2).stdout_eq("").stderr_eq(expected);
    }
}

#[test]
fn pasted_characters_are_named() {
    knock("\u{2013}d 200 192.0.2.1 7000").code(2).stdout_eq("").stderr_eq(str![[r#"
knock: invalid port "192.0.2.1"; expected 0 to 65535 or a service name
knock: in "–d", there is an en dash (U+2013); type `-`

"#]]);
    knock("\u{2014}\u{2014}udp --bogus").code(2).stdout_eq("").stderr_eq(str![[r#"
error: unexpected argument '--bogus' found

  tip: in "——udp", there is a dash (U+2014); type `-`

Usage: knock [..]
       knock [OPTIONS] PROFILE
       knock COMMAND ...

For more information, try '--help'.

"#]]);
}

#[test]
fn a_list_without_a_port_is_a_usage_error() {
    knock("192.0.2.1 ,").code(2).stdout_eq("").stderr_eq(str![[r#"
knock: expected a port

"#]]);
    knock("192.0.2.1 7000,,8000").code(2).stdout_eq("").stderr_eq(str![[r#"
knock: invalid port ""; expected 0 to 65535 or a service name
  7000,,8000
       ^

"#]]);
}

#[test]
fn the_wrong_part_of_a_hit_is_pointed_at() {
    let error_of = |word| knock(&format!("192.0.2.1 {word}")).code(2).stdout_eq("");
    error_of("7000,80a0:udp").stderr_eq(str![[r#"
knock: invalid port "80a0"; expected 0 to 65535 or a service name
  7000,80a0:udp
       ^^^^

"#]]);
    error_of("7000:delay=5ms").stderr_eq(str![[r#"
knock: invalid delay "5ms"; expected a whole number of milliseconds
  7000:delay=5ms
             ^^^

"#]]);
    error_of("7000:dely=5").stderr_eq(str![[r#"
knock: unknown setting "dely"; did you mean delay?
  7000:dely=5
       ^^^^

"#]]);
    error_of("7000:udp:hex=c0ffeg").stderr_eq(str![[r#"
knock: invalid payload; expected pairs of hexadecimal digits
  7000:udp:hex=c0ffeg
                    ^

"#]]);
}

#[test]
fn flags_and_connections_exclude_one_another() {
    knock("--connect --tcpflags syn 192.0.2.1 1").code(2).stdout_eq("").stderr_eq(str![[r#"
error: the argument '--connect' cannot be used with '--tcpflags <FLAG,...>'

Usage: knock [OPTIONS] HOST PORT[:PROTO]...
       knock [OPTIONS] PROFILE
       knock COMMAND ...

For more information, try '--help'.

"#]]);
}

#[test]
fn a_source_that_is_no_address_is_a_usage_error() {
    knock("--source eth0 192.0.2.1 1").code(2).stdout_eq("").stderr_eq(str![[r#"
error: invalid value 'eth0' for '--source <ADDRESS>': invalid IP address syntax

For more information, try '--help'.

"#]]);
}

#[test]
fn a_port_out_of_range_is_a_usage_error() {
    knock("192.0.2.1 99999").code(2).stdout_eq("").stderr_eq(str![[r#"
knock: invalid port "99999"; expected 0 to 65535 or a service name

"#]]);
}

#[test]
fn an_unknown_protocol_is_a_usage_error() {
    knock("192.0.2.1 1:foo").code(2).stdout_eq("").stderr_eq(str![[r#"
knock: invalid protocol "foo"; expected tcp, udp or tcp-connect
  1:foo
    ^^^

"#]]);
}

#[test]
fn an_unknown_service_is_a_usage_error() {
    knock("192.0.2.1 no-such-service").code(2).stdout_eq("").stderr_eq(str![[r#"
knock: invalid port "no-such-service"; expected 0 to 65535 or a service name

"#]]);
}

#[test]
fn a_negative_delay_is_a_usage_error() {
    knock("-d -5 192.0.2.1 1").code(2).stdout_eq("").stderr_eq(str![[r#"
error: invalid value '-5' for '--delay <MS>': expected a non-negative whole number of milliseconds

For more information, try '--help'.

"#]]);
}

#[test]
fn a_delay_that_is_no_number_is_a_usage_error() {
    knock("192.0.2.1 1 --delay soon").code(2).stdout_eq("").stderr_eq(str![[r#"
error: invalid value 'soon' for '--delay <MS>': expected a non-negative whole number of milliseconds

For more information, try '--help'.

"#]]);
}

#[test]
fn an_unknown_flag_is_a_usage_error() {
    knock("--tcpflags syn,foo 192.0.2.1 1").code(2).stdout_eq("").stderr_eq(str![[r#"
error: invalid value 'syn,foo' for '--tcpflags <FLAG,...>': "foo" is not a TCP flag; expected fin, syn, rst, psh, ack, urg or none

For more information, try '--help'.

"#]]);
}

#[test]
fn a_host_without_an_address_of_the_family_is_an_error_with_status_1() {
    knock("-6 192.0.2.1 1").code(1).stdout_eq("").stderr_eq(str![[r#"
knock: cannot resolve host "192.0.2.1" to an IPv6 address: [..]

"#]]);
}
