//! The commands of doors: how they run, how their ends are told, and when stop commands follow.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{CONFIG, KNOCKD, Knockd, SOON, hit, knock, send, sh, wait_for_file, wait_until};
use nix::sys::signal::Signal;
use testbed::{Flags, Frame, Net, Stream};

const SECOND: Duration = Duration::from_secs(1);

/// How many threads or descriptors the daemon may have got for other reasons, such as a client of its control socket.
const A_FEW: usize = 4;

/// A door on port 1 that says what it does.
fn door(cmd_timeout: u32, more: &str) -> String {
    format!(
        "[door]\nsequence = 1\nstart_command = echo start %IP%\ncmd_timeout = {cmd_timeout}\n\
         stop_command = echo stop %IP%\n{more}\n"
    )
}

#[test]
fn the_stop_command_follows_the_end_of_the_start_command_by_cmd_timeout() {
    let net = Net::new().unwrap();
    let config = "[door]\nsequence = 1\nstart_command = sleep 1; echo started\ncmd_timeout = 2\nstop_command = echo stopped\n";
    let mut knockd = Knockd::start(&net, config);
    hit(&net, 2, &[1]);
    let started = knockd.wait_for_output("started").at;
    let timeout = knockd.wait_for("10.9.0.2: door: command timeout").at;
    knockd.wait_for("door: running command: echo stopped");
    knockd.wait_for_output("stopped");
    let waited = timeout - started;
    assert!(waited > SECOND && waited < SECOND * 15, "{waited:?}");
}

#[test]
fn knocking_again_extends_and_does_not_run_the_start_command_again() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &door(8, ""));
    hit(&net, 2, &[1]);
    knockd.wait_for_output("start 10.9.0.2");
    std::thread::sleep(SECOND * 3);
    hit(&net, 2, &[1]);
    let again = knockd.wait_for("OPEN SESAME").at;
    hit(&net, 3, &[1]);
    knockd.wait_for_output("start 10.9.0.3");
    let stopped = knockd.wait_for("10.9.0.2: door: command timeout").at;
    assert!(stopped - again > SECOND * 6, "{:?}", stopped - again);
    knockd.wait_for_output("stop 10.9.0.3");
    assert_eq!(knockd.count("command: echo start 10.9.0.2"), 1);
    assert_eq!(knockd.count("command: echo stop 10.9.0.2"), 1);
}

#[test]
fn with_reopen_run_every_knock_has_a_start_and_a_stop_of_its_own() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, &door(1, "reopen = run"));
    hit(&net, 2, &[1]);
    hit(&net, 2, &[1]);
    for _ in 0..2 {
        knockd.wait_for("command: echo stop 10.9.0.2");
    }
    assert_eq!(knockd.count("command: echo start 10.9.0.2"), 2);
}

#[test]
fn a_start_command_that_fails_is_told_and_its_stop_command_runs_all_the_same() {
    let net = Net::new().unwrap();
    let config = "[options]\nlogfile = /run/log\n[door]\nsequence = 1\nstart_command = echo why; echo first >&2; echo no luck >&2; exit 3\n\
                  cmd_timeout = 2\nstop_command = echo stopped\n";
    let mut knockd = Knockd::start(&net, config);
    hit(&net, 2, &[1]);
    let told = knockd.wait_for("door: command returned non-zero status code (3)");
    assert_eq!(told.stream, Stream::Stderr);
    let log = wait_for_file(&net.server, "/run/log", "no luck\n");
    let end = "] door: command returned non-zero status code (3)\n";
    let (_, after) = log.split_once(end).unwrap();
    assert!(after.contains("] door: command said: first / no luck\n"), "{log}");
    // Nothing is open, so another knock tries again.
    hit(&net, 2, &[1]);
    knockd.wait_for("door: command returned non-zero status code (3)");
    knockd.wait_for("stopped");
    assert_eq!(knockd.count("command: echo stopped"), 1);
}

