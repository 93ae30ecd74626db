//! The guard: a table of our own in the kernel's nftables, which lets only knockers reach the services of doors.
//!
//! [`plan`] says what the table should be, [`ruleset`] prints it, and [`nft`] turns it into messages for [`netlink`]; [`earlier`] is what
//! the kernel has already, and [`hold`] how well it keeps it. [`table`] is the thread that does all this. [`connections`] looks for connections, [`sockets`] ends them, and [`follow`]
//! is when. This folder knows nothing of packets, leases or the disk.

mod answers;
mod connections;
mod earlier;
mod follow;
mod forwarding;
mod hold;
mod netlink;
mod nft;
mod owner;
mod plan;
mod queue;
mod ruleset;
mod sessions;
mod sockets;
mod table;
mod trial;

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use knockd_core::{Admission, Config, DoorName, LeaseId, Prefix, Sight};
use nix::errno::Errno;

pub(crate) use self::hold::{FirewallError, Hold, reason};
use self::netlink::{Netlink, Watch};
use self::nft::Batch;
pub(crate) use self::owner::Owner;
use self::plan::Numbers;
use self::queue::Queue;
use self::table::Table;
use self::trial::Trial;
pub(crate) use self::trial::{Order, Standing};
use crate::system::spawn;

/// How long the thread may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Returns the table for this configuration, as nft prints it.
pub(crate) fn text(config: &Config) -> String {
    plan::ruleset(config, &mut Numbers::new()).to_string()
}

/// Makes the table for this configuration, for good or on trial. It stays until it is removed; a daemon takes it over.
///
/// # Errors
/// When the kernel refuses, for example because a running daemon owns it.
pub(crate) fn guard(config: &Config, order: Order) -> Result<(), FirewallError> {
    let netlink = owner::open().map_err(FirewallError::when_asking)?;
    // This process ends, so the table must not end with it.
    Table::make(netlink, config, &[Hold::Persistent, Hold::Shared], Some(order.standing())).map(drop)
}

/// Removes the table that a daemon with another configuration has left, with its socket if that is there. Returns whether there was one.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn abandon(left: Option<OwnedFd>) -> Result<bool, FirewallError> {
    let mut netlink = left.map_or_else(Netlink::open, Netlink::of).map_err(FirewallError::when_asking)?;
    let mut batch = Batch::default();
    batch.delete_table();
    match netlink.carry_out(batch) {
        Err(Errno::ENOENT) => Ok(false),
        result => result.map(|()| true).map_err(FirewallError::when_changing),
    }
}

/// Whether the table guards now.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn standing() -> Result<Standing, FirewallError> {
    let mut netlink = Netlink::open().map_err(FirewallError::when_asking)?;
    Standing::find(&mut netlink).map_err(FirewallError::when_asking)
}

/// Removes the table whoever owns it. Returns whether there was one, and who owned it.
///
/// # Errors
/// When the kernel refuses, or the owner's socket cannot be borrowed.
pub(crate) fn remove() -> Result<(bool, Option<Owner>), FirewallError> {
    let mut netlink = Netlink::open().map_err(FirewallError::when_asking)?;
    if !owner::has_table(&mut netlink).map_err(FirewallError::when_asking)? {
        return Ok((false, None));
    }
    let (owner, socket) = owner::find(&mut netlink).map_err(FirewallError::when_asking)?.unzip();
    let mut batch = Batch::default();
    batch.delete_table();
    let deleted = match socket.flatten() {
        Some(socket) => Netlink::of(socket).and_then(|mut borrowed| borrowed.carry_out(batch)),
        None => netlink.carry_out(batch),
    };
    // The owner may have read the answer.
    match owner::has_table(&mut netlink) {
        Ok(false) => Ok((true, owner)),
        Ok(true) => Err(FirewallError::when_changing(deleted.err().unwrap_or(Errno::EAGAIN))),
        Err(error) => Err(FirewallError::when_asking(error)),
    }
}

/// Returns the socket that owns the table, if an earlier process has left it with the service manager. Whoever gives up the
/// right to look there has to do so before.
pub(crate) fn left_socket() -> Option<OwnedFd> {
    owner::left(&mut Netlink::open().ok()?).ok().flatten()
}

