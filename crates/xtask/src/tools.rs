//! The system's programs: finding them, and installing them if possible.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anstream::println;
use anstyle::Style;
use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;

use crate::task::Task;

const HEADING: Style = Style::new().bold();

/// A program and the package that contains it.
#[derive(Clone, Copy)]
pub(crate) struct Tool {
    /// The program's name.
    pub(crate) program: &'static str,
    /// The package on Debian, Ubuntu, Alpine and Arch Linux.
    package: &'static str,
    /// The package on Fedora and its relatives.
    fedora: &'static str,
    /// Debian's packages, if installing the first one would enable a service: they are only unpacked, into the target
    /// directory. Where that is impossible, a person has to install it.
    unpacked: &'static [&'static str],
}

const fn tool(program: &'static str, package: &'static str, fedora: &'static str) -> Tool {
    Tool { program, package, fedora, unpacked: &[] }
}

pub(crate) const IP: Tool = tool("ip", "iproute2", "iproute");
pub(crate) const UNSHARE: Tool = tool("unshare", "util-linux", "util-linux");
pub(crate) const NSENTER: Tool = tool("nsenter", "util-linux", "util-linux");
pub(crate) const SETPRIV: Tool = tool("setpriv", "util-linux", "util-linux");
pub(crate) const NMAP: Tool = tool("nmap", "nmap", "nmap");
pub(crate) const PYTHON: Tool = tool("python3", "python3", "python3");
pub(crate) const FAIL2BAN: Tool =
    Tool { unpacked: &["fail2ban"], ..tool("fail2ban-regex", "fail2ban", "fail2ban-server") };
pub(crate) const IPTABLES: Tool = tool("iptables", "iptables", "iptables-nft");
pub(crate) const NFT: Tool = tool("nft", "nftables", "nftables");
pub(crate) const TCPDUMP: Tool = tool("tcpdump", "tcpdump", "tcpdump");
pub(crate) const TMUX: Tool = tool("tmux", "tmux", "tmux");
pub(crate) const TASKSET: Tool = tool("taskset", "util-linux", "util-linux");
pub(crate) const VALGRIND: Tool = tool("valgrind", "valgrind", "valgrind");
pub(crate) const QEMU: Tool = tool("qemu-system-x86_64", "qemu-system-x86", "qemu-system-x86-core");
pub(crate) const BUSYBOX: Tool = tool("busybox", "busybox-static", "busybox");
pub(crate) const CPIO: Tool = tool("cpio", "cpio", "cpio");
pub(crate) const DEPMOD: Tool = tool("depmod", "kmod", "kmod");
pub(crate) const PPPD: Tool = Tool { unpacked: &["ppp"], ..tool("pppd", "ppp", "ppp") };
pub(crate) const SSHD: Tool =
    Tool { unpacked: &["openssh-server", "libwrap0"], ..tool("sshd", "openssh-server", "openssh-server") };
pub(crate) const SSH_KEYSCAN: Tool = tool("ssh-keyscan", "openssh-client", "openssh-clients");
pub(crate) const CXX: Tool = tool("c++", "g++", "gcc-c++");
pub(crate) const LOGROTATE: Tool =
    Tool { unpacked: &["logrotate", "libpopt0"], ..tool("logrotate", "logrotate", "logrotate") };
// Its package brings logrotate, which enables a timer.
const KNOCKD: Tool = Tool { unpacked: &["knockd"], ..tool("knockd", "knockd", "knock-server") };

impl Tool {
    /// Finds the program in `PATH` and in the directories where distributions keep system tools.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .chain(system)
            .map(|dir| dir.join(self.program))
            .find(|file| file.is_file())
    }
}

/// The tools of this machine, and what was added.
pub(crate) struct Tools {
    target: PathBuf,
    installed: Vec<String>,
}

