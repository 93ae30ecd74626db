//! ssh through a door: `knock proxy`, `Match exec`, sessions that start at once; with a real OpenSSH and a real knockd.
#![cfg(target_os = "linux")]
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

mod lab;

use std::io::Write;
use std::process::Stdio;
use std::thread;

use lab::{
    COMMAND, FIREWALL, KNOCK, NATIVE, SOON, command, hosts, is_root, knockd, nft, run, service, sh,
    ssh_config, sshd,
};
use testbed::{Net, Running};

const HOME: &str = "[home]\nhost = \"10.9.0.1\"\nsequence = \"7101,8202:udp,9303\"\nverify = \"tcp/22\"\n\
                    timeout = 30\n";
const WRONG: &str = "[home]\nhost = \"10.9.0.1\"\nsequence = \"7101,8202:udp,9304\"\nverify = \"tcp/22\"\n";

/// How often a knock has opened the door.
fn openings(knockd: &Running) -> usize {
    knockd.lines().iter().filter(|line| line.text.contains("OPEN SESAME")).count()
}

/// The proxy of ssh, as it is in the configuration of ssh.
fn proxy_command() -> String {
    format!("Host 10.9.0.1\n    ProxyCommand {KNOCK} proxy %h %p\n")
}

#[test]
fn ssh_logs_in_through_the_proxy_at_the_first_try_and_at_the_second_if_a_hit_is_lost() {
    if !is_root() {
        return;
    }
    for lost in [false, true] {
        let net = Net::new().unwrap();
        let Some(_sshd) = sshd(&net) else { return };
        let knockd = knockd(&net, NATIVE);
        // A hit that is lost costs this time; the door opens in a fraction of it.
        hosts(&net, &if lost { HOME.replace("timeout = 30", "timeout = 3") } else { HOME.to_owned() });
        ssh_config(&net, &proxy_command());
        if lost {
            // The first SYN to the last port, which is 60 bytes long.
            let rules = "table ip lossy { chain out { type filter hook output priority 0;\n\
                         tcp dport 9303 quota until 61 bytes drop\n}\n}\n";
            nft(&net.client, rules);
        }
        let ended = run(&net.client, &["ssh", "-F", "/run/config", "10.9.0.1", "echo logged in"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "logged in\n"), "{lost}: {ended:?}");
        // In a pipe, the proxy says nothing about a knock that worked.
        assert_eq!(ended.stderr, "", "{lost}");
        assert_eq!(openings(&knockd), 1, "{lost}");
        // While the door is open, it connects without a knock.
        let ended = run(&net.client, &["ssh", "-F", "/run/config", "10.9.0.1", "echo again"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "again\n"), "{lost}: {ended:?}");
        assert_eq!(openings(&knockd), 1, "{lost}");
    }
}

#[test]
fn ten_sessions_that_start_at_once_share_one_knock() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let Some(_sshd) = sshd(&net) else { return };
    let knockd = knockd(&net, NATIVE);
    // Slow hits, so that they would mix.
    hosts(&net, &format!("{HOME}delay = 200\n"));
    ssh_config(&net, &proxy_command());
    thread::scope(|scope| {
        for number in 0..10 {
            let net = &net;
            scope.spawn(move || {
                let say = format!("echo session {number}");
                let ended = run(&net.client, &["ssh", "-F", "/run/config", "10.9.0.1", &say]);
                assert_eq!(
                    (ended.code, ended.stdout),
                    (0, format!("session {number}\n")),
                    "{}",
                    ended.stderr
                );
            });
        }
    });
    assert_eq!(openings(&knockd), 1);
    // Each step once: nothing has spoilt anything.
    let steps = knockd.lines().iter().filter(|line| line.text.contains("ssh: Stage ")).count();
    assert_eq!(steps, 3);
}

