//! Keeps a door open: says when to knock again.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

/// How often to ask for the address.
pub(crate) const BETWEEN_LOOKS: Duration = Duration::from_secs(2);
/// When to try again after a knock that did not open the door.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// A moment on both clocks: the monotonic one stands still while the machine sleeps, and the other one can be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Moment {
    monotonic: Instant,
    calendar: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { monotonic: Instant::now(), calendar: SystemTime::now() }
    }

    /// How long ago another moment was, by the clock that says more.
    fn since(self, earlier: Self) -> Duration {
        let slept = self.calendar.duration_since(earlier.calendar).unwrap_or_default();
        self.monotonic.saturating_duration_since(earlier.monotonic).max(slept)
    }
}

/// What is known about the last knock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LastKnock {
    /// When it began.
    pub(crate) at: Moment,
    /// From where it went, if there was a route.
    pub(crate) source: Option<IpAddr>,
    /// Whether it may have opened the door.
    pub(crate) is_good: bool,
}

/// Why it is time to knock again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// The address is another one than that of the last knock.
    Moved(IpAddr),
    /// The lease is about to end.
    LeaseEnds,
    /// The last knock did not open the door.
    Failed,
}

impl LastKnock {
    /// Says when the next knock is due, if the address stays the same.
    pub(crate) fn next(&self, lease: Option<Duration>) -> Option<Duration> {
        if self.is_good { lease.map(|lease| lease / 5 * 4) } else { Some(AFTER_FAILURE) }
    }

    /// Says whether to knock again now, with this source.
    pub(crate) fn due(&self, lease: Option<Duration>, now: Moment, source: Option<IpAddr>) -> Option<Due> {
        if let Some(source) = source.filter(|_| source != self.source) {
            return Some(Due::Moved(source));
        }
        let is_over = self.next(lease).is_some_and(|next| now.since(self.at) >= next);
        // Without a network, a knock would only fail.
        (is_over && source.is_some()).then_some(if self.is_good { Due::LeaseEnds } else { Due::Failed })
    }
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved(source) => write!(f, "this side's address is now {source}; knocking again"),
            Self::LeaseEnds => f.write_str("the lease is about to end; knocking again"),
            Self::Failed => f.write_str("knocking again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Option<Duration> = Some(Duration::from_secs(50));

    fn ip(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    fn after(moment: Moment, monotonic: u64, calendar: u64) -> Moment {
        Moment {
            monotonic: moment.monotonic + Duration::from_secs(monotonic),
            calendar: moment.calendar + Duration::from_secs(calendar),
        }
    }

    #[test]
    fn a_lease_is_renewed_after_four_fifths_of_it_also_if_the_machine_slept_or_its_clock_was_set_back() {
        let at = Moment::now();
        let last = LastKnock { at, source: ip("192.0.2.1"), is_good: true };
        let due = |monotonic, calendar| last.due(LEASE, after(at, monotonic, calendar), last.source);
        assert_eq!(due(39, 39), None);
        assert_eq!(due(40, 40), Some(Due::LeaseEnds));
        assert_eq!(due(1, 40), Some(Due::LeaseEnds));
        let set_back = Moment { calendar: at.calendar - Duration::from_secs(99), ..after(at, 40, 0) };
        assert_eq!(last.due(LEASE, set_back, last.source), Some(Due::LeaseEnds));
        assert_eq!(last.due(None, after(at, 9999, 9999), last.source), None);
    }

    #[test]
    fn another_address_is_due_at_once_and_none_is_waited_for() {
        let at = Moment::now();
        let last = LastKnock { at, source: ip("192.0.2.1"), is_good: true };
        assert_eq!(last.due(LEASE, at, ip("192.0.2.2")), ip("192.0.2.2").map(Due::Moved));
        assert_eq!(last.due(LEASE, after(at, 99, 99), None), None);
        let without = LastKnock { source: None, is_good: false, ..last };
        assert_eq!(without.due(LEASE, at, ip("192.0.2.1")), ip("192.0.2.1").map(Due::Moved));
    }

    #[test]
    fn a_knock_that_failed_is_tried_again_after_half_a_minute_with_or_without_a_lease() {
        let at = Moment::now();
        let last = LastKnock { at, source: ip("192.0.2.1"), is_good: false };
        for lease in [None, LEASE] {
            assert_eq!(last.due(lease, after(at, 29, 29), last.source), None);
            assert_eq!(last.due(lease, after(at, 30, 30), last.source), Some(Due::Failed));
        }
    }
}
