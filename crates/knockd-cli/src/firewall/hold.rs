//! How well the kernel keeps the table, which depends on its age.

use nix::errno::Errno;

/// `NFT_TABLE_F_OWNER` and `NFT_TABLE_F_PERSIST`.
const OWNER: u32 = 2;
const PERSIST: u32 = 4;

/// How well the kernel keeps the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    /// Only our socket may change it, and it stays when the socket is closed: Linux 6.9.
    Persistent,
    /// Only our socket may change it, and it goes when the socket is closed: Linux 5.12.
    Owned,
    /// Everybody may change it, and it stays.
    Shared,
}

impl Hold {
    pub(super) const BEST_FIRST: [Self; 3] = [Self::Persistent, Self::Owned, Self::Shared];

    pub(super) const fn flags(self) -> u32 {
        match self {
            Self::Persistent => OWNER | PERSIST,
            Self::Owned => OWNER,
            Self::Shared => 0,
        }
    }

    /// Says what can open the ports that it guards, if anything can.
    pub(crate) const fn warning(self) -> Option<&'static str> {
        match self {
            Self::Persistent => None,
            Self::Owned => {
                Some("guarded ports are open while knockd is dead if it is killed: Linux before 6.9")
            }
            Self::Shared => Some(
                "guarded ports are open for a moment when another program flushes nftables: Linux before 5.12",
            ),
        }
    }
}

/// What a person can do where the kernel cannot guard.
const REMEDY: &str = "load its modules, or open doors by commands instead of `Open`";

/// Why the guard does not stand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirewallError {
    #[error("permission denied; CAP_NET_ADMIN is missing")]
    Forbidden,
    #[error("another process owns the table; is another knockd running?")]
    Owned,
    #[error("the kernel has no nftables; {REMEDY}")]
    Missing,
    #[error("the kernel lacks a part of nftables; {REMEDY}")]
    Incomplete,
    #[error("{}", reason(*.0))]
    Refused(Errno),
}

/// Says what the kernel has against a change.
pub(crate) fn reason(error: Errno) -> &'static str {
    match error {
        Errno::ENFILE => "its set is full; see MaxOpen",
        // So the kernel says about a table that is not there, and about a rule whose module is not there.
        Errno::ENOENT => "the table is gone, or the kernel lacks a part of nftables",
        Errno::EPERM => "another process owns the table",
        Errno::EOPNOTSUPP => "the kernel lacks a part of nftables",
        error => error.desc(),
    }
}

impl FirewallError {
    /// For what the kernel says to a question, to which it needs nothing but the right.
    pub(super) const fn when_asking(error: Errno) -> Self {
        match error {
            Errno::EPERM | Errno::EACCES => Self::Forbidden,
            // The last one is from nfnetlink without nftables.
            Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL => Self::Missing,
            error => Self::Refused(error),
        }
    }

    /// For what the kernel says to a change, after it has answered a question.
    pub(super) const fn when_changing(error: Errno) -> Self {
        match error {
            Errno::EPERM => Self::Owned,
            // The table is made by the same change, so what is not there is a module.
            Errno::ENOENT | Errno::EOPNOTSUPP => Self::Incomplete,
            error => Self::Refused(error),
        }
    }
}

/// Finds the first of these holds that the kernel grants, changing the table that is there or else replacing it: the kernel gives an
/// owner to no table that has been without one.
///
/// # Errors
/// What it has against the last one.
pub(super) fn strongest(
    holds: &[Hold],
    mut attempt: impl FnMut(Hold, bool) -> Result<(), Errno>,
) -> Result<Hold, Errno> {
    let mut refused = Errno::EOPNOTSUPP;
    for &hold in holds {
        for replaces in [false, true] {
            match attempt(hold, replaces) {
                Ok(()) => return Ok(hold),
                // There is nothing to replace.
                Err(Errno::ENOENT) if replaces => {}
                Err(error @ (Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EEXIST)) => refused = error,
                Err(error) => return Err(error),
            }
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says to a table with these flags if it knows only some.
    fn kernel(known: u32, refusal: Errno) -> impl FnMut(Hold, bool) -> Result<(), Errno> {
        move |hold, replaces| match (hold.flags() & !known, replaces) {
            (0, false) => Ok(()),
            (0, true) => panic!("there is nothing to replace"),
            _ => Err(refusal),
        }
    }

    #[test]
    fn an_older_kernel_keeps_the_table_as_well_as_it_can() {
        for (known, refusal, hold) in [
            (OWNER | PERSIST, Errno::EOPNOTSUPP, Hold::Persistent),
            (OWNER, Errno::EOPNOTSUPP, Hold::Owned),
            (0, Errno::EINVAL, Hold::Shared),
        ] {
            assert_eq!(strongest(&Hold::BEST_FIRST, kernel(known, refusal)), Ok(hold));
            assert_eq!(hold.warning().is_some(), known != OWNER | PERSIST);
        }
        // `knockd guard` ends at once, and its table must not.
        let of_command = [Hold::Persistent, Hold::Shared];
        assert_eq!(strongest(&of_command, kernel(OWNER, Errno::EOPNOTSUPP)), Ok(Hold::Shared));
    }

    #[test]
    fn a_table_without_an_owner_is_replaced_by_one_with_an_owner() {
        let mut tried = Vec::new();
        let result = strongest(&Hold::BEST_FIRST, |hold, replaces| {
            tried.push((hold, replaces));
            if replaces { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
        });
        assert_eq!((result, tried.len()), (Ok(Hold::Persistent), 2));
    }

    #[test]
    fn what_no_other_hold_can_mend_is_told_at_once() {
        for error in [Errno::EPERM, Errno::ENOMEM, Errno::ENOENT] {
            let mut tries = 0;
            let result = strongest(&Hold::BEST_FIRST, |_, _| {
                tries += 1;
                Err(error)
            });
            assert_eq!((result, tries), (Err(error), 1));
        }
        assert_eq!(strongest(&Hold::BEST_FIRST, |_, _| Err(Errno::EINVAL)), Err(Errno::EINVAL));
    }

    #[test]
    fn every_refusal_is_told_in_one_clear_line() {
        let asking = |error| FirewallError::when_asking(error).to_string();
        assert_eq!(asking(Errno::EPERM), "permission denied; CAP_NET_ADMIN is missing");
        let remedy = "load its modules, or open doors by commands instead of `Open`";
        for error in [Errno::EPROTONOSUPPORT, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EINVAL] {
            assert_eq!(asking(error), format!("the kernel has no nftables; {remedy}"));
        }
        assert_eq!(asking(Errno::ENOMEM), "Out of memory");
        let changing = |error| FirewallError::when_changing(error).to_string();
        assert_eq!(changing(Errno::EPERM), "another process owns the table; is another knockd running?");
        assert_eq!(changing(Errno::ENFILE), "its set is full; see MaxOpen");
        for error in [Errno::ENOENT, Errno::EOPNOTSUPP] {
            assert_eq!(changing(error), format!("the kernel lacks a part of nftables; {remedy}"));
        }
    }
}
