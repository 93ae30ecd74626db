//! What the tests of whole knocks share: a server with a real knockd and a door to port 22, and a client.

#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use testbed::{Host, Net, Running};

/// How long to wait for what must happen.
pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const KNOCK: &str = env!("CARGO_BIN_EXE_knock");

/// A door that knockd's own firewall opens.
pub(crate) const NATIVE: &str = "[options]\nInterface = eth0\nFirewall = nftables\n[ssh]\nSequence = 7101,8202:udp,9303\nOpen = tcp/22\nLease = 600\n";
/// A door that a command opens, in a firewall of [`FIREWALL`].
pub(crate) const COMMAND: &str = "[options]\nInterface = eth0\n[ssh]\nSequence = 7101,8202:udp,9303\n\
    Start_Command = nft add element inet filter in { %IP% }\nStop_Command = nft delete element inet filter in { %IP% }\n\
    Cmd_Timeout = 600\n";
/// The firewall of a server whose doors are commands; it drops.
pub(crate) const FIREWALL: &str = "table inet filter {
    set in { type ipv4_addr; }
    chain input {
        type filter hook input priority 0;
        ct state established accept
        tcp dport 22 ip saddr @in accept
        tcp dport 22 drop
    }
}
";

/// Whether this is root, which knockd has to be. The test that asks is counted as skipped if not.
pub(crate) fn is_root() -> bool {
    let is_root = std::env::var("USER").is_ok_and(|user| user == "root") || sh_here("id -u") == "0\n";
    if !is_root {
        testbed::skip("it needs root");
    }
    is_root
}

fn sh_here(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn sh(host: &Host, script: &str) -> String {
    host.run(&["sh", "-ec", script]).unwrap()
}

pub(crate) fn nft(host: &Host, rules: &str) {
    host.run_with_input(&["nft", "-f", "-"], rules.as_bytes()).unwrap();
}

/// Starts knockd on the server; returns once it listens.
pub(crate) fn knockd(net: &Net, config: &str) -> Running {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let program = BUILT.get_or_init(|| testbed::build("knockd-cli", "knockd").unwrap());
    net.server.write_file("/run/knockd.conf", config).unwrap();
    let mut knockd = net.server.spawn(&[program.to_str().unwrap(), "-c", "/run/knockd.conf", "-v"]).unwrap();
    knockd.wait_for_line("listening on ", SOON).unwrap();
    knockd
}

/// Starts a service at port 22 of both families that greets and hangs up.
pub(crate) fn service(host: &Host) -> Running {
    let script = "import socket\n\
        s = socket.create_server(('::', 22), family=socket.AF_INET6, backlog=100, dualstack_ipv6=True)\n\
        print('ready', flush=True)\n\
        while True:\n\
        \x20   c = s.accept()[0]; print('accepted', flush=True); c.sendall(b'hello\\n'); c.close()";
    let mut service = host.spawn(&["python3", "-c", script]).unwrap();
    service.wait_for_line("ready", SOON).unwrap();
    service
}

/// Starts a real SSH server at port 22, and gives the client a key for it and the options of [`SSH`]. Returns `None` where
/// there is none; the test is counted as skipped then.
pub(crate) fn sshd(net: &Net) -> Option<Running> {
    if net.server.run(&["sh", "-c", "command -v ssh && command -v ssh-keygen && command -v sshd"]).is_err() {
        testbed::skip_until_installed("an SSH server");
        return None;
    }
    // Only the package that is installed makes this user; one that is just unpacked does not.
    let user = "sshd:x:64999:65534::/run/sshd:/usr/sbin/nologin";
    let script = format!(
        "cp /etc/passwd /run/passwd; grep -q ^sshd: /run/passwd || echo {user} >>/run/passwd
         mount --bind /run/passwd /etc/passwd
         mkdir -m 755 /run/sshd; ssh-keygen -q -t ed25519 -N '' -f /run/key
         ssh-keygen -q -t ed25519 -N '' -f /run/person; cp /run/person.pub /run/authorized; chmod 600 /run/authorized"
    );
    sh(&net.server, &script);
    let person = sh(&net.server, "cat /run/person");
    net.client.write_file("/run/person", &person).unwrap();
    let options = "-o PidFile=none -o AuthorizedKeysFile=/run/authorized -o StrictModes=no -o PermitRootLogin=yes \
                   -o UsePAM=no -o MaxStartups=100";
    let start = format!("exec \"$(command -v sshd)\" -D -e -f /dev/null -h /run/key {options}");
    let mut sshd = net.server.spawn(&["sh", "-c", &start]).unwrap();
    sshd.wait_for_line("Server listening on 0.0.0.0 port 22", SOON).unwrap();
    Some(sshd)
}

/// Makes `ssh -F /run/config` of the client log in without asking; `more` is the rest of that file.
pub(crate) fn ssh_config(net: &Net, more: &str) {
    let config = format!(
        "IdentityFile /run/person\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nBatchMode yes\nUser root\n\
         LogLevel ERROR\n{more}"
    );
    net.client.write_file("/run/config", &config).unwrap();
}

/// Writes the client's hosts.toml.
pub(crate) fn hosts(net: &Net, text: &str) {
    sh(&net.client, "mkdir -p /run/.config/knock");
    net.client.write_file("/run/.config/knock/hosts.toml", text).unwrap();
}

/// What a knock came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ended {
    /// The value of a key in the JSON object on stdout, `null` if it has none.
    pub(crate) fn json(&self, key: &str) -> serde_json::Value {
        let object: serde_json::Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{self:?}"));
        object[key].clone()
    }
}

/// Runs `knock` on a host.
pub(crate) fn knock(host: &Host, line: &str) -> Ended {
    run(host, &[&[KNOCK], &line.split(' ').collect::<Vec<_>>()[..]].concat())
}

/// Returns a command that runs a program on a host, for a person whose home is `/run`.
pub(crate) fn command(host: &Host, argv: &[&str]) -> Command {
    let mut command = host.command(argv[0]);
    command.args(&argv[1..]).env("HOME", "/run").stdin(Stdio::null());
    for name in ["XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command
}

/// Runs a program on a host.
pub(crate) fn run(host: &Host, argv: &[&str]) -> Ended {
    let start = Instant::now();
    let output: Output = command(host, argv).output().unwrap();
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        took: start.elapsed(),
    }
}

/// Runs a program on a host's terminal, and returns what it shows there.
pub(crate) fn on_terminal(host: &Host, argv: &[&str]) -> Ended {
    let script = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    run(host, &[&["python3", "-c", script], argv].concat())
}
