//! The log file, the system log, and names in them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use common::{CONFIG, KNOCKD, Knockd, SOON, hit, is_about_the_machine, sh, wait_for_file};
use testbed::{Net, Running, Stream};

#[test]
fn the_log_file_has_the_local_time_in_front_of_every_line() {
    const ZONE: &str = "TEST-13:30";
    let net = Net::new().unwrap();
    net.server.write_file("/run/log", "an older line\n").unwrap();
    let config = "[options]\nlogfile = /run/log\n[door]\nsequence = 1\nstart_command = false\ncmd_timeout = 0\nstop_command = true\n";
    net.server.write_file(CONFIG, config).unwrap();
    let now =
        || sh(&net.server, &format!("TZ={ZONE} date '+[%Y-%m-%d %H:%M] '")).trim_end_matches('\n').to_owned();
    let before = now();
    let mut knockd = Knockd::run(net.server.command(KNOCKD).args(["-v", "-c", CONFIG]).env("TZ", ZONE));
    hit(&net, 2, &[1]);
    knockd.wait_for("door: running command: true");
    knockd.stop();
    let after = now();

    let log = net.server.run(&["cat", "/run/log"]).unwrap();
    let mut lines = log.lines().filter(|line| !is_about_the_machine(line));
    assert_eq!(lines.next(), Some("an older line"));
    let texts: Vec<_> = lines
        .map(|line| {
            let text = line.strip_prefix(&before).or_else(|| line.strip_prefix(&after));
            text.unwrap_or_else(|| panic!("`{line}` begins neither with `{before}` nor with `{after}`"))
        })
        .collect();
    let expected = [
        "starting up, listening on eth0",
        "10.9.0.2: door: Stage 1",
        "10.9.0.2: door: OPEN SESAME",
        "door: running command: false",
        "door: command returned non-zero status code (1)",
        "10.9.0.2: door: command timeout",
        "door: running command: true",
        "shutting down",
    ];
    assert_eq!(texts, expected);
    let on_stdout = knockd.running.lines().into_iter().filter(|line| line.stream == Stream::Stdout);
    let on_stdout = on_stdout.map(|line| line.text).filter(|line| !is_about_the_machine(line));
    let on_stdout: Vec<_> = on_stdout.collect();
    // The failure is on stderr.
    let (before, after) = (&expected[1..4], &expected[5..7]);
    let expected =
        [&["listening on eth0..."], before, after, &["waiting for child processes...", "closing..."]]
            .concat();
    assert_eq!(on_stdout, expected);
}

#[test]
fn the_zone_can_be_named_as_containers_do_and_a_wrong_name_does_no_harm() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, "[options]\nlogfile = /run/log\n[door]\nsequence = 1\n").unwrap();
    // Half an hour off whatever else it could be taken for; a machine without zones shows nothing new here.
    for zone in ["Asia/Kolkata", "No/Such_Place"] {
        let now = || {
            let text = sh(&net.server, &format!("TZ={zone} date '+[%Y-%m-%d %H:%M] '"));
            text.trim_end_matches('\n').to_owned()
        };
        let before = now();
        let mut knockd = Knockd::run(net.server.command(KNOCKD).args(["-v", "-c", CONFIG]).env("TZ", zone));
        knockd.stop();
        let after = now();
        let log = net.server.run(&["cat", "/run/log"]).unwrap();
        let line = log.lines().last().unwrap_or_default();
        assert!(line.starts_with(&before) || line.starts_with(&after), "{zone}: `{line}`, not `{after}`");
    }
}

