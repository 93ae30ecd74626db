//! What `knockd` prints and how it ends, when it does not get as far as listening.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::needless_raw_string_hashes, reason = "snapbox writes its snapshots with them")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use snapbox::cmd::{Command, OutputAssert, cargo_bin};
use snapbox::{assert_data_eq, str};
use testbed::{Host, Net};

fn knockd(line: &str) -> OutputAssert {
    Command::new(cargo_bin!("knockd")).env_remove("COLUMNS").args(line.split_whitespace()).assert()
}

/// Runs `knockd -c k.conf` with an interface that does not exist, where `k.conf` has this text.
fn knockd_with(config: &str) -> OutputAssert {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("k.conf", config), ("used-up", "# yesterday\n#700,800\n")] {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }
    let program = Command::new(cargo_bin!("knockd")).current_dir(directory.path());
    program.args(["-c", "k.conf", "-i", "no-such-interface"]).assert()
}

/// Runs `knockd` on a host until it ends; returns its exit status and what it printed on stderr.
fn on(host: &Host, arguments: &str) -> (Option<i32>, String) {
    let mut command = host.command(cargo_bin!("knockd"));
    let output = command.args(arguments.split_whitespace()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn help_is_printed_with_status_0() {
    for line in ["-h", "--help", "--help -c missing.conf"] {
        knockd(line).code(0).stderr_eq("").stdout_eq(str![[r#"
Port-knock daemon: runs a command when a source hits a secret sequence of ports

Usage: knockd [OPTIONS]
       knockd <COMMAND>

Commands:
  check     Check a configuration file for errors and unwise settings
  replay    Show what the daemon would have done with the packets in a capture file, and why;
            nothing is executed
  status    Show the state of the running daemon
  watch     Show the state of the running daemon live
  trace     Trace an address's packets live
  close     Close an open door now
  extend    Keep an open door open longer
  open      Open a door for an address as if it had knocked
  dismiss   Stop reporting that a door may still be open, after you have closed it by hand
  scanners  List the addresses that are ignored because they scan ports
  forgive   Stop ignoring an address that has scanned ports
  reload    Tell the running daemon to read its configuration again
  guard     Close the ports of doors with `Open`, try that, or open them again
  help      Print this message or the help of the given subcommand(s)

Options:
  -i, --interface <INT>  Listen on these interfaces: a name, a list (`eth0,wg0`), a pattern (`eth*`)
                         or `any`; overrides `Interface` in the configuration [default: eth0]
      --wait             Wait for missing interfaces instead of failing at startup
  -d, --daemon           Detach, run in the background, and write the PID file
  -c, --config <FILE>    Read the configuration from this file [default: /etc/knockd.conf]
  -D, --debug            Print debug messages on standard output
  -l, --lookup           Look up host names and log them; the owner of an address chooses its name,
                         so do not trust it
  -p, --pidfile <FILE>   With -d, write the process ID to this file; `PidFile` overrides it
                         [default: /var/run/knockd.pid]
  -g, --logfile <FILE>   Log to this file; `LogFile` overrides it
  -v, --verbose          Also print log lines on standard output
  -4, --only-ip-v4       Ignore IPv6
  -t                     Check the configuration and exit, like `knockd check FILE`
  -h, --help             Print help
  -V, --version          Print version

Signals:
  HUP        read the configuration again and reopen the log file
  INT, TERM  run the stop commands of all open doors, unless `OnExit` is `keep`, and exit

Exit status:
  0  a signal stopped knockd, or the command succeeded
  1  knockd could not start, or the command failed; the reason is on standard error
  2  the command line is invalid

"#]]);
    }
}

#[test]
fn the_version_is_printed_with_status_0() {
    for line in ["-V", "--version", "-c missing.conf -V"] {
        knockd(line).code(0).stderr_eq("").stdout_eq(format!("knockd {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    knockd("--verbos --interfaces eth0").code(2).stdout_eq("").stderr_eq(str![[r#"
error: unexpected argument '--interfaces' found

  tip: a similar argument exists: '--interface'

Usage: knockd --verbose --interface <INT>

For more information, try '--help'.

"#]]);
}

#[test]
fn pasted_characters_are_named_instead_of_what_else_the_words_might_be() {
    // As an editor's quotes in KNOCKD_OPTS arrive here.
    knockd("\u{201d}-i eth1\u{201d}").code(2).stdout_eq("").stderr_eq(str![[r#"
error: unrecognized subcommand '”-i'

  tip: in "”-i", there is a curly quote (U+201D); type `"`

Usage: knockd [OPTIONS]
       knockd <COMMAND>

For more information, try '--help'.

"#]]);
    knockd("check \u{2013}\u{2013}strict k.conf").code(2).stdout_eq("").stderr_eq(str![[r#"
error: unexpected argument 'k.conf' found

  tip: in "––strict", there is an en dash (U+2013); type `-`

Usage: knockd check [OPTIONS] [FILE]

For more information, try '--help'.

"#]]);
    knockd("-c \u{201c}k.conf\u{201d}").code(1).stdout_eq("").stderr_eq(str![[r#"
knockd: cannot read [..]/“k.conf”: No such file or directory; create it (see knockd(1) for examples), or name another file
knockd: in "“k.conf”", there is a curly quote (U+201C); type `"`

"#]]);
}

#[test]
fn an_extra_argument_is_a_usage_error() {
    knockd("eth0").code(2).stdout_eq("").stderr_eq(str![[r#"
error: unrecognized subcommand 'eth0'

Usage: knockd [OPTIONS]
       knockd <COMMAND>

For more information, try '--help'.

"#]]);
}

#[test]
fn options_of_the_daemon_do_not_go_with_a_command() {
    knockd("-d check").code(2).stdout_eq("").stderr_eq(str![[r#"
error: the subcommand 'check' cannot be used with '--daemon'

Usage: knockd [OPTIONS]
       knockd <COMMAND>

For more information, try '--help'.

"#]]);
}

#[test]
fn an_option_without_its_value_is_a_usage_error() {
    knockd("-i").code(2).stdout_eq("").stderr_eq(str![[r#"
error: a value is required for '--interface <INT>' but none was supplied

For more information, try '--help'.

"#]]);
}

#[test]
fn a_missing_configuration_is_named_with_the_reason() {
    for line in ["-c /no/such/knockd.conf", "-d -c /no/such/knockd.conf"] {
        knockd(line).code(1).stdout_eq("").stderr_eq(str![[r#"
knockd: cannot read /no/such/knockd.conf: No such file or directory; create it (see knockd(1) for examples), or name another file

"#]]);
    }
}

#[test]
fn every_error_of_a_configuration_is_drawn_in_one_go_with_the_warnings_between_them() {
    let config = "sequence = 1\n\
                  [options]\n\
                  \tlogfil = /dev/null\n\
                  \tmaxattempts = none\n\
                  [ssh]\n\
                  \tsequence = 700,80000,900\n\
                  \tseq_timeout = soon\n\
                  \tseq_timeout = 5 s\n\
                  \ttcpflags = syn,ak\n\
                  \ttarget = example.com\n\
                  \tcommand\n\
                  [web]\n\
                  \tcommand = true\n\
                  []\n";
    knockd_with(config).code(1).stdout_eq("").stderr_eq(str![[r#"
knockd: invalid configuration:
[..]/k.conf:1:1: error: `sequence` before the first section
  |
1 | sequence = 1
  | ^^^^^^^^ expected a section header such as `[options]` above it
[..]/k.conf:3:2: error: `logfil` is not a valid directive in [options]
  |
3 |     logfil = /dev/null
  |     ^^^^^^ expected a known directive
  |
  = help: did you mean `LogFile`?
[..]/k.conf:4:16: error: unexpected "none"
  |
4 |     maxattempts = none
  |                   ^^^^ expected a whole number up to 4294967295
[..]/k.conf:6:17: error: unexpected "80000"
  |
6 |     sequence = 700,80000,900
  |                    ^^^^^ expected a port number from 0 to 65535
[..]/k.conf:7:16: error: unexpected "soon"
  |
7 |     seq_timeout = soon
  |                   ^^^^ expected a whole number of seconds from 0 to 4294967295
[..]/k.conf:8:2: warning: duplicate directive (already given as `Seq_Timeout`); the last one wins
  |
8 |     seq_timeout = 5 s
  |     ^^^^^^^^^^^ expected only one per section
[..]/k.conf:8:18: warning: text ignored
  |
8 |     seq_timeout = 5 s
  |                     ^ expected nothing; a comment needs its own line
[..]/k.conf:9:17: error: unexpected "ak"
  |
9 |     tcpflags = syn,ak
  |                    ^^ expected a TCP flag: fin, syn, rst, psh, ack or urg, with a leading `!` if it must be clear
[..]/k.conf:10:11: error: invalid address
   |
10 |     target = example.com
   |              ^^^^^^^^^^^ expected an IPv4 or IPv6 address
   |
   = help: host names and networks are not supported
[..]/k.conf:11:9: error: missing value for `command`
   |
11 |     command
   |            ^ expected `= value`
[..]/k.conf:12:1: error: door `web` has no sequence
   |
12 | [web]
   | ^^^^^ expected a `Sequence` or `One_Time_Sequences` directive
[..]/k.conf:14:1: error: section without a name
   |
14 | []
   | ^^ expected `[options]` or the name of a door

"#]]);
}

#[test]
fn warnings_do_not_keep_it_from_going_on() {
    let config = "[ssh]\n\
                  \tsequence = 700,800,900 # mine\n\
                  \tseq_timeout = 0\n\
                  \tcmd_timeout = 1\n\
                  \tcmd_timeout = 2\n";
    knockd_with(config).code(1).stdout_eq("").stderr_eq(str![[r#"
[..]/k.conf:1:1: warning: door `ssh` can never open
  |
1 | [ssh]
  | ^^^^^ expected a `Seq_Timeout` of at least 1, because its sequence has more than one step
[..]/k.conf:2:25: warning: text ignored
  |
2 |     sequence = 700,800,900 # mine
  |                            ^^^^^^ expected nothing; a comment needs its own line
[..]/k.conf:5:2: warning: duplicate directive (already given as `Cmd_Timeout`); the last one wins
  |
5 |     cmd_timeout = 2
  |     ^^^^^^^^^^^ expected only one per section
knockd: no such interface: no-such-interface; available: [..]; choose one with -i or `Interface`, or wait for it with --wait or `WaitInterface`

"#]]);
}

#[test]
fn a_configuration_that_everybody_can_read_is_a_warning_and_one_that_everybody_can_write_is_refused() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/k.conf", "[door]\nsequence = 1\n").unwrap();
    let with_mode = |mode: &str| {
        net.server.run(&["chmod", mode, "/run/k.conf"]).unwrap();
        on(&net.server, "-c /run/k.conf -i eth7")
    };
    let (code, stderr) = with_mode("644");
    assert_eq!(code, Some(1));
    assert_data_eq!(
        stderr,
        str![[r#"
/run/k.conf: warning: world-readable, but contains secrets; run: chmod o= /run/k.conf
knockd: no such interface: eth7 (did you mean eth0?); available: lo,[..] eth0; choose one with -i or `Interface`, or wait for it with --wait or `WaitInterface`

"#]]
    );
    let (code, stderr) = with_mode("666");
    assert_eq!(code, Some(1));
    assert_data_eq!(
        stderr,
        str![[r#"
knockd: /run/k.conf is world-writable, so anyone could run commands as root; run: chmod o-w /run/k.conf

"#]]
    );
}

#[test]
fn a_missing_one_time_file_is_named() {
    let config = "[once]\none_time_sequences = missing\n[a]\nsequence = 1 # one\n[b]\none_time_sequences = /dev/null\n";
    knockd_with(config).code(1).stdout_eq("").stderr_eq(str![[r#"
knockd: invalid configuration:
[..]/k.conf:2:22: error: cannot read and write [..]/missing: No such file or directory (os error 2)
  |
2 | one_time_sequences = missing
  |                      ^^^^^^^ expected a file with one sequence per line
[..]/k.conf:4:14: warning: text ignored
  |
4 | sequence = 1 # one
  |              ^^^^^ expected nothing; a comment needs its own line
[..]/k.conf:6:22: error: cannot read and write /dev/null: not a regular file
  |
6 | one_time_sequences = /dev/null
  |                      ^^^^^^^^^ expected a file with one sequence per line

"#]]);
}

#[test]
fn an_unknown_interface_is_answered_with_those_that_exist() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/k.conf", "[options]\ninterface = eth7\n[door]\nsequence = 1\n").unwrap();
    for arguments in ["-c /run/k.conf", "-d -c /run/k.conf", "-c /run/k.conf -i eth7"] {
        let (code, stderr) = on(&net.server, arguments);
        assert_eq!(code, Some(1));
        assert_data_eq!(
            stderr,
            str![[r#"
knockd: no such interface: eth7 (did you mean eth0?); available: lo,[..] eth0; choose one with -i or `Interface`, or wait for it with --wait or `WaitInterface`

"#]]
        );
    }
    assert!(net.server.run(&["cat", "/run/knockd.pid"]).is_err());
}

#[test]
fn a_missing_tools_program_is_named_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let alone = directory.path().join("knockd");
    // By another process: while this one has it open to write, a child of another test has it, too, and nobody can run
    // it.
    Command::new("cp").arg(cargo_bin!("knockd")).arg(&alone).assert().code(0);
    for arguments in [&["check"][..], &["-t"], &["watch"], &["replay", "a.pcap"]] {
        let beside = directory.path().canonicalize().unwrap().join("knockd-tools");
        let expected =
            format!("knockd: this command needs {}, which is missing; install it there\n", beside.display());
        Command::new(&alone).args(arguments).assert().code(1).stdout_eq("").stderr_eq(expected);
    }
}
