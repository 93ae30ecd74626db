//! An emulated machine with Debian's kernel and this machine's files: for features that the kernel at hand may lack,
//! such as Landlock, VLAN and PPP, for a clock that needs a system call, and for a sleep.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use testbed::{Built, workspace_root};

use crate::tally::Tally;
use crate::task::{Task, quoted};
use crate::tools::{BUSYBOX, CPIO, DEPMOD, PPPD, QEMU, Tools};

/// Test programs of the daemon, and the selected tests of each.
const TESTS: [(&str, &str); 4] =
    [("knockd_cli", "capture::sandbox::"), ("separation", ""), ("packets", ""), ("kernels", "--ignored")];

/// How many seconds the machine may take.
const PATIENCE: u32 = 1200;

/// The machine, ready to start.
pub(crate) struct Machine {
    /// The directory that keeps its kernel between runs.
    directory: PathBuf,
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

    /// Installs the emulator and a kernel if they are missing, and writes down which tests to run.
    ///
    /// # Errors
    ///
    /// When a package is unavailable, or a test program is missing.
    pub(crate) fn prepare(tools: &mut Tools, built: &Built) -> Result<Self> {
        tools.ensure_present(&[QEMU, BUSYBOX, CPIO, DEPMOD, PPPD])?;
        let directory = tools.target_directory().join("machine");
        fs::create_dir_all(&directory)?;
        let directory = directory.canonicalize()?;
        for (name, text) in [
            ("prepare.sh", include_str!("machine/prepare.sh")),
            ("init.sh", include_str!("machine/init.sh")),
            ("guest.sh", include_str!("machine/guest.sh")),
            ("sleep.sh", include_str!("machine/sleep.sh")),
        ] {
            fs::write(directory.join(name), text)?;
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755))?;
        }
        fs::write(directory.join("tests.sh"), script(built, &tools.unpacked())?)?;
        let prepare = directory.join("prepare.sh");
        let knockd = built.programs.join("knockd");
        Task::new("sh")
            .with_word(text(&prepare)?)
            .with_word(text(&directory)?)
            .with_word(text(&knockd)?)
            .run()?;
        Ok(Self { directory })
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
        ensure!(tally.programs == TESTS.len() as u64, "not all tests were run; to repeat it: {emulator}");
        if tally.failed > 0 {
            writeln!(out, "to repeat it: {emulator}")?;
        }
        Ok(tally)
    }
}

/// Returns the script that the machine runs at startup.
fn script(built: &Built, tools: &Path) -> Result<String> {
    let root = workspace_root().canonicalize()?;
    let mut script = format!(
        "cd {}\nexport TESTBED_PROGRAMS={} PATH={}:$PATH\n",
        quoted(text(&root)?),
        quoted(text(&built.programs)?),
        quoted(text(tools)?)
    );
    for (name, which) in TESTS {
        // One at a time, because this machine is slow.
        let program = built.test("knockd-cli", name)?;
        writeln!(script, "{} --test-threads 1 {which}", quoted(text(&program)?))?;
    }
    Ok(script)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
