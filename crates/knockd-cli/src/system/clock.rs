//! The daemon's clock: one that nobody can set inside; calendar time only where something outlives the process.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use crossbeam_channel::{Receiver, TrySendError, bounded};
use knockd_core::{Now, Timestamp, UnixTime};
use rustix::io::Errno;
use rustix::time::{
    DynamicClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
    clock_gettime_dynamic, timerfd_create, timerfd_settime,
};

/// The origin of all [`Timestamp`]s of this process, as the time since the machine started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: since_boot().unwrap_or_default() }
    }

    pub(crate) fn now(self) -> Timestamp {
        Timestamp::new(since_boot().unwrap_or_default().saturating_sub(self.origin))
    }

    /// Returns the present on this clock and on the calendar.
    pub(crate) fn both(self) -> Now {
        let calendar = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: self.now(), calendar: UnixTime::new(calendar) }
    }
}

/// Reads the clock that goes on while the machine sleeps, unlike that of [`std::time::Instant`]. Every kernel since
/// Linux 2.6.39 has it.
fn since_boot() -> Option<Duration> {
    let Timespec { tv_sec, tv_nsec } = clock_gettime_dynamic(DynamicClockId::Boottime).ok()?;
    Some(Duration::new(tv_sec.try_into().ok()?, tv_nsec.try_into().ok()?))
}

/// Returns a channel with a message after the machine has slept, and when somebody has set the calendar: a wait that
/// began before counts only the time awake, so it has to begin anew.
///
/// # Errors
/// When the system has no thread or descriptor left.
pub(crate) fn watch() -> anyhow::Result<Receiver<()>> {
    let cannot = "cannot watch the clock";
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC).context(cannot)?;
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    // It never expires, but a change of the calendar cancels it, and so does the end of a sleep (timerfd_create(2)).
    let never = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: i64::MAX, tv_nsec: 0 } };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(&timer, flags, &never).context(cannot)?;
    let (jumps, receiver) = bounded(1);
    super::spawn("clock", move || {
        loop {
            match rustix::io::read(&timer, &mut [0; 8]) {
                Err(Errno::CANCELED)
                    if !matches!(jumps.try_send(()), Err(TrySendError::Disconnected(()))) => {}
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What the kernel says in `/proc/uptime`, to the hundredth of a second.
    fn uptime() -> Duration {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        Duration::from_secs_f64(text.split(' ').next().unwrap().parse().unwrap())
    }

    #[test]
    fn the_clock_counts_the_time_since_the_machine_started() {
        let (before, now, after) = (uptime(), since_boot().unwrap(), uptime());
        let hundredth = Duration::from_millis(10);
        assert!(before <= now && now <= after + hundredth, "{before:?} {now:?} {after:?}");
    }

    /// In a time namespace, only the clock that goes on in a sleep is ahead, as after one.
    #[test]
    fn the_clock_has_counted_the_time_that_the_machine_slept() {
        let program = std::env::current_exe().unwrap();
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--time", "--fork", "--boottime", "1000000"]).arg(program);
        let name = "system::clock::tests::the_clock_counts_the_time_since_the_machine_started";
        let output = unshare.args(["--exact", name]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        if output.status.code() == Some(1) && text.is_empty() {
            return testbed::skip("there are no time namespaces");
        }
        assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
    }
}
