//! What packets do, and the ports in use, which say what some of them mean.

use std::net::IpAddr;

use knockd_core::{LocalPorts, Now, Outcome, Packet, Timestamp};

use super::engine::Engine;
use super::service_manager;
use crate::capture::listener::Message;
use crate::control::explain;

impl Engine {
    pub(super) fn handle_message(&mut self, message: Message) {
        match message {
            Message::Packets(packets) => {
                // A batch arrives within milliseconds.
                let now = self.clock.both();
                for packet in &packets {
                    self.handle_packet(packet, now);
                }
                self.end_refused();
                self.refresh_ports(now.monotonic);
            }
            Message::Dropped(count) => self.dispatcher.handle_dropped(count, self.clock.now()),
            Message::Reading(listener, kept) => {
                self.dispatcher.handle_reading(listener, kept, self.clock.now());
                service_manager::status(&self.summary());
            }
            Message::Deaf(listener, fault) => {
                self.dispatcher.handle_deaf(listener, &fault, self.clock.now());
                service_manager::status(&self.summary());
            }
        }
    }

    fn handle_packet(&mut self, packet: &Packet, now: Now) {
        if self.args.only_ip_v4 && packet.source.is_ipv6() {
            return;
        }
        self.dispatcher.counters.packets += 1;
        if !self.dispatcher.feed.takes(packet.source, now.monotonic) {
            for outcome in self.gate.handle_packet(packet, now) {
                if !is_of_packet(&outcome, packet.source) {
                    self.dispatcher.trace(&outcome, now.monotonic);
                }
                self.dispatcher.dispatch(outcome, now.monotonic);
            }
            return;
        }
        let visibility = self.gate.visibility(packet, now);
        let outcomes: Vec<_> = self.gate.handle_packet(packet, now).collect();
        let notes = explain::of_packet(packet, visibility, &outcomes, &self.setup.config.doors);
        self.dispatcher.feed.tell_packet(packet, &notes);
        for outcome in outcomes {
            if !matches!(outcome, Outcome::Attempt(_) | Outcome::Scanner(_)) {
                self.dispatcher.trace(&outcome, now.monotonic);
            }
            self.dispatcher.dispatch(outcome, now.monotonic);
        }
    }

    /// Has the ports in use read again, when a packet has come and they may have changed since.
    fn refresh_ports(&mut self, now: Timestamp) {
        let wanted = self.gate.wanted();
        if wanted.strays.is_some() {
            self.ports.ask_if_old(wanted.has_udp(), now);
        }
    }

    /// Has the ports in use read again, because what of them matters may have changed.
    pub(super) fn ask_for_ports(&mut self) {
        let wanted = self.gate.wanted();
        if wanted.strays.is_some() {
            self.ports.ask(wanted.has_udp());
        }
    }

    pub(super) fn handle_ports(&mut self, ports: LocalPorts) {
        self.ports.handle_answer(self.clock.now());
        self.apply(|gate, _| gate.set_local_ports(ports));
    }
}

/// Says whether an outcome is a part of what is told about a packet of this source.
fn is_of_packet(outcome: &Outcome, source: IpAddr) -> bool {
    match outcome {
        Outcome::Attempt(event) => event.source == source,
        Outcome::Scanner(_) => true,
        Outcome::Opening { .. } | Outcome::Effect(_) | Outcome::UsedUp(_) | Outcome::Wanted(_) => false,
    }
}
