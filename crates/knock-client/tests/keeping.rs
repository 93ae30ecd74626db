//! One-time files in step with the server, and `--watch`; with a real knockd.
#![cfg(target_os = "linux")]
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

mod lab;

use std::time::Duration;

use lab::{KNOCK, NATIVE, SOON, command, hosts, is_root, knockd, run, service, sh};
use testbed::{Net, Running};

const ONE_TIME: &str = "[options]\nInterface = eth0\nFirewall = nftables\n[ssh]\nOne_Time_Sequences = /run/lines\nOpen = tcp/22\nLease = 600\n";
const LINES: &str = "7101,8202:udp,9303\n7102,8203:udp,9304\n7103,8204:udp,9305\n";

fn lines(host: &testbed::Host) -> String {
    sh(host, "cat /run/lines")
}

#[test]
fn a_one_time_line_is_struck_out_on_both_sides_when_the_door_opens_and_kept_when_nothing_was_sent() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    net.server.write_file("/run/lines", LINES).unwrap();
    net.client.write_file("/run/lines", LINES).unwrap();
    let service = service(&net.server);
    hosts(&net, "[home]\nhost = \"10.9.0.1\"\none_time = \"/run/lines\"\nverify = \"22\"\ntimeout = 1\n");
    let knock = || run(&net.client, &[KNOCK, "home", "--format", "json"]);
    // Open already: nothing is sent, nothing struck out.
    let ended = knock();
    assert_eq!(
        (ended.code, ended.json("verdict"), ended.json("knocks")),
        (0, "already_open".into(), 0.into())
    );
    assert_eq!(lines(&net.client), LINES);
    let knockd = knockd(&net, ONE_TIME);
    // The same line in every try, also when a hit is lost once.
    let rules = "table ip lossy { chain out { type filter hook output priority 0;\n\
                 tcp dport 9303 quota until 61 bytes drop\n}\n}\n";
    lab::nft(&net.client, rules);
    let ended = knock();
    assert_eq!((ended.code, ended.json("verdict")), (0, "opened".into()), "{ended:?}");
    assert!(ended.json("knocks").as_u64().unwrap() >= 2, "{ended:?}");
    assert_eq!(lines(&net.client), LINES.replacen('7', "#", 1));
    assert_eq!(lines(&net.server), lines(&net.client));
    // Still closed: kept, and said so.
    drop(knockd);
    drop(service);
    let ended = knock();
    assert_eq!((ended.code, ended.json("verdict")), (3, "still_closed".into()), "{ended:?}");
    assert!(
        ended.stderr.contains("knock: kept the sequence in /run/lines for the next knock; "),
        "{ended:?}"
    );
    assert_eq!(lines(&net.client), LINES.replacen('7', "#", 1));
}

#[test]
fn watch_knocks_again_when_the_address_changes_and_before_the_lease_ends_and_says_what_it_does() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    let mut knockd = knockd(&net, NATIVE);
    hosts(
        &net,
        "[home]\nhost = \"10.9.0.1\"\nsequence = \"7101,8202:udp,9303\"\nverify = \"22\"\nlease = 600\n",
    );
    let mut watch = Running::start(&mut command(&net.client, &[KNOCK, "--watch", "home"])).unwrap();
    watch.wait_for_line("home: tcp/22 opened after ", SOON).unwrap();
    watch.wait_for_line("home: next knock in 480 s, or when the address changes", SOON).unwrap();
    knockd.wait_for_line("10.9.0.2: ssh: OPEN SESAME", SOON).unwrap();
    // The new one first: without any address, there would be no route.
    sh(
        &net.client,
        "ip address add 10.9.0.3/24 dev eth0; ip address del 10.9.0.2/24 dev eth0; ip address add 10.9.0.3/24 dev eth0 2>/dev/null || true",
    );
    watch.wait_for_line("home: this side's address is now 10.9.0.3; knocking again", SOON).unwrap();
    watch.wait_for_line("(10.9.0.1 from 10.9.0.3)", SOON).unwrap();
    knockd.wait_for_line("10.9.0.3: ssh: OPEN SESAME", SOON).unwrap();
    drop(watch);
    hosts(
        &net,
        "[home]\nhost = \"10.9.0.1\"\nsequence = \"7101,8202:udp,9303\"\nverify = \"22\"\nlease = 5\n",
    );
    let mut watch = Running::start(&mut command(&net.client, &[KNOCK, "--watch", "home"])).unwrap();
    for _ in 0..2 {
        watch.wait_for_line("home: next knock in 4 s, or when the address changes", SOON).unwrap();
        watch.wait_for_line("home: the lease is about to end; knocking again", SOON).unwrap();
        knockd.wait_for_line("10.9.0.3: ssh: OPEN SESAME", SOON).unwrap();
    }
}

