//! A knock from its first hit to its last.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use knockd_core::{Protocol, TcpFlags};

use crate::args::Args;
use crate::profile::Profile;
use crate::value::Families;
use crate::{Hit, KnockError, Sender, Sent, Target, Verify};

/// One knock: what to send, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Knock {
    /// What a person calls it: the profile, or the host.
    pub name: String,
    /// Whether the hits are a secret, which no report shows.
    pub is_secret: bool,
    /// The host as given: a name or an address.
    pub host: String,
    /// What to send, in order.
    pub hits: Vec<Hit>,
    /// The only family allowed, or both; otherwise the one of the first address that can be reached.
    pub families: Option<Families>,
    /// The flags of TCP hits, if they are to be others than those of an ordinary SYN.
    pub flags: Option<TcpFlags>,
    /// How long to wait after each hit, including the last.
    pub delay: Duration,
    /// How to find out whether the door has opened.
    pub verify: Option<Verify>,
}

impl Knock {
    /// Makes the knock that a command line with a host and ports asks for.
    ///
    /// # Errors
    ///
    /// [`KnockError::NotAPort`].
    pub fn of_line(args: &Args) -> Result<Self, KnockError> {
        let lists = args.ports.iter().map(|text| Hit::parse_list(text, args.udp));
        let hits = lists.collect::<Result<Vec<_>, _>>()?.concat();
        if hits.is_empty() {
            return Err(KnockError::NotAPort(args.ports.concat()));
        }
        Ok(Self {
            name: args.host.clone(),
            is_secret: false,
            host: args.host.clone(),
            hits,
            families: args.families(),
            flags: args.tcpflags,
            delay: args.delay.unwrap_or_default(),
            verify: args.verify(None),
        })
    }

    /// Makes the knock of a profile with these hits; options of the line override it.
    pub fn of_profile(profile: &Profile, mut hits: Vec<Hit>, args: &Args) -> Self {
        if args.udp {
            for hit in &mut hits {
                hit.step.protocol = Protocol::Udp;
            }
        }
        Self {
            name: args.host.clone(),
            is_secret: true,
            host: profile.host.clone(),
            hits,
            families: args.families().or(profile.family),
            flags: args.tcpflags.or(profile.tcpflags),
            delay: args.delay.or(profile.delay).unwrap_or_default(),
            // The closing sequence opens nothing.
            verify: args.verify(Some(profile)).filter(|_| !args.close),
        }
    }

    /// Resolves the host and opens what its hits need; nothing is sent.
    ///
    /// # Errors
    ///
    /// All of [`KnockError`] but `NotAPort`.
    pub fn prepare(&self) -> Result<Prepared<'_>, KnockError> {
        let any_tcp = self.hits.iter().any(|hit| hit.step.protocol == Protocol::Tcp);
        let targets = Target::choose(&self.host, self.families)?;
        let senders = targets.iter().map(|target| match self.flags {
            Some(flags) if any_tcp => Sender::with_flags(*target, flags),
            _ => Ok(Sender::new(*target)),
        });
        Ok(Prepared { knock: self, senders: senders.collect::<Result<_, _>>()?, targets })
    }
}

/// A knock whose targets are known.
#[derive(Debug)]
pub struct Prepared<'k> {
    knock: &'k Knock,
    targets: Vec<Target>,
    senders: Vec<Sender>,
}

impl Prepared<'_> {
    /// The addresses to knock at, at least one.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The knock itself.
    pub const fn knock(&self) -> &Knock {
        self.knock
    }

    /// Sends all hits, each to all addresses. `before` is called before each hit, with its number from 1, and `failed` with
    /// each that the system did not send.
    pub fn send(
        &self,
        mut before: impl FnMut(Target, &Hit, usize),
        mut failed: impl FnMut(Target, &Hit, usize, &io::Error),
    ) -> Sent {
        let mut sent = Sent { hits: 0, not_sent: 0, last_hit: Instant::now() };
        for (number, hit) in (1..).zip(&self.knock.hits) {
            for (target, sender) in self.targets.iter().zip(&self.senders) {
                before(*target, hit, number);
                match sender.send(hit.step) {
                    Ok(()) => sent.hits += 1,
                    Err(error) => {
                        failed(*target, hit, number, &error);
                        sent.not_sent += 1;
                    }
                }
            }
            sent.last_hit = Instant::now();
            // As in 0.8, also after the last hit: `knock -d 500 host 1 2 3 && ssh host` gives the door time to open.
            thread::sleep(self.knock.delay);
        }
        sent
    }
}