#[test]
fn ten_knocks_of_a_profile_at_once_are_one_knock() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    let knockd = knockd(&net, NATIVE);
    hosts(&net, &format!("{HOME}delay = 200\n"));
    let verdicts = thread::scope(|scope| {
        let running =
            [(); 10].map(|()| scope.spawn(|| run(&net.client, &[KNOCK, "home", "--format", "json"])));
        running.map(|knock| {
            let ended = knock.join().unwrap();
            assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
            ended.json("verdict")
        })
    });
    assert_eq!(verdicts.iter().filter(|verdict| *verdict == "opened").count(), 1, "{verdicts:?}");
    assert_eq!(verdicts.iter().filter(|verdict| *verdict == "already_open").count(), 9, "{verdicts:?}");
    assert_eq!(openings(&knockd), 1);
    // One that comes later knocks, to keep the door open for longer.
    let ended = run(&net.client, &[KNOCK, "home", "--format", "json"]);
    assert_eq!((ended.code, ended.json("knocks")), (0, 1.into()), "{ended:?}");
    assert_eq!(openings(&knockd), 2);
}

#[test]
fn match_exec_knocks_before_ssh_connects_and_a_knock_that_fails_does_not_keep_it_from_trying() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let Some(_sshd) = sshd(&net) else { return };
    let _knockd = knockd(&net, NATIVE);
    let config = format!(
        "Match originalhost home exec \"{KNOCK} home --retries 0 --timeout 1\"\n    HostName 10.9.0.1\n\
         Host home\n    HostName 10.9.0.2\n    ConnectTimeout 2\n"
    );
    ssh_config(&net, &config);
    // Without the knock, the block does not apply, and ssh goes on with the rest: another address, in this test.
    hosts(&net, WRONG);
    let ended = run(&net.client, &["ssh", "-F", "/run/config", "home", "echo logged in"]);
    assert_eq!(ended.code, 255, "{ended:?}");
    assert!(ended.stderr.contains("knock: home: tcp/22 is still closed after 1 knock: "), "{ended:?}");
    assert!(ended.stderr.contains("connect to host 10.9.0.2 port 22: "), "{ended:?}");
    hosts(&net, HOME);
    let ended = run(&net.client, &["ssh", "-F", "/run/config", "home", "echo logged in"]);
    assert_eq!(
        (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
        (0, "logged in\n", ""),
        "{ended:?}"
    );
}

#[test]
fn the_command_of_a_profile_follows_its_knock() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let Some(_sshd) = sshd(&net) else { return };
    let _knockd = knockd(&net, NATIVE);
    ssh_config(&net, "");
    hosts(
        &net,
        &format!("{HOME}then = [\"ssh\", \"-F\", \"/run/config\", \"10.9.0.1\", \"echo in; exit 9\"]\n"),
    );
    let ended = run(&net.client, &[KNOCK, "home"]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (9, "in\n", ""), "{ended:?}");
    let ended = run(&net.client, &[KNOCK, "home", "--then", "echo", "instead"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "instead\n"), "{ended:?}");
}

#[test]
fn a_door_that_stays_closed_does_not_keep_the_proxy_from_connecting_with_the_patience_of_the_system() {
    if !is_root() {
        return;
    }
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    nft(&net.server, FIREWALL);
    let _knockd = knockd(&net, COMMAND);
    hosts(&net, &format!("{WRONG}retries = 1\ntimeout = 1\n"));
    let mut proxy = Running::start(&mut command(&net.client, &[KNOCK, "proxy", "home", "22"])).unwrap();
    proxy
        .wait_for_line("knock: home: tcp/22 is still closed after 2 knocks: no answer from 10.9.0.1; ", SOON)
        .unwrap();
    // Somebody else opens it; the system repeats its SYN.
    sh(&net.server, "nft flush ruleset");
    proxy.wait_for_line("hello", SOON).unwrap();
    assert_eq!(proxy.wait(SOON).unwrap().code(), Some(0));
}

