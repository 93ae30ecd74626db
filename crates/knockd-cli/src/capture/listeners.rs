//! The listeners: one per selected interface, following interfaces as they come, go and change.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};
use knockd_capture::{Buffer, Interface, PacketSocket, Program, interfaces};
use knockd_core::{OwnAddress, Timestamp, Wanted};

use crate::capture::claim::{Claim, Claimant};
use crate::capture::listener::{Fault, Listener, Message, State};
use crate::log::{Line, Log};
use crate::system::helper::Rights;
use crate::system::selection::{Selection, has_own_address};
use crate::system::text::count;

/// How many messages wait for the engine, each with up to 512 packets; beyond that, the kernel's buffers fill.
const QUEUE: usize = 64;

/// The maximum number of listeners. Each takes a socket with its buffer and a thread.
const MAX_LISTENERS: usize = 64;

/// How many of them have a ring for their packets, 4 MiB each.
const MAX_RINGS: usize = 8;

/// An interface that is up and has been deaf for this long is a case for the service manager. A decoder that seems to
/// read for this long ends the trouble.
const DEAF_LIMIT: Duration = Duration::from_secs(10);

/// So does one that has read for this long before it ended: if decoders are killed now and then, packets are read.
const RECOVERY: Duration = Duration::from_secs(1);

/// The pause before a retry; it doubles each time, up to the second value.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// What every filter is to pass.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct FilterSpec {
    pub(crate) wanted: Arc<Wanted>,
    pub(crate) only_ipv4: bool,
}

impl FilterSpec {
    /// Makes the program for an interface of a host with these addresses.
    fn program(&self, interface: &Interface, own: &[OwnAddress]) -> Program {
        let Wanted { interests, strays } = &*self.wanted;
        // The host takes packets to any of its addresses on any interface.
        let is_elsewhere = |own: &&OwnAddress| own.interface != interface.index && own.is_global();
        let elsewhere = own.iter().filter(is_elsewhere).map(|own| own.address);
        let addresses = interface.addresses.iter().copied().chain(elsewhere).collect();
        let interface = Interface { addresses, ..interface.clone() };
        Program::guarded(interests, &interface, strays.as_ref(), self.only_ipv4)
    }
}

/// The addresses of all interfaces, whether or not they are listened to; of those that are selected by a label, only
/// the label's.
fn addresses_of_all(all: &[Interface], selected: &[Interface]) -> Vec<OwnAddress> {
    let is_other = |interface: &&Interface| selected.iter().all(|other| other.index != interface.index);
    let interfaces = selected.iter().chain(all.iter().filter(is_other));
    let mut own: Vec<_> = interfaces.flat_map(Interface::own_addresses).collect();
    own.sort_unstable();
    own
}

/// Open sockets without threads.
pub(crate) struct Sockets {
    selection: Selection,
    filter: FilterSpec,
    claimant: Claimant,
    own: Vec<OwnAddress>,
    open: Vec<(Interface, PacketSocket, Claim)>,
}

impl Sockets {
    /// Starts to listen; packets wait in the kernel's buffers from now on.
    ///
    /// # Errors
    /// When a named interface does not exist (unless `waits`), the process may not listen on it, or another daemon does
    /// so with the same configuration file.
    pub(crate) fn open(
        selection: Selection,
        waits: bool,
        filter: FilterSpec,
        claimant: Claimant,
    ) -> anyhow::Result<Self> {
        let all = interfaces();
        let chosen = selection.at_start(&all, waits)?;
        let own = addresses_of_all(&all, &chosen);
        let (chosen, _) = within_limit(chosen, |_| false);
        let open = chosen.into_iter().enumerate().map(|(others, interface)| {
            // First, so none of the packets that wait from then on is another daemon's as well.
            let claim =
                claimant.claim_patiently(interface.index).with_context(|| cannot_listen(&interface))?;
            let program = filter.program(&interface, &own);
            let socket = PacketSocket::open(&interface, &program, buffer(others))?;
            log::debug!("interface {}: {}", interface.name, addresses_of(&interface));
            Ok((interface, socket, claim))
        });
        let open = open.collect::<anyhow::Result<_>>()?;
        Ok(Self { selection, filter, claimant, own, open })
    }

