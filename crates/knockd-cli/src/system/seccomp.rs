//! Which system calls the processes may make that have given up their rights.
//!
//! Nothing here is for a process that runs commands: they inherit it, and it breaks sudo there.

use nix::errno::Errno;

/// Whose calls to restrict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Process {
    /// It may do what it needs, and the rest ends it.
    Decoder,
    /// What it does not need, it is told that this kernel does not have, so libraries do without; and what only somebody
    /// tries who has taken it over ends it.
    Engine,
    /// What no helper does ends it, and what it starts.
    Helper,
}

/// Restricts this thread, and those that it starts. None gets new privileges by executing a program any more.
///
/// # Errors
/// When the kernel refuses, or is for another kind of processor.
pub(crate) fn restrict(process: Process) -> nix::Result<()> {
    filters::apply(process)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod filters {
    use super::{Errno, Process};

    pub(super) fn apply(_: Process) -> nix::Result<()> {
        // seccompiler does not support the others.
        Err(Errno::ENOSYS)
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
mod filters {
    use std::collections::BTreeMap;

    use nix::libc::{self, c_int, c_long};
    use seccompiler::SeccompCmpOp::{Eq, Le, MaskedEq, Ne};
    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
        SeccompFilter, SeccompRule,
    };

    use super::{Errno, Process};

    /// System calls by number, each with the arguments that count, in one way or another; with an empty list, any do.
    type Calls = BTreeMap<i64, Vec<SeccompRule>>;

    type Rule = Result<SeccompRule, BackendError>;

    pub(super) fn apply(process: Process) -> nix::Result<()> {
        let only = |calls: Result<Calls, BackendError>, otherwise| (calls, otherwise, SeccompAction::Allow);
        let never =
            |calls: Result<Calls, BackendError>| (calls, SeccompAction::Allow, SeccompAction::KillProcess);
        let not_there = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
        // What most restricts a call counts (seccomp(2)). The last one forbids to add others.
        let filters = match process {
            Process::Decoder => vec![only(of_decoder(), SeccompAction::KillProcess)],
            Process::Engine => vec![never(Ok(deadly(EXECUTING))), only(of_engine(), not_there)],
            Process::Helper => vec![never(deadly_for_helper())],
        };
        for (calls, unless_named, if_named) in filters {
            let calls = calls.map_err(|_| Errno::EINVAL)?;
            let filter = std::env::consts::ARCH
                .try_into()
                .and_then(|architecture| SeccompFilter::new(calls, unless_named, if_named, architecture));
            let program = filter.and_then(BpfProgram::try_from).map_err(|_| Errno::EINVAL)?;
            seccompiler::apply_filter(&program).map_err(|_| Errno::last())?;
        }
        Ok(())
    }

    fn is(argument: u8, operator: SeccompCmpOp, value: c_int) -> Result<SeccompCondition, BackendError> {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, u64::from(value.cast_unsigned()))
    }

    fn has(argument: u8, flags: c_int) -> Result<SeccompCondition, BackendError> {
        is(argument, MaskedEq(u64::from(flags.cast_unsigned())), flags)
    }

    fn lacks(argument: u8, flags: c_int) -> Result<SeccompCondition, BackendError> {
        is(argument, MaskedEq(u64::from(flags.cast_unsigned())), 0)
    }

    fn rule<const N: usize>(conditions: [Result<SeccompCondition, BackendError>; N]) -> Rule {
        SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
    }

    fn one_of(argument: u8, values: &[c_int]) -> Result<Vec<SeccompRule>, BackendError> {
        values.iter().map(|&value| rule([is(argument, Eq, value)])).collect()
    }

    /// For memory, none of which becomes executable, and the end.
    fn of_both() -> Result<Calls, BackendError> {
        Ok([
            (libc::SYS_mprotect, vec![rule([lacks(2, libc::PROT_EXEC)])?]),
            (libc::SYS_brk, vec![]),
            (libc::SYS_mremap, one_of(3, &[0, libc::MREMAP_MAYMOVE])?),
            (libc::SYS_munmap, vec![]),
            (libc::SYS_restart_syscall, vec![]),
            (libc::SYS_sigaltstack, vec![]),
            (libc::SYS_exit_group, vec![]),
        ]
        .into())
    }

    /// What the decoder needs, and nothing else.
    fn of_decoder() -> Result<Calls, BackendError> {
        // Of the options of the socket, one is the filter, from which the doors' sequences could be read.
        let option = |level, name| rule([is(0, Eq, 0), is(1, Eq, level), is(2, Eq, name)]);
        let private = libc::FUTEX_PRIVATE_FLAG;
        let mut calls = of_both()?;
        calls.extend([
            // Writing to the socket would send packets.
            (libc::SYS_recvfrom, vec![rule([is(0, Eq, 0), is(3, Eq, libc::MSG_DONTWAIT)])?]),
            (
                libc::SYS_getsockopt,
                vec![
                    option(libc::SOL_SOCKET, libc::SO_ERROR)?,
                    option(libc::SOL_PACKET, libc::PACKET_STATISTICS)?,
                ],
            ),
            (libc::SYS_ppoll, vec![rule([is(1, Le, 1)])?]),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_poll, vec![rule([is(1, Le, 1)])?]),
            // Reading the time needs no system call where the processor has a good clock (vdso(7)), but some hypervisors
            // lack one. Other clocks tell of other processes.
            (libc::SYS_clock_gettime, one_of(0, &[libc::CLOCK_MONOTONIC])?),
            (libc::SYS_write, one_of(0, &[1, 2])?),
            // The ring is not mapped again.
            (libc::SYS_mmap, vec![rule([lacks(2, libc::PROT_EXEC), has(3, libc::MAP_ANONYMOUS)])?]),
            (libc::SYS_madvise, one_of(2, &[libc::MADV_DONTNEED, libc::MADV_FREE])?),
            // These end the process. Memory is shared with nobody, so there is nobody to wake.
            (
                libc::SYS_futex,
                one_of(
                    1,
                    &[
                        private | libc::FUTEX_WAIT,
                        private | libc::FUTEX_WAKE,
                        private | libc::FUTEX_WAIT_BITSET,
                        private | libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME,
                    ],
                )?,
            ),
        ]);
        Ok(calls)
    }

    /// What the engine needs, and what the same things take with other versions of the C libraries.
    fn of_engine() -> Result<Calls, BackendError> {
        let mut calls = of_both()?;
        calls.extend(OF_ENGINE.iter().chain(OLDER).map(|call| (*call, vec![])));
        // It creates and empties no file by its name, also on a kernel without Landlock.
        let new = libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
        let no_new_file = |flags| rule([lacks(flags, new)]);
        let own = libc::c_int::try_from(std::process::id()).unwrap_or_default();
        calls.extend([
            (libc::SYS_openat, vec![no_new_file(2)?]),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_open, vec![no_new_file(1)?]),
            // A library, such as those for names (nsswitch.conf(5)), is executable and stays as it is.
            (
                libc::SYS_mmap,
                vec![
                    rule([lacks(2, libc::PROT_EXEC)])?,
                    rule([lacks(2, libc::PROT_WRITE), lacks(3, libc::MAP_ANONYMOUS)])?,
                ],
            ),
            // Threads, and no processes. No filter can read the flags of clone3(2); without it, libraries use this.
            (libc::SYS_clone, vec![rule([has(0, libc::CLONE_THREAD)])?]),
            // Writing into the input of a terminal is another one.
            (libc::SYS_ioctl, one_of(1, &REQUESTS)?),
            // For abort(3). Whoever stays root could end others.
            (libc::SYS_tgkill, one_of(0, &[own])?),
            (
                libc::SYS_socket,
                one_of(
                    0,
                    &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET],
                )?,
            ),
            // The names of threads, and of memory.
            (libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA])?),
            // Reads limits and changes none.
            (
                libc::SYS_prlimit64,
                vec![SeccompRule::new(vec![SeccompCondition::new(2, SeccompCmpArgLen::Qword, Eq, 0)?])?],
            ),
        ]);
        Ok(calls)
    }

    /// What it asks of descriptors (`asm-generic/ioctls.h`, `linux/sockios.h`): `TCGETS` and `TCGETS2`, `TIOCGWINSZ`,
    /// `FIONREAD`, `FIONBIO`, `FIONCLEX` and `FIOCLEX`, `SIOCGIFNAME`, `SIOCGIFFLAGS` and `SIOCGIFINDEX`.
    const REQUESTS: [c_int; 10] = [
        0x5401,
        0x802c_542a_u32.cast_signed(),
        0x5413,
        0x541b,
        0x5421,
        0x5450,
        0x5451,
        0x8910,
        0x8913,
        0x8933,
    ];

    /// Calls of the engine that do no harm whatever their arguments are.
    const OF_ENGINE: &[c_long] = &[
        // Descriptors.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_lseek,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_flock,
        libc::SYS_fcntl,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_pipe2,
        libc::SYS_eventfd2,
        libc::SYS_close,
        libc::SYS_close_range,
        // Waiting.
        libc::SYS_ppoll,
        libc::SYS_pselect6,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        // What files are, and what is in directories.
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_statfs,
        libc::SYS_fstatfs,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlinkat,
        libc::SYS_getdents64,
        libc::SYS_getcwd,
        libc::SYS_chdir,
        libc::SYS_fadvise64,
        // Sockets.
        libc::SYS_socketpair,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_shutdown,
        libc::SYS_getsockname,
        libc::SYS_getpeername,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        // Threads, their locks and signals, and memory.
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_set_tid_address,
        libc::SYS_rseq,
        libc::SYS_membarrier,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_getcpu,
        libc::SYS_exit,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_madvise,
        // Who it is, and where.
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_getresuid,
        libc::SYS_getresgid,
        libc::SYS_getgroups,
        libc::SYS_capget,
        libc::SYS_uname,
        libc::SYS_sysinfo,
        libc::SYS_getrusage,
        libc::SYS_getrandom,
        // The time.
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_timerfd_create,
        libc::SYS_timerfd_settime,
        libc::SYS_timerfd_gettime,
    ];

    /// The same by their older names, which other processors do not have.
    #[cfg(target_arch = "x86_64")]
    const OLDER: &[c_long] = &[
        libc::SYS_dup2,
        libc::SYS_pipe,
        libc::SYS_eventfd,
        libc::SYS_poll,
        libc::SYS_select,
        libc::SYS_epoll_create,
        libc::SYS_epoll_wait,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_access,
        libc::SYS_readlink,
        libc::SYS_getdents,
        libc::SYS_time,
    ];

    #[cfg(not(target_arch = "x86_64"))]
    const OLDER: &[c_long] = &[];

    fn deadly_for_helper() -> Result<Calls, BackendError> {
        let is_network = rule([is(0, Ne, libc::AF_UNIX)])?;
        Ok(deadly([(libc::SYS_socket, vec![is_network]), (libc::SYS_pidfd_getfd, vec![])]))
    }

    /// Returns these calls and those that no process of knockd makes.
    fn deadly(more: impl IntoIterator<Item = (c_long, Vec<SeccompRule>)>) -> Calls {
        let mut calls: Calls = OF_NOBODY.iter().map(|call| (*call, vec![])).collect();
        calls.extend(more);
        #[cfg(target_arch = "x86_64")]
        {
            // Where the kernel has the x32 ABI, it knows the same calls under other numbers, and these under 512 to 547.
            const X32: i64 = 0x4000_0000;
            for (call, when) in calls.clone() {
                calls.insert(call | X32, when);
            }
            // ptrace, the two that read and write other processes' memory, kexec_load.
            calls.extend([521, 539, 540, 528].map(|call| (call | X32, vec![])));
        }
        calls
    }

    const EXECUTING: [(c_long, Vec<SeccompRule>); 2] =
        [(libc::SYS_execve, Vec::new()), (libc::SYS_execveat, Vec::new())];

    /// Other processes, the kernel, mounts, namespaces, keys, and ways around a filter.
    const OF_NOBODY: &[c_long] = &[
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
}
