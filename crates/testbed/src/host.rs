//! One host: running programs on it and sending frames from it.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;

use crate::running::Running;

/// A host of a [`Net`](crate::Net): a network, file-system and process namespace with one interface, `eth0`.
pub struct Host {
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// The hardware address of its `eth0`.
    pub mac: [u8; 6],
    name: &'static str,
    namespaces: Namespaces,
}

/// How to enter a host's namespaces.
pub(crate) struct Namespaces {
    /// The process that holds them.
    pub(crate) pid: Pid,
    /// Whether they belong to a user namespace.
    pub(crate) user: bool,
}

impl Host {
    pub(crate) fn new(
        name: &'static str,
        namespaces: Namespaces,
        ipv4: Ipv4Addr,
        ipv6: Ipv6Addr,
        mac: [u8; 6],
    ) -> Self {
        Self { ipv4, ipv6, mac, name, namespaces }
    }

    /// Returns a command that runs `program` on this host as its root, with `/` as the working directory.
    ///
    /// The program is not the child itself but the child's child ([`Running`] knows how to signal it); its exit
    /// status and a death by signal are passed on. Its `PATH` includes `/usr/sbin` and `/sbin`, even for a plain
    /// user.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.namespaces.pid)).args(["--net", "--mount", "--pid"]);
        if self.namespaces.user {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").arg(program).env("PATH", search_path());
        command
    }

    /// Runs a program to its end and returns its stdout.
    ///
    /// # Errors
    ///
    /// When it cannot start or does not exit with 0; the message has its command line and its stderr.
    pub fn run(&self, argv: &[impl AsRef<OsStr>]) -> Result<String> {
        self.run_with_input(argv, b"")
    }

