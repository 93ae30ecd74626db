//! The system's programs: finding them, and installing them where that is possible.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail, ensure};
use nix::unistd::geteuid;

/// A program and the package that has it.
pub(crate) struct Tool {
    /// The program's name.
    pub(crate) program: &'static str,
    /// The package with Debian, Ubuntu, Alpine and Arch Linux.
    package: &'static str,
    /// The package with Fedora and its relatives.
    fedora: &'static str,
}

pub(crate) const IP: Tool = Tool { program: "ip", package: "iproute2", fedora: "iproute" };
pub(crate) const UNSHARE: Tool = Tool { program: "unshare", package: "util-linux", fedora: "util-linux" };
pub(crate) const NSENTER: Tool = Tool { program: "nsenter", package: "util-linux", fedora: "util-linux" };
pub(crate) const SETPRIV: Tool = Tool { program: "setpriv", package: "util-linux", fedora: "util-linux" };
pub(crate) const NMAP: Tool = Tool { program: "nmap", package: "nmap", fedora: "nmap" };
pub(crate) const FAIL2BAN: Tool =
    Tool { program: "fail2ban-regex", package: "fail2ban", fedora: "fail2ban-server" };
pub(crate) const IPTABLES: Tool = Tool { program: "iptables", package: "iptables", fedora: "iptables-nft" };
pub(crate) const NFT: Tool = Tool { program: "nft", package: "nftables", fedora: "nftables" };
pub(crate) const TCPDUMP: Tool = Tool { program: "tcpdump", package: "tcpdump", fedora: "tcpdump" };
pub(crate) const TASKSET: Tool = Tool { program: "taskset", package: "util-linux", fedora: "util-linux" };
pub(crate) const VALGRIND: Tool = Tool { program: "valgrind", package: "valgrind", fedora: "valgrind" };
pub(crate) const QEMU: Tool =
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", fedora: "qemu-system-x86-core" };
pub(crate) const BUSYBOX: Tool = Tool { program: "busybox", package: "busybox-static", fedora: "busybox" };
pub(crate) const CPIO: Tool = Tool { program: "cpio", package: "cpio", fedora: "cpio" };
pub(crate) const DEPMOD: Tool = Tool { program: "depmod", package: "kmod", fedora: "kmod" };
pub(crate) const PPPD: Tool = Tool { program: "pppd", package: "ppp", fedora: "ppp" };
const KNOCKD: Tool = Tool { program: "knockd", package: "knockd", fedora: "knock-server" };
pub(crate) const CXX: Tool = Tool { program: "c++", package: "g++", fedora: "gcc-c++" };

impl Tool {
    /// Finds the program in `PATH` and where distributions keep system tools.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .chain(system)
            .map(|dir| dir.join(self.program))
            .find(|file| file.is_file())
    }
}

/// Makes sure that all of `tools` are there, and returns the packages that had to be installed for it.
///
/// # Errors
///
/// When one is missing and cannot be installed by this user on this system; the message has what to type.
pub(crate) fn ensure_present(tools: &[Tool]) -> Result<Vec<&'static str>> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| tool.find().is_none()).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let names = missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ");
    let Some(manager) = MANAGERS.iter().find(|manager| manager.program.find().is_some()) else {
        bail!("these programs are missing: {names}; no package manager known here can install them");
    };

    let mut packages: Vec<_> = missing.iter().map(|tool| manager.package_of(tool)).collect();
    packages.sort_unstable();
    packages.dedup();
    let install = format!("{} {}", manager.install, packages.join(" "));
    ensure!(geteuid().is_root(), "these programs are missing: {names}; install them as root: {install}");

    for command in manager.refresh.iter().chain([&install.as_str()]) {
        anstream::println!("{names} missing: {command}");
        let mut words = command.split(' ');
        let status = Command::new(words.next().unwrap_or_default())
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status()?;
        ensure!(status.success(), "these programs are missing: {names}; `{command}` ended with {status}");
    }
    let still_missing = missing.iter().find(|tool| tool.find().is_none());
    ensure!(
        still_missing.is_none(),
        "`{install}` did not bring {}",
        still_missing.map_or("", |tool| tool.program)
    );
    Ok(packages)
}

/// Installs the C program that the conformance suite compares ours with, where that is Debian's: the suite knows version 0.8
/// of theirs. Elsewhere it says what is not compared. The package neither enables nor starts its service.
///
/// # Errors
///
/// As [`ensure_present`].
pub(crate) fn ensure_original() -> Result<()> {
    let has_apt = MANAGERS.first().is_some_and(|apt| apt.program.find().is_some());
    if KNOCKD.find().is_some() || has_apt {
        return ensure_present(&[KNOCKD]).map(drop);
    }
    anstream::println!("Without apt there is no knockd 0.8: the conformance suite runs against ours only.");
    Ok(())
}

/// A package manager.
struct Manager {
    program: Tool,
    refresh: Option<&'static str>,
    install: &'static str,
}

const MANAGERS: [Manager; 4] = [
    Manager {
        program: Tool { program: "apt-get", package: "apt", fedora: "apt" },
        refresh: Some("apt-get update -q"),
        install: "apt-get install -q -y --no-install-recommends",
    },
    Manager {
        program: Tool { program: "dnf", package: "dnf", fedora: "dnf" },
        refresh: None,
        install: "dnf install -y",
    },
    Manager {
        program: Tool { program: "apk", package: "apk-tools", fedora: "apk-tools" },
        refresh: None,
        install: "apk add",
    },
    Manager {
        program: Tool { program: "pacman", package: "pacman", fedora: "pacman" },
        refresh: None,
        install: "pacman -Sy --noconfirm",
    },
];

impl Manager {
    fn package_of(&self, tool: &Tool) -> &'static str {
        if self.program.program == "dnf" { tool.fedora } else { tool.package }
    }
}
