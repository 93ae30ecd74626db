//! Emulated machines with Debian's kernels and this machine's files: for features that the kernel at hand may lack,
//! such as Landlock, VLAN and PPP, for parts of nftables that it has and older ones lack, for a clock that needs a system
//! call, and for a sleep.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use testbed::{Built, workspace_root};

use crate::tally::Tally;
use crate::task::{Task, quoted};
use crate::tools::{BUSYBOX, CPIO, DEPMOD, PPPD, QEMU, Tools};

/// A kernel, and what is tried with it.
pub(crate) struct Kernel {
    /// The release of Debian that has it.
    pub(crate) release: &'static str,
    /// Whether the machine sleeps at startup.
    sleeps: bool,
    runs: &'static [Run],
}

/// A run of a test program of the daemon.
struct Run {
    program: &'static str,
    which: &'static str,
    /// A module that the kernel does not find, unless an earlier run has needed it.
    without: &'static str,
}

const fn run(program: &'static str, which: &'static str) -> Run {
    Run { program, which, without: "" }
}

/// Linux 6.1, whose tables in nftables have an owner but do not persist.
pub(crate) const KERNEL: Kernel = Kernel {
    release: "bookworm",
    sleeps: true,
    runs: &[
        Run { without: "nfnetlink", ..run("older_kernels", "--ignored without_nftables") },
        Run { without: "nf_tables", ..run("older_kernels", "--ignored without_nftables") },
        Run { without: "nft_fib_inet", ..run("older_kernels", "--ignored without_a_part_of_nftables") },
        run("older_kernels", "--ignored without_persistent_tables"),
        run("knockd_cli", "capture::sandbox:: daemon::rights::"),
        run("separation", ""),
        run("packets", ""),
        run("kernels", "--ignored"),
    ],
};

/// Linux 5.10, whose tables have no owner.
pub(crate) const EARLIER_KERNEL: Kernel = Kernel {
    release: "bullseye",
    sleeps: false,
    runs: &[run("older_kernels", "--ignored without_owned_tables")],
};

/// How many seconds the machine may take.
const PATIENCE: u32 = 1200;

/// The machine, ready to start.
pub(crate) struct Machine {
    /// The directory that keeps its kernel between runs.
    directory: PathBuf,
    runs: &'static [Run],
}

impl Machine {
    /// Returns why this system cannot have such a machine, if so.
    pub(crate) fn obstacle() -> Option<&'static str> {
        // Related distributions name their kernels differently (os-release(5)).
        let is_debian = fs::read_to_string("/etc/os-release")
            .is_ok_and(|text| text.lines().any(|line| line == "ID=debian"));
        let is_possible = cfg!(target_arch = "x86_64") && is_debian && geteuid().is_root();
        (!is_possible).then_some("emulating a machine takes root on Debian for x86-64")
    }

    /// Installs the emulator and unpacks the kernel if they are missing, and writes down which tests to run.
    ///
    /// # Errors
    ///
    /// When a package is unavailable, or a test program is missing.
    pub(crate) fn prepare(tools: &mut Tools, built: &Built, kernel: &Kernel) -> Result<Self> {
        tools.ensure_present(&[QEMU, BUSYBOX, CPIO, DEPMOD, PPPD])?;
        let directory = tools.target_directory().join("machine").join(kernel.release);
        fs::create_dir_all(&directory)?;
        let directory = directory.canonicalize()?;
        for (name, text) in [
            ("prepare.sh", include_str!("machine/prepare.sh")),
            ("init.sh", include_str!("machine/init.sh")),
            ("guest.sh", include_str!("machine/guest.sh")),
            ("sleep.sh", if kernel.sleeps { include_str!("machine/sleep.sh") } else { "" }),
        ] {
            fs::write(directory.join(name), text)?;
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755))?;
        }
        fs::write(directory.join("tests.sh"), script(built, &tools.unpacked(), kernel.runs)?)?;
        let prepare = directory.join("prepare.sh");
        let knockd = built.programs.join("knockd");
        let task = Task::new("sh")
            .with_word(text(&prepare)?)
            .with_word(text(&directory)?)
            .with_word(text(&knockd)?)
            .with_word(kernel.release);
        if directory.join("vmlinuz").exists() {
            task.run()?;
        } else {
            // The lists of packages tell where the servers are.
            Tools::refresh_debian()?;
            let what =
                format!("the kernel of Debian {} (unpacked into {})", kernel.release, directory.display());
            tools.add(&what, &task)?;
        }
        Ok(Self { directory, runs: kernel.runs })
    }

    /// Runs the tests there and counts the results.
    ///
    /// # Errors
    ///
    /// When the machine does not run all of them.
    pub(crate) fn run(&self, out: &mut impl std::io::Write) -> Result<Tally> {
        let emulator = Task::new(&format!(
            "timeout {PATIENCE} {} -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -display none -monitor none \
             -serial stdio -no-reboot \
             -virtfs local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap",
            QEMU.program
        ))
        .with_word("-kernel")
        .with_word(text(&self.directory.join("vmlinuz"))?)
        .with_word("-initrd")
        .with_word(text(&self.directory.join("initrd.gz"))?)
        .with_word("-append")
        // On a busy machine, the kernel would otherwise take a late timer for a broken one and give up.
        .with_word("console=ttyS0 quiet panic=-1 no_timer_check");
        let mut tally = Tally::default();
        emulator.run_counting(&mut tally, out)?;
        ensure!(tally.programs == self.runs.len() as u64, "not all tests were run; to repeat it: {emulator}");
        if tally.failed > 0 {
            writeln!(out, "to repeat it: {emulator}")?;
        }
        Ok(tally)
    }
}

/// Returns the script that the machine runs at startup.
fn script(built: &Built, tools: &Path, runs: &[Run]) -> Result<String> {
    let root = workspace_root().canonicalize()?;
    let mut script = format!(
        "cd {}\nexport TESTBED_PROGRAMS={} PATH={}:$PATH\n",
        quoted(text(&root)?),
        quoted(text(&built.programs)?),
        quoted(text(tools)?)
    );
    for Run { program, which, without } in runs {
        let program = built.test("knockd-cli", program)?;
        let list = Command::new(&program).arg("--list").args(which.split_whitespace()).output()?;
        let has_tests = String::from_utf8_lossy(&list.stdout).contains(": test\n");
        ensure!(has_tests, "{} has no tests `{which}`", program.display());
        let blacklist = if without.is_empty() { String::new() } else { format!("blacklist {without}") };
        writeln!(script, "echo '{blacklist}' >/etc/modprobe.d/tests.conf")?;
        // One test at a time, because this machine is slow.
        writeln!(script, "{} --test-threads 1 {which}", quoted(text(&program)?))?;
    }
    Ok(script)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
