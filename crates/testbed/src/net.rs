//! The namespaces: creating, joining and removing them.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::host::{Host, Namespaces, search_path};

/// Two hosts, each with an Ethernet interface `eth0`, joined by a virtual cable.
///
/// The server has the addresses `10.9.0.1/24` and `fd00:9::1/64`, the client `10.9.0.2/24` and `fd00:9::2/64`. Each
/// has its own empty `/run` (which most distributions also call `/var/run`) and `/var/lib`. When the value is
/// dropped, or this process dies in any way, the kernel ends every program that still runs on the hosts, daemons
/// included, and removes the namespaces.
pub struct Net {
    /// The host for a knock daemon.
    pub server: Host,
    /// The host that knocks.
    pub client: Host,
    has_ipv6: bool,
    // The client's holder is a child of the server's process namespace; in this order it ends first.
    _client_holder: Holder,
    _server_holder: Holder,
}

/// A third host; see [`Net::stranger`]. It ends when the value is dropped.
pub struct Stranger {
    /// The host.
    pub host: Host,
    _holder: Holder,
}

impl Net {
    /// Creates the two hosts.
    ///
    /// # Errors
    ///
    /// When a tool is missing, or the kernel allows neither namespaces for root nor user namespaces for this user;
    /// the message says which, and what helps.
    pub fn new() -> Result<Self> {
        Self::with_private_dirs(&[])
    }

    /// Creates the two hosts, each with its own empty directory in place of every one of `dirs`, in addition to
    /// `/run` and `/var/lib`.
    ///
    /// So a daemon can write `/var/log/knockd.log` without touching the machine's. The directories must exist.
    ///
    /// # Errors
    ///
    /// As [`Net::new`]; also when one of `dirs` does not exist.
    pub fn with_private_dirs(dirs: &[&str]) -> Result<Self> {
        let dirs = [&["/run", "/var/lib"], dirs].concat();
        let (server_holder, user_namespace) = hold_server(&dirs)?;
        let server = Host::new(
            "server",
            Namespaces { pid: server_holder.pid, user: user_namespace },
            Ipv4Addr::new(10, 9, 0, 1),
            Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1),
            [2, 0, 0, 0, 9, 1],
        );
        // Created from inside the server's namespaces, so the same user namespace owns both and they end together.
        let client_holder = Holder::start(server.command("unshare").args(["--net", "--mount"]), &dirs)
            .context("the client")?;
        let client = Host::new(
            "client",
            Namespaces { pid: client_holder.pid, user: user_namespace },
            Ipv4Addr::new(10, 9, 0, 2),
            Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2),
            [2, 0, 0, 0, 9, 2],
        );

        let cable = format!(
            "ip link add eth0 address {} type veth peer name eth0 address {} netns {}",
            server.mac_text(),
            client.mac_text(),
            client_holder.pid_inside
        );
        server.run_words(&cable).context("cannot join the hosts by a veth pair")?;
        let each = [(&server, &client), (&client, &server)];
        let has_ipv6 =
            each.map(|(host, peer)| configure(host, peer)).into_iter().collect::<Result<Vec<_>>>()?;
        let has_ipv6 = has_ipv6.into_iter().all(|yes| yes);
        wait_for_link(&[&server, &client])?;
        Ok(Self { server, client, has_ipv6, _client_holder: client_holder, _server_holder: server_holder })
    }

    /// Adds a host that has nothing to do with the client: `10.9.1.2`, joined by a cable of its own to the server's
    /// `eth1` (`10.9.1.1/24`). It reaches the server's `10.9.0.1` over that; it has no IPv6.
    ///
    /// # Errors
    ///
    /// As [`Net::new`]; also when there is one already.
    pub fn stranger(&self) -> Result<Stranger> {
        let holder = Holder::start(self.server.command("unshare").args(["--net", "--mount"]), &["/run"])
            .context("the stranger")?;
        let host = Host::new(
            "stranger",
            Namespaces { pid: holder.pid, user: self.server.has_user_namespace() },
            Ipv4Addr::new(10, 9, 1, 2),
            Ipv6Addr::UNSPECIFIED,
            [2, 0, 0, 0, 9, 3],
        );
        let cable = format!(
            "ip link add eth1 type veth peer name eth0 address {} netns {}",
            host.mac_text(),
            holder.pid_inside
        );
        self.server.run_words(&cable).context("cannot join the stranger by a veth pair")?;
        self.server.run_words("ip address add 10.9.1.1/24 dev eth1")?;
        self.server.run_words("ip link set eth1 up")?;
        host.run_words(&format!("ip address add {}/24 dev eth0", host.ipv4))?;
        host.run_words("ip link set eth0 up")?;
        host.run_words(&format!("ip route add {} via 10.9.1.1", self.server.ipv4))?;
        wait_for_link(&[&host])?;
        Ok(Stranger { host, _holder: holder })
    }

    /// Says whether the hosts have their IPv6 addresses, which they do unless this machine's kernel has IPv6
    /// disabled.
    pub fn has_ipv6(&self) -> bool {
        self.has_ipv6
    }
}

