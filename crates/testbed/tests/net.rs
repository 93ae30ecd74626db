//! The testbed's own promises, on real namespaces.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testbed::{Flags, Frame, Net, Stream};

const SOON: Duration = Duration::from_secs(60);

fn has_ipv6(net: &Net) -> bool {
    if !net.has_ipv6() {
        testbed::skip("IPv6 is switched off in the kernel");
    }
    net.has_ipv6()
}

#[test]
fn the_hosts_reach_each_other_by_both_families() {
    let net = Net::new().unwrap();
    let _server = net.server.listen(22).unwrap();
    let _client = net.client.listen(8022).unwrap();
    assert!(net.client.can_connect(net.server.ipv4, 22).unwrap());
    assert!(net.server.can_connect(net.client.ipv4, 8022).unwrap());
    assert!(!net.client.can_connect(net.server.ipv4, 23).unwrap());
    if has_ipv6(&net) {
        assert!(net.client.can_connect(net.server.ipv6, 22).unwrap());
        assert!(net.server.can_connect(net.client.ipv6, 8022).unwrap());
    }
}

#[test]
fn a_stranger_reaches_the_server_from_an_address_of_its_own() {
    let net = Net::new().unwrap();
    let stranger = net.stranger().unwrap();
    let _server = net.server.listen(22).unwrap();
    net.server.run(&["ip", "link", "set", "eth0", "down"]).unwrap();
    assert!(stranger.host.can_connect(net.server.ipv4, 22).unwrap());
    assert!(!net.client.can_connect(net.server.ipv4, 22).unwrap());
}

#[test]
fn frames_arrive_byte_for_byte() {
    let net = Net::new().unwrap();
    let (from, to) = (net.client.ipv4, net.server.ipv4);
    let frames = [
        Frame::tcp(from, to, 7000, Flags::SYN).bytes().unwrap(),
        Frame::udp([203, 0, 113, 9], to, 7000, b"spoofed").bytes().unwrap(),
        Frame::tcp(from, to, 7000, Flags(0x3f)).ipv4_options(&[1, 1, 1, 0]).bytes().unwrap(),
        Frame::tcp(from, to, 7000, Flags::SYN).fragment(1, true).bytes().unwrap(),
        Frame::udp(net.client.ipv6, net.server.ipv6, 7000, &[0])
            .ipv6_extension(0)
            .ipv6_extension(60)
            .fragment(0, false)
            .bytes()
            .unwrap(),
        Frame::tcp(from, to, 7000, Flags::SYN).bytes().unwrap()[..25].to_vec(),
    ];
    let mut capture = net.server.capture().unwrap();
    net.client.send_frames(&frames).unwrap();
    for frame in &frames {
        capture.wait_for_line(&hex(frame), SOON).unwrap();
    }
}

#[test]
fn a_crafted_syn_is_answered_so_lengths_and_checksums_are_right() {
    let net = Net::new().unwrap();
    let _server = net.server.listen(22).unwrap();
    let mut capture = net.client.capture().unwrap();
    let from_port_22_to_40000 = "00169c40";
    let syn = Frame::tcp(net.client.ipv4, net.server.ipv4, 22, Flags::SYN).ipv4_options(&[1, 1, 1, 0]);
    net.client.send_frames(&[syn.bytes().unwrap()]).unwrap();
    capture.wait_for_line(from_port_22_to_40000, SOON).unwrap();
    if has_ipv6(&net) {
        let syn = Frame::tcp(net.client.ipv6, net.server.ipv6, 22, Flags::SYN)
            .ipv6_extension(60)
            .fragment(0, false);
        net.client.send_frames(&[syn.bytes().unwrap()]).unwrap();
        let answer = format!("{}{from_port_22_to_40000}", hex(&net.client.ipv6.octets()));
        capture.wait_for_line(&answer, SOON).unwrap();
    }
}

