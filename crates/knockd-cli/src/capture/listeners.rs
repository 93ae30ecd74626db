//! The listeners: one per selected interface, following interfaces as they come, go and change.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};
use knockd_capture::{Buffer, Interface, PacketSocket, Program, interfaces};
use knockd_core::{Timestamp, Wanted};

use crate::capture::listener::{Listener, Message};
use crate::log::{Line, Log};
use crate::system::selection::Selection;

/// How many messages wait for the engine, each with up to 512 packets; beyond that, the kernel's buffers fill.
const QUEUE: usize = 64;

/// The maximum number of listeners. Each takes a socket with its buffer and a thread.
const MAX_LISTENERS: usize = 64;

/// How many of them have a ring for their packets, 4 MiB each.
const MAX_RINGS: usize = 8;

/// The pause before a retry; it doubles each time, up to the second value.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The inputs of every filter, except the addresses of its interface.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct FilterSpec {
    pub(crate) wanted: Arc<Wanted>,
    pub(crate) only_ipv4: bool,
}

impl FilterSpec {
    fn program(&self, interface: &Interface) -> Program {
        let Wanted { interests, strays } = &*self.wanted;
        Program::guarded(interests, interface, strays.as_ref(), self.only_ipv4)
    }
}

/// Open sockets without threads, so they survive a fork.
pub(crate) struct Sockets {
    selection: Selection,
    filter: FilterSpec,
    open: Vec<(Interface, PacketSocket)>,
}

impl Sockets {
    /// Starts to listen; packets wait in the kernel's buffers from now on.
    ///
    /// # Errors
    /// When a named interface does not exist (unless `waits`) or the process may not listen on it.
    pub(crate) fn open(selection: Selection, waits: bool, filter: FilterSpec) -> anyhow::Result<Self> {
        let chosen = selection.at_start(&interfaces(), waits)?;
        let open = chosen.into_iter().take(MAX_LISTENERS).enumerate().map(|(others, interface)| {
            let socket = PacketSocket::open(&interface, &filter.program(&interface), buffer(others))?;
            Ok((interface, socket))
        });
        let open = open.collect::<anyhow::Result<_>>()?;
        Ok(Self { selection, filter, open })
    }

    /// Returns the addresses of all interfaces.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.open.iter().flat_map(|(interface, _)| interface.addresses.iter().copied())
    }
}

/// The listeners.
#[derive(Debug)]
pub(crate) struct Listeners {
    selection: Selection,
    filter: FilterSpec,
    open: Vec<Listener>,
    /// Selected interfaces above the limit.
    left_out: Vec<String>,
    /// When to retry what failed, and the pause before.
    retry: Option<(Timestamp, Duration)>,
    /// The messages of all listeners.
    pub(crate) messages: Receiver<Message>,
    sender: Sender<Message>,
}

