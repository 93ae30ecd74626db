//! Which process is which: a number alone may belong to another one by now.

use std::fs;

use knockd_core::ProcessId;

/// Returns the kernel's boot ID: random, and the same until the machine restarts (random(4)); `None` without `/proc`.
pub(in crate::leases) fn boot_id() -> Option<u128> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

/// Where the numbers of processes mean what they mean to us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    namespace: u64,
    boot: u128,
}

impl Place {
    /// Returns this one; `None` without a `/proc` that has our numbers.
    pub(super) fn here() -> Option<Self> {
        if fs::read_link("/proc/self").ok()?.to_str()?.parse() != Ok(std::process::id()) {
            return None;
        }
        let boot = boot_id()?;
        // `pid:[4026531836]`
        let link = fs::read_link("/proc/self/ns/pid").ok()?;
        let namespace = link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()?;
        Some(Self { namespace, boot })
    }

    /// Returns the identity of a process that cannot be reaped meanwhile.
    pub(super) fn identify(self, number: u32) -> Option<ProcessId> {
        let Stat { started, .. } = Stat::read(number)?;
        Some(ProcessId { number, started, namespace: self.namespace, boot: self.boot })
    }

    /// Says whether a process with this identity could still run here.
    pub(super) fn has(self, process: &ProcessId) -> bool {
        (process.namespace, process.boot) == (self.namespace, self.boot)
    }
}

/// What the kernel says about a process, see `proc_pid_stat(5)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stat {
    /// Its process group.
    pub(super) group: u32,
    pub(super) started: u64,
    /// Whether it has ended, and is waited for.
    pub(super) is_over: bool,
}

impl Stat {
    /// Reads it; `None` if there is no such process.
    pub(super) fn read(number: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{number}/stat")).ok()?)
    }

    /// The name in parentheses may contain anything, even parentheses and spaces.
    fn parse(line: &[u8]) -> Option<Self> {
        let end = line.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(line.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let group = fields.nth(1)?.parse().ok()?;
        let started = fields.nth(16)?.parse().ok()?;
        Some(Self { group, started, is_over: matches!(state, "Z" | "X" | "x") })
    }
}

/// Returns all processes with their numbers.
pub(super) fn all() -> Vec<(u32, Stat)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(|number| Some((number, Stat::read(number)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_process_is_found_whatever_its_name() {
        let rest =
            "S 1 77 77 0 -1 4194560 120 0 0 0 0 0 0 0 20 0 1 0 8345123 2531328 190 18446744073709551615";
        let wanted = Stat { group: 77, started: 8_345_123, is_over: false };
        for name in ["sh", "a) S 1 2 (b", "\u{fffd} )"] {
            assert_eq!(Stat::parse(format!("77 ({name}) {rest}\n").as_bytes()), Some(wanted), "{name}");
        }
        let line = format!("77 (sh) {rest}");
        for end in 0..line.find("8345123").unwrap() {
            assert_eq!(Stat::parse(line.get(..end).unwrap().as_bytes()), None, "{end}");
        }
    }

    #[test]
    fn we_are_here_and_among_all() {
        let number = std::process::id();
        let identity = Place::here().unwrap().identify(number).unwrap();
        assert!(Place::here().unwrap().has(&identity));
        assert!(!Place::here().unwrap().has(&ProcessId { boot: identity.boot ^ 1, ..identity }));
        assert!(!Place::here().unwrap().has(&ProcessId { namespace: 0, ..identity }));
        assert!(all().iter().any(|(other, stat)| *other == number && stat.started == identity.started));
    }
}
