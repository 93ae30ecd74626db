//! What the tests on real interfaces share.
//!
//! Every test runs itself again in a network namespace of its own, which needs root or unprivileged user namespaces.
//! Where neither works the tests fail.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use knockd_capture::{Interface, interfaces};

const INSIDE: &str = "KNOCKD_TEST_IN_NAMESPACE";

/// How long a test may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs this test's body in a process of its own under the first of these `unshare` commands that works.
pub(crate) fn run_under(unshares: &[&str], test: &str, body: fn()) {
    if env::var_os(INSIDE).is_some() {
        // Who waits for a packet that never comes would wait for ever.
        thread::spawn(|| {
            thread::sleep(LIMIT);
            eprintln!("not done within {LIMIT:?}");
            process::exit(1);
        });
        return body();
    }
    let works = |options: &&&str| {
        Command::new("unshare").args([options, "true"]).output().is_ok_and(|o| o.status.success())
    };
    let options = unshares.iter().find(works).unwrap_or_else(|| {
        panic!("unshare {unshares:?}: none works; this test needs root or unprivileged user namespaces")
    });
    let output = Command::new("unshare")
        .arg(options)
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.contains("1 passed"), "inside the namespace:\n{printed}");
}

/// Makes tests out of functions that need an empty network namespace.
macro_rules! in_own_network {
    ($(fn $test:ident() $body:block)*) => { $(
        #[test]
        fn $test() {
            $crate::network::run_under(&["-n", "-Urn"], stringify!($test), || $body);
        }
    )* };
}
pub(crate) use in_own_network;

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes `knock0`, whose other end is `peer0`, with an address of each IP version.
pub(crate) fn make_veth() -> Interface {
    ip("link add knock0 type veth peer name peer0");
    ip("addr add 192.0.2.1/24 dev knock0");
    ip("addr add 2001:db8::1/64 dev knock0 nodad");
    ip("link set peer0 up");
    set_knock0_up();
    interface("knock0")
}

/// Returns when both ends carry packets: the kernel connects them some time after they are up.
pub(crate) fn set_knock0_up() {
    ip("link set knock0 up");
    let carries = |name| {
        let output = Command::new("ip").args(["-o", "link", "show", name]).output().unwrap();
        let link = String::from_utf8(output.stdout).unwrap();
        link.contains("state UP") && !link.contains("qdisc noop ")
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !(carries("knock0") && carries("peer0")) {
        assert!(Instant::now() < deadline, "the link does not come up");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn make_loopback() -> Interface {
    ip("link set lo up");
    interface("lo")
}

pub(crate) fn find(name: &str) -> Option<Interface> {
    interfaces().into_iter().find(|interface| interface.name == name)
}

pub(crate) fn interface(name: &str) -> Interface {
    find(name).unwrap()
}