impl Listeners {
    /// Starts the listeners.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(sockets: Sockets) -> anyhow::Result<Self> {
        let Sockets { selection, filter, open } = sockets;
        let (sender, messages) = crossbeam_channel::bounded(QUEUE);
        let start = |(interface, socket)| Listener::start(socket, interface, sender.clone());
        let open = open.into_iter().map(start).collect::<anyhow::Result<_>>()?;
        Ok(Self { selection, filter, open, left_out: Vec::new(), retry: None, messages, sender })
    }

    /// Returns the selected names that have no listener.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &str> {
        self.selection.names().filter(|name| self.interfaces().all(|interface| interface.name != *name))
    }

    /// Returns the interfaces that have a listener.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.open.iter().map(|listener| &listener.interface)
    }

    /// Returns the addresses of all interfaces.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.open.iter().flat_map(|listener| listener.interface.addresses.iter().copied())
    }

    /// Selects other interfaces; [`Self::follow`] finds them.
    pub(crate) fn select(&mut self, selection: Selection) {
        self.selection = selection;
    }

    /// Returns the names of the interfaces that have a listener.
    pub(crate) fn names(&self) -> String {
        let names: Vec<_> = self.open.iter().map(|listener| listener.interface.name.as_str()).collect();
        if names.is_empty() { "no interface".to_owned() } else { names.join(", ") }
    }

    /// Replaces what the filters pass.
    pub(crate) fn set_filter(&mut self, filter: FilterSpec, log: &Log, now: Timestamp) {
        if filter == self.filter {
            return;
        }
        self.filter = filter;
        for listener in &mut self.open {
            if let Err(error) = listener.set_filter(&self.filter.program(&listener.interface)) {
                log.write(&Line::warning(format!("{}: {error:#}", listener.interface.name)));
                self.retry.get_or_insert((now.after(FIRST_PAUSE), FIRST_PAUSE));
            }
        }
    }

    /// When [`Self::follow`] wants to be called to retry.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.retry.map(|(due, _)| due)
    }

    /// Returns how many unwanted ports the widest filter passes: with very many ports, it covers some in between.
    pub(crate) fn surplus(&self) -> u32 {
        self.open.iter().map(Listener::surplus).max().unwrap_or(0)
    }

    /// Looks for interfaces again and listens on the selected ones.
    pub(crate) fn follow(&mut self, log: &Log, now: Timestamp) {
        let has_worked = self.try_follow(log);
        let pause = self.retry.map_or(FIRST_PAUSE, |(_, pause)| LAST_PAUSE.min(pause * 2));
        self.retry = (!has_worked).then(|| (now.after(pause), pause));
    }

    /// Says whether everything succeeded; failures are in the log.
    fn try_follow(&mut self, log: &Log) -> bool {
        let fail = |error: &str| {
            log.write(&Line::warning(format!("{error}; retrying")));
            false
        };
        let all = interfaces();
        // There is always a loopback interface.
        if all.is_empty() {
            return fail("cannot list the network interfaces");
        }
        let meant = self.selection.of(&all);
        let is_meant = |interface: &Interface| {
            meant.iter().any(|found| (found.index, &found.name) == (interface.index, &interface.name))
        };
        self.open.retain(|listener| {
            let stays = is_meant(&listener.interface) && listener.is_attached();
            if !stays {
                log.write(&Line::notice(format!("no longer listening on {}", listener.interface.name)));
            }
            stays
        });
        let mut has_worked = true;
        let mut left_out = Vec::new();
        for found in meant {
            let has_room = self.open.len() < MAX_LISTENERS;
            let known = self.open.iter_mut().find(|listener| listener.interface.index == found.index);
            let result = match known {
                None if has_room => self.listen_to(found, log),
                None => {
                    left_out.push(found.name);
                    continue;
                }
                Some(listener) if listener.interface.addresses != found.addresses => {
                    let changed = listener.set_filter(&self.filter.program(&found));
                    // Logged once it is true: a reader may knock at once.
                    log.write(&Line::notice(format!("{} now has {}", found.name, addresses_of(&found))));
                    listener.interface = found;
                    changed
                }
                Some(listener) if !listener.has_filter => listener.set_filter(&self.filter.program(&found)),
                Some(listener) => {
                    listener.interface.up = found.up;
                    Ok(())
                }
            };
            if let Err(error) = result {
                has_worked = fail(&format!("{error:#}"));
            }
        }
        if left_out != self.left_out {
            self.left_out = left_out;
            if !self.left_out.is_empty() {
                let names = self.left_out.join(", ");
                let text = format!("not listening on {names}: interface limit ({MAX_LISTENERS}) reached");
                log.write(&Line::warning(text));
            }
        }
        has_worked
    }

    fn listen_to(&mut self, interface: Interface, log: &Log) -> anyhow::Result<()> {
        let rings = self.open.iter().filter(|listener| listener.buffer() == Buffer::Ring).count();
        let socket = PacketSocket::open(&interface, &self.filter.program(&interface), buffer(rings))
            .with_context(|| format!("cannot listen on {}", interface.name))?;
        log.write(&Line::notice(format!("listening on {} ({})", interface.name, addresses_of(&interface))));
        self.open.push(Listener::start(socket, interface, self.sender.clone())?);
        Ok(())
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
