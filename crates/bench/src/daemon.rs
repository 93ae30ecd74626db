//! A knock daemon on the server of a test net, and its costs.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use knockd_capture::{Statistics, statistics};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use testbed::{Host, Running};

/// The processor that runs the daemons.
const CPU: &str = "1";

/// Which program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whose {
    C,
    Ours,
    /// knock-rs, the other daemon in Rust.
    Peer,
}

/// The paths of the programs, and of what their doors run.
#[derive(Debug)]
pub(crate) struct Programs {
    c: PathBuf,
    /// `None` if it is unavailable.
    pub(crate) peer: Option<PathBuf>,
    pub(crate) ours: PathBuf,
    /// The clients, ours without shared libraries.
    pub(crate) c_client: PathBuf,
    pub(crate) our_client: PathBuf,
    pub(crate) start_to_last: PathBuf,
    pub(crate) stamp: PathBuf,
    pub(crate) flood: PathBuf,
    pub(crate) tap: PathBuf,
    pub(crate) micro: PathBuf,
    pub(crate) first_syn: PathBuf,
}

impl Programs {
    /// Builds ours, in the release profile, and finds the C one.
    pub(crate) fn find(our_client: PathBuf, peer: Option<PathBuf>) -> Result<Self> {
        let c = ["usr/sbin/knockd", "usr/bin/knockd"].into_iter().find_map(testbed::original);
        let bench = |bin| testbed::build_release("bench", bin);
        Ok(Self {
            peer,
            c: c.context("the C program is not installed; it is Debian's package knockd")?,
            ours: testbed::build_release("knockd-cli", "knockd")?,
            c_client: testbed::original("usr/bin/knock").context("the C client is not installed")?,
            our_client,
            start_to_last: bench("start-to-last")?,
            stamp: bench("stamp")?,
            flood: bench("flood")?,
            tap: bench("tap")?,
            micro: bench("micro")?,
            first_syn: bench("first-syn")?,
        })
    }
}

/// A daemon that listens; dropping it ends it.
pub(crate) struct Daemon<'a> {
    host: &'a Host,
    program: &'a Path,
    running: Running,
    whose: Whose,
    pid: u32,
    /// How many dropped packets ours has reported.
    told_lost: Cell<u64>,
}

impl<'a> Daemon<'a> {
    /// Starts the daemon with this configuration and waits until it listens.
    pub(crate) fn start(host: &'a Host, programs: &'a Programs, whose: Whose, config: &str) -> Result<Self> {
        // Ours does not listen twice with the same file, and the filter is measured with many copies at a time.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let file = format!("/run/knockd-{}.conf", STARTED.fetch_add(1, Ordering::Relaxed));
        host.write_file(&file, config)?;
        let program: &Path = match whose {
            Whose::C => &programs.c,
            Whose::Ours => &programs.ours,
            Whose::Peer => programs.peer.as_deref().context("there is no knock-rs")?,
        };
        let mut command = host.command("taskset");
        command.args(["-c", CPU]).arg(program).args(["-c", &file]);
        // The peer cannot be told which.
        if whose != Whose::Peer {
            command.args(["-i", "eth0"]);
        }
        let running = Running::start(&mut command)?;
        let pid = running.pid()?;
        let mut daemon = Self { host, program, running, whose, pid, told_lost: Cell::new(0) };
        let end = Instant::now() + Duration::from_secs(20);
        while daemon.packets().is_err() || (whose == Whose::Ours && daemon.processes().len() < 2) {
            if Instant::now() > end || daemon.running.wait(Duration::ZERO).is_ok() {
                bail!("{whose:?} does not listen: {:?}", daemon.running.lines());
            }
            std::thread::sleep(Duration::from_millis(5));
            daemon.pid = daemon.running.pid().unwrap_or(daemon.pid);
        }
        // Its first work is not part of the measurement.
        daemon.settle()?;
        Ok(daemon)
    }

