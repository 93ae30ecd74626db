//! What the systemd unit of this process forbids, for commands that fail because of it.

use std::fs;

/// The signal that ends a process after a forbidden system call (signal(7), seccomp(2)).
const SIGSYS: i32 = 31;

/// The restrictions of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "one for each kind of restriction")]
struct Restrictions {
    /// Some capability is out of reach.
    capabilities: bool,
    system_calls: bool,
    new_privileges: bool,
    /// What is mounted differs from what the machine has.
    mounts: bool,
}

/// Returns the name of the unit and the setting in it that may be why a command failed, if one may: by what it said, or
/// by the signal that ended it.
pub(crate) fn suspect(said: &str, signal: Option<i32>) -> Option<(String, &'static str)> {
    // systemd gives this to every service (systemd.exec(5)).
    std::env::var_os("INVOCATION_ID")?;
    let setting = setting(said, signal, Restrictions::read)?;
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some((name(&group).unwrap_or("knockd").to_owned(), setting))
}

/// Returns the setting that explains one of the errors of errno(3), as strerror(3) puts it, under these restrictions.
fn setting(
    said: &str,
    signal: Option<i32>,
    restrictions: impl FnOnce() -> Restrictions,
) -> Option<&'static str> {
    let says = |text: &str| said.to_ascii_lowercase().contains(text);
    let is_read_only = says("read-only file system");
    let is_unknown_family = says("address family not supported");
    let is_bad_call = says("bad system call") || signal == Some(SIGSYS);
    let is_new_privilege = says("no new privileges");
    let is_refused = says("operation not permitted") || says("permission denied");
    if !(is_read_only || is_unknown_family || is_bad_call || is_new_privilege || is_refused) {
        return None;
    }
    let Restrictions { capabilities, system_calls, new_privileges, mounts } = restrictions();
    let causes = [
        (is_read_only && mounts, "ProtectSystem"),
        (is_unknown_family && system_calls, "RestrictAddressFamilies"),
        (is_bad_call && system_calls, "SystemCallFilter"),
        (is_new_privilege && new_privileges, "NoNewPrivileges"),
        (is_refused && capabilities, "CapabilityBoundingSet"),
        (is_refused && system_calls, "SystemCallFilter"),
    ];
    causes.into_iter().find(|(is_it, _)| *is_it).map(|(_, setting)| setting)
}

impl Restrictions {
    fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
        let mounts_of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        // Where that of process 1 cannot be read, there may well be restrictions.
        Self::of(&status, last.trim().parse().ok(), mounts_of("1") != mounts_of("self"))
    }

    /// Reads them from `/proc/self/status` (`proc_pid_status(5)`); `last` is the number of the last capability.
    fn of(status: &str, last: Option<u32>, mounts: bool) -> Self {
        let value = |key: &str| {
            status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(str::trim))
        };
        let all = last.and_then(|last| 2_u64.checked_pow(last + 1)).map(|beyond| beyond - 1);
        let bounding = value("CapBnd").and_then(|mask| u64::from_str_radix(mask, 16).ok());
        Self {
            capabilities: bounding.zip(all).is_some_and(|(bounding, all)| bounding & all != all),
            system_calls: value("Seccomp") == Some("2"),
            new_privileges: value("NoNewPrivs") == Some("1"),
            mounts,
        }
    }
}

/// Returns the name of the service in `/proc/self/cgroup` (cgroups(7)).
fn name(group: &str) -> Option<&str> {
    let services =
        group.lines().flat_map(|line| line.rsplit('/')).filter_map(|part| part.strip_suffix(".service"));
    services.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Restrictions =
        Restrictions { capabilities: false, system_calls: false, new_privileges: false, mounts: false };

    #[test]
    fn a_setting_is_named_if_it_is_in_force_and_explains_the_error() {
        let capabilities = Restrictions { capabilities: true, ..NONE };
        let calls = Restrictions { system_calls: true, ..NONE };
        let mounts = Restrictions { mounts: true, ..NONE };
        let privileges = Restrictions { new_privileges: true, ..NONE };
        for (said, signal, restrictions, expected) in [
            (
                "iptables: Permission denied (you must be root)",
                None,
                capabilities,
                Some("CapabilityBoundingSet"),
            ),
            ("mount: /mnt: Operation not permitted.", None, capabilities, Some("CapabilityBoundingSet")),
            ("x: Operation not permitted", None, calls, Some("SystemCallFilter")),
            ("x: Operation not permitted", None, mounts, None),
            ("touch: /usr/x: Read-only file system", None, mounts, Some("ProtectSystem")),
            ("touch: /usr/x: Read-only file system", None, calls, None),
            (
                "socket: Address family not supported by protocol",
                None,
                calls,
                Some("RestrictAddressFamilies"),
            ),
            ("", Some(31), calls, Some("SystemCallFilter")),
            ("Bad system call", None, calls, Some("SystemCallFilter")),
            ("sudo: The \"no new privileges\" flag is set", None, privileges, Some("NoNewPrivileges")),
            ("", Some(9), calls, None),
            ("No such file or directory", None, calls, None),
            ("Permission denied", None, NONE, None),
        ] {
            assert_eq!(setting(said, signal, || restrictions), expected, "{said}");
        }
    }

    #[test]
    fn the_restrictions_are_read_from_the_kernel_s_tables() {
        let status = |bounding: &str, seccomp: u8| {
            format!("Name:\tx\nCapBnd:\t{bounding}\nNoNewPrivs:\t{seccomp}\nSeccomp:\t{seccomp}\n")
        };
        assert_eq!(Restrictions::of(&status("000001ffffffffff", 0), Some(40), false), NONE);
        let narrow = Restrictions::of(&status("00000000000030e0", 2), Some(40), true);
        assert_eq!(narrow, Restrictions { capabilities: true, system_calls: true, mounts: true, ..NONE });
        assert!(Restrictions::of(&status("000001ffffffffff", 1), Some(40), false).new_privileges);
        assert_eq!(Restrictions::of("", None, false), NONE);
        assert!(!Restrictions::of(&status("ffffffffffffffff", 0), Some(63), false).capabilities);
    }

    #[test]
    fn the_unit_is_that_of_the_control_group() {
        assert_eq!(name("0::/system.slice/knockd.service\n"), Some("knockd"));
        assert_eq!(name("1:name=systemd:/x/knockd@eth0.service/sub\n0::/\n"), Some("knockd@eth0"));
        assert_eq!(name("0::/\n"), None);
    }
}
