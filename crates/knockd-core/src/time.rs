//! Time as an argument.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;

/// A time on a clock that never goes back, as the distance from an origin that the caller chooses.
///
/// A daemon takes its start as the origin and the distance from a monotonic clock; a replay takes both from the
/// capture file. The range is 584 years; arithmetic stops at its ends instead of wrapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Timestamp(u64);

impl Timestamp {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// Returns the time `since_origin` after the origin, to the nanosecond.
    pub fn new(since_origin: Duration) -> Self {
        Self(saturated(since_origin.as_nanos()))
    }

    /// Returns the time this much later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(saturated(wait.as_nanos())))
    }

    /// Returns the distance from `earlier` to this; zero if this is not later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A calendar time, in whole milliseconds since the Unix epoch.
///
/// It outlives the process, and an administrator can change the clock, so it is only for storage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct UnixTime(u64);

impl UnixTime {
    /// Returns the time this long after the epoch; fractions of a millisecond are dropped.
    pub fn new(since_epoch: Duration) -> Self {
        Self(saturated(since_epoch.as_millis()))
    }

    /// Returns the time since the epoch.
    pub const fn since_epoch(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// Prints the milliseconds since the epoch.
impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UnixTime {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// The present on both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Now {
    /// The clock for timeouts.
    pub monotonic: Timestamp,
    /// The clock for storage.
    pub calendar: UnixTime,
}

impl Now {
    /// Returns what the calendar will show at `moment`, unless somebody sets the clock; the present, if that is past.
    pub fn calendar_at(self, moment: Timestamp) -> UnixTime {
        let wait = moment.since(self.monotonic);
        UnixTime(self.calendar.0.saturating_add(saturated(wait.as_millis())))
    }

    /// Returns when the calendar shows `time`: the present if that is past, and at most `limit` from now, because the
    /// clock may have been set since `time` was stored.
    pub fn moment_at(self, time: UnixTime, limit: Duration) -> Timestamp {
        let wait = Duration::from_millis(time.0.saturating_sub(self.calendar.0));
        self.monotonic.after(wait.min(limit))
    }
}

/// A duration in whole seconds, as in knockd.conf.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Seconds(u32);

impl Seconds {
    /// No time.
    pub const ZERO: Self = Self(0);

    /// Returns this many seconds.
    pub const fn new(seconds: u32) -> Self {
        Self(seconds)
    }

    /// Returns the number of seconds.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Says whether this is zero.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Returns the same duration.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        seconds.duration()
    }
}

/// Prints the number alone.
impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Seconds {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A duration in whole milliseconds, for storage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Milliseconds(u64);

impl Milliseconds {
    /// Returns this duration; fractions of a millisecond are dropped. The range is 584 million years, at
    /// whose end it stops.
    pub fn new(time: Duration) -> Self {
        Self(saturated(time.as_millis()))
    }

    /// Returns the same duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<Milliseconds> for Duration {
    fn from(time: Milliseconds) -> Self {
        time.duration()
    }
}

/// Prints the number alone.
impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Milliseconds {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

fn saturated(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
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
        let now = Now { monotonic: late, calendar: UnixTime::new(Duration::MAX) };
        assert_eq!(now.calendar_at(late), now.calendar);
        assert_eq!(now.moment_at(now.calendar, Duration::MAX), late);
    }

    #[test]
    fn a_stored_moment_is_found_again_however_the_clocks_have_moved() {
        let at = |monotonic, calendar| Now {
            monotonic: Timestamp::new(Duration::from_secs(monotonic)),
            calendar: UnixTime::new(Duration::from_secs(calendar)),
        };
        let limit = Duration::from_secs(60);
        let stored = at(100, 1000).calendar_at(Timestamp::new(Duration::from_secs(130)));
        let wait = |now: Now| now.moment_at(stored, limit).since(now.monotonic).as_secs();
        assert_eq!(wait(at(5, 1010)), 20, "a restart 10 s later");
        assert_eq!(wait(at(5, 2000)), 0, "it is over");
        assert_eq!(wait(at(5, 10)), 60, "the calendar was set back");
    }
}