#[test]
fn a_tagged_frame_leaves_with_its_tag_and_arrives_as_linux_shows_it() {
    let net = Net::new().unwrap();
    let frame = Frame::udp(net.client.ipv4, net.server.ipv4, 7000, &[0]);
    let untagged = frame.bytes().unwrap();
    let tagged = frame.vlan(5).bytes().unwrap();
    assert_eq!(tagged, [&untagged[..12], &[0x81, 0, 0, 5], &untagged[12..]].concat());
    let mut leaving = net.client.capture().unwrap();
    let mut arriving = net.server.capture().unwrap();
    net.client.send_frames(&[&tagged]).unwrap();
    leaving.wait_for_line(&hex(&tagged), SOON).unwrap();
    arriving.wait_for_line(&hex(&untagged), SOON).unwrap();
}

#[test]
fn a_frame_that_is_no_frame_is_refused_with_its_number() {
    let net = Net::new().unwrap();
    let good = Frame::tcp(net.client.ipv4, net.server.ipv4, 1, Flags::SYN).bytes().unwrap();
    let error = net.client.send_frames(&[good, vec![1, 2, 3]]).unwrap_err();
    assert!(error.to_string().contains("frame 2 of 3 bytes"), "{error}");
}

#[test]
fn a_frame_cannot_mix_address_families() {
    assert!(Frame::tcp([192, 0, 2, 1], [1u16; 8], 1, Flags::SYN).bytes().is_err());
}

#[test]
fn private_directories_hide_the_machine_and_keep_its_files_untouched() {
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("machine"), "").unwrap();
    let dir = shared.path().to_str().unwrap();
    let net = Net::with_private_dirs(&[dir]).unwrap();
    net.server.write_file(&format!("{dir}/log"), "a line\n").unwrap();
    assert_eq!(net.server.run(&["ls", dir]).unwrap(), "log\n");
    assert_eq!(net.server.run(&["cat", &format!("{dir}/log")]).unwrap(), "a line\n");
    assert_eq!(net.client.run(&["ls", dir]).unwrap(), "");
    assert!(!shared.path().join("log").exists());
    net.server.write_file("/run/knockd-testbed", "").unwrap();
    assert!(!Path::new("/run/knockd-testbed").exists());
}

#[test]
fn a_failing_program_is_an_error_with_its_stderr() {
    let net = Net::new().unwrap();
    let error = net.server.run(&["sh", "-c", "echo no luck >&2; exit 3"]).unwrap_err().to_string();
    assert!(error.contains("no luck") && error.contains("exit status: 3"), "{error}");
    let error = net.server.run(&["no-such-program"]).unwrap_err().to_string();
    assert!(error.contains("no-such-program"), "{error}");
}

#[test]
fn lines_are_collected_from_both_outputs_and_found_in_order() {
    let net = Net::new().unwrap();
    let mut program =
        net.server.spawn(&["sh", "-c", "echo one; echo two >&2; echo one again; exit 7"]).unwrap();
    assert_eq!(program.wait(SOON).unwrap().code(), Some(7));
    assert_eq!(program.wait_for_line("one", SOON).unwrap().text, "one");
    assert_eq!(program.wait_for_line("one", SOON).unwrap().text, "one again");
    let error = program.wait_for_line("one", SOON).unwrap_err().to_string();
    assert!(error.contains("ended") && error.contains("two"), "{error}");
    let lines = program.lines();
    assert!(lines.iter().any(|line| line.text == "two" && line.stream == Stream::Stderr));
}

