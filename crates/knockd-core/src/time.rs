//! Time as an argument.

use std::time::Duration;

/// A moment on a clock that never goes back, as the distance from an origin that the caller chooses.
///
/// A daemon takes the origin at its start and the distance from a monotonic clock; a replay takes it from the capture
/// file. The range is 584 years; arithmetic stops at its ends instead of wrapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// The moment `since_origin` after the origin, to the nanosecond.
    pub fn new(since_origin: Duration) -> Self {
        Self(nanoseconds(since_origin))
    }

    /// The moment that much later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(wait)))
    }

    /// How long after `earlier` this is; zero when it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_stops_at_the_ends() {
        let late = Timestamp::new(Duration::MAX);
        assert_eq!(late.after(Duration::from_secs(1)), late);
        assert_eq!(Timestamp::ZERO.since(late), Duration::ZERO);
        assert_eq!(
            Timestamp::ZERO.after(Duration::from_millis(5)).since(Timestamp::ZERO),
            Duration::from_millis(5)
        );
    }
}
