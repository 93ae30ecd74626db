//! Our units in a real systemd, which is the first process of a machine made of namespaces: at no time is a guarded port open for a
//! stranger, and at no time does an established session end.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::machine::Machine;
use common::sessions::{KNOCK, echo, reaches};
use common::{SOON, knock, sh, wait_until};
use testbed::{Net, Running};

/// Connects again and again, 50 times at once, from an address that has not knocked, and says when that succeeds and how often it was
/// tried.
const HAMMER: &str = "import os, select, socket
tried = 0
print('hammering', flush=True)
while not os.path.exists('/run/enough'):
    sockets = [socket.socket() for _ in range(50)]
    for s in sockets:
        s.setblocking(False); s.bind(('10.9.0.3', 0)); s.connect_ex(('10.9.0.1', 22)); tried += 1
    select.select([], sockets, [], 0.05)
    for s in sockets:
        try: s.getpeername(); print('got in', flush=True)
        except OSError: pass
        s.close()
print('tried', tried, flush=True)";

/// A client of a server that sends back what it gets, for ever. It ends when that fails.
const SESSION: &str = "import socket, time
c = socket.create_connection(('10.9.0.1', 22)); c.settimeout(60)
print('connected', flush=True)
while True:
    c.sendall(b'x'); assert c.recv(1) == b'x'; time.sleep(0.02)";

/// How much of systemd's version there is.
fn version(machine: &Machine) -> u32 {
    let text = machine.run("systemctl --version");
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn without_the_unit_the_network_comes_before_the_guard() {
    let net = Net::new().unwrap();
    let Some(machine) = Machine::boot(&net, false) else { return };
    assert!(!machine.run("cat /run/witness").contains("knockd"), "the fault");
    machine.wait_for_knockd();
    assert!(machine.run("nft list tables").contains("inet knockd"));
}

#[test]
fn no_boot_crash_restart_stop_or_flush_opens_a_port_or_ends_a_session() {
    let net = Net::new().unwrap();
    let _service = echo(&net.server);
    let mut session = net.client.spawn(&["python3", "-c", SESSION]).unwrap();
    session.wait_for_line("connected", SOON).unwrap();
    let Some(machine) = Machine::boot(&net, true) else { return };
    sh(&net.client, "ip address add 10.9.0.3/24 dev eth0");
    let mut hammer = net.client.spawn(&["python3", "-c", HAMMER]).unwrap();
    hammer.wait_for_line("hammering", SOON).unwrap();

    // Boot: the guard is there when the network comes, and knockd later.
    let witness = machine.run("cat /run/witness");
    assert!(witness.contains("table inet knockd\n") && !witness.ends_with("\nactive\n"), "{witness}");
    machine.wait_for_knockd();
    let socket = machine.kept();
    assert_eq!(socket.lines().count(), 1, "{socket}");
    assert!(!reaches(&net));
    knock(&net.client, KNOCK);
    wait_until("the door is open", || reaches(&net));

    // Killed, flushed, started again.
    machine.run("systemctl kill --signal=KILL --kill-who=main knockd");
    machine.flush();
    assert!(reaches(&net), "the door stays open");
    machine.wait_for_knockd();
    assert_eq!(machine.kept(), socket);
    assert!(machine.run("knockd status").contains("10.9.0.2"));
    machine.flush();
    assert!(reaches(&net));

    // An upgrade.
    machine.run("systemctl restart knockd");
    machine.wait_for_knockd();
    assert!(!reaches(&net), "stopping closes the doors");
    let keeps = version(&machine) >= 254;
    assert!(!keeps || machine.kept() == socket);

    // Stopped, flushed, started again.
    machine.run("systemctl stop knockd");
    assert!(!reaches(&net));
    if keeps {
        machine.flush();
        assert!(!reaches(&net));
        assert_eq!(machine.kept(), socket);
    } else {
        testbed::skip("systemd before 254 keeps nothing of a service that is stopped");
    }
    machine.run("systemctl start knockd");
    machine.wait_for_knockd();
    assert!(!keeps || machine.kept() == socket);
    assert!(!reaches(&net));

    // A broken configuration, at a boot.
    machine.run("systemctl stop knockd knockd-guard; echo '[broken' >/etc/knockd.conf; systemctl start knockd-guard knockd");
    machine.wait_for_knockd();
    assert!(machine.run("knockd status").contains("/etc/knockd.conf is unusable"));
    knock(&net.client, KNOCK);
    wait_until("the door is open", || reaches(&net));

    let got_in = |hammer: &Running| hammer.lines().iter().filter(|line| line.text == "got in").count();
    assert_eq!(got_in(&hammer), 0);
    machine.run("knockd guard --remove");
    wait_until("the stranger gets in where there is no guard", || got_in(&hammer) > 0);
    net.client.write_file("/run/enough", "").unwrap();
    println!("a stranger has {} times", hammer.wait_for_line("tried", SOON).unwrap().text);
    assert_eq!(session.lines().len(), 1, "{:?}", session.lines());
    assert!(session.pid().is_ok());
}

#[test]
fn the_way_out_works_while_systemd_keeps_the_guard_whatever_knockd_does() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let Some(machine) = Machine::boot(&net, true) else { return };
    machine.wait_for_knockd();
    let socket = machine.kept();
    let refused = machine.try_run("nft delete table inet knockd").unwrap_err();
    assert!(refused.contains("Operation not permitted"), "the fault: {refused}");

    assert!(machine.run("knockd guard --remove").contains("knockd goes on without it"));
    assert!(reaches(&net));
    machine.run("knockd guard");
    assert!(!reaches(&net));

    machine.run("systemctl kill --signal=STOP --kill-who=main knockd");
    let said = machine.run("knockd guard --remove");
    assert!(said.contains("does not answer and still runs"), "{said}");
    assert!(reaches(&net));
    machine.run("systemctl kill --signal=CONT --kill-who=main knockd; systemctl restart knockd");
    machine.wait_for_knockd();
    assert!(!reaches(&net));

    // It starts again 5 seconds after its death.
    machine.run("systemctl kill --signal=KILL --kill-who=main knockd");
    let said = machine.run("knockd guard --remove");
    assert!(said.starts_with("the guard is removed\n"), "{said}");
    assert!(reaches(&net));
    machine.wait_for_knockd();
    assert!(!reaches(&net));
    // Two lines less in the configuration are a way out as well.
    machine.run("cp /etc/knockd.conf /etc/good.conf; printf '[ssh]\\nSequence = 1,2,3\\nStart_Command = true\\n' >/etc/knockd.conf");
    machine.run("systemctl restart knockd");
    machine.wait_for_knockd();
    assert!(reaches(&net));
    machine.run("cp /etc/good.conf /etc/knockd.conf; systemctl restart knockd");
    machine.wait_for_knockd();
    assert!(!reaches(&net));
    if version(&machine) < 254 {
        testbed::skip("systemd before 254 keeps nothing of a service that is stopped");
        return;
    }
    assert_eq!(machine.kept(), socket);

    machine.run("systemctl stop knockd");
    assert!(!reaches(&net));
    let refused = machine.try_run("nft delete table inet knockd").unwrap_err();
    assert!(refused.contains("Operation not permitted"), "the fault: {refused}");
    assert!(machine.run("knockd guard --remove").starts_with("the guard is removed\n"));
    assert!(reaches(&net));
    assert_eq!(machine.run("knockd guard"), "the guard stands\n");
    assert!(!reaches(&net));

    // A knockd that systemd has not started takes the guard over all the same.
    machine.run("knockd -d && knockd status && kill $(cat /run/knockd.pid)");
    wait_until("it has ended", || machine.try_run("knockd status").is_err());
    assert!(!reaches(&net));

    // By hand, which takes a message bus.
    if machine.try_run("systemctl start dbus").is_err() {
        testbed::skip("dbus is not installed");
        return;
    }
    machine.run("systemctl clean --what=fdstore knockd");
    assert_eq!(machine.kept(), "");
    machine.run("nft delete table inet knockd");
    assert!(reaches(&net));
}

