//! What on this machine decides who can reach the services of doors: firewalls, rules, files and programs.

pub(crate) mod firewalld;
pub(crate) mod rules;
pub(crate) mod ufw;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use self::firewalld::Firewalld;
use self::rules::Rules;
use self::ufw::Ufw;
use crate::listening::Listening;

/// What is known of the machine. What cannot be read, because it is not there or only root may, is left out.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    /// Ufw, if it is active.
    pub(crate) ufw: Option<Ufw>,
    /// Firewalld, if it is running.
    pub(crate) firewalld: Option<Firewalld>,
    /// What the kernel's nftables has, Docker's rules included.
    pub(crate) rules: Rules,
    /// Files with rules that are loaded at boot.
    pub(crate) rule_files: Vec<RuleFile>,
    /// Names of interfaces that are VRFs.
    pub(crate) vrfs: Vec<String>,
    /// The ports on which ssh is expected.
    pub(crate) ssh: Vec<u16>,
    /// Whether packets are forwarded, for IPv4 and for IPv6.
    pub(crate) forwards: [Option<bool>; 2],
    pub(crate) listening: Listening,
}

/// A file with rules of nftables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RuleFile {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// Where distributions keep rules that they load at boot, and where people save them.
const RULE_FILES: [&str; 3] = ["etc/nftables.conf", "etc/nftables.nft", "etc/sysconfig/nftables.conf"];
const RULE_DIRECTORIES: [&str; 3] = ["etc/nftables", "etc/nftables.d", "var/lib/nftables"];

impl Machine {
    /// Reads all of it; files are those below `root`.
    pub(crate) fn read(root: &Path) -> Self {
        let forwards = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map(|name| {
            let text = fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok()?;
            Some(text.trim() != "0")
        });
        let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
        Self {
            ufw: Ufw::read(root),
            firewalld: output("firewall-cmd", &["--list-all-zones"])
                .map(|zones| Firewalld::read(&zones, root)),
            rules: Rules::parse(&output("nft", &["-st", "list", "ruleset"]).unwrap_or_default()),
            rule_files: rule_files(root),
            vrfs: vrfs(&output("ip", &["-o", "link", "show", "type", "vrf"]).unwrap_or_default()),
            ssh: ssh_ports(root, &connection),
            forwards,
            listening: Listening::read(),
        }
    }
}

/// Runs a program; returns what it prints if it is there and succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads the files of a directory, in order, as far as they can be read.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn rule_files(root: &Path) -> Vec<RuleFile> {
    let in_directories = RULE_DIRECTORIES.iter().flat_map(|directory| files_in(&root.join(directory)));
    let paths = RULE_FILES.iter().map(|file| root.join(file)).chain(in_directories);
    paths.filter_map(|path| Some(RuleFile { text: fs::read_to_string(&path).ok()?, path })).collect()
}

impl RuleFile {
    /// Returns the number of the first line that names knockd's own table.
    pub(crate) fn line_of_own_table(&self) -> Option<usize> {
        let names_it = |line: &str| {
            let code = line.split('#').next().unwrap_or_default().replace(['{', ';'], " ");
            let words: Vec<_> = code.split_whitespace().collect();
            words.windows(3).any(|words| words == ["table", "inet", "knockd"])
        };
        self.text.lines().position(names_it).map(|index| index + 1)
    }
}

/// Takes the names from lines such as `5: blue: <NOARP,MASTER,UP,LOWER_UP> mtu 65575`.
fn vrfs(links: &str) -> Vec<String> {
    links.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned).collect()
}

/// Returns the ports of the ssh server: those that its configuration names, or 22, and the one of the present connection, which
/// is the last word of `SSH_CONNECTION`.
fn ssh_ports(root: &Path, connection: &str) -> Vec<u16> {
    let directory = root.join("etc/ssh/sshd_config.d");
    let files = [root.join("etc/ssh/sshd_config")].into_iter().chain(files_in(&directory));
    let texts = files.filter_map(|path| fs::read_to_string(path).ok()).collect::<Vec<_>>();
    let lines = texts.iter().flat_map(|text| text.lines());
    let mut ports: Vec<u16> = lines
        .filter_map(|line| {
            let (key, value) = line.trim().split_once(|c: char| c.is_whitespace() || c == '=')?;
            value.trim().parse().ok().filter(|_| key.eq_ignore_ascii_case("port"))
        })
        .collect();
    if ports.is_empty() {
        ports.push(22);
    }
    ports.extend(connection.split_whitespace().nth(3).and_then(|port| port.parse::<u16>().ok()));
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_rules_are_found_and_so_is_our_table_in_them() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(rule_files(root.path()), []);
        write(
            "etc/nftables.conf",
            "#!/usr/sbin/nft -f\nflush ruleset\n# table inet knockd {\ntable inet filter {\n}\n",
        );
        write("etc/nftables.d/saved.nft", "table inet filter {}\ntable inet knockd{\n}\n");
        write("var/lib/nftables/rules.nft", "table inet knockd2 {\n}\n add table inet knockd;\n");
        let found: Vec<_> = rule_files(root.path()).iter().map(RuleFile::line_of_own_table).collect();
        assert_eq!(found, [None, Some(2), Some(3)]);
    }

    #[test]
    fn the_ports_of_ssh_are_those_that_its_files_name_and_the_one_in_use() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(ssh_ports(root.path(), ""), [22]);
        assert_eq!(ssh_ports(root.path(), "192.0.2.7 50000 192.0.2.1 2200"), [22, 2200]);
        let directory = root.path().join("etc/ssh/sshd_config.d");
        fs::create_dir_all(&directory).unwrap();
        fs::write(root.path().join("etc/ssh/sshd_config"), "#Port 22\nPermitRootLogin no\n  port 2022\n")
            .unwrap();
        assert_eq!(ssh_ports(root.path(), ""), [2022]);
        fs::write(directory.join("more.conf"), "Port=2023\nPortable 1\n").unwrap();
        assert_eq!(ssh_ports(root.path(), "192.0.2.7 50000 192.0.2.1 2022"), [2022, 2023]);
    }

    #[test]
    fn vrfs_are_named() {
        let links = "5: blue: <NOARP,MASTER,UP,LOWER_UP> mtu 65575 qdisc noqueue\\    link/ether 02:00:00:00:00:01\n\
                     9: red: <NOARP,MASTER> mtu 65575 qdisc noop\n";
        assert_eq!(vrfs(links), ["blue", "red"]);
        assert_eq!(vrfs(""), [""; 0]);
    }

    #[test]
    fn a_program_that_fails_or_is_missing_says_nothing() {
        assert_eq!(output("echo", &["a"]).as_deref(), Some("a\n"));
        assert_eq!(output("false", &[]), None);
        assert_eq!(output("no-such-program", &[]), None);
    }
}
