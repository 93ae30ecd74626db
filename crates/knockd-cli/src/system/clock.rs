//! The daemon's clock: monotonic inside; calendar time only where something outlives the process.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use knockd_core::{Now, Timestamp, UnixTime};

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

    /// Returns the present on this clock and on the calendar.
    pub(crate) fn both(self) -> Now {
        let calendar = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: self.now(), calendar: UnixTime::new(calendar) }
    }
}
