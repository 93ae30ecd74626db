//! The feed of `knockd trace`: it tells subscribers what happens to packets, and never waits for them.

use std::cell::OnceCell;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use knockd_core::{Packet, Timestamp};
use serde::Serialize;

use crate::control::explain::{Note, Shown};
use crate::control::socket::Answer;
use crate::system::time_zone;

/// How many packets and notes are told within a second, to all subscribers together; each has an equal share, so one
/// who asks for everything in a flood takes nothing from one who asks for an address.
const TOLD: usize = 2048;
const SECOND: Duration = Duration::from_secs(1);

/// The subscribers.
#[derive(Debug, Default)]
pub(crate) struct TraceFeed {
    all: Vec<Subscriber>,
    /// When the shares are renewed.
    renewal: Timestamp,
}

#[derive(Debug)]
struct Subscriber {
    /// The source to report; `None` for all.
    source: Option<IpAddr>,
    to: Sender<Answer>,
    /// Gone once the client is gone.
    connected: Weak<()>,
    /// How many more replies it is sent before the shares are renewed.
    share: usize,
    /// How many replies were skipped because its share was used up, or the client read too slowly.
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
        to: Sender<Answer>,
        connected: Weak<()>,
        addresses: &[IpAddr],
    ) {
        self.all.retain(|subscriber| subscriber.connected.strong_count() > 0);
        let list: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
        let text = format!(
            "Tracing packets to {}; press Ctrl-C to stop. Packets that the kernel filter discards do not \
             appear: those to other addresses, and most of those to ports that no door uses. \
             Record them with tcpdump and run `knockd replay` on the file.",
            if list.is_empty() { "no address".to_owned() } else { list.join(", ") }
        );
        let mut subscriber = Subscriber { source, to, connected, share: TOLD, left_out: 0 };
        if subscriber.tell(&line(&Traced::Begin { addresses }, &text)) {
            self.all.push(subscriber);
            self.share_out();
        }
    }

    /// Says whether anybody is to be told about a packet of this source, and counts it for those who are not told
    /// because their share is used up.
    pub(crate) fn takes(&mut self, source: IpAddr, now: Timestamp) -> bool {
        if self.all.is_empty() {
            return false;
        }
        self.renew(now);
        let mut takes = false;
        for subscriber in self.all.iter_mut().filter(|subscriber| subscriber.wants(source)) {
            takes |= subscriber.has_share();
        }
        takes
    }

    /// Reports what happened to a packet for which [`Self::takes`] has just said yes.
    pub(crate) fn tell_packet(&mut self, packet: &Packet, notes: &[Note<'_>]) {
        let own: Vec<_> = notes.iter().filter(|note| note.source == packet.source).collect();
        let others: Vec<_> = notes.iter().filter(|note| note.source != packet.source).collect();
        let all: Vec<_> = notes.iter().collect();
        let put = |notes: &[&Note<'_>]| {
            let (time, clock) = now();
            let mut text = format!("{clock} {}", Shown(packet));
            for note in notes {
                // Writing to a string cannot fail.
                let _ = if note.source == packet.source {
                    write!(text, "\n    {note}")
                } else {
                    write!(text, "\n    {}: {note}", note.source)
                };
            }
            line(&Traced::Packet { time, packet: Shown(packet), notes }, &text)
        };
        // Whoever asked for this source is told nothing about others. Usually there is nothing about others.
        let (with_others, without) = (OnceCell::new(), OnceCell::new());
        self.all.retain_mut(|subscriber| {
            if !subscriber.wants(packet.source) || subscriber.share == 0 {
                return true;
            }
            let line = if subscriber.source.is_none() && !others.is_empty() {
                with_others.get_or_init(|| put(&all))
            } else {
                without.get_or_init(|| put(&own))
            };
            subscriber.tell(line)
        });
        // Other events for a source, such as an attempt dropped because of somebody else's packet.
        for note in others {
            self.tell_subscribers(note, |subscriber| subscriber.source == Some(note.source));
        }
    }

    /// Reports what happened to a source.
    pub(crate) fn tell_note(&mut self, note: &Note<'_>, now: Timestamp) {
        self.renew(now);
        let wants = |subscriber: &Subscriber| subscriber.source.is_none_or(|source| note.is_about(source));
        self.tell_subscribers(note, wants);
    }

    fn tell_subscribers(&mut self, note: &Note<'_>, is_wanted: impl Fn(&Subscriber) -> bool) {
        let put = || {
            let (time, clock) = now();
            line(&Traced::Note { time, note }, &format!("{clock} {}: {note}", note.source))
        };
        let once = OnceCell::new();
        self.all.retain_mut(|subscriber| {
            !is_wanted(subscriber) || !subscriber.has_share() || subscriber.tell(once.get_or_init(put))
        });
    }

    fn renew(&mut self, now: Timestamp) {
        if now >= self.renewal {
            self.renewal = now.after(SECOND);
            self.share_out();
        }
    }

    fn share_out(&mut self) {
        let share = TOLD / self.all.len().max(1);
        self.all.iter_mut().for_each(|subscriber| subscriber.share = share);
    }
}