    /// Returns the addresses of this host.
    pub(crate) fn own_addresses(&self) -> &[OwnAddress] {
        &self.own
    }
}

/// The listeners.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// For decoders.
    rights: Rights,
    selection: Selection,
    filter: FilterSpec,
    claimant: Claimant,
    /// The addresses of this host.
    own: Vec<OwnAddress>,
    open: Vec<Listener>,
    /// Selected interfaces above the limit.
    left_out: Vec<String>,
    /// The number of the next listener.
    next: u64,
    /// When to retry what failed, and the pause before.
    retry: Option<(Timestamp, Duration)>,
    /// What failed, while it is being retried.
    failure: Option<String>,
    /// The messages of all listeners.
    pub(crate) messages: Receiver<Message>,
    sender: Sender<Message>,
}

impl Listeners {
    /// Starts the listeners; returns once all of them read packets.
    ///
    /// # Errors
    /// When the system has no thread left, or an interface has no decoder that reads.
    pub(crate) fn start(sockets: Sockets, rights: Rights) -> anyhow::Result<Self> {
        let Sockets { selection, filter, claimant, own, open: sockets } = sockets;
        let (sender, messages) = crossbeam_channel::bounded(QUEUE);
        let mut listeners = Self {
            rights,
            selection,
            filter,
            claimant,
            own,
            open: Vec::new(),
            left_out: Vec::new(),
            next: 0,
            retry: None,
            failure: None,
            messages,
            sender,
        };
        for (interface, socket, claim) in sockets {
            listeners.add(interface, socket, claim, Timestamp::ZERO)?;
        }
        for listener in &mut listeners.open {
            listener.wait_until_it_reads()?;
            listener.is_announced = true;
        }
        Ok(listeners)
    }

    fn add(
        &mut self,
        interface: Interface,
        socket: PacketSocket,
        claim: Claim,
        now: Timestamp,
    ) -> anyhow::Result<()> {
        let program = self.filter.program(&interface, &self.own);
        let reporter = (self.next, self.sender.clone());
        self.open.push(Listener::start(
            reporter,
            socket,
            program,
            interface,
            claim,
            now,
            self.rights.clone(),
        )?);
        self.next += 1;
        Ok(())
    }

    /// Notes that a decoder of this listener reads.
    pub(crate) fn handle_reading(&mut self, number: u64, log: &Log, now: Timestamp) {
        let Some(listener) = self.open.iter_mut().find(|listener| listener.number == number) else { return };
        listener.state = State::Reading(now);
        if !std::mem::replace(&mut listener.is_announced, true) {
            let interface = &listener.interface;
            let text = format!("listening on {} ({})", interface.name, addresses_of(interface));
            log.write(&Line::notice(text));
            listener.log_if_down(log);
        }
    }

    /// Notes that this listener has no decoder that reads.
    pub(crate) fn handle_deaf(&mut self, number: u64, fault: &Fault, log: &Log, now: Timestamp) {
        let Some(listener) = self.open.iter_mut().find(|listener| listener.number == number) else { return };
        let has_read = fault.was_reading && has_been_reading_for(RECOVERY, listener.state, now);
        let trouble = listener.trouble.take().filter(|_| !has_read);
        let problem = format!("{}: {}; retrying", listener.interface.name, fault.reason);
        // What goes on for long is logged once.
        let is_known = trouble.as_ref().is_some_and(|(_, known)| *known == problem);
        if listener.state != State::Deaf || !is_known {
            log.write(&Line::warning(problem.clone()));
        }
        listener.trouble = Some((trouble.map_or(now, |(since, _)| since), problem));
        listener.state = State::Deaf;
    }

    /// Says why packets are not read on some interface, or are only read between the failures of one decoder after the
    /// other.
    pub(crate) fn problem(&self, now: Timestamp) -> Option<&str> {
        let of_listener = self.open.iter().find_map(|listener| {
            let (since, problem) = listener.trouble.as_ref()?;
            let is_lasting =
                !has_been_reading_for(DEAF_LIMIT, listener.state, now) && now.since(*since) >= DEAF_LIMIT;
            (listener.state == State::Deaf || is_lasting).then_some(problem.as_str())
        });
        of_listener.or(self.failure.as_deref())
    }