#[test]
fn the_setting_of_the_systemd_unit_that_a_command_may_have_met_is_named() {
    let net = Net::new().unwrap();
    let config = "[denied]\nsequence = 1\ncommand = echo 'mount: /x: permission denied.' >&2; echo more >&2; exit 1\n\
                  [other]\nsequence = 2\ncommand = echo 'no such rule' >&2; exit 1\n";
    net.server.write_file(CONFIG, config).unwrap();
    let said = "denied: command said: mount: /x: permission denied. / more";
    let named = "denied: CapabilityBoundingSet in the systemd unit may forbid this; run: systemctl edit ";
    for (invocation, is_named) in [("INVOCATION_ID=", true), ("OTHER=", false)] {
        let mut command = net.server.command("env");
        command.args([&format!("{invocation}1"), "setpriv", "--bounding-set=-sys_admin"]);
        let mut knockd = Knockd::run(command.args([KNOCKD, "-v", "-c", CONFIG, "-g", "/run/log"]));
        hit(&net, 2, &[1]);
        wait_for_file(&net.server, "/run/log", said);
        hit(&net, 2, &[2]);
        let log = wait_for_file(&net.server, "/run/log", "other: command said: no such rule");
        assert_eq!(
            (log.matches(named).count(), log.matches("other: Cap").count()),
            (usize::from(is_named), 0),
            "{log}"
        );
        knockd.stop();
        sh(&net.server, "rm /run/log");
    }
}

#[test]
fn what_a_command_prints_arrives_on_the_same_output() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(
        &net,
        "[door]\nsequence = 1\ncommand = echo to stdout; echo to stderr >&2; cat; echo end\n",
    );
    hit(&net, 2, &[1]);
    // `cat` does not wait: there is nothing on stdin.
    knockd.wait_for("door: running command: ");
    knockd.wait_for("end");
    let stream = |text: &str| {
        knockd.running.lines().into_iter().find(|line| line.text == text).map(|line| line.stream)
    };
    common::wait_until("stderr", || stream("to stderr") == Some(Stream::Stderr));
    assert_eq!(stream("to stdout"), Some(Stream::Stdout));
}

#[test]
fn a_command_that_a_signal_ended_is_told_from_one_that_failed() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(
        &net,
        "[door]\nsequence = 1\ncommand = kill -9 $$\n[none]\nsequence = 2\ncommand = /no/such\n",
    );
    hit(&net, 2, &[1, 2]);
    let line = |knockd: &Knockd, text: &str| knockd.lines().iter().any(|line| line == text);
    common::wait_until("both", || {
        line(&knockd, "door: command killed by signal 9")
            && line(&knockd, "none: command returned non-zero status code (127)")
            && line(&knockd, "none: /no/such: not found or not executable; is its package installed?")
    });
    knockd.stop();
}

#[test]
fn commands_run_side_by_side_and_one_that_hangs_holds_up_nothing() {
    let net = Net::new().unwrap();
    let config = "[hang]\nsequence = 1\ncommand = sleep 1000\n[slow]\nsequence = 2\ncommand = sleep 4; echo slow for %IP%\n\
                  [quick]\nsequence = 3\nstart_command = echo quick for %IP%\ncmd_timeout = 0\nstop_command = echo stop\n";
    let mut knockd = Knockd::start(&net, config);
    hit(&net, 2, &[1]);
    for neighbour in 10..30 {
        hit(&net, neighbour, &[2]);
    }
    hit(&net, 3, &[1, 3]);
    knockd.wait_for("quick for 10.9.0.3");
    // One after the other would be eighty seconds, which nobody waits for here.
    common::wait_until("twenty slow ones", || knockd.count(" for 10.9.0.") >= 41);
    knockd.stop();
}

#[test]
fn a_command_inherits_nothing_but_its_standard_streams() {
    let net = Net::new().unwrap();
    net.server.write_file("/run/once", " 1\n 1\n").unwrap();
    let config = "[options]\nlogfile = /run/log\nUseSyslog\n[door]\none_time_sequences = /run/once\ncommand = ls -l /proc/self/fd; echo end\n";
    let knockd = Knockd::start_with(&net, config, &["-v", "-l", "-i", "eth0"]);
    hit(&net, 2, &[1]);
    // With -l the line about the command may come later than the command's own.
    common::wait_until("its end", || knockd.lines().iter().any(|line| line == "end"));
    let lines: Vec<_> = knockd.lines().into_iter().filter(|line| line.contains(" -> ")).collect();
    assert!(lines.len() >= 4, "{lines:?}");
    for bad in ["socket:", "anon_inode", "/run/"] {
        assert!(!lines.iter().any(|line| line.contains(bad)), "{lines:#?}");
    }
}

