//! Doors with one-time sequences: each opens when what was knocked is struck out on disk.

use std::net::IpAddr;

use knockd_core::DoorId;

use super::Engine;
use crate::leases::one_time_file::{Strike, Struck};
use crate::log::Line;

impl Engine {
    /// Moves on to the next sequence of a door that has been knocked at, and opens the door once the used one is struck out;
    /// says whether it is such a door.
    pub(super) fn use_up_sequence(&mut self, id: DoorId, source: IpAddr) -> bool {
        let Some(file) = self.setup.one_time.get_mut(&id) else { return false };
        let used = file.use_up();
        let (path, next) = (file.path().to_owned(), file.sequence().cloned());
        if let Some((used, door)) = used.zip(self.setup.doors.get(id.index()).cloned()) {
            if next.is_none() {
                self.log(&Line::used_up(&door.name));
            }
            self.striker.strike(Strike { path, used, door, source });
        }
        self.matcher.set_sequence(id, next);
        self.refresh_filter();
        true
    }

    /// Opens the door whose sequence is struck out, or says why it stays closed.
    pub(super) fn handle_struck(&mut self, (strike, result): Struck) {
        let Strike { path, used, door, source } = strike;
        match result {
            // A reload may have read the file meanwhile, and other doors may have the same one.
            Ok(()) => {
                for file in self.setup.one_time.values_mut().filter(|file| file.path() == path) {
                    file.pass_over(&used);
                }
                self.open_door(&door, source);
            }
            Err((error, now)) => {
                let outcome = if now.is_some() {
                    "what it says now counts"
                } else {
                    "the door is disabled until a reload"
                };
                self.log(&Line::warning(format!(
                    "{}: the door stays closed, since its sequence cannot be struck out in {}: {error}; {outcome}",
                    door.name,
                    path.display()
                )));
                let known = self.setup.one_time.iter_mut().find(|(id, file)| {
                    file.path() == path
                        && self.setup.doors.get(id.index()).is_some_and(|at| at.name == door.name)
                });
                match (known, now) {
                    (Some((_, file)), Some(now)) => *file = now,
                    (Some((_, file)), None) => file.disable(),
                    (None, _) => {}
                }
            }
        }
        for (id, file) in &self.setup.one_time {
            self.matcher.set_sequence(*id, file.sequence().cloned());
        }
        self.refresh_filter();
    }
}
