//! The daemon's clock: monotonic inside, the calendar's only where something outlives the process.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use knockd_core::Timestamp;

/// The origin of all [`Timestamp`]s of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(self) -> Timestamp {
        Timestamp::new(self.origin.elapsed())
    }

    /// The time since the Unix epoch that the calendar's clock will show at `moment`, if nobody sets it.
    pub(crate) fn unix_time(self, moment: Timestamp) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_add(moment.since(self.now()))
    }

    /// The moment at which the calendar's clock shows `unix_time`; now, if that is past, and at most `limit` from now, since
    /// the clock may have been set meanwhile.
    pub(crate) fn moment(self, unix_time: Duration, limit: Duration) -> Timestamp {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.now().after(unix_time.saturating_sub(now).min(limit))
    }
}
