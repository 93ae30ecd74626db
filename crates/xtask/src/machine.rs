//! An emulated machine with Debian's kernel and the files of this one: for what the kernel at hand may not have, such as Landlock,
//! VLAN and PPP, and for a clock that takes a system call.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use testbed::workspace_root;

use crate::checks::{Counts, Task};
use crate::tools::{BUSYBOX, CPIO, DEPMOD, PPPD, QEMU, ensure_present};

/// Test programs of the daemon, and which of their tests.
const TESTS: [(&str, &str); 4] =
    [("knockd_cli", "capture::sandbox::"), ("separation", ""), ("packets", ""), ("kernels", "--ignored")];

/// Seconds until the machine is given up.
const PATIENCE: u32 = 1200;

/// The machine, ready to start.
pub(crate) struct Machine {
    directory: PathBuf,
}

impl Machine {
    /// Installs the emulator and a kernel where they are missing.
    ///
    /// # Errors
    ///
    /// When this is not root on Debian for x86-64, or a package cannot be had.
    pub(crate) fn prepare() -> Result<Self> {
        ensure!(cfg!(target_arch = "x86_64") && geteuid().is_root(), "it takes root on x86-64");
        ensure_present(&[QEMU, BUSYBOX, CPIO, DEPMOD, PPPD])?;
        let directory = workspace_root().join("target/machine");
        fs::create_dir_all(&directory)?;
        let directory = directory.canonicalize()?;
        for (name, text) in [
            ("prepare.sh", include_str!("machine/prepare.sh")),
            ("init.sh", include_str!("machine/init.sh")),
            ("guest.sh", include_str!("machine/guest.sh")),
            ("cargo.sh", include_str!("machine/cargo.sh")),
        ] {
            fs::write(directory.join(name), text)?;
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let directory_name = directory.to_str().context("a path that is no text")?;
        Task::new(&format!("sh {directory_name}/prepare.sh {directory_name}")).run()?;
        Ok(Self { directory })
    }

    /// Builds the tests here, runs them there, and adds them up.
    pub(crate) fn run(&self, counts: &mut Counts) -> Result<()> {
        Task::new("cargo build --workspace --bins").run()?;
        let built = Task::new("cargo test -p knockd-cli --no-run --message-format=json").output()?;
        let mut script = String::new();
        for (name, which) in TESTS {
            let program = executables(&built)
                .find(|path| {
                    path.rsplit('/').next().is_some_and(|file| file.starts_with(&format!("{name}-")))
                })
                .with_context(|| format!("cargo has not built the tests {name}"))?;
            // One at a time, since this machine is slow.
            writeln!(script, "'{program}' --test-threads 1 {which}")?;
        }
        fs::write(self.directory.join("tests"), script)?;
        let directory = self.directory.display();
        let emulator = Task::new(&format!(
            "timeout {PATIENCE} {} -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -display none -monitor none \
             -serial stdio -no-reboot -kernel {directory}/vmlinuz -initrd {directory}/initrd.gz \
             -virtfs local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap",
            QEMU.program
        ))
        .with_word("-append")
        .with_word("console=ttyS0 quiet panic=-1");
        let (results, failed) = (counts.results, counts.failed);
        emulator.run_counting(counts)?;
        ensure!(
            counts.results - results == TESTS.len() as u64,
            "not all tests were run; to repeat it: {emulator}"
        );
        ensure!(counts.failed == failed, "tests have failed; to repeat it: {emulator}");
        Ok(())
    }
}

/// The paths of programs in cargo's messages.
fn executables(messages: &str) -> impl Iterator<Item = &str> {
    messages.lines().filter_map(|line| {
        let (_, path) = line.split_once(r#""executable":""#)?;
        path.split_once('"').map(|(path, _)| path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let messages =
            "{\"executable\":null}\n{\"a\":1,\"executable\":\"/x/deps/packets-1f\",\"fresh\":true}\n";
        assert_eq!(executables(messages).collect::<Vec<_>>(), ["/x/deps/packets-1f"]);
    }
}