#[test]
fn the_proxy_connects_without_a_profile_and_says_so() {
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    for text in ["", "[other]\nhost = \"192.0.2.1\"\nsequence = \"1,2\"\n"] {
        hosts(&net, text);
        let ended = run(&net.client, &[KNOCK, "proxy", "10.9.0.1", "22"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "hello\n"), "{ended:?}");
        assert_eq!(ended.stderr, "knock: no profile for 10.9.0.1; connecting without a knock\n");
    }
    hosts(&net, "[home\n");
    let ended = run(&net.client, &[KNOCK, "proxy", "10.9.0.1", "22"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "hello\n"), "{ended:?}");
    assert!(ended.stderr.contains("hosts.toml:1:6"), "{ended:?}");
    hosts(&net, "");
    let ended = run(&net.client, &[KNOCK, "proxy", "10.9.0.1", "23"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
    let expected = "knock: no profile for 10.9.0.1; connecting without a knock\n\
                    knock: cannot connect to 10.9.0.1: Connection refused\n";
    assert_eq!(ended.stderr, expected);
    let ended = run(&net.client, &[KNOCK, "proxy", "--profile", "nix", "10.9.0.1", "22"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "hello\n"), "{ended:?}");
    let expected =
        "knock: no profile \"nix\" in /run/.config/knock/hosts.toml\nknock: connecting without a knock\n";
    assert_eq!(ended.stderr, expected);
    hosts(&net, &HOME.replace("10.9.0.1", "host.invalid"));
    let ended = run(&net.client, &[KNOCK, "proxy", "home", "22"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert_eq!(ended.stderr.matches("cannot resolve host \"host.invalid\"").count(), 1, "{ended:?}");
}

#[test]
fn the_proxy_takes_the_profile_whose_service_is_at_the_port_and_the_one_that_is_named() {
    let net = Net::new().unwrap();
    // A profile whose file does not exist says which one was taken.
    let profile = |name: &str, verify: &str| {
        format!("[{name}]\nhost = \"10.9.0.1\"\none_time = \"/nonexistent/{name}\"\nverify = \"{verify}\"\n")
    };
    hosts(&net, &[profile("web", "tcp/443"), profile("ssh", "tcp/22"), profile("mail", "tcp/22")].concat());
    for (line, taken) in [
        (["10.9.0.1", "22"].as_slice(), "ssh"),
        (&["10.9.0.1", "443"], "web"),
        (&["10.9.0.1", "80"], "web"),
        (&["mail", "22"], "mail"),
        (&["--profile", "mail", "10.9.0.1", "22"], "mail"),
    ] {
        let ended = run(&net.client, &[&[KNOCK, "proxy"], line].concat());
        assert!(ended.stderr.contains(&format!("/nonexistent/{taken}")), "{line:?}: {ended:?}");
    }
}

#[test]
fn the_pipe_carries_every_byte_both_ways_and_the_end_of_each_way_on_its_own() {
    let net = Net::new().unwrap();
    // It answers only when it has seen the end, and has a lot to say.
    let script = "import socket\n\
        s = socket.create_server(('', 22)); print('ready', flush=True)\n\
        while True:\n\
        \x20   c = s.accept()[0]; all = b''\n\
        \x20   while data := c.recv(65536): all += data\n\
        \x20   c.sendall(all[::-1]); c.close()";
    let mut service = net.server.spawn(&["python3", "-c", script]).unwrap();
    service.wait_for_line("ready", SOON).unwrap();
    hosts(&net, HOME);
    let sent: Vec<u8> =
        (0..3_000_000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    let mut proxy = command(&net.client, &[KNOCK, "proxy", "home", "22"]);
    let mut proxy = proxy.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = proxy.stdin.take().unwrap();
    stdin.write_all(&sent).unwrap();
    drop(stdin);
    let output = proxy.wait_with_output().unwrap();
    let expected: Vec<u8> = sent.into_iter().rev().collect();
    assert!(output.stdout == expected, "{} bytes of {}", output.stdout.len(), expected.len());
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_proxy_ends_when_the_server_hangs_up_although_its_input_is_open() {
    let net = Net::new().unwrap();
    let _service = service(&net.server);
    hosts(&net, HOME);
    let mut proxy = command(&net.client, &[KNOCK, "proxy", "home", "22"]);
    let mut proxy = proxy.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let _stdin = proxy.stdin.take().unwrap();
    let output = proxy.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"hello\n".as_slice()));
}