/// The thread that changes the table.
#[derive(Debug)]
pub(crate) struct Firewall {
    jobs: Arc<Queue>,
    /// What came of each admission.
    pub(crate) reports: Receiver<Report>,
    /// How well the kernel keeps the table.
    pub(crate) hold: Hold,
    pub(crate) standing: Standing,
    /// The socket that owns the table, for whoever keeps it.
    pub(crate) socket: Option<OwnedFd>,
}

/// Somebody whom an earlier process has let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) door: DoorName,
    pub(crate) source: Prefix,
    pub(crate) left: Duration,
}

/// What the kernel has done.
#[derive(Debug)]
pub(crate) enum Report {
    /// It has changed whom it lets in, or refuses some of that.
    Set(Vec<Change>),
    /// It lets the source in for longer because it is connected; the refusal is a [`Self::Set`].
    Prolonged(LeaseId),
    /// What keeps a door open for a source, or why that cannot be seen.
    Seen(Admission, Result<Sight, Errno>),
    /// How many connections to this host have ended because a door has closed.
    Cut(Admission, Result<usize, Errno>),
    /// It guards the doors of another configuration, or refuses.
    Guarded(Option<Errno>),
    /// Another program has changed or removed the table. It is as it was, but may let nobody in, unless the kernel
    /// refuses.
    Lost(Option<Errno>),
    /// What has come of an order.
    Obeyed(Result<Standing, Errno>),
    /// A trial has ended: somebody has got in, or nobody.
    TrialEnded(Standing, Option<IpAddr>),
}

/// A change of whom the kernel lets in.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) admission: Admission,
    /// For how long; `None` for no longer.
    pub(crate) time: Option<Duration>,
    /// Why it is not made; `None` before it is tried.
    pub(crate) refused: Option<Errno>,
}

#[derive(Debug)]
enum Job {
    /// Makes these changes.
    Set(Vec<Change>),
    /// Lets the source in for this time because it is connected.
    Prolong(Admission, Duration),
    /// Looks what keeps a door open for a source.
    Look(Admission),
    Ask(Question),
    Guard(Arc<Config>),
    /// Another program may have changed or removed the table.
    Check,
    End,
    Obey(Order, Arc<Config>),
}

impl Firewall {
    /// Makes the table, unless an earlier process has, and starts the thread. Returns who is let in already. The earlier process may
    /// have left its socket, too.
    ///
    /// # Errors
    /// When the kernel refuses the table, or the system has no thread left.
    pub(crate) fn start(config: &Config, left: Option<OwnedFd>) -> anyhow::Result<(Self, Vec<Admitted>)> {
        let left = left.and_then(|socket| Netlink::of(socket).ok());
        let netlink = left.map_or_else(owner::open, Ok).map_err(FirewallError::when_asking)?;
        Self::start_with(netlink, config, &Hold::BEST_FIRST)
    }

    fn start_with(
        netlink: Netlink,
        config: &Config,
        holds: &[Hold],
    ) -> anyhow::Result<(Self, Vec<Admitted>)> {
        let (mut table, admitted) = Table::make(netlink, config, holds, None)?;
        if let Standing::OnTrial(_) = table.standing {
            table.trial = Some(Trial::new(&mut table.netlink, &table.doors));
        }
        let (hold, standing, socket) = (table.hold, table.standing, table.netlink.share().ok());
        let jobs = Arc::new(Queue::default());
        let (reporter, reports) = unbounded();
        if hold == Hold::Shared {
            let (watch, jobs) =
                (Watch::open(&table.netlink).map_err(FirewallError::when_asking)?, Arc::clone(&jobs));
            spawn("firewall-watch", move || while watch.wait().is_ok() && jobs.push(Job::Check) {})?;
        }
        let waiting = Arc::clone(&jobs);
        spawn("firewall", move || table.run(&waiting, &reporter))?;
        Ok((Self { jobs, reports, hold, standing, socket }, admitted))
    }

