//! What the decoder process gives up before it reads its first packet.
//!
//! Never call this in the daemon: `no_new_privs` and seccomp are inherited by every command and break sudo there.

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
use crate::system::{seccomp, users};

/// The decoder's own user. Without it, the decoder becomes [`SHARED_USER`], whose other processes can stop it.
pub(crate) const OWN_USER: &str = "knockd";
pub(crate) const SHARED_USER: &str = "nobody";

/// The user and group IDs for no user at all, where no file names them (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65534;

/// How much memory the decoder may get in addition to what it has when it enters. It needs none.
const MEMORY: u64 = 4 << 20;

/// The newest rights known here; an older kernel removes those that it knows.
pub(crate) const NEWEST_LANDLOCK: ABI = ABI::V6;

/// Gives up everything possible, and says what remained.
///
/// What is left: reading packets from the socket on stdin, writing to stdout and stderr, [`MEMORY`], and exiting.
/// Anything else ends the process. When the parent thread ends, the kernel kills the process. The caller must have no
/// other thread.
pub(crate) fn enter() -> Kept {
    // Only an executed program could regain these, and execution is ruled out below; so a failure does not matter.
    let _ = caps::clear(None, CapSet::Bounding);
    let own_user = users::user(OWN_USER).filter(|user| *user != 0);
    let user = number(leave_user(own_user));
    // If it stays who it was, that is said already.
    let is_shared = user == 0 && own_user.is_none();
    let shared_user = number(if is_shared { Err(Errno::ENOENT) } else { Ok(()) });
    let memory = memory();
    close_descriptors();
    let capabilities = number(drop_capabilities());
    // The kernel refuses the following to nobody. It forgets this wish when the user or the capabilities change
    // (PR_SET_PDEATHSIG(2const)), so it comes here and not earlier.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    // Other processes of the same user cannot look into this one, and no file gets its memory.
    let _ = prctl::set_dumpable(false);
    let _ = prctl::set_no_new_privs();
    // Landlock needs a descriptor briefly.
    let files = number(leave_file_system());
    let _ = setrlimit(Resource::RLIMIT_NOFILE, 3, 3);
    let _ = setrlimit(Resource::RLIMIT_NPROC, 0, 0);
    // stdout and stderr are a socket and a pipe.
    let _ = setrlimit(Resource::RLIMIT_FSIZE, 0, 0);
    if let Some(memory) = memory {
        let _ = setrlimit(Resource::RLIMIT_AS, memory + MEMORY, memory + MEMORY);
    }
    let calls = number(seccomp::restrict(seccomp::Process::Decoder));
    Kept { user, shared_user, capabilities, files, calls }
}

/// Returns how many bytes of address space this process has, with the program, its libraries and the ring.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    // In kB (proc_pid_status(5)).
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB"))?;
    Some(size.trim().parse::<u64>().ok()? << 10)
}

fn number(result: nix::Result<()>) -> u16 {
    match result {
        Ok(()) => 0,
        // The kernel's error numbers end at 4095 (linux/err.h), and no error is 0.
        Err(error) => u16::try_from(error as i32).unwrap_or(u16::MAX),
    }
}

/// Becomes another user without any of the old groups, provided that the parent, which has our capabilities, can
/// still kill us: that takes a capability (kill(2)), also for the kernel's signal at the parent's death.
fn leave_user(own_user: Option<u32>) -> nix::Result<()> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_KILL).unwrap_or(false) {
        return Err(Errno::EPERM);
    }
    let shared_user = || users::user(SHARED_USER).filter(|user| *user != 0);
    let user = Uid::from_raw(own_user.or_else(shared_user).unwrap_or(NOBODY));
    // Not the user's own group: members of the group `knockd` may use the control socket.
    let group = Gid::from_raw(NOBODY);
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

/// Closes descriptors inherited from the daemon's parent, and those of the user lookup.
fn close_descriptors() {
    // This process needs only the first three. Without /proc the others stay open; a process that may only write to
    // those cannot use them.
    let names =
        std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let open: Vec<i32> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The descriptor that read the directory is closed already.
        let _ = nix::unistd::close(descriptor);
    }
}

fn drop_capabilities() -> nix::Result<()> {
    // In this order: the effective set must stay within the permitted one; the ambient set shrinks with both others.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(|_| Errno::EPERM)?;
    }
    Ok(())
}

/// Gives up opening, creating, changing and executing files, and with newer kernels also connections and signals to
/// others.
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus, Stdio};
    use std::{env, io, thread};

    use rustix::event::{PollFd, PollFlags};

    use super::*;

    const ACT: &str = "KNOCKD_TEST_ACT";

    /// What a compromised decoder might try, by name; the function says whether it worked.
    type Act = (&'static str, fn() -> bool);

    const ACTS: [Act; 10] = [
        ("open a file", || File::open("/etc/passwd").is_ok()),
        ("list a directory", || std::fs::read_dir("/proc").is_ok()),
        ("open a socket", || UdpSocket::bind("127.0.0.1:0").is_ok()),
        ("send through its own", || nix::unistd::write(io::stdin(), b"x").is_ok()),
        ("start a program", || Command::new("true").spawn().is_ok()),
        ("signal its parent", || nix::sys::signal::kill(nix::unistd::getppid(), None).is_ok()),
        // The filter, with the doors' ports, is another option (SO_GET_FILTER, socket(7)).
        ("read an option of the socket", || rustix::net::sockopt::socket_type(io::stdin()).is_ok()),
        ("wait for a packet in another way", || {
            rustix::net::recv(io::stdin(), &mut [0; 1], rustix::net::RecvFlags::PEEK).is_ok()
        }),
        ("wait for several descriptors", || {
            let (input, output) = (io::stdin(), io::stdout());
            let fds = [input.as_fd(), output.as_fd()];
            let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT));
            rustix::event::poll(&mut fds, None).is_ok()
        }),
        // This clock takes a system call everywhere.
        ("read the clock of a process", || {
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).is_ok()
        }),
    ];

    /// More memory than the decoder may have.
    const TOO_MUCH: usize = 64 << 20;

    /// What is not deadly.
    const OTHERS: [Act; 3] = [
        ("read", || {
            let read = rustix::net::recv(io::stdin(), &mut [0; 1], rustix::net::RecvFlags::DONTWAIT);
            rustix::net::sockopt::socket_error(io::stdin()).is_ok_and(|error| error.is_ok())
                && read.is_err_and(|error| error == rustix::io::Errno::AGAIN)
                && nix::unistd::write(io::stderr(), b"").is_ok()
        }),
        ("get a little memory", || vec![1_u8; 1 << 20].iter().all(|byte| *byte == 1)),
        ("get much memory", || Vec::<u8>::new().try_reserve_exact(TOO_MUCH).is_ok()),
    ];

    /// Runs the calling test again, in a process of its own that performs the act.
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
            let worked = ACTS.iter().chain(&OTHERS).any(|(name, act)| *name == wanted && act());
            std::process::exit(if worked { 8 } else { 7 });
        }
        for (act, code) in [("nothing", 7), ("read", 8), ("get a little memory", 8), ("get much memory", 7)] {
            assert_eq!(end_of(act).code(), Some(code), "{act}");
        }
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
