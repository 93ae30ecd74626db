//! A guard that the kernel lifts by itself: its first rule accepts everything once a set is empty, and what is in the set has a time.

use std::time::Duration;

use netlink_packet_core::NLM_F_CREATE;

use super::expressions::{META_L4PROTO, expression, meta_load, verdict};
use super::{Batch, Kind, NF_ACCEPT, TABLE, bytes, data, list, number, text};

/// The set of protocols that are still guarded.
pub(in super::super) const SET: &str = "trial";

/// The protocols TCP and UDP.
const PROTOCOLS: [u8; 2] = [6, 17];

impl Batch {
    /// Lifts the guard after this time; without one, at once. The chains have just been made.
    pub(in super::super) fn limit_guard(&mut self, guard: &str, time: Option<Duration>) {
        const TIMEOUT: u32 = 0x10;
        const PROTOCOL: u32 = 12;
        const INVERTED: u32 = 1;
        self.last_set += 1;
        let attributes = vec![
            text(1, TABLE),
            text(2, SET),
            number(3, TIMEOUT),
            number(4, PROTOCOL),
            number(5, 1),
            number(10, self.last_set),
        ];
        self.add(Kind::NewSet, NLM_F_CREATE, attributes);
        if let Some(time) = time {
            let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
            let element = |protocol| vec![data(1, &[protocol]), bytes(4, milliseconds.to_be_bytes())];
            let elements = list(3, PROTOCOLS.map(element));
            self.add(Kind::NewElement, NLM_F_CREATE, vec![text(1, TABLE), text(2, SET), elements]);
        }
        // nft: meta l4proto != @trial accept
        let lookup = expression("lookup", &[text(1, SET), number(2, 1), number(5, INVERTED)]);
        let rule = list(4, [meta_load(META_L4PROTO), lookup, verdict(NF_ACCEPT, None)]);
        // Without NLM_F_APPEND, it becomes the first one.
        self.add(Kind::NewRule, NLM_F_CREATE, vec![text(1, TABLE), text(2, guard), rule]);
    }

    /// Forgets the set of an earlier [`Self::limit_guard`]. Its rule is gone.
    pub(in super::super) fn forget_limit(&mut self) {
        self.add(Kind::DeleteSet, 0, vec![text(1, TABLE), text(2, SET)]);
    }
}
