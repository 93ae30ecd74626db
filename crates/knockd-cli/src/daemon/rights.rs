//! What a native daemon gives up before it has threads, and its helper before it does anything.

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use crate::capture::sandbox;
use crate::system::users;

/// The group IDs for no group at all, as in the decoder's sandbox.
const NOBODY: u32 = 65534;

/// What the engine keeps: packet sockets, and the firewall.
const OF_ENGINE: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];

/// What the helper keeps: files, the control socket's group, and the users of decoders.
const OF_HELPER: [Capability; 6] = [
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_CHOWN,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_KILL,
];

/// Becomes the engine's user, keeps the two capabilities, and forbids itself everything that no engine does. Returns
/// what it could not give up, in words.
///
/// The process must have no other thread.
pub(super) fn leave_to_helper() -> Vec<String> {
    bound(&[]);
    let user = if geteuid().is_root() { change_user() } else { Ok(()) };
    let capabilities = keep(&OF_ENGINE);
    // Nobody can look into it, and no file gets its memory.
    let _ = prctl::set_dumpable(false);
    let no_privileges = prctl::set_no_new_privs();
    // Its user has no file of its own, so a kernel without Landlock leaves it what everybody may write.
    let _ = forbid_writing();
    let calls = no_privileges.and_then(|()| forbid(FOR_ENGINE));
    let kept = [
        user.err(),
        capabilities.err().map(|error| format!("keeps its capabilities: {error}")),
        calls.err().map(|error| format!("may use every system call: {}", error.desc())),
    ];
    kept.into_iter().flatten().map(|what| format!("the engine is not fully sandboxed: it {what}")).collect()
}

/// Gives up what the helper does not need: above all the network.
pub(super) fn confine_helper() {
    // Decoders need some to change their user.
    bound(&OF_HELPER);
    let _ = keep(&OF_HELPER);
    let _ = prctl::set_dumpable(false);
    // Decoders, the only programs that it starts, have it anyway.
    let _ = prctl::set_no_new_privs().and_then(|()| forbid(FOR_HELPER));
}

fn change_user() -> Result<(), String> {
    let name = users::ENGINE;
    let Some(user) = users::user(name).filter(|user| *user != 0) else {
        return Err(format!("stays root, because there is no user {name}; run: systemd-sysusers"));
    };
    if [sandbox::OWN_USER, sandbox::SHARED_USER].iter().any(|other| users::user(other) == Some(user)) {
        return Err(format!("stays root, because the user {name} is the packet decoder's as well"));
    }
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(NOBODY));
    let changed = prctl::set_keepcaps(true)
        .and_then(|()| setgroups(&[]))
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(user, user, user));
    changed.map_err(|error| format!("stays root: {}", error.desc()))
}

/// Lets no program that this process executes have others than these. Such a program gains nothing anyway
/// (`no_new_privs`), so a failure, without `CAP_SETPCAP`, does not matter.
fn bound(capabilities: &[Capability]) {
    let _ = caps::clear(None, CapSet::Ambient);
    for other in caps::all().into_iter().filter(|other| !capabilities.contains(other)) {
        let _ = caps::drop(None, CapSet::Bounding, other);
    }
}

/// Keeps these capabilities, if the process has them, and no others.
fn keep(capabilities: &[Capability]) -> Result<(), caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet =
        capabilities.iter().copied().filter(|capability| permitted.contains(capability)).collect();
    // After a change of the user, nothing is effective.
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::clear(None, CapSet::Inheritable)
}

/// Lets this thread, and those that it starts, change no file by its name, and execute none.
fn forbid_writing() -> Result<(), landlock::RulesetError> {
    let null = PathFd::new("/dev/null").ok().map(|null| PathBeneath::new(null, AccessFs::WriteFile));
    Ruleset::default()
        .handle_access(AccessFs::from_write(sandbox::NEWEST_LANDLOCK) | AccessFs::Execute)?
        .create()?
        // With -d, the standard streams end there.
        .add_rules(null.into_iter().map(Ok::<_, landlock::RulesetError>))?
        .restrict_self()
        .map(drop)
}

/// Which system calls are fatal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Forbidden {
    Engine,
    Helper,
}

const FOR_ENGINE: Forbidden = Forbidden::Engine;
const FOR_HELPER: Forbidden = Forbidden::Helper;