    /// Runs a program as [`Host::run`] does, with `input` as its stdin.
    ///
    /// # Errors
    ///
    /// As [`Host::run`].
    pub fn run_with_input(&self, argv: &[impl AsRef<OsStr>], input: &[u8]) -> Result<String> {
        let command_line = command_line(argv);
        let output = self
            .output(argv, input)
            .with_context(|| format!("cannot run `{command_line}` on the {}", self.name))?;
        ensure!(
            output.status.success(),
            "`{command_line}` on the {} ended with {}: {}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts a program and leaves it running.
    ///
    /// # Errors
    ///
    /// When it cannot start.
    pub fn spawn(&self, argv: &[impl AsRef<OsStr>]) -> Result<Running> {
        let (program, arguments) = argv.split_first().context("no program was named")?;
        Running::start(self.command(program).args(arguments))
    }

    /// Writes a file as this host sees it, readable only by its root: in the host's private directories, the
    /// machine's own files stay untouched.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_file(&self, path: &str, text: &str) -> Result<()> {
        self.run_with_input(&["sh", "-c", r#"umask 077; cat >"$1""#, "write", path], text.as_bytes())
            .map(drop)
    }

    /// Sends Ethernet frames out of `eth0`, byte for byte; see [`Frame`](crate::Frame) for building them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one, as it does below 14 bytes and above the interface's MTU; those before it have
    /// been sent.
    pub fn send_frames<F: AsRef<[u8]>>(&self, frames: &[F]) -> Result<()> {
        let mut input = String::new();
        for frame in frames {
            for byte in frame.as_ref() {
                write!(input, "{byte:02x}")?;
            }
            input.push('\n');
        }
        self.run_with_input(&[program_file()?.as_os_str(), OsStr::new("frames")], input.as_bytes()).map(drop)
    }

    /// Starts to print every frame that `eth0` receives or sends, one line of hexadecimal digits each; returns once
    /// it listens.
    ///
    /// As always on Linux, the kernel removes the outer VLAN tag of received frames.
    ///
    /// # Errors
    ///
    /// When the interface cannot be opened.
    pub fn capture(&self) -> Result<Running> {
        let mut capture = self.spawn(&[program_file()?.as_os_str(), OsStr::new("capture")])?;
        capture.wait_for_line("capturing", Duration::from_secs(10))?;
        Ok(capture)
    }

    /// Starts a TCP server on `port` of every address, which greets each client with one line; returns once it
    /// listens.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn listen(&self, port: u16) -> Result<Running> {
        let port = OsString::from(port.to_string());
        let mut server = self.spawn(&[program_file()?.as_os_str(), OsStr::new("listen"), &port])?;
        server.wait_for_line("listening", Duration::from_secs(10))?;
        Ok(server)
    }

    /// Creates `tun0`, a point-to-point link without Ethernet headers from `10.8.0.1` to `10.8.0.2`, which returns
    /// every IPv4 packet with source and destination exchanged after `delay`, in whole milliseconds; it disappears when
    /// the value is dropped.
    ///
    /// # Errors
    ///
    /// When the machine has no `/dev/net/tun`.
    pub fn mirror(&self, delay: Duration) -> Result<Running> {
        let delay = OsString::from(delay.as_millis().to_string());
        let mut mirror = self.spawn(&[program_file()?.as_os_str(), OsStr::new("mirror"), &delay])?;
        mirror.wait_for_line("mirroring", Duration::from_secs(10))?;
        self.run_words("ip address add 10.8.0.1 peer 10.8.0.2 dev tun0")?;
        self.run_words("ip link set tun0 up")?;
        Ok(mirror)
    }

    /// Starts a TCP proxy on `port`, for connections that a firewall redirects to it: it connects to `to`, at the port
    /// that they were meant for, once they are complete; returns when it listens.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn proxy(&self, port: u16, to: Ipv4Addr) -> Result<Running> {
        let [port, to] = [port.to_string(), to.to_string()].map(OsString::from);
        let mut proxy = self.spawn(&[program_file()?.as_os_str(), OsStr::new("proxy"), &port, &to])?;
        proxy.wait_for_line("listening", Duration::from_secs(10))?;
        Ok(proxy)
    }

    /// Says whether a TCP connection from this host to `port` of `address` succeeds within one second.
    ///
    /// # Errors
    ///
    /// When the attempt cannot be made.
    pub fn can_connect(&self, address: impl Into<IpAddr>, port: u16) -> Result<bool> {
        let (address, port) = (address.into().to_string(), port.to_string());
        let answer = self.run(&[
            program_file()?.as_os_str(),
            OsStr::new("connect"),
            OsStr::new(&address),
            OsStr::new(&port),
        ])?;
        match answer.trim_end() {
            "open" => Ok(true),
            "closed" => Ok(false),
            other => bail!("the connection attempt answered `{other}`"),
        }
    }

    /// Says whether its namespaces belong to a user namespace.
    pub(crate) fn has_user_namespace(&self) -> bool {
        self.namespaces.user
    }

    /// Returns the hardware address in the notation of `ip`.
    pub(crate) fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// Runs a command line whose words contain no spaces.
    pub(crate) fn run_words(&self, words: &str) -> Result<String> {
        self.run(&words.split_whitespace().collect::<Vec<_>>())
    }

    fn output(&self, argv: &[impl AsRef<OsStr>], input: &[u8]) -> Result<Output> {
        let (program, arguments) = argv.split_first().context("no program was named")?;
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program need not read its input; if it should have, its exit status tells.
            let _ = stdin.write_all(input);
        }
        Ok(child.wait_with_output()?)
    }
}

/// Returns the `PATH` for programs on a host: this process's, plus the directories that distributions hide from plain
/// users.
pub(crate) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// Finds this crate's binary, which does what needs a process on a host.
fn program_file() -> Result<PathBuf> {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    // The lock is held while cargo runs, so parallel tests build once; a panic in a test meanwhile does no harm.
    let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = found.as_deref().filter(|path| Path::exists(path)) {
        return Ok(path.to_path_buf());
    }
    let path = crate::build("testbed", "testbed")?;
    Ok(found.insert(path).clone())
}

fn command_line(argv: &[impl AsRef<OsStr>]) -> String {
    argv.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ")
}