#[test]
fn sigterm_closes_every_open_door_and_ends_with_status_0_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let net = Net::new().unwrap();
        let config = format!(
            "{}[starting]\nsequence = 2\nstart_command = sleep 1; echo late\nstop_command = echo stop late\n",
            door(60, "")
        );
        let mut knockd = Knockd::start(&net, &config);
        hit(&net, 2, &[1]);
        hit(&net, 3, &[1, 2]);
        // A door whose start command is still running is closed when that has ended.
        knockd.wait_for("starting: running command");
        common::wait_until("two starts", || knockd.count("start 10.9.0.") == 4);
        let begun = Instant::now();
        knockd.signal(signal);
        let status = knockd.running.wait(SOON).unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(begun.elapsed() < SECOND * 15, "{:?}", begun.elapsed());
        let lines = knockd.lines();
        for wanted in [
            "stop 10.9.0.2",
            "stop 10.9.0.3",
            "late",
            "stop late",
            "waiting for child processes...",
            "closing...",
        ] {
            assert_eq!(lines.iter().filter(|line| *line == wanted).count(), 1, "{wanted}: {lines:#?}");
        }
    }
}

#[test]
fn a_second_sigterm_does_not_wait_for_a_stop_command_that_hangs() {
    let net = Net::new().unwrap();
    let config = "[door]\nsequence = 1\nstart_command = echo started\nstop_command = sleep 1000\n";
    let mut knockd = Knockd::start(&net, config);
    hit(&net, 2, &[1]);
    knockd.wait_for("started");
    knockd.wait_for("started");
    let begun = Instant::now();
    knockd.signal(Signal::SIGTERM);
    knockd.wait_for("running command: sleep 1000");
    knockd.signal(Signal::SIGTERM);
    assert_eq!(knockd.running.wait(SOON).unwrap().code(), Some(0));
    // With one signal only it would take five seconds.
    assert!(begun.elapsed() < SECOND * 9 / 2, "{:?}", begun.elapsed());
    knockd.wait_for("1 door not closed yet: stop commands are still running");
}

#[test]
fn a_stop_command_that_hangs_does_not_keep_knockd_from_ending() {
    let net = Net::new().unwrap();
    let config = "[door]\nsequence = 1\nstart_command = echo started\nstop_command = sleep 1000\n";
    let mut knockd = Knockd::start(&net, config);
    hit(&net, 2, &[1]);
    knockd.wait_for("started");
    knockd.wait_for("started");
    knockd.stop();
    knockd.wait_for("1 door not closed yet: stop commands are still running");
}

#[test]
fn the_shutdown_of_an_idle_knockd_takes_no_time_and_no_line_is_on_the_terminal_without_v() {
    let net = Net::new().unwrap();
    net.server
        .write_file(common::CONFIG, &format!("[options]\nlogfile = /run/log\n{}", door(0, "")))
        .unwrap();
    let mut knockd = net.server.spawn(&[KNOCKD, "-c", common::CONFIG]).unwrap();
    wait_for_file(&net.server, "/run/log", "starting up");
    knock(&net.client, "10.9.0.1 1");
    wait_for_file(&net.server, "/run/log", "command timeout");
    knockd.wait_for_line("stop 10.9.0.2", SOON).unwrap();
    let begun = Instant::now();
    knockd.signal(Signal::SIGTERM).unwrap();
    assert_eq!(knockd.wait(SOON).unwrap().code(), Some(0));
    assert!(begun.elapsed() < SECOND * 9 / 2, "{:?}", begun.elapsed());
    let lines: Vec<_> = knockd.lines().into_iter().map(|line| line.text).collect();
    assert_eq!(lines, ["start 10.9.0.2", "stop 10.9.0.2"]);
    assert!(sh(&net.server, "tail -n 1 /run/log").ends_with("] shutting down\n"));
}

