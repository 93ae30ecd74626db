//! How much of the loop's time clients of the control socket may take, however much they ask.

use std::time::Duration;

use knockd_core::Timestamp;

/// After a request, none is taken for this many times as long as it took.
const REST: u32 = 9;

/// The longest time for which no request is taken, after one that took long, such as a reload.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How many reloads clients may request within [`WINDOW`]: each holds up the loop, and writes lines about the
/// configuration.
pub(super) const MAX_RELOADS: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);

/// Says when requests are taken.
#[derive(Default, Debug)]
pub(super) struct RequestLimits {
    /// When the next one is taken.
    next: Timestamp,
    /// When the reloads are counted anew.
    window_ends: Timestamp,
    reloads: u32,
}

impl RequestLimits {
    /// When the next request may be taken; `None` if it may be taken now.
    pub(super) fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        (now < self.next).then_some(self.next)
    }

    /// Notes when a request was handled.
    pub(super) fn note(&mut self, start: Timestamp, end: Timestamp) {
        self.next = end.after((end.since(start) * REST).min(LONGEST_REST));
    }

    /// Counts a request to reload, and says whether it may be carried out.
    pub(super) fn admits_reload(&mut self, now: Timestamp) -> bool {
        if now >= self.window_ends {
            (self.window_ends, self.reloads) = (now.after(WINDOW), 0);
        }
        self.reloads += 1;
        self.reloads <= MAX_RELOADS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(microseconds: u64) -> Timestamp {
        Timestamp::ZERO.after(Duration::from_micros(microseconds))
    }

    #[test]
    fn requests_without_end_leave_nine_tenths_of_the_time_to_the_packets() {
        let mut limits = RequestLimits::default();
        assert_eq!(limits.poll_timeout(at(0)), None);
        let (mut now, mut spent) = (0, 0);
        while now < 1_000_000 {
            limits.note(at(now), at(now + 700));
            spent += 700;
            now += 700;
            while limits.poll_timeout(at(now)).is_some() {
                now += 1;
            }
        }
        assert!(spent * 10 <= now + 7000, "{spent} of {now}");
        limits.note(at(now), at(now + 5_000_000));
        assert_eq!(limits.poll_timeout(at(now + 5_000_000)), Some(at(now + 5_100_000)));
    }

    #[test]
    fn clients_may_request_60_reloads_a_minute() {
        let mut limits = RequestLimits::default();
        assert_eq!((0..100).filter(|_| limits.admits_reload(at(0))).count(), 60);
        assert!(!limits.admits_reload(at(59_999_999)));
        assert!(limits.admits_reload(at(60_000_000)));
    }
}
