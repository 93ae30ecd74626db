//! Keeps strangers from filling the log: bounds every line that somebody else than the administrator can cause, and
//! counts what it leaves out.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use knockd_core::Timestamp;

use crate::system::text::count;

/// What a line is about. Each topic has limits of its own, so no flood of one hides another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Topic {
    /// Stages, timeouts and scanners: any packet to a door's port can cause such a line.
    Attempts,
    /// Doors that open and close, and the commands that run.
    Openings,
    /// Knocks that open nothing or have to wait, because a limit is reached or a line cannot be struck out.
    Refusals,
    /// Commands that fail or take long, and doors that cannot be closed.
    Commands,
    /// Requests on the control socket.
    Requests,
}

/// Who causes a line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Causer {
    /// An IPv4 address, or all addresses of an IPv6 /64.
    Source(IpAddr),
    User(u32),
    Unknown,
}

impl Causer {
    pub(crate) fn source(address: IpAddr) -> Self {
        Self::Source(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}

/// How many lines about a topic are written within a window.
#[derive(Clone, Copy)]
struct Limit {
    window: Duration,
    per_causer: u32,
    /// This also bounds the number of causers stored.
    overall: u32,
}

/// How many doors and causers are told apart in what was left out.
const TOLD_APART: usize = 4096;

impl Topic {
    const ALL: [Self; 5] = [Self::Attempts, Self::Openings, Self::Refusals, Self::Commands, Self::Requests];

    const fn limit(self) -> Limit {
        match self {
            Self::Attempts => Limit { window: Duration::from_secs(1), per_causer: 20, overall: 200 },
            // A knock leads to two to four lines, so these are 150 knocks a minute from one address, and 1500 in all.
            Self::Openings | Self::Refusals | Self::Commands | Self::Requests => {
                Limit { window: Duration::from_secs(60), per_causer: 600, overall: 6000 }
            }
        }
    }
}

/// Decides which lines are written.
#[derive(Debug)]
pub(crate) struct RateLimiter([Window; 5]);

impl Default for RateLimiter {
    fn default() -> Self {
        Self(Topic::ALL.map(Window::new))
    }
}

impl RateLimiter {
    /// Counts a line and says whether it may be written. `opens` says whether it announces an opening.
    pub(crate) fn admits(
        &mut self,
        topic: Topic,
        causer: Causer,
        door: Option<&str>,
        opens: bool,
        now: Timestamp,
    ) -> bool {
        let window = self.0.iter_mut().find(|window| window.topic == topic);
        window.is_none_or(|window| window.admits(causer, door, opens, now))
    }

    /// Starts new windows where they are over; returns what the old ones left out.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) -> Vec<String> {
        self.0.iter_mut().filter_map(|window| window.handle_timeout(now)).collect()
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` while there is nothing to report.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.0.iter().filter_map(Window::poll_timeout).min()
    }

    /// Returns what was left out and has not been reported.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        self.0.iter_mut().filter_map(Window::finish).collect()
    }
}

/// The lines about one topic.
#[derive(Debug)]
struct Window {
    topic: Topic,
    /// When the current window ends; `None` if nothing has been written lately.
    ends: Option<Timestamp>,
    written: u32,
    of_causer: HashMap<Causer, u32>,
    left_out: LeftOut,
}

/// What a window left out.
#[derive(Default, Debug)]
struct LeftOut {
    lines: u64,
    openings: u64,
    doors: BTreeSet<String>,
    causers: HashSet<Causer>,
}

impl Window {
    fn new(topic: Topic) -> Self {
        Self { topic, ends: None, written: 0, of_causer: HashMap::new(), left_out: LeftOut::default() }
    }

    fn admits(&mut self, causer: Causer, door: Option<&str>, opens: bool, now: Timestamp) -> bool {
        let limit = self.topic.limit();
        if self.ends.is_none_or(|ends| now >= ends) {
            // What the last window has left out is still to be reported.
            let left_out = std::mem::take(&mut self.left_out);
            *self = Self { ends: Some(now.after(limit.window)), left_out, ..Self::new(self.topic) };
        }
        if self.written < limit.overall {
            let of_causer = self.of_causer.entry(causer).or_insert(0);
            if *of_causer < limit.per_causer {
                *of_causer += 1;
                self.written += 1;
                return true;
            }
        }
        self.left_out.lines += 1;
        // Every packet of a flood may come here, and nobody asks whose stages were left out.
        if self.topic != Topic::Attempts {
            self.left_out.add(causer, door, opens);
        }
        false
    }

    fn handle_timeout(&mut self, now: Timestamp) -> Option<String> {
        if self.ends.is_none_or(|ends| now < ends) {
            return None;
        }
        self.finish()
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        self.ends.filter(|_| self.left_out.lines > 0)
    }

    fn finish(&mut self) -> Option<String> {
        let old = std::mem::replace(self, Self::new(self.topic));
        (old.left_out.lines > 0).then(|| old.left_out.summary(old.topic))
    }
}

impl LeftOut {
    fn add(&mut self, causer: Causer, door: Option<&str>, opens: bool) {
        self.openings += u64::from(opens);
        if self.causers.len() < TOLD_APART {
            self.causers.insert(causer);
        }
        if let Some(door) = door
            && self.doors.len() < TOLD_APART
            && !self.doors.contains(door)
        {
            self.doors.insert(door.to_owned());
        }
    }

    /// The line that stands for those left out.
    fn summary(&self, topic: Topic) -> String {
        let number = |number: u64, thing: &str| count(usize::try_from(number).unwrap_or(usize::MAX), thing);
        let told_apart = |number: usize, one: &str, more: &str| match number {
            0 => None,
            1 => Some(format!("1 {one}")),
            TOLD_APART.. => Some(format!("{TOLD_APART} or more {more}")),
            _ => Some(format!("{number} {more}")),
        };
        let lines = number(self.lines, "log line");
        let sources = self.causers.iter().filter(|causer| matches!(causer, Causer::Source(_))).count();
        let users = self.causers.iter().filter(|causer| matches!(causer, Causer::User(_))).count();
        let doors = told_apart(self.doors.len(), "door", "doors");
        let sources = told_apart(sources, "address", "addresses");
        let (about, parts) = match topic {
            Topic::Attempts => return format!("suppressed {lines}"),
            Topic::Openings => ("openings", vec![Some(number(self.openings, "opening")), doors, sources]),
            Topic::Refusals => ("refused knocks", vec![doors, sources]),
            Topic::Commands => ("commands", vec![doors, sources]),
            Topic::Requests => ("requests", vec![told_apart(users, "user", "users")]),
        };
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        format!("suppressed {lines} about {about}{parts}")
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

    fn source(number: u32) -> Causer {
        Causer::Source(Ipv4Addr::from_bits(number).into())
    }

    fn attempt(limiter: &mut RateLimiter, number: u32, now: Timestamp) -> bool {
        limiter.admits(Topic::Attempts, source(number), Some("ssh"), false, now)
    }

    #[test]
    fn a_source_has_20_lines_a_second_and_all_together_have_200() {
        let mut flood = RateLimiter::default();
        let one = (0..100).filter(|_| attempt(&mut flood, 1, at(0))).count();
        let others = (0..1000).filter(|&number| attempt(&mut flood, 2 + number, at(500))).count();
        assert_eq!((one, others), (20, 180));
        assert_eq!(flood.0[0].of_causer.len(), 181);
    }

    #[test]
    fn what_was_left_out_is_told_once_when_the_second_is_over() {
        let mut flood = RateLimiter::default();
        for _ in 0..25 {
            attempt(&mut flood, 1, at(300));
        }
        assert_eq!(flood.poll_timeout(), Some(at(1300)));
        assert!(flood.handle_timeout(at(1299)).is_empty());
        assert_eq!(flood.handle_timeout(at(1300)), ["suppressed 5 log lines"]);
        assert_eq!((flood.handle_timeout(at(1300)).len(), flood.poll_timeout()), (0, None));
        assert!(attempt(&mut flood, 1, at(1300)));
    }

    #[test]
    fn without_a_flood_nothing_is_told_and_nothing_wakes() {
        let mut flood = RateLimiter::default();
        assert!(attempt(&mut flood, 1, at(0)));
        assert_eq!((flood.poll_timeout(), flood.handle_timeout(at(5000)).len()), (None, 0));
        assert_eq!(flood.0[0].written, 0);
    }

    #[test]
    fn an_address_has_600_lines_about_openings_a_minute_and_all_together_have_6000() {
        for topic in [Topic::Openings, Topic::Refusals, Topic::Requests] {
            let mut flood = RateLimiter::default();
            let mut admits = |number, now| flood.admits(topic, source(number), None, false, at(now));
            assert_eq!((0..1000).filter(|_| admits(1, 0)).count(), 600);
            assert_eq!((0..100_000).filter(|&number| admits(2 + number, 59_000)).count(), 5400);
        }
    }

    #[test]
    fn who_floods_one_topic_hides_nothing_of_another() {
        let mut flood = RateLimiter::default();
        for number in 0..10_000 {
            flood.admits(Topic::Openings, source(number), None, true, at(0));
            attempt(&mut flood, number, at(0));
        }
        for topic in [Topic::Refusals, Topic::Commands] {
            assert!(flood.admits(topic, source(1), None, false, at(0)));
        }
        assert!(flood.admits(Topic::Requests, Causer::User(0), None, false, at(0)));
    }

    #[test]
    fn an_ipv6_network_counts_as_one_source() {
        let mut flood = RateLimiter::default();
        let mut admits = |address: String| {
            let causer = Causer::source(address.parse().unwrap());
            flood.admits(Topic::Openings, causer, None, true, at(0))
        };
        assert_eq!((0..1000).filter(|host| admits(format!("2001:db8::{host:x}"))).count(), 600);
        assert!(admits("2001:db8:0:1::1".to_owned()) && admits("192.0.2.1".to_owned()));
    }

    #[test]
    fn a_pause_begins_a_new_window_and_what_the_old_one_left_out_is_told_with_it() {
        let mut flood = RateLimiter::default();
        let lines = |flood: &mut RateLimiter, now| (0..25).filter(|_| attempt(flood, 1, at(now))).count();
        assert_eq!((lines(&mut flood, 0), lines(&mut flood, 1000), lines(&mut flood, 1999)), (20, 20, 0));
        assert_eq!(flood.handle_timeout(at(2000)), ["suppressed 35 log lines"]);
    }

    #[test]
    fn openings_that_were_left_out_are_counted_with_their_doors_and_addresses() {
        let mut flood = RateLimiter::default();
        for number in 0..6002 {
            flood.admits(Topic::Openings, source(number), Some("ssh"), true, at(0));
            flood.admits(Topic::Openings, source(number), Some("ssh"), false, at(0));
        }
        assert_eq!(
            flood.handle_timeout(at(60_000)),
            ["suppressed 6004 log lines about openings (3002 openings, 1 door, 3002 addresses)"]
        );
        for number in 0..100_000 {
            let door = format!("door{}", number % 10_000);
            flood.admits(Topic::Refusals, source(number), Some(&door), false, at(60_000));
        }
        assert_eq!((flood.0[2].left_out.doors.len(), flood.0[2].left_out.causers.len()), (4096, 4096));
        for _ in 0..601 {
            flood.admits(Topic::Requests, Causer::User(1000), None, false, at(60_000));
        }
        assert_eq!(
            flood.finish(),
            [
                "suppressed 94000 log lines about refused knocks (4096 or more doors, 4096 or more addresses)",
                "suppressed 1 log line about requests (1 user)"
            ]
        );
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
