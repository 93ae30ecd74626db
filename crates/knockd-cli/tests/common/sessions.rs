//! A door to port 22, a service there, and who uses it.

use std::net::IpAddr;

use testbed::{Host, Net, Running};

use super::{KNOCKD, Knockd, SOON, knock, sh};

pub(crate) const KNOCK: &str = "10.9.0.1 7101 8202:udp 9303";

/// A door to port 22 with these directives.
pub(crate) fn door(directives: &str) -> String {
    format!(
        "[options]\nFirewall = nftables\n[ssh]\nSequence = 7101,8202:udp,9303\nOpen = tcp/22\n{directives}\n"
    )
}

/// Knocks, and returns when the door is open.
pub(crate) fn open(net: &Net, knockd: &mut Knockd) {
    knock(&net.client, KNOCK);
    knockd.wait_for("10.9.0.2: ssh: let in for ");
}

/// Whether the source can make a connection at this time.
pub(crate) fn reaches(net: &Net) -> bool {
    net.client.can_connect(net.server.ipv4, 22).unwrap()
}

/// What a person sees of the only lease.
pub(crate) fn shown(net: &Net) -> String {
    let text = net.server.run(&[KNOCKD, "status"]).unwrap();
    let (_, rest) = text.split_once("\nOpen doors: ").unwrap();
    rest.lines().nth(1).unwrap_or_default().to_owned()
}

/// A server at port 22 that sends back what it gets, over both address families if there are two. Every connection is a line.
pub(crate) fn echo(server: &Host) -> Running {
    let script = "import os, socket, threading\n\
        def serve(c):\n\
        \x20   try:\n\
        \x20       while data := c.recv(99): c.sendall(data)\n\
        \x20   except OSError as e: print('broken', e, flush=True)\n\
        six = {'family': socket.AF_INET6, 'dualstack_ipv6': True} if os.path.exists('/proc/net/if_inet6') else {}\n\
        s = socket.create_server(('', 22), backlog=100, **six); print('ready', flush=True)\n\
        while True:\n\
        \x20   c = s.accept()[0]; print('accepted', flush=True); threading.Thread(target=serve, args=(c,)).start()";
    serve(server, script)
}

/// A server at port 22 that says a word every 100 ms to its only client.
pub(crate) fn talker(server: &Host) -> Running {
    let script = "import socket, time; s = socket.create_server(('', 22)); print('ready', flush=True); c = s.accept()[0]\n\
                  while True: c.sendall(b'word'); time.sleep(0.1)";
    serve(server, script)
}

fn serve(server: &Host, script: &str) -> Running {
    let mut service = server.spawn(&["python3", "-c", script]).unwrap();
    service.wait_for_line("ready", SOON).unwrap();
    service
}

/// A client of the talker; every word is a line.
pub(crate) fn listener(net: &Net) -> Running {
    let script = "import socket; c = socket.create_connection(('10.9.0.1', 22), 30); print('connected', flush=True)\n\
        try:\n\
        \x20   while c.recv(99): print('word', flush=True)\n\
        \x20   raise OSError('end of file')\n\
        except OSError as e: print('broken:', e, flush=True)";
    let mut client = net.client.spawn(&["python3", "-c", script]).unwrap();
    client.wait_for_line("connected", SOON).unwrap();
    client
}

/// A client of the echo server that talks every 100 ms while the file `/run/talk` exists, and ends when `/run/end` does.
pub(crate) fn session(net: &Net) -> Running {
    session_with(net, net.server.ipv4.into())
}

pub(crate) fn session_with(net: &Net, address: IpAddr) -> Running {
    let script = "import os, socket, sys, time\n\
        c = socket.create_connection((sys.argv[1], 22), 30); print('connected', flush=True)\n\
        try:\n\
        \x20   while not os.path.exists('/run/end'):\n\
        \x20       if os.path.exists('/run/talk'):\n\
        \x20           c.sendall(b'word')\n\
        \x20           if not c.recv(99): raise OSError('end of file')\n\
        \x20       time.sleep(0.1)\n\
        \x20   c.close(); print('closed', flush=True)\n\
        except OSError as e: print('broken:', e, flush=True)";
    let mut session = net.client.spawn(&["python3", "-c", script, &address.to_string()]).unwrap();
    session.wait_for_line("connected", SOON).unwrap();
    session
}

/// How many sockets of the server have a connection at port 22.
pub(crate) fn server_sockets(net: &Net) -> usize {
    let sockets = sh(&net.server, "ss -Hnta 'sport = :22'");
    sockets.lines().filter(|it| !it.starts_with("LISTEN") && !it.starts_with("TIME-WAIT")).count()
}

/// Deletes what the server's conntrack knows of connections from the client to port 22, as `conntrack -D` does. Says whether it knew any.
pub(crate) fn forget_connections(net: &Net) -> bool {
    let script = "import re, socket, struct\n\
        def attribute(kind, value): return struct.pack('HH', 4 + len(value), kind) + value + bytes(-len(value) % 4)\n\
        def nested(kind, *parts): return attribute(0x8000 | kind, b''.join(parts))\n\
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12); s.bind((0, 0))\n\
        for line in open('/proc/net/nf_conntrack'):\n\
        \x20   found = re.search('src=(10.9.0.2) dst=(10.9.0.1) sport=([0-9]+) dport=22 ', line)\n\
        \x20   if not found: continue\n\
        \x20   source, target = map(socket.inet_aton, found.group(1, 2)); port = int(found.group(3))\n\
        \x20   addresses = nested(1, attribute(1, source), attribute(2, target))\n\
        \x20   ports = nested(2, attribute(1, b'\\6'), attribute(2, struct.pack('>H', port)), attribute(3, struct.pack('>H', 22)))\n\
        \x20   body = struct.pack('BBH', socket.AF_INET, 0, 0) + nested(1, addresses, ports)\n\
        # IPCTNL_MSG_CT_DELETE, with NLM_F_REQUEST and NLM_F_ACK; another entry may have ended meanwhile.\n\
        \x20   s.send(struct.pack('IHHII', 16 + len(body), 0x102, 5, 1, 0) + body)\n\
        \x20   error = struct.unpack('i', s.recv(999)[16:20])[0]\n\
        \x20   assert error in (0, -2), error\n\
        \x20   print('deleted')";
    net.server.run(&["python3", "-c", script]).unwrap().contains("deleted")
}
