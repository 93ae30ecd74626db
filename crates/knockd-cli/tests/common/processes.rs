//! The daemon's processes, seen from outside.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Knockd, wait_until};

/// The text of a file of `/proc` about a process; empty when that is gone.
pub(crate) fn about(pid: i32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// A line of `/proc/PID/status`, with single blanks between its words.
pub(crate) fn proc_status(pid: i32, key: &str) -> String {
    let text = about(pid, "status");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
    line.unwrap_or("none").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every process below this one, with its name.
pub(crate) fn descendants(pid: i32) -> Vec<(i32, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: Vec<i32> =
        lists.flat_map(|list| list.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect();
    let below = |child: i32| {
        let name = about(child, "comm").trim_end().to_owned();
        std::iter::once((child, name)).chain(descendants(child))
    };
    children.into_iter().flat_map(|child| below(child).collect::<Vec<_>>()).collect()
}

/// The decoders below a daemon.
pub(crate) fn decoders(pid: i32) -> Vec<i32> {
    descendants(pid).into_iter().filter(|(_, name)| name == "knockd-decoder").map(|(pid, _)| pid).collect()
}

/// The daemon and its only decoder, once that reads packets.
pub(crate) fn processes(knockd: &Knockd) -> (i32, i32) {
    let daemon = i32::try_from(knockd.running.pid().unwrap()).unwrap();
    let mut found = Vec::new();
    wait_until("a decoder in its sandbox", || {
        found = decoders(daemon);
        found.len() == 1 && proc_status(found[0], "Seccomp") == "2"
    });
    (daemon, found[0])
}

/// Signals a process.
pub(crate) fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// The packet socket of a decoder; the number in it belongs to no other one.
pub(crate) fn socket_of(decoder: i32) -> String {
    fs::read_link(format!("/proc/{decoder}/fd/0")).unwrap().to_str().unwrap().to_owned()
}

/// Waits for another decoder than this one, and returns it.
pub(crate) fn next_decoder(knockd: &Knockd, before: i32) -> i32 {
    wait_until("the end of the decoder before", || {
        !std::path::Path::new(&format!("/proc/{before}")).exists()
    });
    processes(knockd).1
}