    /// Waits until the daemon has nothing to do.
    pub(crate) fn settle(&self) -> Result<()> {
        if self.whose == Whose::Peer {
            // It walks through all its state five times a second, for ever.
            std::thread::sleep(Duration::from_secs(1));
            return Ok(());
        }
        let end = Instant::now() + Duration::from_secs(120);
        let mut quiet = 0;
        while quiet < 3 {
            ensure!(Instant::now() < end, "{:?} does not come to rest", self.whose);
            let before = self.cpu()?;
            std::thread::sleep(Duration::from_millis(70));
            quiet = if self.cpu()?.saturating_sub(before) < Duration::from_millis(1) { quiet + 1 } else { 0 };
        }
        Ok(())
    }

    /// Returns how many packets the kernel has dropped since the last call.
    pub(crate) fn lost(&self) -> Result<u64> {
        if self.whose != Whose::Ours {
            return Ok(self.packets()?.drops.into());
        }
        // Ours counts them itself and has already reset the kernel's count.
        let dropped = self.status("/counters/dropped")?;
        Ok(dropped - self.told_lost.replace(dropped))
    }

    /// Returns how many attempts ours has.
    pub(crate) fn attempts(&self) -> Result<u64> {
        self.status("/attempts/total")
    }

    /// Returns how many leases ours has.
    pub(crate) fn leases(&self) -> Result<u64> {
        self.status("/leases/open")
    }

    /// Returns a number from our status.
    fn status(&self, field: &str) -> Result<u64> {
        let program = self.program.to_str().context("a path that is not UTF-8")?;
        let status = self.host.run(&[program, "status", "--format", "json"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        status.pointer(field).and_then(serde_json::Value::as_u64).with_context(|| format!("no {field}"))
    }

    /// Returns the counts of its packet socket since the last call. Ours asks as well, so this is correct only for
    /// the others.
    fn packets(&self) -> Result<Statistics> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("no process")?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid))? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let is_socket = fs::read_link(entry.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
            if is_socket
                && let Ok(socket) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
                && let Ok(counts) = statistics(&socket)
            {
                return Ok(counts);
            }
        }
        bail!("it has no packet socket")
    }

    /// Returns the time that all its processes have run, according to the scheduler.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut total = 0;
        for thread in self.threads()? {
            // A thread that has ended meanwhile has none.
            let line = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
            total += line.split(' ').next().and_then(|time| time.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(total))
    }

    /// Returns how often any of its threads has gone to sleep.
    pub(crate) fn sleeps(&self) -> Result<u64> {
        let mut total = 0;
        for thread in self.threads()? {
            total += field(&thread.join("status"), "voluntary_ctxt_switches:").unwrap_or(0);
        }
        Ok(total)
    }

    /// Returns the memory of all its processes in KiB, with shared memory divided among its users and without rings.
    pub(crate) fn memory(&self) -> Result<u64> {
        let mut total = 0;
        for process in self.processes() {
            let maps = fs::read_to_string(format!("/proc/{process}/smaps"))?;
            let mut is_ring = false;
            for line in maps.lines() {
                // The heading of a mapping ends with its file; fields have a colon after their name.
                if line.split_whitespace().next().is_some_and(|first| first.contains('-')) {
                    is_ring = line.contains("socket:");
                } else if let Some(size) = line.strip_prefix("Pss:")
                    && !is_ring
                {
                    total += size.trim().trim_end_matches(" kB").parse::<u64>()?;
                }
            }
        }
        Ok(total)
    }

    fn threads(&self) -> Result<Vec<PathBuf>> {
        let mut threads = Vec::new();
        for process in self.processes() {
            for entry in fs::read_dir(format!("/proc/{process}/task"))? {
                threads.push(entry?.path());
            }
        }
        Ok(threads)
    }

    /// Returns the daemon and its children, except commands.
    fn processes(&self) -> Vec<u32> {
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap_or_default();
        let listener =
            |thread: &fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let of_threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let all = of_threads.map(|thread| listener(&thread)).collect::<Vec<_>>().join(" ");
        let children = children.split_whitespace().chain(all.split_whitespace());
        let mut processes: Vec<u32> = children
            .filter_map(|child| child.parse().ok())
            .filter(|child| {
                fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.starts_with("knockd"))
            })
            .chain([self.pid])
            .collect();
        processes.sort_unstable();
        processes.dedup();
        processes
    }
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