    /// Lets the source in for this time; without one, no longer. The result is in [`Self::reports`].
    pub(crate) fn set(&self, admission: Admission, time: Option<Duration>) {
        self.jobs.set(admission, time);
    }

    /// Lets the source in for this time because it is connected.
    pub(crate) fn prolong(&self, admission: Admission, time: Duration) {
        self.jobs.push(Job::Prolong(admission, time));
    }

    /// Looks what keeps a door open for a source. The result is in [`Self::reports`].
    pub(crate) fn look(&self, admission: Admission) {
        self.jobs.push(Job::Look(admission));
    }

    /// Asks for how long each of these sources is still let in at a door; another thread calls `answer` with that, zero for those who
    /// are let in no longer.
    pub(crate) fn ask(
        &self,
        of: Vec<(DoorName, IpAddr)>,
        answer: impl FnOnce(Vec<Duration>) + Send + 'static,
    ) {
        self.jobs.push(Job::Ask(Question { of, answer: Box::new(answer) }));
    }

    /// Ends the thread and waits until it has ended. The table stays.
    pub(crate) fn finish(self) {
        let reports = self.reports.clone();
        drop(self);
        while reports.recv_timeout(END_LIMIT).is_ok() {}
    }

    /// Guards the doors of another configuration. Those that stay keep whom they let in.
    pub(crate) fn guard(&self, config: Arc<Config>) {
        self.jobs.push(Job::Guard(config));
    }

    /// Does what a person wants. The result is in [`Self::reports`].
    pub(crate) fn obey(&self, order: Order, config: Arc<Config>) {
        self.jobs.push(Job::Obey(order, config));
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        self.jobs.push(Job::End);
    }
}

/// A question about sources at doors.
struct Question {
    of: Vec<(DoorName, IpAddr)>,
    answer: Box<dyn FnOnce(Vec<Duration>) + Send>,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Question").field(&self.of).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;
    use std::time::Instant;

    use nix::sched::{CloneFlags, unshare};
    use nix::unistd::geteuid;

    use super::*;

