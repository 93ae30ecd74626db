//! What an earlier process has left in the table.

use knockd_core::{DoorName, Prefix};
use nix::errno::Errno;

use super::Admitted;
use super::answers;
use super::netlink::Netlink;
use super::plan::{self, Numbers};
use super::ruleset::{Ruleset, Set};

/// A table as it is, without its rules.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    pub(super) ruleset: Ruleset,
    pub(super) numbers: Numbers,
    /// Who is let in, each with the name of the set.
    pub(super) admitted: Vec<(String, Admitted)>,
}

impl Earlier {
    /// Asks the kernel. Where there is no table, nothing is in it.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub(super) fn find(netlink: &mut Netlink) -> Result<Self, Errno> {
        let mut earlier = Self::default();
        let sets = match netlink.dump(&answers::get_sets()) {
            Err(Errno::ENOENT) => return Ok(earlier),
            sets => sets?,
        };
        for answer in sets {
            let Some((name, door, size, is_dynamic)) = answers::named_set(&answer) else { continue };
            let Some((number, family, has_networks)) = plan::of_set_name(name) else { continue };
            let Ok(door) = DoorName::new(door) else { continue };
            earlier.numbers.insert(door.clone(), number);
            let set = Set { name: name.to_owned(), family, size, is_dynamic, comment: door.to_string() };
            earlier.ruleset.sets.push(set);
            for part in netlink.dump(&answers::get_addresses(name))? {
                let of_door = |(address, left)| {
                    let source = if has_networks { Prefix::around(address) } else { address.into() };
                    Admitted { door: door.clone(), source, left }
                };
                let admitted = answers::addresses(&part).map(of_door);
                earlier.admitted.extend(admitted.map(|admitted| (name.to_owned(), admitted)));
            }
        }
        Ok(earlier)
    }
}
