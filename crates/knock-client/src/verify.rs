//! Finds out whether a knock has opened the door, and knocks again if not.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::Target;
use crate::connection::{Failure, Finish, Race};
use crate::value::Service;

/// An answer that comes sooner is to the first SYN: Linux, and most systems, send it again after a second.
const BEFORE_A_REPEAT: Duration = Duration::from_millis(900);
/// How long a look takes that is waited for before anything is knocked at.
const LOOK: Duration = Duration::from_millis(300);
/// How long the first connection after a knock is waited for; each one after it, twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// How long a connection may take to say what became of it.
const GRACE: Duration = Duration::from_millis(100);
/// The pause before the second knock; each one after it is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How to find out whether a door has opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verify {
    /// The service behind the door.
    pub service: Service,
    /// How often to knock again.
    pub retries: u32,
    /// How long to wait for the service after each knock.
    pub timeout: Duration,
}

impl Verify {
    /// How often to knock again if nobody says otherwise.
    pub const RETRIES: u32 = 2;
    /// How long to wait after each knock if nobody says otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(3);
}

/// What became of a knock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The service answers, so long after the last hit.
    Opened(Duration),
    /// The service answered to a packet that was sent before the knock.
    AlreadyOpen,
    /// The service does not answer although the network leads there.
    StillClosed(Failure),
    /// The network does not lead there.
    Unreachable(Failure),
}

/// A verdict, and how it came about.
#[derive(Debug)]
pub struct Outcome {
    /// What became of the knock.
    pub verdict: Verdict,
    /// How often it was sent.
    pub knocks: u32,
    /// The address that the verdict is about.
    pub target: Target,
    /// The connection to the service, if it is open.
    pub connection: Option<TcpStream>,
}

/// What a whole knock came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// How many hits the system took.
    pub hits: usize,
    /// How many it did not.
    pub not_sent: usize,
    /// When the last hit was sent.
    pub last_hit: Instant,
}

/// The way to a verdict.
#[derive(Debug)]
pub struct Verification<'v> {
    verify: &'v Verify,
    targets: &'v [Target],
    race: Race,
    failures: Vec<(Target, Failure)>,
}

impl<'v> Verification<'v> {
    /// Creates a verification of the service at any of these addresses; nothing is sent.
    pub fn new(verify: &'v Verify, targets: &'v [Target]) -> Self {
        Self { verify, targets, race: Race::new(), failures: Vec::new() }
    }

    /// Begins to find out whether the service is open already. An answer counts as such until 0.9 seconds later, also
    /// during a knock, which need not wait for it.
    pub fn look(&mut self) {
        self.start(true, BEFORE_A_REPEAT);
    }

    /// Looks whether the service is open already and waits for the answer, but not for long.
    pub fn look_and_wait(&mut self) -> Option<Outcome> {
        self.look();
        let until = Instant::now() + LOOK;
        let mut won = self.next(until);
        // The system may know it before this process comes to look, if the machine is busy.
        while won.is_none() && self.race.is_on() && (Instant::now() < until || self.race.is_early_made()) {
            won = self.next(until.max(Instant::now() + GRACE));
        }
        won.map(|won| won.outcome(0, None))
    }

    /// Knocks until the service answers, or all tries are used up. `knock` is called with the number of each try, from 1.
    /// Returns `None` if there is no address.
    pub fn knock_until_open(mut self, mut knock: impl FnMut(u32) -> Sent) -> Option<Outcome> {
        let mut knocks = 0;
        for retry in 0..=self.verify.retries {
            knocks = retry + 1;
            let sent = knock(knocks);
            let pause = if retry < self.verify.retries { pause(retry) } else { Duration::ZERO };
            let end = Instant::now() + self.verify.timeout;
            let mut wait = FIRST_WAIT;
            while Instant::now() < end {
                let left = end.saturating_duration_since(Instant::now());
                // The last one before the end may still be answered during the pause.
                self.start(false, if wait < left { wait } else { left + pause });
                if let Some(won) = self.wait(Instant::now() + wait.min(left)) {
                    return Some(won.outcome(knocks, Some(sent.last_hit)));
                }
                if sent.hits == 0 && self.cannot_send() {
                    return self.lost(knocks);
                }
                wait *= 2;
            }
            // The last one ends at the same time as the wait for it, so it is given time to say how.
            if let Some(won) = self.wait(Instant::now() + pause.max(GRACE)) {
                return Some(won.outcome(knocks, Some(sent.last_hit)));
            }
        }
        self.lost(knocks)
    }

    fn start(&mut self, is_early: bool, patience: Duration) {
        for target in self.targets {
            self.race.start(*target, self.verify.service.port, is_early, patience);
        }
    }

    /// Waits for a connection until this moment.
    fn wait(&mut self, until: Instant) -> Option<Won> {
        let mut won = self.next(until);
        while won.is_none() && Instant::now() < until {
            won = self.next(until);
        }
        won
    }

    /// Waits for the next connection that is made or has failed, and notes if it has failed.
    fn next(&mut self, until: Instant) -> Option<Won> {
        let Finish { target, is_early, result } = self.race.next(until)?;
        match result {
            Ok(connection) => {
                let at = Instant::now();
                let is_early = is_early || self.race.has_early();
                Some(Won { target, is_early, connection, at })
            }
            Err(failure) => {
                self.note(target, failure);
                None
            }
        }
    }

    /// Keeps the latest failure of each address; one that says nothing says less than what was said before.
    fn note(&mut self, target: Target, failure: Failure) {
        let known = self.failures.iter_mut().find(|(of, _)| *of == target);
        match known {
            Some(_) if failure == Failure::Silence => {}
            Some((_, last)) => *last = failure,
            None => self.failures.push((target, failure)),
        }
    }

    /// Says whether this system sends nothing to any of the addresses.
    fn cannot_send(&self) -> bool {
        let mut last = self.failures.iter().map(|(_, failure)| failure);
        !self.failures.is_empty() && last.all(|failure| matches!(failure, Failure::NotSent(_)))
    }

    /// Returns the verdict about the address where packets got nearest to the service; `None` without an address.
    fn lost(mut self, knocks: u32) -> Option<Outcome> {
        for target in self.targets {
            self.note(*target, Failure::Silence);
        }
        // Of two that are equally near, the first.
        let (target, failure) =
            self.failures.into_iter().rev().max_by_key(|(_, failure)| failure.nearness())?;
        let verdict = if failure.is_unreachable() {
            Verdict::Unreachable(failure)
        } else {
            Verdict::StillClosed(failure)
        };
        Some(Outcome { verdict, knocks, target, connection: None })
    }
}

fn pause(retry: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX)).min(LONGEST_PAUSE)
}

/// The connection that was made first.
struct Won {
    target: Target,
    is_early: bool,
    connection: TcpStream,
    at: Instant,
}

impl Won {
    fn outcome(self, knocks: u32, last_hit: Option<Instant>) -> Outcome {
        let verdict = match last_hit {
            Some(last_hit) if !self.is_early => Verdict::Opened(self.at.saturating_duration_since(last_hit)),
            _ => Verdict::AlreadyOpen,
        };
        Outcome { verdict, knocks, target: self.target, connection: Some(self.connection) }
    }
}
