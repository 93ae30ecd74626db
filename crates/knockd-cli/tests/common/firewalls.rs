//! Real ufw, firewalld and fail2ban on the server of a testbed, from a root directory of their own: nothing of them is installed.

use testbed::{Net, Running};

use super::{sh, wait_until};

/// Their programs, as a person finds them.
const PROGRAMS: [&str; 5] = ["ufw", "firewall-cmd", "iptables", "ip6tables", "nft"];

/// Enters the unpacked root with what it may change in memory. A process that ends with the host keeps nothing of it.
const ENTER: &str = r#"set -e
mkdir /run/root /run/etc /run/bin
mount --bind "$1" /run/root
cp -a /run/root/etc/. /run/etc
mount --bind /run/etc /run/root/etc
mount --bind /run /run/root/run
mount --bind /dev /run/root/dev
mount -t proc proc /run/root/proc
mount -t tmpfs tmpfs /run/root/tmp
mount -t tmpfs tmpfs /run/root/var
mkdir /run/root/var/log
ln -s /run /run/root/var/run
shift
for program do
    printf '#!/bin/sh\nPATH=/usr/sbin:/usr/bin\nexec chroot /run/root %s "$@"\n' "$program" >"/run/bin/$program"
    chmod +x "/run/bin/$program"
done"#;

/// A bus for firewalld that lets everybody do everything.
const BUS: &str = "<busconfig>
<type>system</type>
<listen>unix:path=/run/dbus/system_bus_socket</listen>
<policy context=\"default\">
<allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/>
</policy>
</busconfig>
";

/// Puts ufw, firewalld and fail2ban on the server; they do nothing yet. Where they are not unpacked, the test is counted as skipped.
pub(crate) fn unpacked(net: &Net) -> bool {
    let Some(root) = testbed::firewalls() else {
        testbed::skip_until_installed(
            "the directory with ufw and firewalld, which `cargo xtask test` unpacks,",
        );
        return false;
    };
    let arguments = ["sh", "-c", ENTER, "enter", root.to_str().unwrap()];
    net.server.run(&[&arguments[..], &PROGRAMS].concat()).unwrap();
    true
}

/// Runs a script in which their programs are in `PATH`.
pub(crate) fn run(net: &Net, script: &str) -> String {
    sh(&net.server, &format!("PATH=/run/bin:$PATH\n{script}"))
}

/// Starts firewalld, which ends when the values are dropped.
pub(crate) fn firewalld(net: &Net) -> [Running; 2] {
    net.server.write_file("/run/bus.conf", BUS).unwrap();
    sh(&net.server, "mkdir -p /run/dbus");
    let chroot = |program: &str| {
        let words: Vec<_> = ["chroot", "/run/root"].into_iter().chain(program.split(' ')).collect();
        net.server.spawn(&words).unwrap()
    };
    let bus = chroot("dbus-daemon --config-file=/run/bus.conf --nofork --nopidfile");
    wait_until("a bus", || sh(&net.server, "ls /run/dbus") == "system_bus_socket\n");
    let firewalld = chroot("firewalld --nofork --nopid");
    wait_until("firewalld", || run(net, "firewall-cmd --state 2>&1 || true") == "running\n");
    [bus, firewalld]
}

/// Runs a script as a person would on a machine on which they are installed.
pub(crate) fn inside(net: &Net, script: &str) -> String {
    net.server.run(&["chroot", "/run/root", "sh", "-ec", script]).unwrap()
}