    /// Says whether, on an interface that is up, no decoder has read for a while without failing again soon.
    pub(crate) fn are_deaf(&self, now: Timestamp) -> bool {
        self.open.iter().filter(|listener| listener.interface.up).any(|listener| {
            let trouble =
                listener.trouble.as_ref().filter(|_| !has_been_reading_for(DEAF_LIMIT, listener.state, now));
            trouble.is_some_and(|(since, _)| now.since(*since) >= DEAF_LIMIT)
        })
    }

    /// Returns the selected names that have no listener.
    pub(crate) fn missing(&self) -> Vec<&str> {
        let open: Vec<_> = self.open.iter().map(|listener| listener.interface.clone()).collect();
        self.selection.missing(&open)
    }

    /// Returns the interfaces that have a listener, whether packets are read there, and why knocks may be missed there.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = (&Interface, bool, Option<&str>)> {
        self.open.iter().map(|listener| {
            let is_read = matches!(listener.state, State::Reading(_));
            (&listener.interface, is_read, listener.problem.as_deref())
        })
    }

    /// Returns the addresses of this host to which packets are seen.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let is_of = |listener: &Listener, own: &OwnAddress| listener.interface.index == own.interface;
        let is_seen =
            move |own: &&OwnAddress| own.is_global() || self.open.iter().any(|listener| is_of(listener, own));
        self.own.iter().filter(is_seen).map(|own| own.address)
    }

    /// Returns the addresses of this host.
    pub(crate) fn own_addresses(&self) -> &[OwnAddress] {
        &self.own
    }

    /// Stops listening: from now on, another daemon may.
    pub(crate) fn close(&mut self) {
        self.open.clear();
    }

    /// Selects other interfaces; [`Self::follow`] finds them.
    pub(crate) fn select(&mut self, selection: Selection) {
        self.selection = selection;
    }

    /// Returns the names of the interfaces where packets are read.
    pub(crate) fn names(&self) -> String {
        let reading = self.interfaces().filter(|(_, is_read, _)| *is_read);
        let names: Vec<_> = reading.map(|(interface, ..)| interface.name.as_str()).collect();
        if names.is_empty() { "no interface".to_owned() } else { names.join(", ") }
    }

    /// Replaces what the filters pass.
    pub(crate) fn set_filter(&mut self, filter: FilterSpec, log: &Log, now: Timestamp) {
        if filter == self.filter {
            return;
        }
        self.filter = filter;
        for listener in &mut self.open {
            let program = self.filter.program(&listener.interface, &self.own);
            if let Err(error) = listener.set_filter(program) {
                log.write(&Line::warning(format!("{}: {error:#}", listener.interface.name)));
                self.retry.get_or_insert((now.after(FIRST_PAUSE), FIRST_PAUSE));
            }
        }
    }

    /// When [`Self::follow`] wants to be called: to retry, or to say that a decoder does not start.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        let retry = self.retry.map(|(due, _)| due);
        self.open.iter().filter_map(Listener::poll_timeout).chain(retry).min()
    }

    /// Returns how many unwanted ports the widest filter passes: with very many ports, it covers some in between.
    pub(crate) fn surplus(&self) -> u32 {
        self.open.iter().map(Listener::surplus).max().unwrap_or(0)
    }

    /// Looks for interfaces again and listens on the selected ones.
    pub(crate) fn follow(&mut self, log: &Log, now: Timestamp) {
        self.failure = self.try_follow(log, now);
        for listener in &mut self.open {
            listener.log_if_hanging(log, now);
        }
        let pause = self.retry.map_or(FIRST_PAUSE, |(_, pause)| LAST_PAUSE.min(pause * 2));
        self.retry = self.failure.is_some().then(|| (now.after(pause), pause));
    }

    /// Returns what failed, if anything did; it is in the log.
    fn try_follow(&mut self, log: &Log, now: Timestamp) -> Option<String> {
        let fail = |error: &str| {
            let problem = format!("{error}; retrying");
            log.write(&Line::warning(problem.clone()));
            Some(problem)
        };
        let all = interfaces();
        // There is always a loopback interface.
        if all.is_empty() {
            return fail("cannot list the network interfaces");
        }
        let selected = self.selection.of(&all);
        let own = addresses_of_all(&all, &selected);
        let has_moved = own != self.own;
        self.own = own;
        let is_open = |index| self.open.iter().any(|listener| listener.interface.index == index);
        let (meant, left_out) = within_limit(selected, is_open);
        let is_meant = |interface: &Interface| {
            meant.iter().any(|found| (found.index, &found.name) == (interface.index, &interface.name))
        };
        self.open.retain(|listener| {
            let stays = is_meant(&listener.interface) && listener.is_attached();
            if !stays && listener.is_announced {
                log.write(&Line::notice(format!("no longer listening on {}", listener.interface.name)));
            }
            stays
        });
        let mut failure = None;
        for found in meant {
            let known = self.open.iter_mut().find(|listener| listener.interface.index == found.index);
            let result = match known {
                None => self.listen_to(found, now),
                Some(listener) if listener.interface.addresses != found.addresses => {
                    let changed = listener.set_filter(self.filter.program(&found, &self.own));
                    // Logged once it is true: a reader may knock at once.
                    log.write(&Line::notice(format!("{} now has {}", found.name, addresses_of(&found))));
                    listener.interface = found;
                    changed
                }
                Some(listener) => {
                    listener.interface = found;
                    if has_moved || !listener.has_filter {
                        listener.set_filter(self.filter.program(&listener.interface, &self.own))
                    } else {
                        Ok(())
                    }
                }
            };
            if let Err(error) = result {
                failure = fail(&format!("{error:#}"));
            }
        }
        let watches_own = self.filter.wanted.interests.iter().any(|interest| interest.target.is_none());
        for listener in &mut self.open {
            if listener.is_announced {
                listener.log_if_down(log);
            }
            let problem = self.selection.problem(&listener.interface, &all).filter(|_| watches_own);
            if let Some(problem) = problem.as_ref().filter(|_| listener.problem != problem) {
                log.write(&Line::warning(format!("{}: {problem}", listener.interface.name)));
            }
            listener.problem = problem;
        }
        if left_out != self.left_out {
            self.left_out = left_out;
            if !self.left_out.is_empty() {
                let names = some_of(&self.left_out);
                let text = format!("not listening on {names}: interface limit ({MAX_LISTENERS}) reached");
                log.write(&Line::warning(text));
            }
        }
        failure
    }

    fn listen_to(&mut self, interface: Interface, now: Timestamp) -> anyhow::Result<()> {
        let claim = self.claimant.claim(interface.index).with_context(|| cannot_listen(&interface))?;
        let rings = self.open.iter().filter(|listener| listener.buffer() == Buffer::Ring).count();
        let program = self.filter.program(&interface, &self.own);
        let socket = PacketSocket::open(&interface, &program, buffer(rings))
            .with_context(|| cannot_listen(&interface))?;
        self.add(interface, socket, claim, now)
    }
}

