//! Tasks that need a process on one of the testbed's hosts.

use std::io::{BufRead, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use pnet::datalink::{self, Channel, DataLinkReceiver, DataLinkSender};
use socket2::SockRef;
use tappers::{Interface, Tun};

/// Helps the testbed of knockd on one of its hosts
#[derive(Parser)]
enum Arguments {
    /// Sends the frames on stdin, one line of hexadecimal digits each, out of eth0
    Frames,
    /// Prints the frames that eth0 receives and sends, one line of hexadecimal digits each
    Capture,
    /// Greets everybody who connects to a TCP port
    Listen {
        /// The port to listen on
        port: u16,
    },
    /// Makes tun0 and sends every IPv4 packet that leaves by it back, with source and destination exchanged
    Mirror {
        /// Milliseconds that a packet is on its way
        delay: u64,
    },
    /// Accepts what a firewall redirects to a TCP port and passes it on to another host, at the port that was meant
    Proxy {
        /// The port to listen on
        port: u16,
        /// The host to connect to
        to: Ipv4Addr,
    },
    /// Tries for one second to connect to a TCP port and prints `open` or `closed`
    Connect {
        /// The address to connect to
        address: IpAddr,
        /// The port to connect to
        port: u16,
    },
}

fn main() -> Result<()> {
    match Arguments::parse() {
        Arguments::Frames => frames(),
        Arguments::Capture => capture(),
        Arguments::Listen { port } => listen(port),
        Arguments::Mirror { delay } => mirror(Duration::from_millis(delay)),
        Arguments::Proxy { port, to } => proxy(port, to),
        Arguments::Connect { address, port } => connect(SocketAddr::new(address, port)),
    }
}

fn frames() -> Result<()> {
    let (mut sender, _) = open_eth0()?;
    for (line, number) in std::io::stdin().lock().lines().zip(1..) {
        let frame = parse_hex(&line?).with_context(|| format!("line {number}"))?;
        let sent = sender.send_to(&frame, None).ok_or_else(|| anyhow!("no room"))?;
        sent.with_context(|| format!("cannot send frame {number} of {} bytes", frame.len()))?;
    }
    Ok(())
}

fn capture() -> Result<()> {
    let (_, mut receiver) = open_eth0()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "capturing")?;
    loop {
        let frame = receiver.next()?;
        for byte in frame {
            write!(out, "{byte:02x}")?;
        }
        writeln!(out)?;
    }
}

fn listen(port: u16) -> Result<()> {
    // Where IPv6 exists, its wildcard address also accepts IPv4 connections.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .with_context(|| format!("cannot listen on port {port}"))?;
    println!("listening on port {port}");
    for stream in listener.incoming() {
        let mut stream = stream?;
        // A client that has already left is not our concern.
        let _ = writeln!(stream, "Hello from port {port} of the knockd testbed.");
    }
    Ok(())
}

fn mirror(delay: Duration) -> Result<()> {
    let tun = Arc::new(Tun::new_named(Interface::new("tun0")?).context("cannot make tun0")?);
    println!("mirroring");
    let (under_way, arriving) = mpsc::channel::<(Instant, Vec<u8>)>();
    let end = Arc::clone(&tun);
    thread::spawn(move || {
        for (at, packet) in arriving {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            // Packets that the kernel refuses are lost, as on any link.
            let _ = end.send(&packet);
        }
    });
    let mut packet = [0; 2048];
    loop {
        let length = tun.recv(&mut packet)?;
        if packet[0] >> 4 == 4 {
            // Bytes 12 to 19 are both addresses (RFC 791, section 3.1); no checksum depends on their order.
            packet[12..20].rotate_left(4);
            under_way.send((Instant::now() + delay, packet.get(..length).unwrap_or_default().to_vec()))?;
        }
    }
}

fn proxy(port: u16, to: Ipv4Addr) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .with_context(|| format!("cannot listen on port {port}"))?;
    println!("listening on port {port}");
    for near in listener.incoming() {
        let near = near?;
        thread::spawn(move || pass_on(&near, to));
    }
    Ok(())
}

/// Connects to the port that a redirected connection was meant for, and copies both ways until one end has left.
fn pass_on(near: &TcpStream, to: Ipv4Addr) -> Result<()> {
    let meant = SockRef::from(near).original_dst_v4()?.as_socket().context("no address")?;
    let far = TcpStream::connect((to, meant.port()))?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut &*near, &mut &far);
            far.shutdown(Shutdown::Write)
        });
        let _ = std::io::copy(&mut &far, &mut &*near);
        near.shutdown(Shutdown::Write)
    })?;
    Ok(())
}

fn connect(address: SocketAddr) -> Result<()> {
    let answer = TcpStream::connect_timeout(&address, Duration::from_secs(1));
    writeln!(std::io::stdout(), "{}", if answer.is_ok() { "open" } else { "closed" })?;
    Ok(())
}

fn open_eth0() -> Result<(Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>)> {
    let interfaces = datalink::interfaces();
    let eth0 =
        interfaces.iter().find(|interface| interface.name == "eth0").context("there is no eth0 here")?;
    let config = datalink::Config { promiscuous: false, ..datalink::Config::default() };
    match datalink::channel(eth0, config).context("cannot open eth0")? {
        Channel::Ethernet(sender, receiver) => Ok((sender, receiver)),
        _ => bail!("eth0 is no Ethernet interface"),
    }
}

fn parse_hex(digits: &str) -> Result<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).context("not a hexadecimal digit");
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { bail!("half a byte is missing") };
    pairs.iter().map(|&[high, low]| Ok(u8::try_from(digit(high)? << 4 | digit(low)?)?)).collect()
}