#[test]
fn watch_knocks_again_when_its_interface_is_back_under_another_number() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let add = "ip link add usb0 type veth peer name usb1 && ip address add ADDRESS/24 dev usb0 && ip link set usb0 up && ip link set usb1 up";
    sh(&net.client, &add.replace("ADDRESS", "10.8.0.1"));
    hosts(&net, "[home]\nhost = \"10.8.0.9\"\nsequence = \"7101\"\ninterface = \"usb0\"\nlease = 5\n");
    let mut watch = Running::start(&mut command(&net.client, &[KNOCK, "--watch", "home"])).unwrap();
    watch.wait_for_line("home: next knock in 4 s, or when the address changes", SOON).unwrap();
    sh(&net.client, &format!("ip link del usb0 && {}", add.replace("ADDRESS", "10.8.0.2")));
    watch.wait_for_line("home: this side's address is now 10.8.0.2; knocking again", SOON).unwrap();
    watch.wait_for_line("home: next knock in 4 s, or when the address changes", SOON).unwrap();
}

#[test]
fn options_without_what_they_need_are_usage_errors() {
    let net = Net::new().unwrap();
    hosts(&net, "[home]\nhost = \"10.9.0.1\"\nsequence = \"7101,8202:udp,9303\"\n");
    for (line, message) in [
        ("10.9.0.1 7101 --watch", "knock: --watch needs a profile; make one: knock add NAME HOST\n"),
        (
            "home --retries 1",
            "knock: nothing to verify for --retries or --timeout; add a service: --verify tcp/22\n",
        ),
        (
            "10.9.0.1 1 --timeout 1",
            "knock: nothing to verify for --retries or --timeout; add a service: --verify tcp/22\n",
        ),
    ] {
        let ended = lab::knock(&net.client, line);
        assert_eq!((ended.code, ended.stderr.as_str(), ended.stdout.as_str()), (2, message, ""), "{line}");
    }
}

#[test]
fn a_lock_that_nobody_gives_back_holds_a_knock_up_for_half_a_minute_and_no_longer() {
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    hosts(&net, "[home]\nhost = \"10.9.0.1\"\nsequence = \"7101\"\nverify = \"22\"\n");
    sh(&net.client, "mkdir -p /run/.cache/knock");
    let held = "echo held; exec sleep 600";
    let mut holder = net.client.spawn(&["flock", "/run/.cache/knock/home.lock", "sh", "-c", held]).unwrap();
    holder.wait_for_line("held", SOON).unwrap();
    let ended = run(&net.client, &[KNOCK, "home", "--format", "json"]);
    assert_eq!((ended.code, ended.json("verdict")), (0, "already_open".into()), "{ended:?}");
    let bound = Duration::from_secs(30);
    assert!(ended.took >= bound && ended.took < bound + SOON, "{ended:?}");
    // A folder for locks that cannot be had is no reason not to knock.
    drop(holder);
    sh(&net.client, "rm -r /run/.cache; echo >/run/.cache");
    let ended = run(&net.client, &[KNOCK, "home", "--format", "json"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
}
