//! Our units in a real systemd, which is the first process of a machine made of namespaces: at no time is a guarded port open for a
//! stranger, and at no time does an established session end.
//!
//! The machine's files are those of this one or, to try another systemd, those of the root directory `KNOCKD_TEST_ROOT`, see
//! CONTRIBUTING.md.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use common::{KNOCKD, SOON, knock, sh, wait_until};
use testbed::{Net, Running, workspace_root};

const CONFIG: &str =
    "[options]\nFirewall = nftables\n[ssh]\nSequence = 7101,8202:udp,9303\nOpen = tcp/22\nLease = 600\n";
const KNOCK: &str = "10.9.0.1 7101 8202:udp 9303";

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

/// Connects again and again, 50 times at once, from an address that has not knocked, and says when that succeeds and how often it was
/// tried.
const HAMMER: &str = "import os, select, socket
tried = 0
print('hammering', flush=True)
while not os.path.exists('/run/enough'):
    sockets = [socket.socket() for _ in range(50)]
    for s in sockets:
        s.setblocking(False); s.bind(('10.9.0.3', 0)); s.connect_ex(('10.9.0.1', 22)); tried += 1
    select.select([], sockets, [], 0.05)
    for s in sockets:
        try: s.getpeername(); print('got in', flush=True)
        except OSError: pass
        s.close()
print('tried', tried, flush=True)";

/// A server that sends back what it gets, and a client that does so for ever, and says when it cannot.
const ECHO: &str = "import socket, threading
s = socket.create_server(('', 22))
print('ready', flush=True)
def serve(c):
    while data := c.recv(99): c.sendall(data)
while True: threading.Thread(target=serve, args=(s.accept()[0],)).start()";
const SESSION: &str = "import socket, time
c = socket.create_connection(('10.9.0.1', 22)); c.settimeout(60)
print('connected', flush=True)
while True:
    c.sendall(b'x'); assert c.recv(1) == b'x'; time.sleep(0.02)";

/// How many machines this process has made.
static MACHINES: AtomicU32 = AtomicU32::new(0);

struct Machine {
    systemd: Running,
    /// Of the first process, as seen from here.
    pid: String,
    group: String,
}

impl Machine {
    /// Boots; `None` where that is impossible. The guard is one of the units if `guards`.
    fn boot(net: &Net, guards: bool) -> Option<Self> {
        Self::boot_with(net, guards, None)
    }

