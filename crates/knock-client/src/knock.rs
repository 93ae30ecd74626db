//! A knock from its first hit to its last.

use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::profile::Profile;
use crate::value::Families;
use crate::{Hit, HitError, KnockError, Route, Sender, Sent, Target, Tcp, Verify};

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
    /// How TCP hits are sent that do not say so themselves.
    pub tcp: Tcp,
    /// How long to wait after each hit that does not say so itself, including the last.
    pub delay: Duration,
    /// How to find out whether the door has opened.
    pub verify: Option<Verify>,
    /// The name of the interface to send through, if the system's routes are not to decide.
    pub interface: Option<String>,
    /// The address of this machine to send from, if the system is not to choose it.
    pub source: Option<IpAddr>,
}

impl Knock {
    /// Makes the knock that a command line with a host and ports asks for.
    ///
    /// # Errors
    ///
    /// [`KnockError::NotAHit`] when a word is no list of hits, or there is none.
    pub fn of_line(args: &Args) -> Result<Self, KnockError> {
        let lists = args.ports.iter().map(|text| Hit::parse_list(text, args.udp));
        let hits = lists.collect::<Result<Vec<_>, _>>()?.concat();
        if hits.is_empty() {
            return Err(HitError::of_nothing(&args.ports.concat()).into());
        }
        Ok(Self {
            name: args.host.clone(),
            is_secret: false,
            host: args.host.clone(),
            hits,
            families: args.families(),
            tcp: args.tcp().unwrap_or_default(),
            delay: args.delay.unwrap_or_default(),
            verify: args.verify(None),
            interface: args.interface.clone(),
            source: args.source,
        })
    }

    /// Makes the knock of a profile with these hits; options of the line override it.
    pub fn of_profile(profile: &Profile, hits: Vec<Hit>, args: &Args) -> Self {
        let hits = if args.udp { hits.into_iter().map(Hit::over_udp).collect() } else { hits };
        let of_profile =
            if profile.connect { Tcp::Connection } else { profile.tcpflags.map_or(Tcp::Syn, Tcp::Flags) };
        Self {
            name: args.host.clone(),
            is_secret: true,
            host: profile.host.clone(),
            hits,
            families: args.families().or(profile.family),
            tcp: args.tcp().unwrap_or(of_profile),
            delay: args.delay.or(profile.delay).unwrap_or_default(),
            // The closing sequence opens nothing.
            verify: args.verify(Some(profile)).filter(|_| !args.close),
            interface: args.interface.clone().or_else(|| profile.interface.clone()),
            source: args.source.or(profile.source),
        }
    }

    /// Resolves the host and opens what its hits need; nothing is sent.
    ///
    /// # Errors
    ///
    /// All of [`KnockError`] but `NotAHit`.
    pub fn prepare(&self) -> Result<Prepared<'_>, KnockError> {
        let targets = self.targets()?;
        let hits: Vec<Hit> = self.hits.iter().cloned().map(|hit| hit.with_kind(self.tcp)).collect();
        let mut senders: Vec<_> = targets.iter().copied().map(Sender::new).collect();
        for sender in &mut senders {
            sender.prepare(&hits)?;
        }
        Ok(Prepared { knock: self, hits, targets, senders })
    }

    /// Resolves the host to the addresses to knock at, at least one.
    ///
    /// # Errors
    ///
    /// When it does not resolve, or there is no such interface.
    pub fn targets(&self) -> Result<Vec<Target>, KnockError> {
        let route = Route::new(self.interface.as_deref(), self.source)?;
        Target::choose(&self.host, self.families, route)
    }
}

/// A knock whose targets are known.
#[derive(Debug)]
pub struct Prepared<'k> {
    knock: &'k Knock,
    /// As they are sent.
    hits: Vec<Hit>,
    targets: Vec<Target>,
    senders: Vec<Sender>,
}

impl<'k> Prepared<'k> {
    /// The addresses to knock at, at least one.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The knock itself.
    pub const fn knock(&self) -> &'k Knock {
        self.knock
    }

    /// Sends all hits, each to all addresses. `before` is called before each hit, with its number from 1, and `failed` with
    /// each that the system did not send.
    pub fn send(
        &mut self,
        mut before: impl FnMut(Target, &Hit, usize),
        mut failed: impl FnMut(Target, &Hit, usize, &io::Error),
    ) -> Sent {
        let mut sent = Sent { hits: 0, not_sent: 0, last_hit: Instant::now() };
        for (number, hit) in (1..).zip(&self.hits) {
            for (target, sender) in self.targets.iter().zip(&mut self.senders) {
                before(*target, hit, number);
                match sender.send(hit) {
                    Ok(()) => sent.hits += 1,
                    Err(error) => {
                        failed(*target, hit, number, &error);
                        sent.not_sent += 1;
                    }
                }
            }
            sent.last_hit = Instant::now();
            // As in 0.8, also after the last hit: `knock -d 500 host 1 2 3 && ssh host` gives the door time to open.
            thread::sleep(hit.delay.unwrap_or(self.knock.delay));
        }
        for sender in &mut self.senders {
            sender.hang_up();
        }
        sent
    }
}