#[test]
fn very_many_doors_that_close_at_once_are_all_closed_with_few_descriptors() {
    const COUNT: usize = 600;
    let net = Net::new().unwrap();
    let config = "[options]\nScanLimit = 0\n[door]\nsequence = 1\nstart_command = true\ncmd_timeout = 600\n\
                  stop_command = echo closed for %IP%\n";
    net.server.write_file(CONFIG, config).unwrap();
    let script = "ulimit -Sn 128; exec \"$0\" \"$@\"";
    let mut knockd = Knockd::run(net.server.command("sh").args(["-c", script, KNOCKD, "-v", "-c", CONFIG]));
    send(&net, &strangers(&net, COUNT));
    common::wait_until("every door open", || common::status_json(&net)["leases"]["open"] == COUNT);
    sh(&net.server, &format!("'{KNOCKD}' close --all || true"));
    common::wait_until("every door closed", || knockd.count("closed for ") >= 2 * COUNT);
    assert_eq!(knockd.count("cannot start command"), 0);
    knockd.stop();
}

#[test]
fn very_many_running_commands_are_that_many_processes_and_no_thread_and_have_the_usual_limit() {
    const COUNT: usize = 512;
    const LIMIT: &str = "128";
    let net = Net::new().unwrap();
    // Each waits until somebody opens the pipe.
    sh(&net.server, "mkfifo /run/wait");
    let config = "[options]\nScanLimit = 0\nMaxCommands = 512\n[door]\nsequence = 1\n\
                  command = echo limit $(ulimit -Sn); read line < /run/wait; echo ended >&2\n";
    net.server.write_file(CONFIG, config).unwrap();
    let script = format!("ulimit -Sn {LIMIT}; exec \"$0\" \"$@\"");
    let mut knockd = Knockd::run(net.server.command("sh").args(["-c", &script, KNOCKD, "-v", "-c", CONFIG]));
    let threads = threads(&knockd);
    send(&net, &strangers(&net, COUNT));
    wait_until("all running", || knockd.count(&format!("limit {LIMIT}")) >= COUNT);
    assert_eq!(shells(&knockd), COUNT);
    assert!(self::threads(&knockd) <= threads + A_FEW);
    // The daemon has room for other things.
    assert!(sh(&net.server, &format!("'{KNOCKD}' status")).contains("door"));
    release(&net, || knockd.lines().iter().filter(|line| *line == "ended").count() == COUNT);
    assert_eq!(knockd.lines().iter().filter(|line| line.starts_with("limit ")).count(), COUNT);
    assert_eq!(knockd.count("cannot start command"), 0);
    knockd.stop();
}

#[test]
fn what_commands_leave_in_the_background_costs_no_thread_and_few_descriptors() {
    const COUNT: usize = 500;
    let net = Net::new().unwrap();
    sh(&net.server, "mkfifo /run/wait");
    // Each leaves a process that holds its stderr.
    let config = "[options]\nScanLimit = 0\n\
                  [door]\nsequence = 1\nstart_command = (read line < /run/wait) & echo left\n\
                  cmd_timeout = 600\nstop_command = echo closed for %IP%\n\
                  [other]\nsequence = 2\ncommand = echo first >&2; echo last >&2; exit 3\n";
    let mut knockd = Knockd::start(&net, config);
    let (threads, descriptors) = (threads(&knockd), descriptors(&knockd));
    send(&net, &strangers(&net, COUNT));
    wait_until("all left", || knockd.lines().iter().filter(|line| *line == "left").count() == COUNT);
    // The last commands may not have been waited for yet.
    wait_until("few descriptors", || self::descriptors(&knockd) <= descriptors + 64 + A_FEW);
    assert!(self::threads(&knockd) <= threads + A_FEW);
    // What others say is not lost, and every door is known and closed.
    hit(&net, 2, &[2]);
    for told in ["first", "last", "other: command returned non-zero status code (3)"] {
        knockd.wait_for_output(told);
    }
    assert_eq!(common::status_json(&net)["leases"]["open"], COUNT);
    sh(&net.server, &format!("'{KNOCKD}' close --all || true"));
    let closed = |line: &String| line.starts_with("closed for ");
    wait_until("all closed", || knockd.lines().iter().filter(|line| closed(line)).count() == COUNT);
    release(&net, || self::descriptors(&knockd) <= descriptors + A_FEW);
    knockd.stop();
}

