//! What an earlier process has left.

use std::sync::Arc;
use std::time::Duration;

use super::life::Lease;
use super::wish::firewall_key;
use super::{LeaseId, LeaseRecord, Leases, StartState};
use crate::config::Door;
use crate::exceptions::Prefix;
use crate::time::Now;

impl Leases {
    /// Restores what an earlier process stored. A lease whose deadline has passed is due at once. IDs up to
    /// `last_id`, and those of the records, are not reused. [`LeaseRecord::in_boot`] says what of a record holds after
    /// a restart of the machine.
    ///
    /// A start command that was running counts as failed, so another knock runs it again. The caller has ended it
    /// before: it must not outlive the stop command.
    pub fn restore(&mut self, records: impl IntoIterator<Item = LeaseRecord>, last_id: LeaseId, now: Now) {
        self.last_id = self.last_id.max(last_id.0);
        for LeaseRecord { id, key, cmd_timeout, until, failed, start, boot: _ } in records {
            if self.table.find(id).is_some() {
                continue;
            }
            self.last_id = self.last_id.max(id.0);
            let cmd_timeout = cmd_timeout.duration();
            let until = now.moment_at(until, cmd_timeout);
            let failed = failed || start != StartState::Ended;
            let mut lease = Lease::new(id, Arc::unwrap_or_clone(key), cmd_timeout, None);
            lease.keep_open(until, failed, now);
            self.table.add(lease, true);
        }
    }

    /// Takes over a source, or a network, that the firewall lets in for this time, because an earlier process has told it to. It is
    /// ignored if the door would not let it in like that any more.
    pub fn restore_admission(&mut self, door: &Door, source: Prefix, left: Duration, now: Now) {
        let Some(key) = firewall_key(door, source.address()).filter(|key| key.admitted() == Some(source))
        else {
            return;
        };
        let id = self.fresh_id();
        if self.table.current(&key).is_some() {
            return;
        }
        let mut lease = Lease::new(id, key, door.cmd_timeout.into(), door.extend);
        lease.keep_open(now.monotonic.after(left), false, now);
        self.table.add(lease, true);
    }
}