    /// Boots with a drop-in for our unit, and with the users of decoder and engine.
    fn boot_with(net: &Net, guards: bool, drop_in: Option<&str>) -> Option<Self> {
        let below = std::env::var("KNOCKD_TEST_ROOT").unwrap_or_else(|_| "/".to_owned());
        if !common::is_root() {
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
        fs::write(files.path().join("etc/knockd.conf"), CONFIG).unwrap();
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
    fn try_run(&self, script: &str) -> Result<String, String> {
        let output = Command::new("nsenter")
            .args([&format!("--target={}", self.pid), "--all", "sh", "-c", script])
            .output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    fn run(&self, script: &str) -> String {
        self.try_run(script).unwrap_or_else(|text| {
            panic!("{script}: {text}\n{}", self.try_run("cat /run/knockd.log").unwrap_or_default())
        })
    }

    fn wait_for_knockd(&self) {
        wait_until("knockd runs", || self.try_run("systemctl is-active knockd && knockd status").is_ok());
    }

    /// The ports of the sockets for netfilter that systemd keeps. Its own one has the port 1.
    fn kept(&self) -> String {
        self.run(
            "for inode in $(ls -l /proc/1/fd | sed -n 's/.*socket:.\\([0-9]*\\).*/\\1/p'); do
                 awk -v inode=$inode '$2 == 12 && $3 != 1 && $NF == inode { print $3 }' /proc/net/netlink
             done",
        )
    }

    fn flush(&self) {
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

fn reaches(net: &Net) -> bool {
    net.client.can_connect(net.server.ipv4, 22).unwrap()
}

/// How much of systemd's version there is.
fn version(machine: &Machine) -> u32 {
    let text = machine.run("systemctl --version");
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn without_the_unit_the_network_comes_before_the_guard() {
    let net = Net::new().unwrap();
    let Some(machine) = Machine::boot(&net, false) else { return };
    assert!(!machine.run("cat /run/witness").contains("knockd"), "the fault");
    machine.wait_for_knockd();
    assert!(machine.run("nft list tables").contains("inet knockd"));
}

#[test]
fn no_boot_crash_restart_stop_or_flush_opens_a_port_or_ends_a_session() {
    let net = Net::new().unwrap();
    let mut service = net.server.spawn(&["python3", "-c", ECHO]).unwrap();
    service.wait_for_line("ready", SOON).unwrap();
    let mut session = net.client.spawn(&["python3", "-c", SESSION]).unwrap();
    session.wait_for_line("connected", SOON).unwrap();
    let Some(machine) = Machine::boot(&net, true) else { return };
    sh(&net.client, "ip address add 10.9.0.3/24 dev eth0");
    let mut hammer = net.client.spawn(&["python3", "-c", HAMMER]).unwrap();
    hammer.wait_for_line("hammering", SOON).unwrap();

    // Boot: the guard is there when the network comes, and knockd later.
    let witness = machine.run("cat /run/witness");
    assert!(witness.contains("table inet knockd\n") && !witness.ends_with("\nactive\n"), "{witness}");
    machine.wait_for_knockd();
    let socket = machine.kept();
    assert_eq!(socket.lines().count(), 1, "{socket}");
    assert!(!reaches(&net));
    knock(&net.client, KNOCK);
    wait_until("the door is open", || reaches(&net));

    // Killed, flushed, started again.
    machine.run("systemctl kill --signal=KILL --kill-who=main knockd");
    machine.flush();
    assert!(reaches(&net), "the door stays open");
    machine.wait_for_knockd();
    assert_eq!(machine.kept(), socket);
    assert!(machine.run("knockd status").contains("10.9.0.2"));
    machine.flush();
    assert!(reaches(&net));

    // An upgrade.
    machine.run("systemctl restart knockd");
    machine.wait_for_knockd();
    assert!(!reaches(&net), "stopping closes the doors");
    let keeps = version(&machine) >= 254;
    assert!(!keeps || machine.kept() == socket);

    // Stopped, flushed, started again.
    machine.run("systemctl stop knockd");
    assert!(!reaches(&net));
    if keeps {
        machine.flush();
        assert!(!reaches(&net));
        assert_eq!(machine.kept(), socket);
    } else {
        testbed::skip("systemd before 254 keeps nothing of a service that is stopped");
    }
    machine.run("systemctl start knockd");
    machine.wait_for_knockd();
    assert!(!keeps || machine.kept() == socket);
    assert!(!reaches(&net));

    // A broken configuration, at a boot.
    machine.run("systemctl stop knockd knockd-guard; echo '[broken' >/etc/knockd.conf; systemctl start knockd-guard knockd");
    machine.wait_for_knockd();
    assert!(machine.run("knockd status").contains("/etc/knockd.conf is unusable"));
    knock(&net.client, KNOCK);
    wait_until("the door is open", || reaches(&net));

    let got_in = |hammer: &Running| hammer.lines().iter().filter(|line| line.text == "got in").count();
    assert_eq!(got_in(&hammer), 0);
    machine.run("knockd guard --remove");
    wait_until("the stranger gets in where there is no guard", || got_in(&hammer) > 0);
    net.client.write_file("/run/enough", "").unwrap();
    println!("a stranger has {} times", hammer.wait_for_line("tried", SOON).unwrap().text);
    assert_eq!(session.lines().len(), 1, "{:?}", session.lines());
    assert!(session.pid().is_ok());
}

#[test]
fn the_way_out_works_while_systemd_keeps_the_guard_whatever_knockd_does() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let Some(machine) = Machine::boot(&net, true) else { return };
    machine.wait_for_knockd();
    let socket = machine.kept();
    let refused = machine.try_run("nft delete table inet knockd").unwrap_err();
    assert!(refused.contains("Operation not permitted"), "the fault: {refused}");

    assert!(machine.run("knockd guard --remove").contains("knockd goes on without it"));
    assert!(reaches(&net));
    machine.run("knockd guard");
    assert!(!reaches(&net));

    machine.run("systemctl kill --signal=STOP --kill-who=main knockd");
    let said = machine.run("knockd guard --remove");
    assert!(said.contains("does not answer and still runs"), "{said}");
    assert!(reaches(&net));
    machine.run("systemctl kill --signal=CONT --kill-who=main knockd; systemctl restart knockd");
    machine.wait_for_knockd();
    assert!(!reaches(&net));

    // It starts again 5 seconds after its death.
    machine.run("systemctl kill --signal=KILL --kill-who=main knockd");
    let said = machine.run("knockd guard --remove");
    assert!(said.starts_with("the guard is removed\n"), "{said}");
    assert!(reaches(&net));
    machine.wait_for_knockd();
    assert!(!reaches(&net));
    // Two lines less in the configuration are a way out as well.
    machine.run("cp /etc/knockd.conf /etc/good.conf; printf '[ssh]\\nSequence = 1,2,3\\nStart_Command = true\\n' >/etc/knockd.conf");
    machine.run("systemctl restart knockd");
    machine.wait_for_knockd();
    assert!(reaches(&net));
    machine.run("cp /etc/good.conf /etc/knockd.conf; systemctl restart knockd");
    machine.wait_for_knockd();
    assert!(!reaches(&net));
    if version(&machine) < 254 {
        testbed::skip("systemd before 254 keeps nothing of a service that is stopped");
        return;
    }
    assert_eq!(machine.kept(), socket);

    machine.run("systemctl stop knockd");
    assert!(!reaches(&net));
    let refused = machine.try_run("nft delete table inet knockd").unwrap_err();
    assert!(refused.contains("Operation not permitted"), "the fault: {refused}");
    assert!(machine.run("knockd guard --remove").starts_with("the guard is removed\n"));
    assert!(reaches(&net));
    assert_eq!(machine.run("knockd guard"), "the guard stands\n");
    assert!(!reaches(&net));

    // A knockd that systemd has not started takes the guard over all the same.
    machine.run("knockd -d && knockd status && kill $(cat /run/knockd.pid)");
    wait_until("it has ended", || machine.try_run("knockd status").is_err());
    assert!(!reaches(&net));

    // By hand, which takes a message bus.
    if machine.try_run("systemctl start dbus").is_err() {
        testbed::skip("dbus is not installed");
        return;
    }
    machine.run("systemctl clean --what=fdstore knockd");
    assert_eq!(machine.kept(), "");
    machine.run("nft delete table inet knockd");
    assert!(reaches(&net));
}

#[test]
fn the_narrower_unit_is_enough_for_native_doors() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let Some(machine) = Machine::boot_with(&net, true, Some("knockd.service.d/native.conf")) else { return };
    machine.wait_for_knockd();
    let users = machine.run("ps -eo user:20,args | grep '[k]nockd'");
    for process in [
        "knockd-engine        knockd -v",
        "root                 knockd-helper",
        "knockd               knockd-decoder",
    ] {
        assert!(users.contains(process), "{users}");
    }
    let main = machine.run("cat /proc/$(systemctl show --value -p MainPID knockd)/status");
    assert!(
        main.contains("CapEff:\t0000000000003000") && main.contains("CapBnd:\t00000000000030e0"),
        "{main}"
    );
    assert!(!machine.run("cat /run/knockd.log").contains("sandboxed"));
    knock(&net.client, KNOCK);
    wait_until("the door is open", || reaches(&net));
    machine.run("kill -9 $(pgrep -x knockd-decoder)");
    machine.run("systemctl reload knockd");
    machine.wait_for_knockd();
    machine.run("systemctl kill --signal=KILL --kill-who=main knockd");
    machine.flush();
    machine.wait_for_knockd();
    assert!(reaches(&net), "the door stays open");
    machine.run("systemctl stop knockd");
    assert!(!reaches(&net));
}
