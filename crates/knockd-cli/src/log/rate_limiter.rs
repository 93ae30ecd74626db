//! Keeps strangers from filling the log: limits the lines that a single packet can cause.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use knockd_core::Timestamp;

/// The window in which lines are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// How many lines per window for one source.
const PER_SOURCE: u32 = 20;

/// How many lines per window for all sources together, which also bounds the number of sources stored.
const OVERALL: u32 = 200;

/// Decides which lines about stages, timeouts and scanners are written.
#[derive(Debug, Default)]
pub(crate) struct RateLimiter {
    /// When the current window ends; `None` if nothing has been written lately.
    ends: Option<Timestamp>,
    written: u32,
    of_source: HashMap<IpAddr, u32>,
    left_out: u64,
}

impl RateLimiter {
    /// Counts a line about this source and says whether it may be written.
    pub(crate) fn admits(&mut self, source: IpAddr, now: Timestamp) -> bool {
        if self.ends.is_none() {
            self.ends = Some(now.after(WINDOW));
        }
        let is_full = self.written >= OVERALL;
        let of_source = self.of_source.get(&source).copied().unwrap_or(0);
        if is_full || of_source >= PER_SOURCE {
            self.left_out += 1;
            return false;
        }
        self.written += 1;
        self.of_source.insert(source, of_source + 1);
        true
    }

    /// Starts a new window if the current one is over; returns how many lines the old one suppressed, if any.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) -> Option<u64> {
        if self.ends.is_none_or(|ends| now < ends) {
            return None;
        }
        let left_out = self.left_out;
        *self = Self::default();
        (left_out > 0).then_some(left_out)
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` while there is nothing to report.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.ends.filter(|_| self.left_out > 0)
    }
}

/// Dropped packets, reported at most once per [`DropReport::PAUSE`].
#[derive(Debug, Default)]
pub(crate) struct DropReport {
    count: u64,
    due: Option<Timestamp>,
}

impl DropReport {
    const PAUSE: Duration = Duration::from_secs(10);

    /// Counts packets that the kernel dropped.
    pub(crate) fn add(&mut self, count: u32, now: Timestamp) {
        self.count += u64::from(count);
        self.due.get_or_insert(now.after(Self::PAUSE));
    }

    /// Returns how many were dropped since the last report, if one is due.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) -> Option<u64> {
        self.due.filter(|due| *due <= now)?;
        self.due = None;
        Some(std::mem::take(&mut self.count))
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` while nothing was dropped.
    pub(crate) const fn poll_timeout(&self) -> Option<Timestamp> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp::ZERO.after(Duration::from_millis(milliseconds))
    }

    fn source(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn a_source_has_20_lines_a_second_and_all_together_have_200() {
        let mut flood = RateLimiter::default();
        let one = (0..100).filter(|_| flood.admits(source(1), at(0))).count();
        let others = (0..1000).filter(|&number| flood.admits(source(2 + number), at(500))).count();
        assert_eq!((one, others), (20, 180));
        assert_eq!(flood.of_source.len(), 181);
    }

    #[test]
    fn what_was_left_out_is_told_once_when_the_second_is_over() {
        let mut flood = RateLimiter::default();
        for _ in 0..25 {
            flood.admits(source(1), at(300));
        }
        assert_eq!(flood.poll_timeout(), Some(at(1300)));
        assert_eq!(flood.handle_timeout(at(1299)), None);
        assert_eq!(flood.handle_timeout(at(1300)), Some(5));
        assert_eq!((flood.handle_timeout(at(1300)), flood.poll_timeout()), (None, None));
        assert!(flood.admits(source(1), at(1300)));
    }

    #[test]
    fn without_a_flood_nothing_is_told_and_nothing_wakes() {
        let mut flood = RateLimiter::default();
        assert!(flood.admits(source(1), at(0)));
        assert_eq!((flood.poll_timeout(), flood.handle_timeout(at(5000))), (None, None));
        assert_eq!(flood.written, 0);
    }

    #[test]
    fn every_lost_packet_is_told_once_ten_seconds_after_the_first() {
        let mut losses = DropReport::default();
        assert_eq!((losses.poll_timeout(), losses.handle_timeout(at(0))), (None, None));
        losses.add(5, at(0));
        losses.add(7, at(9_000));
        assert_eq!((losses.poll_timeout(), losses.handle_timeout(at(9_999))), (Some(at(10_000)), None));
        assert_eq!(losses.handle_timeout(at(10_000)), Some(12));
        assert_eq!((losses.poll_timeout(), losses.handle_timeout(at(30_000))), (None, None));
    }
}