/// Gives `host` its addresses and returns whether IPv6 was among them. It knows those of its peer.
fn configure(host: &Host, peer: &Host) -> Result<bool> {
    host.run_words(&format!("ip address add {}/24 dev eth0", host.ipv4))?;
    // Container engines tend to disable IPv6 on every new interface; if that cannot be undone, the next command
    // fails.
    let _ = host.run(&["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6"]);
    // Without duplicate address detection, the address works at once.
    let has_ipv6 = host.run_words(&format!("ip address add {}/64 dev eth0 nodad", host.ipv6)).is_ok();
    host.run_words("ip link set eth0 up")?;
    // On a busy machine, the first packet would wait for the answer of the peer, and later packets would overtake it.
    let neighbour = |address| {
        host.run_words(&format!(
            "ip neighbour add {address} lladdr {} dev eth0 nud permanent",
            peer.mac_text()
        ))
    };
    neighbour(IpAddr::V4(peer.ipv4))?;
    if has_ipv6 {
        neighbour(IpAddr::V6(peer.ipv6))?;
    }
    Ok(has_ipv6)
}

/// Waits until the hosts can send: the kernel connects the ends of a cable some time after they are up.
fn wait_for_link(hosts: &[&Host]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    for host in hosts {
        while !host.run(&["ip", "-o", "link", "show", "eth0"]).is_ok_and(|link| is_connected(&link)) {
            ensure!(Instant::now() < deadline, "the link between the hosts does not come up");
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn is_connected(link: &str) -> bool {
    link.contains("state UP") && !link.contains("qdisc noop ")
}

/// Starts the process that holds the server's namespaces; also returns whether they need a user namespace.
fn hold_server(dirs: &[&str]) -> Result<(Holder, bool)> {
    // Includes a process namespace: when its first process ends, the kernel ends all others in it.
    const NAMESPACES: [&str; 5] = ["--net", "--mount", "--pid", "--fork", "--kill-child"];
    let mut refusals = String::new();
    for user in [false, true] {
        if !user && !geteuid().is_root() {
            continue;
        }
        let mut unshare = Command::new("unshare");
        if user {
            unshare.args(["--user", "--map-root-user"]);
        }
        match Holder::start(unshare.args(NAMESPACES).env("PATH", search_path()), dirs) {
            Ok(holder) => return Ok((holder, user)),
            Err(error) => {
                let who = if user { "with a user namespace" } else { "as root" };
                write!(refusals, "\n  {who}: {error:#}")?;
            }
        }
    }
    Err(anyhow!(
        "cannot make network namespaces on this machine.{refusals}\n\
         As root in a container, start it with --privileged (CAP_SYS_ADMIN and CAP_NET_ADMIN). As a plain user, the kernel must \
         allow user namespaces: look at the sysctls user.max_user_namespaces (not 0), kernel.unprivileged_userns_clone (1) \
         and kernel.apparmor_restrict_unprivileged_userns (0), where they exist; or run this as root."
    ))
}

/// A process whose only purpose is to keep the namespaces of one host alive; it ends when its stdin does.
struct Holder {
    child: Child,
    /// Its process ID in this process's namespace.
    pid: Pid,
    /// Its process ID in its own namespace.
    pid_inside: u32,
}

impl Holder {
    /// Starts the shell that becomes the holder with `unshare`, a command that creates the namespaces and then
    /// executes its arguments.
    fn start(unshare: &mut Command, dirs: &[&str]) -> Result<Self> {
        // /proc is still the outer one, so its `self` is the ID that `nsenter` needs outside. The pipe on stdin
        // closes when this process dies, in whatever way, and then `cat` ends. The shell does not exec it, because
        // the shell also reaps the processes that a daemon leaves behind, like the first process of a machine.
        const SCRIPT: &str = r#"set -e
            for dir do mount -t tmpfs -o mode=755 tmpfs "$dir"; done
            ip link set lo up
            read -r outside rest </proc/self/stat
            echo "$outside $$"
            cat
            exit"#;
        let mut child = unshare
            .args(["sh", "-c", SCRIPT, "holder"])
            .args(dirs)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    anyhow!("`unshare` or `nsenter` is missing; the package util-linux has both")
                }
                _ => error.into(),
            })?;

        let mut line = String::new();
        let stdout = child.stdout.take().context("no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let Some((pid, pid_inside)) = line.trim_end().split_once(' ') else {
            let output = child.wait_with_output()?;
            let why = String::from_utf8_lossy(&output.stderr);
            if why.contains("ip: not found") {
                bail!("`ip` is missing; the package iproute2 has it");
            }
            bail!("{}", why.trim_end());
        };
        Ok(Self { pid: Pid::from_raw(pid.parse()?), pid_inside: pid_inside.parse()?, child })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Kill the holder itself, not the `unshare` or `nsenter` around it, which waits for it: so when the wait
        // returns, the kernel has ended everything in the namespaces. An error means that the holder has already
        // ended.
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
