//! Packets in a compact notation, for tests that a person can read at a glance.
//!
//! `7000 8000u 9000/SA@10.9.0.11<10.9.0.3 1.5s 7000` is a SYN to port 7000, a UDP datagram to port 8000, a TCP segment
//! with the flags SYN and ACK to port 9000 of 10.9.0.11 from 10.9.0.3, a pause of 1.5 seconds, and another SYN.
//!
//! The flags are `S A F R P U`, and `E` for ECE and `C` for CWR; `7000/` has none of them. The source is the client's
//! address unless `<` names another, the destination the server's unless `@` does. Both are of the same family, so
//! `@fd00:9::1` comes from the client's IPv6 address, and `<fd00:9::3` goes to the server's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use testbed::{Flags, Frame};

/// One word of the notation.
#[derive(Debug)]
pub enum Hit {
    /// A packet.
    Packet(Frame),
    /// A pause before the next packet.
    Pause(Duration),
}

/// Parses the notation, or panics.
pub fn parse(text: &str) -> Vec<Hit> {
    text.split_whitespace().map(parse_word).collect()
}

fn parse_word(word: &str) -> Hit {
    if let Some(seconds) = word.strip_suffix('s') {
        return Hit::Pause(Duration::from_secs_f64(seconds.parse().expect("seconds")));
    }
    let (word, source) = split(word, '<');
    let (word, destination) = split(word, '@');
    let [source, destination]: [Option<IpAddr>; 2] =
        [source, destination].map(|text| text.map(|text| text.parse().expect("an address")));
    let v6 = source.or(destination).is_some_and(|address| address.is_ipv6());
    let of_host = |last: u8| -> IpAddr {
        if v6 {
            Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, last.into()).into()
        } else {
            Ipv4Addr::new(10, 9, 0, last).into()
        }
    };
    let (source, destination) = (source.unwrap_or(of_host(2)), destination.unwrap_or(of_host(1)));
    Hit::Packet(if let Some(port) = word.strip_suffix('u') {
        Frame::udp(source, destination, port.parse().expect("a UDP port"), b"\0")
    } else {
        let (port, flags) = split(word, '/');
        let port = port.parse().expect("a TCP port");
        Frame::tcp(source, destination, port, parse_flags(flags.unwrap_or("S")))
    })
}

fn split(word: &str, at: char) -> (&str, Option<&str>) {
    word.split_once(at).map_or((word, None), |(before, after)| (before, Some(after)))
}

fn parse_flags(letters: &str) -> Flags {
    // In the order of the bits in byte 13 of a TCP header (RFC 9293, section 3.1).
    let bit = |letter| 1 << "FSRPAUEC".find(letter).expect("a TCP flag");
    Flags(letters.chars().map(bit).sum())
}
