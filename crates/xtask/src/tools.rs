//! The system's programs: finding them, and installing them if possible.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anstream::println;
use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;

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
    /// directory. The other package managers enable no services.
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
const KNOCKD: Tool = tool("knockd", "knockd", "knock-server");

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
        let is_missing = |tool: &Tool| tool.find().is_none() && !self.unpacked().join(tool.program).exists();
        let missing: Vec<Tool> = tools.iter().copied().filter(is_missing).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names = missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ");
        let Some(manager) = MANAGERS.iter().find(|manager| manager.program.find().is_some()) else {
            bail!("these programs are missing: {names}; no package manager known here can install them");
        };
        let (to_unpack, to_install): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|tool| manager.can_unpack && !tool.unpacked.is_empty());
        let mut packages: Vec<_> = to_install.iter().map(|tool| manager.package_of(tool)).collect();
        packages.sort_unstable();
        packages.dedup();
        let install = format!("{} {}", manager.install, packages.join(" "));
        ensure!(geteuid().is_root(), "these programs are missing: {names}; install them as root: {install}");

        println!("missing: {names}");
        if let Some(refresh) = manager.refresh {
            refresh_lists(refresh)?;
        }
        if !packages.is_empty() {
            run_manager(&install, Path::new("/"))?;
            self.installed.extend(packages.into_iter().map(str::to_owned));
        }
        let still_missing = to_install.iter().find(|tool| tool.find().is_none());
        ensure!(
            still_missing.is_none(),
            "`{install}` did not bring {}",
            still_missing.map_or("", |tool| tool.program)
        );
        to_unpack.iter().try_for_each(|tool| self.unpack(tool))
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

    /// Installs the C program for the conformance suite, if the system's packages are Debian's: the suite knows their
    /// version 0.8. Returns whether it is present. The package neither enables nor starts its service.
    ///
    /// # Errors
    ///
    /// As [`Tools::ensure_present`].
    pub(crate) fn ensure_original(&mut self) -> Result<bool> {
        let has_apt = MANAGERS.first().is_some_and(|apt| apt.program.find().is_some());
        if KNOCKD.find().is_some() || has_apt {
            return self.ensure_present(&[KNOCKD]).map(|()| true);
        }
        Ok(false)
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

/// A package manager.
struct Manager {
    program: Tool,
    refresh: Option<&'static str>,
    /// It removes no packages: apt is told not to, and the others do so only on request.
    install: &'static str,
    /// Whether it has Debian's packages.
    can_unpack: bool,
}

const MANAGERS: [Manager; 4] = [
    Manager {
        program: tool("apt-get", "apt", "apt"),
        refresh: Some("apt-get update -q"),
        install: "apt-get install -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends --no-remove",
        can_unpack: true,
    },
    Manager {
        program: tool("dnf", "dnf", "dnf"),
        refresh: None,
        install: "dnf install -y",
        can_unpack: false,
    },
    Manager {
        program: tool("apk", "apk-tools", "apk-tools"),
        refresh: None,
        install: "apk add",
        can_unpack: false,
    },
    Manager {
        program: tool("pacman", "pacman", "pacman"),
        refresh: None,
        install: "pacman -Sy --noconfirm",
        can_unpack: false,
    },
];

impl Manager {
    fn package_of(&self, tool: &Tool) -> &'static str {
        if self.program.program == "dnf" { tool.fedora } else { tool.package }
    }
}