/// Makes system calls fatal, for all threads.
///
/// It names what is forbidden and not what is allowed: libraries for names, clocks and memory use other calls on
/// other systems, and a daemon that dies of one of them opens no door.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn forbid(forbidden: Forbidden) -> nix::Result<()> {
    use nix::libc;
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    let apply = |rules, action| {
        let filter = std::env::consts::ARCH
            .try_into()
            .and_then(|architecture| SeccompFilter::new(rules, SeccompAction::Allow, action, architecture));
        let program = filter.and_then(BpfProgram::try_from).map_err(|_| Errno::EINVAL)?;
        seccompiler::apply_filter_all_threads(&program).map_err(|_| Errno::last())
    };
    if forbidden == Forbidden::Engine {
        // No filter can read the flags of clone3(2). As on an old kernel, libraries then use clone(2).
        let not_there = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
        // Descriptors of others it might find by their numbers, and knows how to do without.
        apply([(libc::SYS_clone3, vec![]), (libc::SYS_pidfd_getfd, vec![])].into(), not_there)?;
    }
    apply(calls(forbidden).map_err(|_| Errno::EINVAL)?, SeccompAction::KillProcess)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn forbid(_: Forbidden) -> nix::Result<()> {
    // seccompiler does not support the others.
    Err(Errno::ENOSYS)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn calls(
    forbidden: Forbidden,
) -> Result<std::collections::BTreeMap<i64, Vec<seccompiler::SeccompRule>>, seccompiler::BackendError> {
    use nix::libc;
    use seccompiler::SeccompCmpArgLen::Dword;
    use seccompiler::SeccompCmpOp::{MaskedEq, Ne};
    use seccompiler::{SeccompCondition, SeccompRule};

    // Other processes, the kernel, mounts, namespaces, keys, and ways around a filter.
    let both = [
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_kcmp,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_open_by_handle_at,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
    ];
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        both.into_iter().map(|call| (call, vec![])).collect();
    let mut add = |call: libc::c_long, when: Vec<SeccompRule>| drop(rules.insert(call, when));
    match forbidden {
        Forbidden::Engine => {
            add(libc::SYS_execve, vec![]);
            add(libc::SYS_execveat, vec![]);
            let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
            let is_process = SeccompCondition::new(0, Dword, MaskedEq(thread), 0)?;
            add(libc::SYS_clone, vec![SeccompRule::new(vec![is_process])?]);
            #[cfg(target_arch = "x86_64")]
            for call in [libc::SYS_fork, libc::SYS_vfork] {
                add(call, vec![]);
            }
        }
        Forbidden::Helper => {
            let unix = u64::from(libc::AF_UNIX.cast_unsigned());
            let is_network = SeccompCondition::new(0, Dword, Ne, unix)?;
            add(libc::SYS_socket, vec![SeccompRule::new(vec![is_network])?]);
            add(libc::SYS_pidfd_getfd, vec![]);
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        // Where the kernel has the x32 ABI, it knows the same calls under other numbers, and these under 512 to 547.
        const X32: i64 = 0x4000_0000;
        for (call, when) in rules.clone() {
            rules.insert(call | X32, when);
        }
        // ptrace, the two that read and write other processes' memory, kexec_load.
        let mut others = vec![521, 539, 540, 528];
        if forbidden == Forbidden::Engine {
            // execve and execveat.
            others.extend([520, 545]);
        }
        rules.extend(others.into_iter().map(|call| (call | X32, vec![])));
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus, Stdio};
    use std::{env, thread};

    use super::*;

    const ACT: &str = "KNOCKD_TEST_ACT_OF_ENGINE";

    /// What somebody who has taken it over might try, by name; the function says whether it worked.
    type Act = (&'static str, fn() -> bool);

    fn makes_a_socket() -> bool {
        UdpSocket::bind("127.0.0.1:0").is_ok()
    }

    fn executes() -> bool {
        Command::new("true").status().is_ok_and(|status| status.success())
    }

    const DEADLY_FOR_BOTH: [Act; 2] = [
        ("enter another namespace", || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok()),
        ("change its root", || nix::unistd::chroot("/").is_ok()),
    ];

    /// Runs the calling test again, in a process of its own that performs the act.
    fn end_of(act: &str, forbidden: Forbidden) -> ExitStatus {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "daemon::rights::tests::what_no_engine_and_no_helper_does_is_deadly"])
            .env(ACT, format!("{forbidden:?} {act}"))
            .stdout(Stdio::null())
            .status()
            .unwrap()
    }

    #[test]
    fn an_engine_writes_to_no_file_that_it_finds_by_its_name_and_reads_what_everybody_may() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "old").unwrap();
        let in_landlock = move || {
            forbid_writing().unwrap();
            let write = |path: &std::path::Path| File::options().write(true).open(path).map(drop);
            let null = File::options().read(true).write(true).open("/dev/null").map(drop);
            let made = File::create(path.with_extension("new")).map(drop);
            (write(&path), made, null, std::fs::read_to_string(&path))
        };
        // Landlock restricts the thread that asks for it.
        let (written, made, null, read) = thread::spawn(in_landlock).join().unwrap();
        if written.is_ok() {
            return testbed::skip("the kernel has no Landlock");
        }
        let denied = std::io::ErrorKind::PermissionDenied;
        assert_eq!([written, made].map(|result| result.unwrap_err().kind()), [denied; 2]);
        null.unwrap();
        assert_eq!(read.unwrap(), "old");
    }

    // Elsewhere there is no seccomp.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    #[test]
    fn what_no_engine_and_no_helper_does_is_deadly() {
        let others: [Act; 3] = [
            ("make a socket", makes_a_socket),
            ("execute a program", executes),
            ("start a thread", || thread::spawn(|| true).join().unwrap()),
        ];
        if let Ok(wanted) = env::var(ACT) {
            prctl::set_no_new_privs().unwrap();
            let (who, act) = wanted.split_once(' ').unwrap();
            forbid(if who == "Engine" { FOR_ENGINE } else { FOR_HELPER }).unwrap();
            let worked = DEADLY_FOR_BOTH.iter().chain(&others).any(|(name, it)| *name == act && it());
            std::process::exit(if worked { 8 } else { 7 });
        }
        for forbidden in [FOR_ENGINE, FOR_HELPER] {
            for (act, _) in DEADLY_FOR_BOTH {
                assert_eq!(end_of(act, forbidden).signal(), Some(nix::libc::SIGSYS), "{forbidden:?}: {act}");
            }
            assert_eq!(end_of("start a thread", forbidden).code(), Some(8), "{forbidden:?}");
        }
        assert_eq!(end_of("execute a program", FOR_ENGINE).signal(), Some(nix::libc::SIGSYS));
        assert_eq!(end_of("make a socket", FOR_ENGINE).code(), Some(8));
        assert_eq!(end_of("execute a program", FOR_HELPER).code(), Some(8));
        assert_eq!(end_of("make a socket", FOR_HELPER).signal(), Some(nix::libc::SIGSYS));
    }
}
