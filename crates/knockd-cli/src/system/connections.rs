//! The TCP connections of this machine's own programs.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};

/// All TCP sockets of this network namespace (`proc_net(5)`).
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];

/// How much of each table is read, in bytes, as with the ports in use.
const MAX_TABLE: u64 = 4 << 20;

/// The states of connections that are or were established: `TCP_ESTABLISHED`, and all in which the kernel closes one.
const ESTABLISHED: [&str; 7] = ["01", "04", "05", "06", "08", "09", "0B"];

/// Both ends of a connection, ours first.
pub(crate) type Connection = (SocketAddr, SocketAddr);

/// Returns the connections to ports that are wanted, established ones and those that were. IPv4 is not mapped.
pub(crate) fn established(is_wanted: impl Fn(u16) -> bool) -> HashSet<Connection> {
    let mut found = HashSet::new();
    for table in TABLES.iter().filter_map(|path| File::open(path).ok()) {
        found.extend(read(table).into_iter().filter(|(own, _)| is_wanted(own.port())));
    }
    found
}

/// Takes the second and the third column, each an address and a port, of the lines whose fourth says that they are established.
fn read(table: impl Read) -> Vec<Connection> {
    let lines = BufReader::new(table.take(MAX_TABLE)).lines();
    let connection = |line: String| {
        let mut columns = line.split_whitespace().skip(1);
        let (own, other) = (columns.next()?, columns.next()?);
        ESTABLISHED.contains(&columns.next()?).then(|| Some((end(own)?, end(other)?)))?
    };
    lines.map_while(Result::ok).filter_map(connection).collect()
}

/// Reads an address in words of 32 bits in the machine's order, and a port.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for word in address.as_bytes().chunks(8) {
        if word.len() != 8 {
            return None;
        }
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(address) => IpAddr::from(address),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?),
    };
    Some(SocketAddr::new(address.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_found_once_it_is_established() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                testbed::skip("IPv6 is switched off in the kernel");
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let find = || established(|wanted| wanted == port);
            assert_eq!(find(), HashSet::new());
            let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let expected = (client.peer_addr().unwrap(), client.local_addr().unwrap());
            assert_eq!(find(), HashSet::from([expected]));
        }
    }

    #[test]
    fn lines_that_are_damaged_or_of_another_state_are_passed_over() {
        let line = |state: &str| format!("0: 0100007F:0016 0200007F:1F90 {state} 00000000:00000000\n");
        assert_eq!(read(line("01").as_bytes()).len(), 1);
        for text in [
            "sl local_address\n".to_owned(),
            line("03"),
            line("0A"),
            line("01").replace("7F:", ":"),
            line("01").replace("7F:", "7F"),
            line("01").replace("0016", "10016"),
            line("01").replace("0100007F", "01000\u{e4}7F"),
        ] {
            assert_eq!(read(text.as_bytes()), [], "{text}");
        }
    }
}