#[test]
fn logrotate_gives_the_log_a_new_file_even_while_the_configuration_has_an_error() {
    const LOG: &str = "/var/log/knockd.log";
    let net = Net::with_private_dirs(&["/var/log"]).unwrap();
    let server = &net.server;
    if server.run(&["sh", "-c", "command -v logrotate"]).is_err() {
        testbed::skip_until_installed("logrotate");
        return;
    }
    // It refuses a directory in which everybody may write.
    sh(server, "chmod 755 /var/log");
    let rules = include_str!("../../../packaging/logrotate.d/knockd");
    server.write_file("/run/rotate.conf", rules).unwrap();
    let rotate = || {
        sh(server, "chmod 644 /run/rotate.conf; logrotate --force --state /run/state /run/rotate.conf 2>&1")
    };
    server.write_file(CONFIG, &format!("[options]\nlogfile = {LOG}\n[door]\nsequence = 1\n")).unwrap();
    sh(server, &format!("'{KNOCKD}' -d -c {CONFIG}"));
    wait_for_file(server, LOG, "starting up, listening on eth0");
    assert_eq!(rotate(), "");
    wait_for_file(server, LOG, "re-opening log file");
    assert_eq!(sh(server, &format!("stat -c %a {LOG}")), "640\n");
    server.write_file(CONFIG, "[door]\nsequence = one\n").unwrap();
    assert_eq!(rotate(), "");
    wait_for_file(server, LOG, "keeping the old configuration");
    hit(&net, 2, &[1]);
    wait_for_file(server, LOG, "10.9.0.2: door: OPEN SESAME");
    sh(server, "kill $(cat /run/knockd.pid)");
}

#[test]
fn a_log_file_that_cannot_be_opened_is_a_warning() {
    let net = Net::new().unwrap();
    let mut knockd = Knockd::start(&net, "[options]\nlogfile = /no/such/log\n[door]\nsequence = 1\n");
    knockd.wait_for("cannot open log file /no/such/log: ");
    hit(&net, 2, &[1]);
    knockd.wait_for("10.9.0.2: door: OPEN SESAME");
}

/// Gives the server a `/dev` of its own, in which a system log can listen, and says where that is from outside as long
/// as the program runs.
fn with_system_log(net: &Net) -> (Running, PathBuf) {
    let script = "set -e
        mkdir /run/dev
        for node in null zero urandom; do
            : >/run/dev/$node
            mount --bind /dev/$node /run/dev/$node
        done
        mount --rbind /run/dev /dev";
    sh(&net.server, script);
    let on_server = net.server.spawn(&["sleep", "1000"]).unwrap();
    let path = on_server.root().unwrap().join("dev/log");
    (on_server, path)
}

#[test]
fn a_system_log_that_goes_away_and_comes_back_does_no_harm() {
    let net = Net::new().unwrap();
    let (_on_server, path) = with_system_log(&net);
    let system_log = UnixDatagram::bind(&path).unwrap();
    let config = "[options]\nUseSyslog\n[door]\nsequence = 1\nstart_command = echo open for %IP%\n";
    let mut knockd = Knockd::start(&net, config);
    // One that no longer reads: its queue is full after a few lines (net.unix.max_dgram_qlen). Then one that is gone.
    for neighbour in 2..102 {
        hit(&net, neighbour, &[1]);
        knockd.wait_for(&format!("open for 10.9.0.{neighbour}"));
    }
    drop(system_log);
    std::fs::remove_file(&path).unwrap();
    hit(&net, 102, &[1]);
    knockd.wait_for("open for 10.9.0.102");
    let system_log = UnixDatagram::bind(&path).unwrap();
    system_log.set_read_timeout(Some(SOON)).unwrap();
    hit(&net, 103, &[1]);
    knockd.wait_for("open for 10.9.0.103");
    let mut buffer = [0; 512];
    let length = system_log.recv(&mut buffer).unwrap();
    assert!(String::from_utf8_lossy(&buffer[..length]).contains(" knockd: "));
    drop(system_log);
    knockd.stop();
}