#[test]
fn a_command_has_no_signal_blocked_and_ignores_no_more_than_knockd_was_started_with() {
    let net = Net::new().unwrap();
    let show = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
    // Signals from 32 on are the C library's own (signal(7)): 33 is ignored by what its posix_spawn(3) starts.
    let signals = |line: &str| {
        let (name, mask) = line.split_once(":\t")?;
        Some((name.to_owned(), u64::from_str_radix(mask, 16).ok()? & 0x7fff_ffff))
    };
    let usual: Vec<_> = sh(&net.server, show).lines().filter_map(signals).collect();
    assert!(usual.len() == 2 && usual.contains(&("SigBlk".to_owned(), 0)), "{usual:?}");
    let knockd = Knockd::start(&net, &format!("[door]\nsequence = 1\ncommand = {show}; echo end\n"));
    hit(&net, 2, &[1]);
    wait_until("its end", || knockd.lines().iter().any(|line| line == "end"));
    let of_command: Vec<_> = knockd.lines().iter().filter_map(|line| signals(line)).collect();
    // What knockd handles itself, such as SIGHUP, is no longer ignored in a command, even under nohup(1).
    let more = of_command.iter().zip(&usual).map(|((name, mask), (_, usual))| (name, mask & !usual));
    assert_eq!(more.collect::<Vec<_>>(), [(&"SigBlk".to_owned(), 0), (&"SigIgn".to_owned(), 0)]);
}

/// First hits of so many sources.
fn strangers(net: &Net, count: usize) -> Vec<Frame> {
    let sources = (0..count).map(|n| u16::try_from(n).unwrap().to_be_bytes());
    sources.map(|[high, low]| Frame::tcp([172, 16, high, low], net.server.ipv4, 1, Flags::SYN)).collect()
}

fn threads(knockd: &Knockd) -> usize {
    entries(knockd, "task")
}

fn descriptors(knockd: &Knockd) -> usize {
    entries(knockd, "fd")
}

fn entries(knockd: &Knockd, directory: &str) -> usize {
    std::fs::read_dir(format!("/proc/{}/{directory}", knockd.running.pid().unwrap())).unwrap().count()
}

/// How many children of the daemon are shells.
fn shells(knockd: &Knockd) -> usize {
    let task = format!("/proc/{}/task", knockd.running.pid().unwrap());
    let lists = std::fs::read_dir(task).unwrap().map(|entry| entry.unwrap().path().join("children"));
    let lists: Vec<_> = lists.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let children = lists.iter().flat_map(|list| list.split_whitespace());
    let name = |child: &str| std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
    children.filter(|child| name(child).trim_end() == "sh").count()
}

/// Ends everything that waits for the pipe, also what only comes to it now.
fn release(net: &Net, is_done: impl Fn() -> bool) {
    wait_until("everything has ended", || {
        // To open it for both never waits (fifo(7)).
        sh(&net.server, ": <> /run/wait");
        is_done()
    });
}

#[test]
fn as_process_1_it_waits_for_what_commands_leave_in_the_background() {
    let net = Net::new().unwrap();
    // A name by which no process of another test is found.
    sh(&net.server, "cp /bin/sleep /run/background");
    let config = "[door]\nsequence = 1\ncommand = (/run/background 3; /run/background 3) & /run/background 6 & echo done\n";
    net.server.write_file(CONFIG, config).unwrap();
    let unshare = ["--pid", "--fork", "--mount-proc", KNOCKD, "-v", "-c", CONFIG];
    let mut knockd = Knockd::run(net.server.command("unshare").args(unshare));
    for neighbour in 2..7 {
        hit(&net, neighbour, &[1]);
        knockd.wait_for_output("done");
    }
    // A process that has ended stays in the list until it is waited for.
    assert_ne!(processes("background"), 0);
    wait_until("all processes have been waited for", || processes("background") == 0);
    hit(&net, 7, &[1]);
    knockd.wait_for("10.9.0.7: door: OPEN SESAME");
}

/// How many processes there are whose program has this name.
fn processes(name: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("comm"));
    entries.filter_map(|path| std::fs::read_to_string(path).ok()).filter(|comm| comm.trim() == name).count()
}
