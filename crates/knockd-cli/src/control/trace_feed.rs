//! The feed of `knockd trace`: it tells subscribers what happens to packets, and never waits for them.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Weak;

use crossbeam_channel::{Sender, TrySendError};
use jiff::Zoned;
use knockd_core::Packet;
use serde::Serialize;

use crate::control::Reply;
use crate::control::explain::{Note, Shown};

/// The subscribers.
#[derive(Debug, Default)]
pub(crate) struct TraceFeed {
    all: Vec<Subscriber>,
}

#[derive(Debug)]
struct Subscriber {
    /// The source to report; `None` for all.
    source: Option<IpAddr>,
    to: Sender<Reply>,
    /// Gone once the client is gone.
    listening: Weak<()>,
    /// How many replies were skipped because the client read too slowly.
    left_out: u64,
}

/// One line for programs; docs/json.md describes it.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Traced<'a> {
    Begin {
        addresses: &'a [IpAddr],
    },
    Packet {
        time: String,
        #[serde(flatten)]
        packet: Shown<'a>,
        notes: &'a [&'a Note<'a>],
    },
    Note {
        time: String,
        #[serde(flatten)]
        note: &'a Note<'a>,
    },
    LeftOut {
        count: u64,
    },
}

impl TraceFeed {
    /// Says whether nobody subscribes; then nothing needs to be put into words.
    pub(crate) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Adds a subscriber for this source, or for all. `addresses` are those that knockd watches.
    pub(crate) fn add(
        &mut self,
        source: Option<IpAddr>,
        to: Sender<Reply>,
        listening: Weak<()>,
        addresses: &[IpAddr],
    ) {
        self.all.retain(|subscriber| subscriber.listening.strong_count() > 0);
        let list: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
        let text = format!(
            "Tracing packets to {}; press Ctrl-C to stop. Packets that the kernel filter discards do not \
             appear: those to other addresses, and most of those to ports that no door uses. \
             Record them with tcpdump and run `knockd replay` on the file.",
            if list.is_empty() { "no address".to_owned() } else { list.join(", ") }
        );
        let mut subscriber = Subscriber { source, to, listening, left_out: 0 };
        if subscriber.tell(&traced(&Traced::Begin { addresses }, text)) {
            self.all.push(subscriber);
        }
    }

    /// Reports what happened to a packet.
    pub(crate) fn tell_packet(&mut self, packet: &Packet, notes: &[Note<'_>]) {
        let own = |source: Option<IpAddr>| {
            notes.iter().filter(move |note| source.is_none_or(|source| source == note.source))
        };
        self.all.retain_mut(|subscriber| {
            if subscriber.source.is_some_and(|source| source != packet.source) {
                // Other events for the source, such as an attempt dropped because of somebody else's packet.
                return own(subscriber.source).all(|note| subscriber.tell_note(note));
            }
            let notes: Vec<_> = own(subscriber.source).collect();
            let (time, clock) = now();
            let mut text = format!("{clock} {}", Shown(packet));
            for note in &notes {
                // Writing to a string cannot fail.
                let _ = if note.source == packet.source {
                    write!(text, "\n    {note}")
                } else {
                    write!(text, "\n    {}: {note}", note.source)
                };
            }
            subscriber.tell(&traced(&Traced::Packet { time, packet: Shown(packet), notes: &notes }, text))
        });
    }

    /// Reports what happened to a source.
    pub(crate) fn tell_note(&mut self, note: &Note<'_>) {
        self.all.retain_mut(|subscriber| {
            subscriber.source.is_some_and(|source| source != note.source) || subscriber.tell_note(note)
        });
    }
}

impl Subscriber {
    /// Says whether the client still listens.
    fn tell_note(&mut self, note: &Note<'_>) -> bool {
        let (time, clock) = now();
        let text = format!("{clock} {}: {note}", note.source);
        self.tell(&traced(&Traced::Note { time, note }, text))
    }

    /// Says whether the client still listens. Counts what it has no room for.
    fn tell(&mut self, told: &Reply) -> bool {
        if self.left_out > 0 {
            let count = self.left_out;
            let text = format!("skipped {count} packets or notes that came too fast");
            match self.to.try_send(traced(&Traced::LeftOut { count }, text)) {
                Ok(()) => self.left_out = 0,
                Err(error) => return self.note_failure(&error),
            }
        }
        self.to.try_send(told.clone()).map_or_else(|error| self.note_failure(&error), |()| true)
    }