impl Tools {
    /// Finds out where to unpack tools.
    ///
    /// # Errors
    ///
    /// When cargo does not report its build directory.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { target: testbed::target_directory()?, installed: Vec::new() })
    }

    /// Returns cargo's build directory.
    pub(crate) fn target_directory(&self) -> &Path {
        &self.target
    }

    /// Returns the installed packages and unpacked files, for people.
    pub(crate) fn installed(&self) -> &[String] {
        &self.installed
    }

    /// Returns the directory of unpacked programs, for `PATH`. It need not exist.
    pub(crate) fn unpacked(&self) -> PathBuf {
        self.target.join("tools/bin")
    }

    /// Returns `PATH` with the unpacked programs after those of the machine.
    pub(crate) fn path(&self) -> OsString {
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:");
        path.push(self.unpacked());
        path
    }

    /// Makes sure that all of `tools` are present.
    ///
    /// # Errors
    ///
    /// When one is missing and this user cannot install it on this system; the message says what to type.
    pub(crate) fn ensure_present(&mut self, tools: &[Tool]) -> Result<()> {
        let is_missing =
            |this: &Self, tool: &Tool| tool.find().is_none() && !this.unpacked().join(tool.program).exists();
        let missing: Vec<Tool> = tools.iter().copied().filter(|tool| is_missing(self, tool)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names = missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ");
        let Some(manager) = MANAGERS.iter().find(|manager| manager.program.find().is_some()) else {
            bail!("these programs are missing: {names}; no package manager known here can install them");
        };
        let Plan { packages, unpack, refused } = manager.plan(&missing);
        let install = format!("{} {}", manager.install, packages.join(" "));
        ensure!(
            refused.is_empty(),
            "these programs are missing: {names}; their packages may enable services, so install them yourself: {}",
            refused.join(" ")
        );
        ensure!(geteuid().is_root(), "these programs are missing: {names}; install them as root: {install}");

        println!("missing: {names}");
        if let Some(refresh) = manager.refresh {
            refresh_lists(refresh)?;
        }
        if !packages.is_empty() {
            let before = manager.installed()?;
            let outcome = run_manager(&install, Path::new("/"));
            let after = manager.installed()?;
            self.installed.extend(after.difference(&before).cloned());
            outcome?;
            let removed: Vec<_> = before.difference(&after).map(String::as_str).collect();
            ensure!(removed.is_empty(), "`{install}` has removed packages: {}", removed.join(", "));
        }
        unpack.iter().try_for_each(|tool| self.unpack(tool))?;
        let still_missing: Vec<_> = missing.iter().filter(|tool| is_missing(self, tool)).collect();
        let still_missing = still_missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ");
        ensure!(still_missing.is_empty(), "`{install}` did not bring {still_missing}");
        Ok(())
    }

    /// Runs a command that adds something to this machine other than a package.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub(crate) fn add(&mut self, what: &str, command: &Task) -> Result<()> {
        command.run()?;
        self.installed.push(what.to_owned());
        Ok(())
    }

    /// Prints what was installed, if anything.
    pub(crate) fn report(&self) {
        if !self.installed.is_empty() {
            println!("\n{HEADING}Installed:{HEADING:#} {}", self.installed.join(", "));
        }
    }

    /// Unpacks a Debian package into the target directory, and writes a script that runs its program there.
    fn unpack(&mut self, tool: &Tool) -> Result<()> {
        let directory = self.target.join("tools").join(tool.package);
        let root = directory.join("root");
        // After an interruption, there is no script.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&root)?;
        fs::create_dir_all(self.unpacked())?;
        run_manager(&format!("apt-get download -q {}", tool.unpacked.join(" ")), &directory)?;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let status = Command::new("dpkg").arg("-x").arg(&path).arg(&root).status()?;
                ensure!(status.success(), "cannot unpack {}", path.display());
            }
        }
        let inside = |place: &&str| root.join(place).join(tool.program).exists();
        let place = ["usr/sbin", "usr/bin", "sbin", "bin"].into_iter().find(inside);
        let place = place.with_context(|| format!("the package {} has no {}", tool.package, tool.program))?;
        // Relative, so that the target directory can be moved.
        let script = format!(
            "#!/bin/sh\n# Made by `cargo xtask test`.\nroot=\"$(cd \"$(dirname \"$0\")/../{package}/root\" && pwd)\"\n\
             export LD_LIBRARY_PATH=\"$(echo \"$root\"/usr/lib/*-linux-gnu)\"\n\
             export PYTHONPATH=\"$root/usr/lib/python3/dist-packages\"\n\
             exec \"$root/{place}/{program}\" \"$@\"\n",
            package = tool.package,
            program = tool.program,
        );
        let path = self.unpacked().join(tool.program);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        self.installed.push(format!("{} (unpacked into {})", tool.package, directory.display()));
        Ok(())
    }

    /// Unpacks the C program for the conformance suite, if it is missing and the system's packages are Debian's: the
    /// suite knows their version 0.8. Returns whether it is present.
    ///
    /// # Errors
    ///
    /// As [`Tools::ensure_present`].
    pub(crate) fn ensure_original(&mut self) -> Result<bool> {
        if testbed::original("usr/sbin/knockd").is_some() {
            return Ok(true);
        }
        if !Self::refresh_debian()? {
            return Ok(false);
        }
        // It uses the same library.
        self.ensure_present(&[TCPDUMP])?;
        self.unpack(&KNOCKD)?;
        Ok(true)
    }

    /// Refreshes the lists of packages if the system's packages are Debian's; returns whether they are.
    ///
    /// # Errors
    ///
    /// When that fails for a minute.
    pub(crate) fn refresh_debian() -> Result<bool> {
        let apt = MANAGERS.iter().find(|manager| manager.can_unpack && manager.program.find().is_some());
        if let Some(refresh) = apt.and_then(|apt| apt.refresh).filter(|_| geteuid().is_root()) {
            refresh_lists(refresh)?;
        }
        Ok(apt.is_some())
    }
}

fn run_manager(command: &str, directory: &Path) -> Result<()> {
    println!("{command}");
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap_or_default())
        .args(words)
        .current_dir(directory)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()?;
    ensure!(status.success(), "`{command}` ended with {status}");
    Ok(())
}