#[test]
fn the_system_log_gets_the_same_lines() {
    let net = Net::new().unwrap();
    let (_on_server, path) = with_system_log(&net);
    let system_log = UnixDatagram::bind(path).unwrap();
    system_log.set_read_timeout(Some(SOON)).unwrap();
    let received = || loop {
        let mut buffer = [0; 512];
        let length = system_log.recv(&mut buffer).unwrap();
        let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
        if !is_about_the_machine(&message) {
            return message;
        }
    };

    let config = "[options]\nUseSyslog\n[door]\nsequence = 1,2\nseq_timeout = 3\n";
    let mut knockd = Knockd::start(&net, config);
    hit(&net, 2, &[1, 2]);
    hit(&net, 3, &[1]);
    knockd.wait_for("10.9.0.3: door: sequence timeout (stage 1)");
    knockd.stop();
    for text in [
        "starting up, listening on eth0",
        "10.9.0.2: door: Stage 1",
        "10.9.0.2: door: Stage 2",
        "10.9.0.2: door: OPEN SESAME",
        "10.9.0.3: door: Stage 1",
        "10.9.0.3: door: sequence timeout (stage 1)",
        "shutting down",
    ] {
        let message = received();
        // Facility daemon (3) and priority notice (5), then a date such as `Nov 23 23:03:26` (RFC 3164, section 4.1).
        let date_and_rest = message.strip_prefix("<29>").and_then(|rest| rest.split_at_checked(15));
        assert_eq!(date_and_rest.unwrap_or_default().1, format!(" knockd: {text}"), "{message}");
    }
}

/// Two hosts; the server has these lines in its `/etc/hosts`, and its name server says nothing.
fn net_with_names(hosts: &str) -> Net {
    let net = Net::new().unwrap();
    net.server.write_file("/run/hosts", hosts).unwrap();
    net.server.write_file("/run/nsswitch.conf", "hosts: files dns\n").unwrap();
    net.server
        .write_file("/run/resolv.conf", "nameserver 10.9.0.99\noptions timeout:30 attempts:1\n")
        .unwrap();
    // Nobody has that hardware address, so nobody answers, not even that there is nobody.
    let script = "set -e
        ip neighbour add 10.9.0.99 lladdr 02:00:00:00:09:99 dev eth0
        for name in hosts nsswitch.conf resolv.conf; do
            target=$(readlink -m /etc/$name)
            mkdir -p $(dirname $target)
            [ -e $target ] || : >$target
            [ $target = /run/$name ] || mount --bind /run/$name $target
        done";
    sh(&net.server, script);
    net
}

#[test]
fn with_l_the_name_of_a_knocker_is_in_the_lines_about_doors_that_open_and_close() {
    let net = net_with_names("10.9.0.2 client.example\nfd00:9::2 six.example\n10.9.0.3 odd\u{1b}name\n");
    let config = "[options]\nlogfile = /run/log\n[door]\nsequence = 1:tcp,2\nseq_timeout = 3\nstart_command = true\ncmd_timeout = 0\nstop_command = true\n";
    let mut knockd = Knockd::start_with(&net, config, &["-v", "-l"]);
    hit(&net, 2, &[1, 2]);
    knockd.wait_for("10.9.0.2: door: Stage 1");
    knockd.wait_for("10.9.0.2 (client.example): door: OPEN SESAME");
    knockd.wait_for("10.9.0.2 (client.example): door: command timeout");
    // Whoever owns an address chooses its name, so only harmless ones are shown.
    hit(&net, 3, &[1, 2]);
    knockd.wait_for("10.9.0.3: door: OPEN SESAME");
    if common::has_ipv6(&net) {
        common::knock(&net.client, "-d 200 fd00:9::1 1 2");
        knockd.wait_for("fd00:9::2: door: Stage 1");
        knockd.wait_for("fd00:9::2 (six.example): door: OPEN SESAME");
    }
    wait_for_file(&net.server, "/run/log", "] 10.9.0.2 (client.example): door: command timeout\n");
}

