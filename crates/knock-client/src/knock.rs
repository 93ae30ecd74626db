//! A knock from its first hit to its last.

use std::io;
use std::thread;
use std::time::Duration;

use knockd_core::{Protocol, TcpFlags};

use crate::args::Args;
use crate::profile::Profile;
use crate::value::Families;
use crate::{Family, Hit, KnockError, Sender, Target};

/// One knock: what to send, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Knock {
    /// The host as given: a name or an address.
    pub host: String,
    /// What to send, in order.
    pub hits: Vec<Hit>,
    /// The only family allowed, if any.
    pub family: Option<Family>,
    /// The flags of TCP hits, if they are to be others than those of an ordinary SYN.
    pub flags: Option<TcpFlags>,
    /// How long to wait after each hit, including the last.
    pub delay: Duration,
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
            host: args.host.clone(),
            hits,
            family: args.family(),
            flags: args.tcpflags,
            delay: args.delay.unwrap_or_default(),
        })
    }

    /// Makes the knock of a profile with these hits; options of the line override it.
    pub fn of_profile(profile: &Profile, mut hits: Vec<Hit>, args: &Args) -> Self {
        if args.udp {
            for hit in &mut hits {
                hit.step.protocol = Protocol::Udp;
            }
        }
        let family = match profile.family {
            Some(Families::Only(family)) => Some(family),
            Some(Families::Both) | None => None,
        };
        Self {
            host: profile.host.clone(),
            hits,
            family: args.family().or(family),
            flags: args.tcpflags.or(profile.tcpflags),
            delay: args.delay.or(profile.delay).unwrap_or_default(),
        }
    }

    /// Resolves the host and opens what its hits need; nothing is sent.
    ///
    /// # Errors
    ///
    /// All of [`KnockError`] but `NotAPort`.
    pub fn prepare(&self) -> Result<Prepared<'_>, KnockError> {
        let target = Target::resolve(&self.host, self.family)?;
        let any_tcp = self.hits.iter().any(|hit| hit.step.protocol == Protocol::Tcp);
        let sender = match self.flags {
            Some(flags) if any_tcp => Sender::with_flags(target, flags)?,
            _ => Sender::new(target),
        };
        Ok(Prepared { knock: self, target, sender })
    }
}

/// A knock whose target is known.
#[derive(Debug)]
pub struct Prepared<'k> {
    knock: &'k Knock,
    target: Target,
    sender: Sender,
}

impl Prepared<'_> {
    /// The address to knock at.
    pub const fn target(&self) -> Target {
        self.target
    }

    /// Sends all hits and says whether the system took every one of them. `before` is called before each hit, `failed`
    /// with each that the system did not send; both with its number, from 1.
    pub fn send(
        &self,
        mut before: impl FnMut(usize, &Hit),
        mut failed: impl FnMut(usize, &Hit, &io::Error),
    ) -> bool {
        let mut are_sent = true;
        for (number, hit) in (1..).zip(&self.knock.hits) {
            before(number, hit);
            if let Err(error) = self.sender.send(hit.step) {
                failed(number, hit, &error);
                are_sent = false;
            }
            // As in 0.8, also after the last hit: `knock -d 500 host 1 2 3 && ssh host` gives the door time to open.
            thread::sleep(self.knock.delay);
        }
        are_sent
    }
}