impl Subscriber {
    fn wants(&self, source: IpAddr) -> bool {
        self.source.is_none_or(|wanted| wanted == source)
    }

    /// Says whether it is to be told something, and counts what it is not told.
    const fn has_share(&mut self) -> bool {
        if self.share == 0 {
            self.left_out += 1;
        }
        self.share > 0
    }

    /// Says whether the client is still connected. Counts what it has no room for.
    fn tell(&mut self, told: &Arc<str>) -> bool {
        self.share = self.share.saturating_sub(1);
        if self.left_out > 0 {
            let count = self.left_out;
            let text = format!("skipped {count} packets or notes that came too fast");
            match self.to.try_send(Answer::Traced(line(&Traced::LeftOut { count }, &text))) {
                Ok(()) => self.left_out = 0,
                Err(error) => return self.note_failure(&error),
            }
        }
        let sent = self.to.try_send(Answer::Traced(Arc::clone(told)));
        sent.map_or_else(|error| self.note_failure(&error), |()| true)
    }

    const fn note_failure(&mut self, error: &TrySendError<Answer>) -> bool {
        self.left_out += 1;
        matches!(error, TrySendError::Full(_))
    }
}

/// A [`crate::control::Reply::Traced`] in JSON.
fn line(event: &Traced<'_>, text: &str) -> Arc<str> {
    #[derive(Serialize)]
    struct Line<'a> {
        reply: &'static str,
        event: &'a Traced<'a>,
        text: &'a str,
    }
    // Serialisation cannot fail: the keys are strings, and it writes to memory.
    serde_json::to_string(&Line { reply: "traced", event, text }).unwrap_or_default().into()
}

