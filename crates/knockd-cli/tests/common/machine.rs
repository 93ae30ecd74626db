//! A machine made of namespaces whose first process is a real systemd, with our units.
//!
//! Its files are those of this machine or, to try another systemd, those of the root directory `KNOCKD_TEST_ROOT`, see CONTRIBUTING.md.

#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use testbed::{Net, Running, workspace_root};

use super::sessions::door;
use super::{KNOCKD, SOON, is_root, wait_until};

/// Moves into a control group of its own, and becomes the machine.
const MOVE: &str = r#"set -e
group=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)/$1
mkdir "$group"
echo 0 >"$group/cgroup.procs"
shift
exec unshare --mount --pid --cgroup --uts --ipc --fork --kill-child sh -c "$@""#;

/// Makes the machine of a root directory, which it does not change, and becomes its systemd. Of the units that a distribution starts, it
/// starts none.
const BOOT: &str = r#"set -e
below=$1 files=$2 knockd=$3
mkdir -p /run/machine
mount -t tmpfs tmpfs /run/machine
cd /run/machine
mkdir upper work root
mount -t overlay overlay -o "lowerdir=$below,upperdir=upper,workdir=work" root
touch console
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for directory in run tmp dev var/lib; do mount -t tmpfs -o mode=755 tmpfs $directory; done
for device in null zero urandom random tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
touch dev/console
mount --bind /run/machine/console dev/console
rm -rf etc/systemd/system usr/lib/systemd/system/*.wants usr/lib/systemd/system-generators
rm -rf etc/systemd/system-generators usr/local/lib/systemd etc/systemd/system.conf.d
mkdir -p etc/systemd/system usr/local/sbin
cp -r "$files"/. .
touch usr/local/sbin/knockd
mount --bind "$knockd" usr/local/sbin/knockd
mkdir old
pivot_root . old
umount -l old
exec env -i container=testbed PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=test.target"#;

/// What is there when the network comes.
const WITNESS: &str = "[Unit]
DefaultDependencies=no
Wants=network-pre.target
After=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'nft list tables >/run/witness; echo $(systemctl is-active knockd) >>/run/witness'
";

const TARGET: &str = "[Unit]
Requires=sysinit.target
Wants=witness.service nftables.service knockd.service
After=sysinit.target
";

/// How many machines this process has made.
static MACHINES: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Machine {
    systemd: Running,
    /// Of the first process, as seen from here.
    pid: String,
    group: String,
}

impl Machine {
    /// Boots; `None` where that is impossible. The guard is one of the units if `guards`.
    pub(crate) fn boot(net: &Net, guards: bool) -> Option<Self> {
        Self::boot_with(net, guards, None)
    }

    /// Boots with a drop-in for our unit, and with the users of decoder and engine.
    pub(crate) fn boot_with(net: &Net, guards: bool, drop_in: Option<&str>) -> Option<Self> {
        let below = std::env::var("KNOCKD_TEST_ROOT").unwrap_or_else(|_| "/".to_owned());
        if !is_root() {
            return None;
        }
        if !Path::new(&below).join("lib/systemd/systemd").exists() {
            testbed::skip("systemd is not installed");
            return None;
        }
        if !fs::read_to_string("/proc/self/mounts").unwrap().contains(" cgroup2 ") {
            testbed::skip("no cgroup2 is mounted");
            return None;
        }
        let files = tempfile::tempdir().unwrap();
        let units = files.path().join("etc/systemd/system");
        fs::create_dir_all(units.join("sysinit.target.wants")).unwrap();
        let packaging = workspace_root().join("packaging");
        for unit in ["knockd.service", "knockd-guard.service"] {
            fs::copy(packaging.join(unit), units.join(unit)).unwrap();
        }
        fs::write(units.join("witness.service"), WITNESS).unwrap();
        fs::write(units.join("test.target"), TARGET).unwrap();
        // knockd starts once the network is there.
        let online = units.join("network-online.target.d");
        fs::create_dir(&online).unwrap();
        fs::write(online.join("test.conf"), "[Unit]\nAfter=network-pre.target witness.service\n").unwrap();
        let verbose = units.join("knockd.service.d");
        fs::create_dir(&verbose).unwrap();
        fs::write(
            verbose.join("test.conf"),
            "[Service]\nEnvironment=KNOCKD_OPTS=-v\nStandardOutput=append:/run/knockd.log\nStandardError=inherit\n",
        )
        .unwrap();
        if let Some(drop_in) = drop_in {
            fs::copy(packaging.join(drop_in), verbose.join("drop-in.conf")).unwrap();
            let users = "knockd:x:64999:64999::/:/bin/false\nknockd-engine:x:64998:64998::/:/bin/false\n";
            let known = fs::read_to_string(Path::new(&below).join("etc/passwd")).unwrap();
            let others = known.lines().filter(|line| !line.starts_with("knockd"));
            let others: Vec<_> = others.collect();
            fs::write(files.path().join("etc/passwd"), format!("{}\n{users}", others.join("\n"))).unwrap();
        }
        if guards {
            let wanted = units.join("sysinit.target.wants/knockd-guard.service");
            std::os::unix::fs::symlink("../knockd-guard.service", wanted).unwrap();
        }
        fs::write(files.path().join("etc/knockd.conf"), door("Lease = 600")).unwrap();
        sh_here(&format!("chmod 600 {}", files.path().join("etc/knockd.conf").display()));
        fs::write(files.path().join("etc/nftables.conf"), "flush ruleset\ntable inet other { }\n").unwrap();
        sh_here(&format!("chmod 755 {0} {0}/etc", files.path().display()));

        let number = MACHINES.fetch_add(1, Ordering::Relaxed);
        let group = format!("knockd-test-{}-{number}", std::process::id());
        let files_path = files.path().to_str().unwrap().to_owned();
        let mut command = net.server.command("sh");
        command.args(["-c", MOVE, "sh", &group, BOOT, "sh", &below, &files_path, KNOCKD]);
        let systemd = Running::start(&mut command).unwrap();
        let unshare = systemd.pid().unwrap();
        let mut pid = String::new();
        wait_until("systemd runs", || {
            let children = format!("/proc/{unshare}/task/{unshare}/children");
            fs::read_to_string(children).unwrap_or_default().trim().clone_into(&mut pid);
            let is_systemd = |name: String| name.trim_end() == "systemd";
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(is_systemd)
        });
        let machine = Self { systemd, pid, group };
        wait_until("systemd has started its units", || {
            let state = machine.try_run("systemctl is-system-running");
            assert!(machine.is_running(), "{:#?}", machine.systemd.lines());
            state.is_ok_and(|text| text.starts_with("running")) || machine.is_degraded()
        });
        drop(files);
        Some(machine)
    }

    fn is_running(&self) -> bool {
        Path::new(&format!("/proc/{}", self.pid)).exists()
    }

    fn is_degraded(&self) -> bool {
        let failed = self.try_run("systemctl --failed --plain --no-legend").unwrap_or_default();
        assert!(
            failed.is_empty(),
            "{failed}\n{}",
            self.try_run("systemctl status knockd-guard knockd nftables; cat /run/knockd.log")
                .unwrap_or_else(|e| e)
        );
        false
    }

    /// Runs a shell script on the machine and returns what it prints.
    pub(crate) fn try_run(&self, script: &str) -> Result<String, String> {
        let output = Command::new("nsenter")
            .args([&format!("--target={}", self.pid), "--all", "sh", "-c", script])
            .output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    pub(crate) fn run(&self, script: &str) -> String {
        self.try_run(script).unwrap_or_else(|text| {
            panic!("{script}: {text}\n{}", self.try_run("cat /run/knockd.log").unwrap_or_default())
        })
    }

    pub(crate) fn wait_for_knockd(&self) {
        wait_until("knockd runs", || self.try_run("systemctl is-active knockd && knockd status").is_ok());
    }

    /// The ports of the sockets for netfilter that systemd keeps. Its own one has the port 1.
    pub(crate) fn kept(&self) -> String {
        self.run(
            "for inode in $(ls -l /proc/1/fd | sed -n 's/.*socket:.\\([0-9]*\\).*/\\1/p'); do
                 awk -v inode=$inode '$2 == 12 && $3 != 1 && $NF == inode { print $3 }' /proc/net/netlink
             done",
        )
    }

    pub(crate) fn flush(&self) {
        self.run("systemctl restart nftables");
        assert!(self.run("nft list tables").contains("other"));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.systemd.signal(nix::sys::signal::Signal::SIGKILL);
        let end = Instant::now() + SOON;
        while self.is_running() && Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let root = root.and_then(|line| line.split(' ').nth(1)).map(PathBuf::from).unwrap_or_default();
        sh_here(&format!(
            "find {} -depth -type d -exec rmdir {{}} + 2>/dev/null || true",
            root.join(&self.group).display()
        ));
    }
}

fn sh_here(script: &str) {
    assert!(Command::new("sh").args(["-c", script]).status().unwrap().success(), "{script}");
}