#[test]
fn the_narrower_unit_is_enough_for_native_doors() {
    let net = Net::new().unwrap();
    let _service = net.server.listen(22).unwrap();
    let Some(machine) = Machine::boot_with(&net, true, Some("knockd.service.d/native.conf")) else { return };
    machine.wait_for_knockd();
    let users = machine.run("ps -eo user:20,args | grep '[k]nockd'");
    for process in [
        "knockd-engine        knockd -v",
        "root                 knockd-helper",
        "knockd               knockd-decoder",
    ] {
        assert!(users.contains(process), "{users}");
    }
    let main = machine.run("cat /proc/$(systemctl show --value -p MainPID knockd)/status");
    assert!(
        main.contains("CapEff:\t0000000000003000") && main.contains("CapBnd:\t00000000000030e0"),
        "{main}"
    );
    assert!(!machine.run("cat /run/knockd.log").contains("sandboxed"));
    knock(&net.client, KNOCK);
    wait_until("the door is open", || reaches(&net));
    machine.run("kill -9 $(pgrep -x knockd-decoder)");
    machine.run("systemctl reload knockd");
    machine.wait_for_knockd();
    machine.run("systemctl kill --signal=KILL --kill-who=main knockd");
    machine.flush();
    machine.wait_for_knockd();
    assert!(reaches(&net), "the door stays open");
    machine.run("systemctl stop knockd");
    assert!(!reaches(&net));
}