    fn note_failure(&mut self, error: &TrySendError<Reply>) -> bool {
        self.left_out += 1;
        error.is_full()
    }
}

fn traced(object: &Traced<'_>, text: String) -> Reply {
    // Serialisation cannot fail: the keys are strings, and it writes to memory.
    Reply::Traced { event: serde_json::to_value(object).unwrap_or_default(), text }
}

/// The time, for programs and for people.
fn now() -> (String, String) {
    let now = Zoned::now();
    (now.timestamp().to_string(), now.strftime("%H:%M:%S%.3f").to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::{Receiver, bounded};
    use knockd_core::Hit;

    use super::*;
    use crate::control::explain::What;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn packet(source: &str) -> Packet {
        Packet { source: address(source), destination: address("192.0.2.1"), hit: Hit::Udp { port: 7101 } }
    }

    fn note(source: &str, stage: u8) -> Note<'static> {
        Note { source: address(source), door: Some("ssh"), what: What::Stage { stage } }
    }

    fn listener(tracers: &mut TraceFeed, source: Option<&str>, room: usize) -> (Receiver<Reply>, Arc<()>) {
        let (to, told) = bounded(room);
        let listening = Arc::new(());
        tracers.add(source.map(address), to, Arc::downgrade(&listening), &[address("192.0.2.1")]);
        let begin = told.try_recv().unwrap();
        let expected = "Tracing packets to 192.0.2.1; ";
        assert!(matches!(begin, Reply::Traced { text, .. } if text.starts_with(expected)));
        (told, listening)
    }

    /// The texts, without the time.
    fn texts(told: &Receiver<Reply>) -> Vec<String> {
        let text = |reply| match reply {
            Reply::Traced { text, event } => {
                assert!(event["type"].is_string(), "{event}");
                text.split_once(' ').unwrap().1.to_owned()
            }
            other => panic!("{other:?}"),
        };
        told.try_iter().map(text).collect()
    }

    #[test]
    fn each_listener_is_told_about_its_source() {
        let mut tracers = TraceFeed::default();
        let (all, _all) = listener(&mut tracers, None, 10);
        let (one, _one) = listener(&mut tracers, Some("192.0.2.7"), 10);
        tracers.tell_packet(&packet("192.0.2.7"), &[note("192.0.2.7", 1)]);
        tracers.tell_packet(&packet("192.0.2.8"), &[note("192.0.2.8", 1), note("192.0.2.7", 2)]);
        tracers.tell_note(&note("192.0.2.9", 3));
        let first = "192.0.2.7 to 192.0.2.1, 7101:udp\n    ssh: Stage 1";
        assert_eq!(texts(&one), [first, "192.0.2.7: ssh: Stage 2"]);
        let second = "192.0.2.8 to 192.0.2.1, 7101:udp\n    ssh: Stage 1\n    192.0.2.7: ssh: Stage 2";
        assert_eq!(texts(&all), [first, second, "192.0.2.9: ssh: Stage 3"]);
    }

    #[test]
    fn what_a_slow_listener_misses_is_counted_and_told() {
        let mut tracers = TraceFeed::default();
        let (told, _listening) = listener(&mut tracers, None, 2);
        for stage in 1..=5 {
            tracers.tell_note(&note("192.0.2.7", stage));
        }
        assert_eq!(texts(&told).len(), 2);
        tracers.tell_note(&note("192.0.2.7", 6));
        assert_eq!(texts(&told), ["3 packets or notes that came too fast", "192.0.2.7: ssh: Stage 6"]);
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let mut tracers = TraceFeed::default();
        let (told, listening) = listener(&mut tracers, None, 2);
        drop(told);
        tracers.tell_note(&note("192.0.2.7", 1));
        assert!(tracers.is_empty());
        let (_told, gone) = listener(&mut tracers, None, 2);
        drop((gone, listening));
        let (_other, _here) = listener(&mut tracers, None, 2);
        assert_eq!(tracers.all.len(), 1, "nothing has happened, and yet");
    }
}
