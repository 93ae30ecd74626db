//! What the decoder process gives up before it looks at the first packet.
//!
//! Never call this in the daemon itself: `no_new_privs` and seccomp pass to every command, and break sudo in them.

use caps::{CapSet, Capability};
use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetStatus,
    Scope,
};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::capture::record::Kept;
use crate::system::users;

/// The users that the decoder becomes, the first that exists.
const USERS: [&str; 2] = ["knockd", "nobody"];

/// The user and group of those who have none, where no file says so (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65534;

/// The newest rights that are known here; an older kernel takes away those that it knows.
const NEWEST_LANDLOCK: ABI = ABI::V6;

/// Gives up all that can be given up, and says what could not be.
///
/// What is left then: reading a socket that is stdin, writing to stdout and stderr, memory, and ending. Anything else ends
/// the process. When the parent thread ends, the process is killed. The caller must have no other thread.
pub(crate) fn enter() -> Kept {
    // Only a program that is executed could get these back, and that is ruled out below; so a failure does not matter.
    let _ = caps::clear(None, CapSet::Bounding);
    let user = number(leave_user());
    close_descriptors();
    let capabilities = number(drop_capabilities());
    // The kernel refuses none of the following to anybody. It forgets this wish when the user or the capabilities change
    // (PR_SET_PDEATHSIG(2const)), hence not earlier.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    // Others of the same user cannot look into the process, and no file gets its memory.
    let _ = prctl::set_dumpable(false);
    let _ = prctl::set_no_new_privs();
    // Landlock needs a descriptor for a moment.
    let files = number(leave_file_system());
    let _ = setrlimit(Resource::RLIMIT_NOFILE, 3, 3);
    let _ = setrlimit(Resource::RLIMIT_NPROC, 0, 0);
    let calls = number(restrict_calls());
    Kept { user, capabilities, files, calls }
}

fn number(result: nix::Result<()>) -> u16 {
    match result {
        Ok(()) => 0,
        // The kernel's error numbers end at 4095 (linux/err.h), and no error is 0.
        Err(error) => u16::try_from(error as i32).unwrap_or(u16::MAX),
    }
}

/// Becomes another user without any group of the old one, if the parent, which has our capabilities, can still end us then:
/// that needs one (kill(2)), also for what the kernel does when the parent has ended.
fn leave_user() -> nix::Result<()> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_KILL).unwrap_or(false) {
        return Err(Errno::EPERM);
    }
    let found = USERS.iter().find_map(|name| users::user(name)).filter(|user| *user != 0);
    let user = Uid::from_raw(found.unwrap_or(NOBODY));
    // Not that of the user: members of the group `knockd` may use the control socket.
    let group = Gid::from_raw(NOBODY);
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

/// Closes what the daemon's parent left open, and what the look for the user opened.
fn close_descriptors() {
    // Nobody in this process owns any but the first three. Without /proc the others stay, and are of no use to anybody
    // who may only write to those.
    let names =
        std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let open: Vec<i32> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The one that read the directory is closed already.
        let _ = nix::unistd::close(descriptor);
    }
}

fn drop_capabilities() -> nix::Result<()> {
    // In this order, since the effective ones have to be among the permitted ones; the ambient ones go with both others.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(|_| Errno::EPERM)?;
    }
    Ok(())
}

/// Gives up to open, make, change or execute any file, and with newer kernels any connection, and signals to others.
fn leave_file_system() -> nix::Result<()> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST_LANDLOCK))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST_LANDLOCK)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST_LANDLOCK)));
    let status = ruleset.and_then(Ruleset::create).and_then(RulesetCreated::restrict_self);
    match status {
        Ok(status) if status.ruleset != RulesetStatus::NotEnforced => Ok(()),
        Ok(status) if matches!(status.landlock, LandlockStatus::NotEnabled) => Err(Errno::EOPNOTSUPP),
        Ok(_) => Err(Errno::ENOSYS),
        Err(_) => Err(Errno::EPERM),
    }
}

/// Makes every other system call deadly than those that the decoder needs.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn restrict_calls() -> nix::Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    let rules = allowed_calls().map_err(|_| Errno::EINVAL)?;
    let filter = std::env::consts::ARCH.try_into().and_then(|architecture| {
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)
    });
    let program = filter.and_then(BpfProgram::try_from).map_err(|_| Errno::EINVAL)?;
    seccompiler::apply_filter(&program).map_err(|_| Errno::last())
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn restrict_calls() -> nix::Result<()> {
    // seccompiler does not know the others.
    Err(Errno::ENOSYS)
}