/// Says whether a decoder has been reading for so long, as far as is known.
fn has_been_reading_for(time: Duration, state: State, now: Timestamp) -> bool {
    matches!(state, State::Reading(since) if now.since(since) >= time)
}

fn cannot_listen(interface: &Interface) -> String {
    format!("cannot listen on {}", interface.name)
}

/// Divides interfaces into those with a listener and the names of the others: the ones with addresses come first, then
/// those that have a listener already.
fn within_limit(mut meant: Vec<Interface>, is_open: impl Fn(u32) -> bool) -> (Vec<Interface>, Vec<String>) {
    if meant.len() > MAX_LISTENERS {
        meant.sort_by_key(|interface| (!has_own_address(interface), !is_open(interface.index)));
    }
    let left_out = meant.split_off(meant.len().min(MAX_LISTENERS));
    (meant, left_out.into_iter().map(|interface| interface.name).collect())
}

/// Returns names for people, who need not read all of them.
fn some_of(names: &[String]) -> String {
    match names {
        [first, second, third, others @ ..] if !others.is_empty() => {
            format!("{first}, {second}, {third} and {}", count(others.len(), "other interface"))
        }
        _ => names.join(", "),
    }
}

/// Where packets wait, given the number of rings so far.
const fn buffer(rings: usize) -> Buffer {
    if rings < MAX_RINGS { Buffer::Ring } else { Buffer::Queue }
}

fn addresses_of(interface: &Interface) -> String {
    let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
    if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") }
}
