//! The firewall with which the demo closes port 22.

use std::path::Path;

use anyhow::Result;
use testbed::{Host, Net};

use crate::tools::{IPTABLES, NFT, Tools};

/// The file with the configuration of the server's knockd.
pub(crate) const CONFIG_FILE: &str = "/run/knockd.conf";

/// What protects port 22, with the path of its program.
pub(crate) enum Firewall {
    /// knockd itself.
    Guard(String),
    /// `iptables`, which the first example of knockd.conf uses.
    Iptables(String),
    /// `nft`.
    Nft(String),
    /// No firewall is usable: the door's commands start and stop the program that answers on port 22, which is this
    /// one.
    Answering(String),
}

impl Firewall {
    /// Creates the two hosts and closes the server's ports with the first firewall that works there. knockd's guard
    /// closes its port only when knockd starts.
    ///
    /// Being installed is not enough: the kernel may lack the modules, or a plain user may not be allowed to load
    /// them.
    pub(crate) fn closed_net(knockd: &str, tools: &mut Tools) -> Result<(Net, Self)> {
        let guard = Self::Guard(knockd.to_owned());
        let net = new_net()?;
        net.server.write_file(CONFIG_FILE, &guard.config(&["1"], 1))?;
        let guarded = net.server.run(&[knockd, "guard", "-c", CONFIG_FILE]);
        if guarded.and_then(|_| net.server.run(&[knockd, "guard", "--remove"])).is_ok() {
            return Ok((net, guard));
        }
        if IPTABLES.find().is_none() && NFT.find().is_none() {
            // The demo works without one, so a failure only changes what it shows.
            let _ = tools.ensure_present(&[IPTABLES]);
        }
        // The example in every introduction to knockd uses /sbin/iptables.
        let usual = "/sbin/iptables";
        let iptables = if Path::new(usual).exists() { Some(usual.into()) } else { IPTABLES.find() };
        let candidates = [iptables.map(text).map(Self::Iptables), NFT.find().map(text).map(Self::Nft)];
        for firewall in candidates.into_iter().flatten() {
            // A new net for each, because a failed one may leave half of its rules.
            let net = new_net()?;
            if firewall.close_ports(&net.server).is_ok() {
                return Ok((net, firewall));
            }
        }
        Ok((new_net()?, Self::Answering(text(testbed::build("testbed", "testbed")?))))
    }

    /// Describes in one sentence what is used.
    pub(crate) fn description(&self) -> &'static str {
        match self {
            Self::Guard(_) => "The server has no firewall but knockd, which closes the port itself.",
            Self::Iptables(_) => {
                "The server's firewall is iptables: what no rule accepts is dropped without an answer."
            }
            Self::Nft(_) => {
                "The server's firewall is nftables: what no rule accepts is dropped without an answer."
            }
            Self::Answering(_) => {
                "No firewall works on this machine, so there is none in this demo: instead of setting rules, knockd's\n\
                 commands start and stop the program that answers on port 22."
            }
        }
    }

    /// Returns the commands with which a person would have closed the ports.
    pub(crate) fn set_up(&self) -> Vec<String> {
        match self {
            Self::Iptables(_) => vec![
                "iptables -A INPUT -i lo -j ACCEPT".to_owned(),
                "iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".to_owned(),
                "iptables -P INPUT DROP".to_owned(),
            ],
            Self::Nft(_) => vec![
                "nft add table ip filter".to_owned(),
                "nft add set ip filter ssh_clients '{ type ipv4_addr; }'".to_owned(),
                "nft add chain ip filter input '{ type filter hook input priority 0; policy drop; }'"
                    .to_owned(),
                "nft add rule ip filter input iif lo accept".to_owned(),
                "nft add rule ip filter input ct state established,related accept".to_owned(),
                "nft add rule ip filter input ip saddr @ssh_clients tcp dport 22 accept".to_owned(),
            ],
            Self::Guard(_) | Self::Answering(_) => Vec::new(),
        }
    }

    /// Describes the effect of the first knock.
    pub(crate) fn opened(&self) -> &'static str {
        match self {
            Self::Guard(_) | Self::Iptables(_) | Self::Nft(_) => {
                "Now port 22 is open, for this client's address only."
            }
            Self::Answering(_) => "Now port 22 is open.",
        }
    }

    /// Says whether packets are filtered, so a program can listen on port 22 all the time.
    pub(crate) fn is_real(&self) -> bool {
        !matches!(self, Self::Answering(_))
    }

    /// Returns the words in knockd's lines when the door opens, and when it closes.
    pub(crate) fn says(&self) -> (&'static str, &'static str) {
        match self {
            Self::Guard(_) => ("ssh: let in for", "ssh: let in no longer"),
            _ => ("ssh: running command", "ssh: command timeout"),
        }
    }

    /// Returns a configuration with one door for port 22, which is open for so many seconds.
    pub(crate) fn config(&self, sequence: &[&str], seconds: u64) -> String {
        let sequence = sequence.join(",");
        let Some((open, close)) = self.commands() else {
            return format!(
                "[options]\n\
                 \tLogFile  = /var/log/knockd.log\n\
                 \tFirewall = nftables\n\n\
                 [ssh]\n\
                 \tSequence = {sequence}\n\
                 \tOpen     = tcp/22\n\
                 \tLease    = {seconds}\n"
            );
        };
        format!(
            "[options]\n\
             \tLogFile = /var/log/knockd.log\n\n\
             [ssh]\n\
             \tSequence      = {sequence}\n\
             \tSeq_Timeout   = 5\n\
             \tTCPFlags      = syn\n\
             \tStart_Command = {open}\n\
             \tCmd_Timeout   = {seconds}\n\
             \tStop_Command  = {close}\n"
        )
    }

    /// Returns the commands for knockd.conf that open and close port 22, unless knockd does so itself.
    fn commands(&self) -> Option<(String, String)> {
        Some(match self {
            Self::Guard(_) => return None,
            Self::Iptables(path) => {
                let rule = "INPUT -s %IP% -p tcp --dport 22 -j ACCEPT";
                (format!("{path} -I {rule}"), format!("{path} -D {rule}"))
            }
            Self::Nft(path) => {
                let element = "element ip filter ssh_clients '{ %IP% }'";
                (format!("{path} add {element}"), format!("{path} delete {element}"))
            }
            Self::Answering(path) => {
                let open = format!("'{path}' listen 22 >/dev/null 2>&1 & echo $! >/run/answering.pid");
                (open, "kill $(cat /run/answering.pid)".to_owned())
            }
        })
    }

    fn close_ports(&self, server: &Host) -> Result<()> {
        for command in self.set_up() {
            server.run(&["sh", "-c", &command])?;
        }
        Ok(())
    }
}

fn new_net() -> Result<Net> {
    Net::with_private_dirs(&["/var/log"])
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}