/// The system calls that are allowed, by number, and with which arguments if not with all.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn allowed_calls()
-> Result<std::collections::BTreeMap<i64, Vec<seccompiler::SeccompRule>>, seccompiler::BackendError> {
    use nix::libc;
    use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

    let is =
        |argument, operator, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    let descriptor = |number| is(0, SeccompCmpOp::Eq, number);
    let rule = |conditions| SeccompRule::new(conditions).map(|rule| vec![rule]);
    // What reads packets. Writing to the socket would send them.
    let to_outputs = vec![SeccompRule::new(vec![descriptor(1)?])?, SeccompRule::new(vec![descriptor(2)?])?];
    // The memory allocator's; no memory becomes code.
    let no_code = vec![is(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?];
    Ok([
        (libc::SYS_recvfrom, rule(vec![descriptor(0)?])?),
        (libc::SYS_getsockopt, rule(vec![descriptor(0)?])?),
        (libc::SYS_ppoll, vec![]),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_poll, vec![]),
        (libc::SYS_restart_syscall, vec![]),
        // The time comes without a system call where the processor has a good clock (vdso(7)), but not with every hypervisor.
        (libc::SYS_clock_gettime, vec![]),
        (libc::SYS_write, to_outputs),
        (libc::SYS_mmap, rule(no_code.clone())?),
        (libc::SYS_mprotect, rule(no_code)?),
        (libc::SYS_brk, vec![]),
        (libc::SYS_mremap, vec![]),
        (libc::SYS_munmap, vec![]),
        (libc::SYS_madvise, vec![]),
        // The end of the process.
        (libc::SYS_futex, vec![]),
        (libc::SYS_sigaltstack, vec![]),
        (libc::SYS_exit_group, vec![]),
    ]
    .into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus, Stdio};
    use std::{env, io, thread};

    use super::*;

    const ACT: &str = "KNOCKD_TEST_ACT";

    /// What a decoder that is taken over might try, by name; it says whether it worked.
    type Act = (&'static str, fn() -> bool);

    const ACTS: [Act; 6] = [
        ("open a file", || File::open("/etc/passwd").is_ok()),
        ("list a directory", || std::fs::read_dir("/proc").is_ok()),
        ("open a socket", || UdpSocket::bind("127.0.0.1:0").is_ok()),
        ("send through its own", || nix::unistd::write(io::stdin(), b"x").is_ok()),
        ("start a program", || Command::new("true").spawn().is_ok()),
        ("signal its parent", || nix::sys::signal::kill(nix::unistd::getppid(), None).is_ok()),
    ];

    /// Runs the calling test once more, in a process of its own that knows what to do.
    fn end_of(act: &str) -> ExitStatus {
        Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "capture::sandbox::tests::outside_the_loop_of_the_decoder_everything_is_deadly",
            ])
            .env(ACT, act)
            .stdin(UdpSocket::bind("127.0.0.1:0").map(std::os::fd::OwnedFd::from).unwrap())
            .stdout(Stdio::null())
            .status()
            .unwrap()
    }

    // Elsewhere there is no seccomp.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    #[test]
    fn outside_the_loop_of_the_decoder_everything_is_deadly() {
        if let Ok(wanted) = env::var(ACT) {
            enter();
            let worked = ACTS.iter().any(|(name, act)| *name == wanted && act());
            nix::unistd::write(io::stderr(), b"").unwrap();
            // This clock takes a system call everywhere.
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
            std::process::exit(if worked { 8 } else { 7 });
        }
        assert_eq!(end_of("nothing").code(), Some(7), "what is needed is allowed");
        for (act, _) in ACTS {
            assert_eq!(end_of(act).signal(), Some(nix::libc::SIGSYS), "{act}");
        }
    }

    #[test]
    fn without_seccomp_landlock_still_keeps_the_process_from_files() {
        // Landlock restricts the thread that asks for it.
        let (left, opened) = thread::spawn(|| (leave_file_system(), File::open("/"))).join().unwrap();
        match left {
            Ok(()) => assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::PermissionDenied),
            Err(error) => {
                assert!([Errno::ENOSYS, Errno::EOPNOTSUPP].contains(&error), "{error}");
                testbed::skip("the kernel has no Landlock");
            }
        }
    }
}