/// The time, for programs and for people.
fn now() -> (String, String) {
    let now = time_zone::now();
    (now.timestamp().to_string(), now.strftime("%H:%M:%S%.3f").to_string())
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, bounded};
    use knockd_core::Hit;

    use super::*;
    use crate::control::Reply;
    use crate::control::explain::What;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn packet(source: &str) -> Packet {
        Packet::incoming(address(source), address("192.0.2.1"), Hit::Udp { port: 7101 })
    }

    fn note(source: &str, stage: u8) -> Note<'static> {
        Note { source: address(source), door: Some("ssh"), what: What::Stage { stage } }
    }

    fn reply(answer: &Answer) -> Reply {
        match answer {
            Answer::Traced(line) => serde_json::from_str(line).unwrap(),
            Answer::Reply(reply) => panic!("{reply:?}"),
        }
    }

    /// Tells about a packet as the engine does.
    fn tell_packet(feed: &mut TraceFeed, source: &str, notes: &[Note<'_>], now: Timestamp) {
        if feed.takes(address(source), now) {
            feed.tell_packet(&packet(source), notes);
        }
    }

    fn subscribe(feed: &mut TraceFeed, source: Option<&str>, room: usize) -> (Receiver<Answer>, Arc<()>) {
        let (to, told) = bounded(room);
        let connected = Arc::new(());
        feed.add(source.map(address), to, Arc::downgrade(&connected), &[address("192.0.2.1")]);
        let begin = reply(&told.try_recv().unwrap());
        let expected = "Tracing packets to 192.0.2.1; ";
        assert!(matches!(begin, Reply::Traced { text, .. } if text.starts_with(expected)));
        (told, connected)
    }

    /// The texts, without the time.
    fn texts(told: &Receiver<Answer>) -> Vec<String> {
        let text = |answer| match reply(&answer) {
            Reply::Traced { text, event } => {
                assert!(event["type"].is_string(), "{event}");
                text.split_once(' ').unwrap().1.to_owned()
            }
            other => panic!("{other:?}"),
        };
        told.try_iter().map(text).collect()
    }

    #[test]
    fn each_subscriber_is_told_about_its_source() {
        let mut feed = TraceFeed::default();
        let (all, _all) = subscribe(&mut feed, None, 10);
        let (one, _one) = subscribe(&mut feed, Some("192.0.2.7"), 10);
        let now = Timestamp::ZERO;
        tell_packet(&mut feed, "192.0.2.7", &[note("192.0.2.7", 1)], now);
        tell_packet(&mut feed, "192.0.2.8", &[note("192.0.2.8", 1), note("192.0.2.7", 2)], now);
        feed.tell_note(&note("192.0.2.9", 3), now);
        let first = "192.0.2.7 to 192.0.2.1, 7101:udp\n    ssh: Stage 1";
        assert_eq!(texts(&one), [first, "192.0.2.7: ssh: Stage 2"]);
        let second = "192.0.2.8 to 192.0.2.1, 7101:udp\n    ssh: Stage 1\n    192.0.2.7: ssh: Stage 2";
        assert_eq!(texts(&all), [first, second, "192.0.2.9: ssh: Stage 3"]);
    }

    #[test]
    fn what_a_slow_subscriber_misses_is_counted_and_told() {
        let mut feed = TraceFeed::default();
        let (told, _connected) = subscribe(&mut feed, None, 2);
        for stage in 1..=5 {
            feed.tell_note(&note("192.0.2.7", stage), Timestamp::ZERO);
        }
        assert_eq!(texts(&told).len(), 2);
        feed.tell_note(&note("192.0.2.7", 6), Timestamp::ZERO);
        assert_eq!(texts(&told), ["3 packets or notes that came too fast", "192.0.2.7: ssh: Stage 6"]);
    }

    #[test]
    fn sixteen_subscribers_are_told_no_more_than_one_and_each_line_is_made_once() {
        let mut feed = TraceFeed::default();
        let subscribers: Vec<_> = (0..16).map(|_| subscribe(&mut feed, None, 4096)).collect();
        let second = |number| Timestamp::ZERO.after(SECOND * number);
        for _ in 0..5000 {
            tell_packet(&mut feed, "192.0.2.7", &[note("192.0.2.7", 1)], second(1));
        }
        let told: Vec<Vec<_>> = subscribers.iter().map(|(told, _)| told.try_iter().collect()).collect();
        assert!(told.iter().all(|told| told.len() == TOLD / 16));
        let lines = told.iter().filter_map(|told| match told.last() {
            Some(Answer::Traced(line)) => Some(line),
            _ => None,
        });
        let lines: Vec<_> = lines.collect();
        assert!(lines.len() == 16 && lines.iter().all(|line| Arc::ptr_eq(line, lines[0])));
        tell_packet(&mut feed, "192.0.2.7", &[note("192.0.2.7", 1)], second(2));
        for (told, _) in &subscribers {
            let texts = texts(told);
            assert_eq!(texts.len(), 2);
            assert_eq!(texts[0], format!("{} packets or notes that came too fast", 5000 - TOLD / 16));
        }
    }

    #[test]
    fn who_asks_for_an_address_is_told_of_it_although_others_ask_for_a_flood() {
        let mut feed = TraceFeed::default();
        let (one, _one) = subscribe(&mut feed, Some("192.0.2.7"), 10);
        let (_all, _connected) = subscribe(&mut feed, None, 4096);
        let now = Timestamp::ZERO.after(SECOND);
        for _ in 0..5000 {
            tell_packet(&mut feed, "192.0.2.8", &[note("192.0.2.8", 1)], now);
        }
        tell_packet(&mut feed, "192.0.2.7", &[note("192.0.2.7", 1)], now);
        assert_eq!(texts(&one), ["192.0.2.7 to 192.0.2.1, 7101:udp\n    ssh: Stage 1"]);
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let mut feed = TraceFeed::default();
        let (told, connected) = subscribe(&mut feed, None, 2);
        drop(told);
        feed.tell_note(&note("192.0.2.7", 1), Timestamp::ZERO);
        assert!(feed.is_empty());
        let (_told, gone) = subscribe(&mut feed, None, 2);
        drop((gone, connected));
        let (_other, _here) = subscribe(&mut feed, None, 2);
        assert_eq!(feed.all.len(), 1, "nothing has happened, and yet");
    }
}