#[test]
fn a_signal_reaches_the_program_itself() {
    let net = Net::new().unwrap();
    // Not SIGHUP: under nohup a shell could not trap it.
    let script = "trap 'echo called; exit 4' USR1; sleep 60 & echo ready; wait";
    let mut program = net.server.spawn(&["sh", "-c", script]).unwrap();
    program.wait_for_line("ready", SOON).unwrap();
    program.signal(Signal::SIGUSR1).unwrap();
    program.wait_for_line("called", SOON).unwrap();
    assert_eq!(program.wait(SOON).unwrap().code(), Some(4));
    assert!(program.signal(Signal::SIGUSR1).is_err());

    let mut program = net.server.spawn(&["sleep", "60"]).unwrap();
    program.signal(Signal::SIGTERM).unwrap();
    assert_eq!(program.wait(SOON).unwrap().signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn a_dropped_program_is_killed() {
    let net = Net::new().unwrap();
    let program = net.server.spawn(&["sleep", "60"]).unwrap();
    let pid = program.pid().unwrap();
    assert!(exists(pid));
    drop(program);
    assert!(!exists(pid));
}

#[test]
fn nothing_is_left_of_a_dropped_net_not_even_a_daemon() {
    let net = Net::new().unwrap();
    let mut program =
        net.client.spawn(&["sh", "-c", "setsid sleep 60 & read a rest </proc/$!/stat"]).unwrap();
    program.wait(SOON).unwrap();
    // Seen from outside: whoever still has the client's network namespace open keeps it alive.
    let namespace = net.client.run(&["readlink", "/proc/self/ns/net"]).unwrap();
    assert!(!users_of(namespace.trim()).is_empty());
    drop(net);
    assert_eq!(users_of(namespace.trim()), Vec::<u32>::new());
}

/// Not a test of its own: the next one starts it in a process that it kills.
#[test]
#[ignore = "sleeps until it is killed; run by the test below"]
fn make_a_net_and_wait() {
    let net = Net::new().unwrap();
    let _daemon = net.server.spawn(&["setsid", "sleep", "60"]).unwrap();
    println!("namespace {}", net.server.run(&["readlink", "/proc/self/ns/net"]).unwrap());
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn nothing_is_left_when_the_owner_is_killed() {
    use std::io::{BufRead, BufReader};
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "make_a_net_and_wait", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    let namespace =
        lines.find_map(|line| line.split_once("namespace ").map(|(_, name)| name.to_owned())).unwrap();
    assert!(users_of(&namespace).len() >= 2);
    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = Instant::now() + SOON;
    while !users_of(&namespace).is_empty() {
        assert!(Instant::now() < deadline, "{:?} still live in {namespace}", users_of(&namespace));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Not a test of its own when run as root: the next one runs it as a plain user.
#[test]
#[ignore = "run as a plain user by the test below"]
fn use_a_net_with_the_copied_helper() {
    let helper = std::env::var("TESTBED_HELPER").unwrap();
    let net = Net::new().unwrap();
    let mut server = net.server.spawn(&[&helper, "listen", "22"]).unwrap();
    server.wait_for_line("listening", SOON).unwrap();
    let connect = [helper.as_str(), "connect", "10.9.0.1", "22"];
    assert_eq!(net.client.run(&connect).unwrap(), "open\n");
    net.server.write_file("/run/mine", "").unwrap();
    server.signal(Signal::SIGTERM).unwrap();
    assert_eq!(server.wait(SOON).unwrap().signal(), Some(Signal::SIGTERM as i32));
    assert_eq!(net.client.run(&connect).unwrap(), "closed\n");
}

#[test]
fn a_plain_user_gets_a_net_or_hears_what_is_missing() {
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &Path, name: &str| {
        let to = shared.path().join(name);
        std::fs::copy(from, &to).unwrap();
        to
    };
    let helper = copy(Path::new(env!("CARGO_BIN_EXE_testbed")), "testbed");
    let test = copy(&std::env::current_exe().unwrap(), "test");

    let as_nobody = |argv: &[&str]| {
        let mut command;
        if nix::unistd::geteuid().is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(argv);
        } else {
            command = Command::new(argv[0]);
            command.args(&argv[1..]);
        }
        let output = command.current_dir("/").env("TESTBED_HELPER", &helper).output().unwrap();
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let (allowed, _) =
        as_nobody(&["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "true"]);
    let (worked, output) = as_nobody(&[
        test.to_str().unwrap(),
        "--exact",
        "use_a_net_with_the_copied_helper",
        "--ignored",
        "--nocapture",
    ]);
    if allowed {
        assert!(worked && output.contains("1 passed"), "{output}");
    } else {
        assert!(!worked && output.contains("user namespaces"), "{output}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The processes in a network namespace, named as `readlink /proc/PID/ns/net` does.
fn users_of(namespace: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link == Path::new(namespace))
    })
    .collect()
}
