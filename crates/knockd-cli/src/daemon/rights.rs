//! What a native daemon gives up before it has threads, and its helper before it does anything.

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use crate::capture::sandbox;
use crate::system::seccomp::{self, Process};
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
/// what it could not give up, in words, if there is anything.
///
/// The process must have no other thread.
pub(super) fn leave_to_helper() -> Option<String> {
    bound(&[]);
    let user = if geteuid().is_root() { change_user() } else { Ok(()) };
    let capabilities = keep(&OF_ENGINE);
    // Nobody can look into it, and no file gets its memory.
    let _ = prctl::set_dumpable(false);
    let no_privileges = prctl::set_no_new_privs();
    // Its user has no file of its own, so a kernel without Landlock leaves it what everybody may write.
    let _ = forbid_writing();
    let calls = no_privileges.and_then(|()| seccomp::restrict(Process::Engine));
    let kept = [
        calls.err().map(|error| format!("can make any system call: no seccomp: {}", error.desc())),
        capabilities.err().map(|error| format!("keeps its capabilities: {error}")),
        user.err(),
    ];
    let kept: Vec<_> = kept.into_iter().flatten().collect();
    (!kept.is_empty()).then(|| format!("engine is not fully sandboxed: {}", kept.join("; ")))
}

/// Gives up what the helper does not need: above all the network.
pub(super) fn confine_helper() {
    // Decoders need some to change their user.
    bound(&OF_HELPER);
    let _ = keep(&OF_HELPER);
    let _ = prctl::set_dumpable(false);
    // Decoders, the only programs that it starts, have it anyway.
    let _ = prctl::set_no_new_privs().and_then(|()| seccomp::restrict(Process::Helper));
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::net::UdpSocket;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, ExitStatus, Stdio};
    use std::{env, thread};

    use super::*;

    const ACT: &str = "KNOCKD_TEST_ACT_OF_ENGINE";

    /// What somebody who has taken it over might try, by name; the function says whether it worked.
    type Act = (&'static str, fn() -> bool);

    const DEADLY_FOR_BOTH: [Act; 2] = [
        ("enter another namespace", || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok()),
        ("change its root", || nix::unistd::chroot("/").is_ok()),
    ];

    /// It does not return when it succeeds.
    const DEADLY_FOR_ENGINE: Act = ("become another program", || {
        let _ = Command::new("true").exec();
        false
    });

    const DEADLY_FOR_HELPER: Act = ("make a socket", || UdpSocket::bind("127.0.0.1:0").is_ok());

    const REFUSED_TO_ENGINE: [Act; 9] = [
        ("start a program", || Command::new("true").spawn().is_ok()),
        ("signal its parent", || nix::sys::signal::kill(nix::unistd::getppid(), None).is_ok()),
        ("make a file", || tempfile::NamedTempFile::new().is_ok()),
        ("make a file without a name", || tempfile::tempfile().is_ok()),
        ("empty a file", || File::options().write(true).truncate(true).open("/dev/null").is_ok()),
        ("make a directory", || tempfile::tempdir().is_ok()),
        ("make a socket of another kind", || {
            let (family, kind) = (rustix::net::AddressFamily::VSOCK, rustix::net::SocketType::STREAM);
            rustix::net::socket(family, kind, None).is_ok()
        }),
        ("let its memory be read", || prctl::set_dumpable(true).is_ok()),
        ("change a limit", || {
            let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
            nix::sys::resource::setrlimit(limit, 99, 99).is_ok()
        }),
    ];

    const OPEN_TO_ENGINE: [Act; 5] = [
        ("start a thread", || thread::spawn(|| true).join().unwrap()),
        ("make a socket", || UdpSocket::bind("127.0.0.1:0").is_ok()),
        ("read a file", || std::fs::read("/proc/self/status").is_ok()),
        ("list a directory", || std::fs::read_dir("/proc").is_ok_and(|names| names.count() > 0)),
        ("write to a file that is there", || {
            File::options().append(true).open("/dev/null").is_ok_and(|mut null| null.write_all(b"x").is_ok())
        }),
    ];

    /// Runs the calling test again, in a process of its own that performs the act.
    fn end_of((act, _): Act, process: Process) -> ExitStatus {
        let test =
            "daemon::rights::tests::what_no_engine_and_no_helper_does_is_deadly_and_a_surprise_is_an_error";
        Command::new(env::current_exe().unwrap())
            .args(["--exact", test])
            .env(ACT, format!("{process:?} {act}"))
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
    fn what_no_engine_and_no_helper_does_is_deadly_and_a_surprise_is_an_error() {
        if let Ok(wanted) = env::var(ACT) {
            let (who, act) = wanted.split_once(' ').unwrap();
            seccomp::restrict(if who == "Engine" { Process::Engine } else { Process::Helper }).unwrap();
            let all = [&DEADLY_FOR_BOTH[..], &REFUSED_TO_ENGINE, &OPEN_TO_ENGINE].concat();
            let mut all = all.iter().chain([&DEADLY_FOR_ENGINE, &DEADLY_FOR_HELPER]);
            let worked = all.find(|(name, _)| *name == act).is_some_and(|(_, it)| it());
            std::process::exit(if worked { 8 } else { 7 });
        }
        let is_deadly = |act, process| end_of(act, process).signal() == Some(nix::libc::SIGSYS);
        for act in DEADLY_FOR_BOTH.into_iter().chain([DEADLY_FOR_ENGINE]) {
            assert!(is_deadly(act, Process::Engine), "{}", act.0);
        }
        for act in DEADLY_FOR_BOTH.into_iter().chain([DEADLY_FOR_HELPER]) {
            assert!(is_deadly(act, Process::Helper), "{}", act.0);
        }
        for act in REFUSED_TO_ENGINE {
            assert_eq!(end_of(act, Process::Engine).code(), Some(7), "{}", act.0);
        }
        for act in OPEN_TO_ENGINE {
            assert_eq!(end_of(act, Process::Engine).code(), Some(8), "{}", act.0);
        }
        // It starts decoders.
        assert_eq!(end_of(REFUSED_TO_ENGINE[0], Process::Helper).code(), Some(8));
    }
}