/// Refreshes the lists of packages. apt does not wait while another program does the same, so we do, for a minute.
fn refresh_lists(command: &str) -> Result<()> {
    for _ in 0..12 {
        match run_manager(command, Path::new("/")) {
            Ok(()) => return Ok(()),
            Err(error) => println!("{error:#}; trying again in 5 s"),
        }
        thread::sleep(Duration::from_secs(5));
    }
    run_manager(command, Path::new("/"))
}

/// A package manager. None is asked to remove packages or to upgrade the system.
struct Manager {
    program: Tool,
    refresh: Option<&'static str>,
    /// The fewest packages, and without a question; what would need a package to go fails.
    install: &'static str,
    /// Prints one installed package a line.
    list: &'static str,
    /// Whether it has Debian's packages.
    can_unpack: bool,
}

const MANAGERS: [Manager; 4] = [
    Manager {
        program: tool("apt-get", "apt", "apt"),
        refresh: Some("apt-get update -q"),
        install: "apt-get install -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends --no-remove",
        // Of some packages, only the configuration is left.
        list: "dpkg-query --show --showformat ${db:Status-Status}:${Package}\\n",
        can_unpack: true,
    },
    Manager {
        program: tool("dnf", "dnf", "dnf"),
        refresh: None,
        // Without `--allowerasing`, it removes nothing; a package that replaces another one would.
        install: "dnf install -y --setopt=install_weak_deps=False --setopt=obsoletes=False",
        list: "rpm -qa --queryformat %{NAME}\\n",
        can_unpack: false,
    },
    Manager {
        program: tool("apk", "apk-tools", "apk-tools"),
        refresh: None,
        install: "apk add",
        list: "apk info -q",
        can_unpack: false,
    },
    Manager {
        program: tool("pacman", "pacman", "pacman"),
        refresh: None,
        // Without fresh lists, because these would take an upgrade of everything. It answers "no" where it would
        // remove.
        install: "pacman -S --needed --noconfirm",
        list: "pacman -Qq",
        can_unpack: false,
    },
];

/// What to do about missing tools.
struct Plan {
    /// Packages to install.
    packages: Vec<&'static str>,
    /// Tools to unpack.
    unpack: Vec<Tool>,
    /// Packages that are for a person to install.
    refused: Vec<&'static str>,
}

impl Manager {
    fn package_of(&self, tool: &Tool) -> &'static str {
        if self.program.program == "dnf" { tool.fedora } else { tool.package }
    }

    fn plan(&self, missing: &[Tool]) -> Plan {
        let (with_service, plain): (Vec<Tool>, Vec<Tool>) =
            missing.iter().partition(|tool| !tool.unpacked.is_empty());
        let packages_of = |tools: &[Tool]| -> Vec<_> {
            let packages: BTreeSet<_> = tools.iter().map(|tool| self.package_of(tool)).collect();
            packages.into_iter().collect()
        };
        let packages = packages_of(&plain);
        if self.can_unpack {
            Plan { packages, unpack: with_service, refused: Vec::new() }
        } else {
            Plan { packages, unpack: Vec::new(), refused: packages_of(&with_service) }
        }
    }

    /// Returns the installed packages.
    fn installed(&self) -> Result<BTreeSet<String>> {
        let mut words = self.list.split(' ');
        let output = Command::new(words.next().unwrap_or_default())
            .args(words)
            .output()
            .with_context(|| format!("cannot run: {}", self.list))?;
        ensure!(output.status.success(), "`{}` ended with {}", self.list, output.status);
        let lines = String::from_utf8_lossy(&output.stdout);
        let installed = lines.lines().filter(|line| !line.starts_with("config-files:"));
        Ok(installed.map(|line| line.trim_start_matches("installed:").to_owned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_with_a_service_is_unpacked_or_left_to_a_person_and_never_installed() {
        for manager in &MANAGERS {
            let Plan { packages, unpack, refused } =
                manager.plan(&[SSHD, IP, FAIL2BAN, UNSHARE, KNOCKD, NSENTER]);
            assert_eq!(packages.len(), 2, "{packages:?}");
            assert!(packages.contains(&"util-linux"), "{packages:?}");
            let unpacked: Vec<_> = unpack.iter().map(|tool| tool.program).collect();
            if manager.can_unpack {
                assert_eq!((unpacked, refused.len()), (vec!["sshd", "fail2ban-regex", "knockd"], 0));
            } else {
                assert_eq!((unpacked.len(), refused.len()), (0, 3), "{refused:?}");
            }
        }
    }

    #[test]
    fn the_installed_packages_are_listed_by_name() {
        let Some(manager) = MANAGERS.iter().find(|manager| manager.program.find().is_some()) else {
            testbed::skip("no known package manager");
            return;
        };
        let installed = manager.installed().unwrap();
        assert!(
            installed.len() > 5 && !installed.iter().any(|name| name.contains([':', ' '])),
            "{installed:?}"
        );
    }
}