    /// Runs a test in a network namespace of its own, in which nobody has a firewall.
    pub(super) fn in_namespace(test: impl FnOnce() + Send + 'static) {
        if !geteuid().is_root() {
            return testbed::skip("it takes root");
        }
        let body = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        };
        thread::spawn(body).join().unwrap();
    }

    pub(super) fn nft(arguments: &str) -> String {
        let output = Command::new("nft").args(arguments.split(' ')).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8(text).unwrap()
    }

    /// Whether nft shows the table; this nft may have no word for one of its flags, and then prints the others only.
    fn has_table() -> bool {
        nft("list ruleset").contains("table inet knockd")
    }

    fn config(doors: &str, max_open: u32) -> Config {
        let options = format!("[options]\nFirewall = nftables\nMaxOpen = {max_open}\n");
        let door = |name: &str| format!("[{name}]\nSequence = 1\nOpen = tcp/22\n");
        let doors = doors.split_whitespace().map(door);
        (options + &doors.collect::<String>()).parse().unwrap()
    }

    fn admission(door: &str, source: &str) -> Admission {
        Admission {
            id: knockd_core::LeaseId(1),
            door: door.parse().unwrap(),
            source: source.parse().unwrap(),
        }
    }

    /// A change for this many seconds.
    fn change(door: &str, source: &str, seconds: Option<u64>) -> Change {
        let admission = admission(door, source);
        Change { admission, time: seconds.map(Duration::from_secs), refused: None }
    }

    /// Why changes are refused, of all that a report is about.
    fn refused(report: &Report) -> Vec<Option<Errno>> {
        let Report::Set(changes) = report else { panic!("{report:?}") };
        changes.iter().map(|change| change.refused).collect()
    }

    fn admit(table: &mut Table, door: &str, source: &str) {
        table.carry_out(&[change(door, source, Some(60))]).unwrap();
    }

    fn sources(admitted: &[Admitted]) -> Vec<String> {
        let lasts = |left| left > Duration::from_secs(30) && left <= Duration::from_secs(60);
        assert!(admitted.iter().all(|admitted| lasts(admitted.left)), "{admitted:?}");
        let mut sources: Vec<_> = admitted.iter().map(|it| format!("{} {}", it.door, it.source)).collect();
        sources.sort();
        sources
    }

    /// Lets go of the socket that owns the table.
    fn close(table: Table) {
        drop(table);
        wait_until_nobody_owns_it();
    }

    /// Until it executes its program, a child of another test has our sockets as well.
    fn wait_until_nobody_owns_it() {
        let end = Instant::now() + Duration::from_secs(60);
        while owner::find(&mut Netlink::open().unwrap()).unwrap().is_some() {
            assert!(Instant::now() < end, "somebody owns it");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn take_over(config: &Config, holds: &[Hold]) -> (Table, Vec<String>) {
        let (table, admitted) = Table::make(Netlink::open().unwrap(), config, holds, None).unwrap();
        (table, sources(&admitted))
    }

    #[test]
    fn a_kernel_without_persistent_tables_keeps_the_guard_over_an_orderly_restart() {
        in_namespace(|| {
            let (mut table, _) = take_over(&config("a b", 9), &[Hold::Owned]);
            admit(&mut table, "b", "192.0.2.7");
            admit(&mut table, "b", "2001:db8::7");
            nft("flush ruleset");
            assert!(has_table(), "nobody else can flush it");
            close(table);
            assert!(!has_table(), "what this kernel does when knockd is killed");
            let (mut table, admitted) = take_over(&config("a b", 9), &[Hold::Owned]);
            assert_eq!(admitted, [""; 0]);
            admit(&mut table, "b", "192.0.2.7");
            admit(&mut table, "b", "2001:db8::7");
            table.finish().unwrap();
            assert!(has_table());
            let (_table, admitted) = take_over(&config("b", 9), &[Hold::Owned]);
            assert_eq!(admitted, ["b 192.0.2.7", "b 2001:db8::7"]);
            nft("flush ruleset");
            assert!(has_table(), "it is owned again");
        });
    }

    #[test]
    fn a_table_without_an_owner_is_taken_over_with_those_who_are_let_in() {
        in_namespace(|| {
            let (mut table, _) = take_over(&config("a b", 9), &[Hold::Shared]);
            admit(&mut table, "b", "192.0.2.7");
            close(table);
            let before = nft("-s list table inet knockd");
            let (table, admitted) = take_over(&config("a b", 9), &Hold::BEST_FIRST);
            assert_eq!(admitted, ["b 192.0.2.7"]);
            assert_eq!(before.matches("192.0.2.7").count(), 1, "{before}");
            nft("flush ruleset");
            assert!(table.hold == Hold::Shared || nft("list table inet knockd").contains("192.0.2.7"));
        });
    }

    #[test]
    fn a_table_that_is_removed_is_there_again_and_the_next_knock_gets_in() {
        in_namespace(|| {
            let config = config("a", 9);
            let (mut table, _) = take_over(&config, &[Hold::Shared]);
            let (sender, reports) = unbounded();
            admit(&mut table, "a", "192.0.2.1");
            nft("delete table inet knockd");
            table.set(vec![change("a", "192.0.2.7", Some(60))], &sender);
            let said: Vec<_> = reports.try_iter().collect();
            assert!(
                matches!(said.as_slice(), [Report::Lost(None), set] if refused(set) == [None]),
                "{said:?}"
            );
            let text = nft("list table inet knockd");
            assert!(text.contains("192.0.2.7") && text.contains("tcp dport 22"), "{text}");
            // That an address is gone whose time was over is no loss.
            table.set(vec![change("a", "192.0.2.9", None)], &sender);
            assert_eq!(reports.try_iter().map(|report| refused(&report)).collect::<Vec<_>>(), [[None]]);
        });
    }

    #[test]
    fn a_removed_table_is_noticed_without_a_knock() {
        in_namespace(|| {
            let (firewall, _) =
                Firewall::start_with(Netlink::open().unwrap(), &config("a", 9), &[Hold::Shared]).unwrap();
            for _ in 0..3 {
                nft("flush ruleset");
                let report = firewall.reports.recv_timeout(Duration::from_secs(60)).unwrap();
                assert!(matches!(report, Report::Lost(None)), "{report:?}");
                assert!(has_table());
            }
            firewall.finish();
            assert!(has_table());
        });
    }

    #[test]
    fn rules_that_another_program_removes_or_adds_are_as_before_and_those_who_are_let_in_stay() {
        in_namespace(|| {
            let (firewall, _) =
                Firewall::start_with(Netlink::open().unwrap(), &config("a", 9), &[Hold::Shared]).unwrap();
            let report = || firewall.reports.recv_timeout(Duration::from_secs(60)).unwrap();
            firewall.set(admission("a", "192.0.2.7"), Some(Duration::from_secs(60)));
            assert_eq!(refused(&report()), [None]);
            let table = || {
                let text = nft("-s list table inet knockd");
                assert_eq!(text.matches("192.0.2.7").count(), 1, "{text}");
                // The time that is left is another.
                text.lines().filter(|line| !line.contains("elements")).collect::<String>()
            };
            let before = table();
            for change in [
                "flush chain inet knockd tcp_doors",
                "flush table inet knockd",
                "insert rule inet knockd guard accept",
            ] {
                nft(change);
                assert!(matches!(report(), Report::Lost(None)), "{change}");
                assert_eq!(table(), before, "{change}");
            }
            // Nothing of this is told again: our own changes are not those of others.
            firewall.set(admission("a", "192.0.2.8"), Some(Duration::from_secs(60)));
            assert_eq!(refused(&report()), [None]);
        });
    }

    #[test]
    fn a_reload_that_changes_the_size_of_the_sets_keeps_those_who_are_let_in() {
        in_namespace(|| {
            let (mut table, _) = take_over(&config("a b", 9), &Hold::BEST_FIRST);
            admit(&mut table, "b", "192.0.2.7");
            table.guard(&config("a b", 1000)).unwrap();
            assert_eq!(nft("list set inet knockd d2_4").matches("192.0.2.7").count(), 1);
            assert_eq!(nft("list table inet knockd").matches("size 1000").count(), 4);
            close(table);
            let (_table, admitted) = take_over(&config("b", 10), &Hold::BEST_FIRST);
            assert_eq!(admitted, ["b 192.0.2.7"]);
            assert_eq!(nft("list table inet knockd").matches("size 10\n").count(), 2);
        });
    }

    #[test]
    fn a_second_knockd_and_the_command_are_refused_in_one_clear_line() {
        in_namespace(|| {
            let config = config("a", 9);
            let (table, _) = take_over(&config, &Hold::BEST_FIRST);
            if table.hold == Hold::Shared {
                return testbed::skip("this kernel's tables have no owner");
            }
            let said = "another process owns the table; is another knockd running?";
            assert_eq!(guard(&config, Order::Keep).unwrap_err().to_string(), said);
            let again = Table::make(Netlink::open().unwrap(), &config, &Hold::BEST_FIRST, None);
            assert_eq!(again.unwrap_err().to_string(), said);
            close(table);
            guard(&config, Order::Keep).unwrap();
            assert!(has_table());
        });
    }

    #[test]
    fn the_guard_is_removed_by_the_socket_that_owns_it_whoever_has_that() {
        in_namespace(|| {
            let (table, _) = take_over(&config("a", 9), &Hold::BEST_FIRST);
            let hold = table.hold;
            let (was_there, owner) = remove().unwrap();
            assert!(was_there && !has_table());
            let process = i32::try_from(std::process::id()).unwrap();
            let is_us = |owner| matches!(owner, Owner::Process(found, _) if found == process);
            assert!(hold == Hold::Shared || owner.is_some_and(is_us));
            assert_eq!(remove().unwrap(), (false, None));
            close(table);
            guard(&config("a", 9), Order::Keep).unwrap();
            wait_until_nobody_owns_it();
            assert_eq!(remove().unwrap(), (true, None));
        });
    }

    #[test]
    fn the_kernel_lifts_a_guard_on_trial_and_the_next_process_leaves_it_so() {
        in_namespace(|| {
            let config = config("a", 9);
            guard(&config, Order::Try(Duration::from_secs(60))).unwrap();
            wait_until_nobody_owns_it();
            let limited = "meta l4proto != @trial accept";
            let rules = nft("list chain inet knockd guard");
            let first = rules.lines().find(|line| line.contains("accept") && !line.contains("policy"));
            assert_eq!(first.map(str::trim), Some(limited), "{rules}");
            assert!(matches!(standing().unwrap(), Standing::OnTrial(_)));
            let (mut table, _) = take_over(&config, &Hold::BEST_FIRST);
            assert!(matches!(table.standing, Standing::OnTrial(_)));
            table.obey(Order::Try(Duration::from_millis(100)), &config).unwrap();
            let end = Instant::now() + Duration::from_secs(60);
            while standing().unwrap() != Standing::Lifted {
                assert!(Instant::now() < end);
                thread::sleep(Duration::from_millis(10));
            }
            close(table);
            let (mut table, _) = take_over(&config, &Hold::BEST_FIRST);
            assert_eq!(table.standing, Standing::Lifted);
            table.guard(&config).unwrap();
            assert_eq!(standing().unwrap(), Standing::Lifted, "a reload changes nothing");
            table.obey(Order::Keep, &config).unwrap();
            assert_eq!(standing().unwrap(), Standing::Firm);
            assert!(!nft("list table inet knockd").contains("trial"));
            table.obey(Order::Remove, &config).unwrap();
            table.guard(&config).unwrap();
            assert!(!has_table(), "a reload changes nothing");
            assert_eq!(table.carry_out(&[change("a", "192.0.2.7", None)]), Ok(()));
            table.obey(Order::Try(Duration::from_secs(60)), &config).unwrap();
            assert!(nft("list table inet knockd").contains(limited));
        });
    }

    #[test]
    fn a_full_set_refuses_one_source_and_lets_the_others_in() {
        in_namespace(|| {
            let (mut table, _) = take_over(&config("a", 2), &Hold::BEST_FIRST);
            let (sender, reports) = unbounded();
            let admit = |n: u8| change("a", &format!("192.0.2.{n}"), Some(60));
            table.set((1..=4).map(admit).collect(), &sender);
            let reasons = || {
                let report = reports.try_recv().unwrap();
                refused(&report).into_iter().map(|error| error.map(reason)).collect::<Vec<_>>()
            };
            let full = Some("its set is full; see MaxOpen");
            assert_eq!(reasons(), [None, None, full, full]);
            let shut = |n: u8| change("a", &format!("192.0.2.{n}"), None);
            table.set(vec![shut(1), shut(9), admit(3)], &sender);
            assert_eq!(reasons(), [None; 3]);
        });
    }

    #[test]
    fn a_hundred_thousand_sources_are_let_in_soon_and_found_again() {
        const SOURCES: u32 = 100_000;
        in_namespace(|| {
            let config = config("a", SOURCES);
            let (mut table, _) = take_over(&config, &Hold::BEST_FIRST);
            let (sender, reports) = unbounded();
            let source = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            let one = admission("a", "192.0.2.7");
            let changes = (0..SOURCES).map(|n| {
                let admission = Admission { source: source(n).into(), ..one.clone() };
                Change { admission, time: Some(Duration::from_secs(600)), refused: None }
            });
            let changes: Vec<_> = changes.collect();
            let start = Instant::now();
            for part in changes.chunks(1000) {
                table.set(part.to_vec(), &sender);
            }
            let took = start.elapsed();
            let results: Vec<_> = reports.try_iter().flat_map(|report| refused(&report)).collect();
            assert!(results.len() == 100_000 && results.iter().all(Option::is_none));
            println!("let in {SOURCES} sources in {took:?}");
            // A build without optimization on a busy machine takes longer.
            assert!(took < Duration::from_secs(20), "{took:?}");
            close(table);
            let start = Instant::now();
            let (_table, admitted) =
                Table::make(Netlink::open().unwrap(), &config, &Hold::BEST_FIRST, None).unwrap();
            let took = start.elapsed();
            println!("found them again in {took:?}");
            assert!(took < Duration::from_secs(10), "{took:?}");
            assert_eq!(admitted.len(), 100_000);
        });
    }
}