#[test]
fn a_name_server_learns_of_openings_and_of_no_stage() {
    let net = net_with_names("");
    let config = "[door]\nsequence = 1,2,3\nseq_timeout = 1\ncommand = true\n";
    let mut queries =
        net.server.spawn(&["tcpdump", "-Z", "root", "-l", "-n", "-i", "eth0", "udp port 53"]).unwrap();
    queries.wait_for_line("listening on eth0", SOON).unwrap();
    let mut knockd = Knockd::start_with(&net, config, &["-v", "-l"]);
    hit(&net, 10, &[1, 2]);
    knockd.wait_for("10.9.0.10: door: sequence timeout (stage 2)");
    hit(&net, 11, &(2000..2020).collect::<Vec<_>>());
    knockd.wait_for("10.9.0.11: scanner");
    hit(&net, 12, &[1, 2, 3]);
    knockd.wait_for("10.9.0.12: door: OPEN SESAME");
    queries.wait_for_line("12.0.9.10.in-addr.arpa", SOON).unwrap();
    let asked = queries.lines();
    for knocker in ["10.0.9.10.in-addr.arpa", "11.0.9.10.in-addr.arpa"] {
        assert!(!asked.iter().any(|line| line.text.contains(knocker)), "{asked:#?}");
    }
    knockd.stop();
}

#[test]
fn a_name_server_that_says_nothing_holds_up_lines_for_two_seconds_and_commands_not_at_all() {
    let net = net_with_names("");
    let config = "[door]\nsequence = 1,2\ncommand = echo opened for %IP%\n";
    let mut knockd = Knockd::start_with(&net, config, &["-v", "-l"]);
    for neighbour in 10..22 {
        hit(&net, neighbour, &[1, 2]);
    }
    let command = knockd.running.wait_for_line("opened for 10.9.0.21", SOON).unwrap().at;
    knockd.wait_for("door: running command: echo opened for 10.9.0.21");
    let lines = knockd.running.lines();
    let of_log = lines.iter().filter(|line| !line.text.starts_with("opened for")).skip(1);
    let of_log: Vec<_> = of_log.filter(|line| !is_about_the_machine(&line.text)).collect();
    let mut expected = Vec::new();
    for neighbour in 10..22 {
        for what in ["Stage 1", "Stage 2", "OPEN SESAME"] {
            expected.push(format!("10.9.0.{neighbour}: door: {what}"));
        }
        expected.push(format!("door: running command: echo opened for 10.9.0.{neighbour}"));
    }
    assert_eq!(of_log.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), expected);
    // The twelve openings wait at the same time: one after the other would be 24 seconds.
    let last = of_log.last().unwrap().at.duration_since(command);
    assert!(last > Duration::from_millis(500) && last < Duration::from_secs(20), "{last:?}");
    knockd.stop();
}

#[test]
fn debug_messages_are_on_stdout_and_the_status_lines_only_with_v() {
    let net = Net::new().unwrap();
    net.server.write_file(CONFIG, "[door]\nsequence = 1\ncommand = echo done\n").unwrap();
    let mut knockd = Running::start(net.server.command(KNOCKD).args(["-D", "-c", CONFIG])).unwrap();
    common::wait_until("a knock that is heard", || {
        hit(&net, 2, &[1]);
        knockd.wait_for_line("done", Duration::from_millis(100)).is_ok()
    });
    let lines = knockd.lines();
    assert!(lines.iter().all(|line| line.stream == Stream::Stdout));
    assert!(
        lines.iter().any(|line| line.text.contains("DEBUG") && line.text.contains("door: Opened")),
        "{lines:?}"
    );
    assert!(!lines.iter().any(|line| line.text.contains("OPEN SESAME")));
}

#[test]
fn a_terminal_that_has_gone_away_does_no_harm() {
    let config =
        "[options]\nlogfile = /run/log\nUseSyslog\n[door]\nsequence = 1\ncommand = echo open >/run/opened\n";
    for outputs in ["2>&1 | true", ">&- 2>&-"] {
        let net = Net::new().unwrap();
        net.server.write_file(CONFIG, config).unwrap();
        let line = format!("'{KNOCKD}' -c {CONFIG} -v -D {outputs}");
        let _shell = net.server.spawn(&["sh", "-c", &line]).unwrap();
        wait_for_file(&net.server, "/run/log", "starting up, listening on eth0");
        hit(&net, 2, &[1]);
        wait_for_file(&net.server, "/run/log", "10.9.0.2: door: OPEN SESAME");
        wait_for_file(&net.server, "/run/opened", "open");
    }
}
