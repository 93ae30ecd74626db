//! The grammar of hits. It keeps where each part stands, so that an error points at the part that is wrong.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use data_encoding::{BASE64, DecodeError, Encoding, HEXLOWER_PERMISSIVE};
use dns_lookup::SockType;
use knockd_core::{Protocol, TcpFlags, similar};

use super::{ECHO_SIZE, Hit, Packet, Tcp, ZERO_BYTE};
use crate::target::first_address;

/// What fits into an IPv4 packet behind its header and one of eight bytes, as UDP and ICMP echo have.
const MAX_PAYLOAD: u16 = u16::MAX - 20 - 8;

const ECHO: &str = "icmp";
const CONNECTION: &str = "tcp-connect";
const SETTINGS: [&str; 6] = ["delay", "flags", "hex", "text", "base64", "size"];

/// Why a text is no hit, and which part of it is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HitError {
    text: String,
    wrong: Wrong,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Wrong {
    message: String,
    place: Range<usize>,
}

impl HitError {
    /// Makes the error of a text that has no hit at all.
    pub(crate) fn of_nothing(text: &str) -> Self {
        Self { text: text.to_owned(), wrong: whole(text).wrong("expected a port".to_owned()) }
    }

    /// Returns the wrong piece, in bytes of the parsed text; empty where something is missing.
    pub fn place(&self) -> Range<usize> {
        self.wrong.place.clone()
    }

    /// Returns the parsed text and, in a second line, carets below the wrong part; `None` if all of it is wrong.
    pub fn pointer(&self) -> Option<String> {
        let Range { start, end } = self.place();
        let (before, piece) = (self.text.get(..start)?, self.text.get(start..end)?);
        // Each character takes one column here, also one that would move the cursor.
        let shown: String =
            self.text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect();
        let carets = "^".repeat(piece.chars().count().max(1));
        (piece.len() < self.text.len())
            .then(|| format!("{shown}\n{}{carets}", " ".repeat(before.chars().count())))
    }
}

/// Prints one line, without the position.
impl fmt::Display for HitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.wrong.message)
    }
}

impl std::error::Error for HitError {}

pub(super) fn one(text: &str, only_udp: bool) -> Result<Hit, HitError> {
    hit(whole(text), only_udp).map_err(|wrong| HitError { text: text.to_owned(), wrong })
}

pub(super) fn list(text: &str, only_udp: bool) -> Result<Vec<Hit>, HitError> {
    let list = whole(text).trimmed().without_outer(',');
    if list.text.trim().is_empty() && text.contains(',') {
        return Ok(Vec::new());
    }
    let hits = list.split(',').map(|piece| hit(piece, only_udp)).collect::<Result<_, _>>();
    hits.map_err(|wrong| HitError { text: text.to_owned(), wrong })
}

/// A part of the parsed text, and the byte at which it starts.
#[derive(Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    at: usize,
}

const fn whole(text: &str) -> Piece<'_> {
    Piece { text, at: 0 }
}

impl Piece<'_> {
    fn trimmed(self) -> Self {
        let start = self.text.trim_start();
        Self { text: start.trim_end(), at: self.at + self.text.len() - start.len() }
    }

    /// Removes one such character from the start and one from the end.
    fn without_outer(self, outer: char) -> Self {
        let (text, at) = match self.text.strip_prefix(outer) {
            Some(text) => (text, self.at + outer.len_utf8()),
            None => (self.text, self.at),
        };
        Self { text: text.strip_suffix(outer).unwrap_or(text), at }
    }

    fn split(self, by: char) -> impl Iterator<Item = Self> {
        let mut at = self.at;
        self.text.split(by).map(move |text| {
            let piece = Self { text, at };
            at += text.len() + by.len_utf8();
            piece
        })
    }

    fn split_once(self, by: char) -> Option<(Self, Self)> {
        let (before, after) = self.text.split_once(by)?;
        let at = self.at + before.len() + by.len_utf8();
        Some((Self { text: before, at: self.at }, Self { text: after, at }))
    }

    /// Returns the character that contains this byte.
    fn char_at(self, byte: usize) -> Option<Self> {
        let (start, char) = self.text.char_indices().take_while(|(start, _)| *start <= byte).last()?;
        Some(Self { text: self.text.get(start..start + char.len_utf8())?, at: self.at + start })
    }

    fn is(self, word: &str) -> bool {
        self.text.eq_ignore_ascii_case(word)
    }

    fn wrong(self, message: String) -> Wrong {
        Wrong { message, place: self.at..self.at + self.text.len() }
    }
}

fn hit(piece: Piece<'_>, only_udp: bool) -> Result<Hit, Wrong> {
    let piece = piece.trimmed();
    let (port, rest) = piece.split_once(':').map_or((piece, None), |(port, rest)| (port, Some(rest)));
    let port = port.trimmed();
    let mut rest = rest.into_iter().flat_map(|rest| rest.split(':')).peekable();
    if port.is(ECHO) {
        if only_udp {
            return Err(port.wrong("with -u, every hit is UDP; an echo request is not".to_owned()));
        }
        let Settings { delay, size, .. } = Settings::parse(rest, Kind::Echo)?;
        let packet = Packet::Echo { size: size.unwrap_or(ECHO_SIZE) };
        return Ok(Hit { packet, delay, port_text: ECHO.to_owned() });
    }

    let protocol = rest.next_if(|piece| !piece.text.contains('=')).map(Piece::trimmed);
    let kind = match protocol {
        // Scripts write "$port:$proto" with an empty proto; knock 0.8 reads that as TCP.
        None => Kind::Tcp,
        Some(protocol) => parse_protocol(protocol)?,
    };
    let kind = match (kind, only_udp) {
        (Kind::Connection, true) => {
            let place = protocol.unwrap_or(port);
            return Err(place.wrong("with -u, every hit is UDP, which has no connections".to_owned()));
        }
        (_, true) => Kind::Udp,
        (kind, false) => kind,
    };
    let settings = Settings::parse(rest, kind)?;
    let number = parse_port(port, if kind == Kind::Udp { Protocol::Udp } else { Protocol::Tcp })?;
    let tcp = |kind| Packet::Tcp { port: number, kind };
    let packet = match kind {
        Kind::Udp => {
            Packet::Udp { port: number, payload: settings.payload.unwrap_or_else(|| ZERO_BYTE.to_vec()) }
        }
        Kind::Connection => tcp(Tcp::Connection),
        Kind::Tcp | Kind::Echo => tcp(settings.flags.map_or(Tcp::Syn, Tcp::Flags)),
    };
    Ok(Hit { packet, delay: settings.delay, port_text: port.text.to_owned() })
}

/// What settings are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Connection,
    Udp,
    Echo,
}

fn parse_protocol(piece: Piece<'_>) -> Result<Kind, Wrong> {
    const NAMES: [(&str, Kind); 4] =
        [("", Kind::Tcp), ("tcp", Kind::Tcp), ("udp", Kind::Udp), (CONNECTION, Kind::Connection)];
    if let Some((_, kind)) = NAMES.iter().find(|(name, _)| piece.is(name)) {
        return Ok(*kind);
    }
    let expected = if piece.is(ECHO) {
        "an echo request has no port: write `icmp` alone"
    } else if SETTINGS.iter().any(|setting| piece.is(setting)) {
        return Err(piece.wrong(format!("{:?} has no value; expected {}=…", piece.text, piece.text)));
    } else {
        "expected tcp, udp or tcp-connect"
    };
    Err(piece.wrong(format!("invalid protocol {:?}; {expected}", piece.text)))
}

fn parse_port(piece: Piece<'_>, protocol: Protocol) -> Result<u16, Wrong> {
    // A service name contains a letter (RFC 6335, section 5.1). Without one, getaddrinfo would read 99999 as 34463.
    let port = if piece.text.contains(|c: char| c.is_ascii_alphabetic()) {
        service_port(piece.text, protocol)
    } else {
        piece.text.parse().ok()
    };
    port.ok_or_else(|| {
        piece.wrong(format!("invalid port {:?}; expected 0 to 65535 or a service name", piece.text))
    })
}

fn service_port(name: &str, protocol: Protocol) -> Option<u16> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::DGram,
    };
    first_address(None, Some(name), 0, kind).ok().map(|address| address.port())
}

#[derive(Default)]
struct Settings {
    delay: Option<Duration>,
    flags: Option<TcpFlags>,
    payload: Option<Vec<u8>>,
    size: Option<u16>,
}

impl Settings {
    fn parse<'a>(pieces: impl Iterator<Item = Piece<'a>>, kind: Kind) -> Result<Self, Wrong> {
        let mut settings = Self::default();
        let mut after_text = false;
        for piece in pieces {
            settings.add(piece, kind, after_text)?;
            after_text = piece.split_once('=').is_some_and(|(key, _)| key.trimmed().is("text"));
        }
        Ok(settings)
    }

    fn add(&mut self, piece: Piece<'_>, kind: Kind, after_text: bool) -> Result<(), Wrong> {
        let Some((key, value)) = piece.split_once('=') else {
            let piece = piece.trimmed();
            let expected = match kind {
                _ if after_text => "a text ends at a colon: write it as hex= or base64=",
                Kind::Tcp => "expected delay=… or flags=…",
                Kind::Connection => "expected delay=…",
                Kind::Udp => "expected delay=…, hex=…, text=… or base64=…",
                Kind::Echo => "expected delay=… or size=…",
            };
            return Err(piece.wrong(format!("invalid setting {:?}; {expected}", piece.text)));
        };
        let key = key.trimmed();
        let name = SETTINGS.into_iter().find(|name| key.is(name)).ok_or_else(|| {
            let expected = match similar(key.text, SETTINGS) {
                Some(name) => format!("did you mean {name}?"),
                None => format!("expected {}", SETTINGS.join(", ")),
            };
            key.wrong(format!("unknown setting {:?}; {expected}", key.text))
        })?;
        let refusal = match (name, kind) {
            ("flags", Kind::Connection) => Some("the kernel chooses the flags of a connection; write `tcp`"),
            ("flags", Kind::Udp | Kind::Echo) => Some("only TCP has flags"),
            ("size", Kind::Tcp | Kind::Connection | Kind::Udp) => {
                Some("only an echo request has a size: icmp:size=…")
            }
            ("hex" | "text" | "base64", Kind::Tcp | Kind::Connection | Kind::Echo) => {
                Some("only UDP has a payload: write `udp` before it")
            }
            _ => None,
        };
        if let Some(refusal) = refusal {
            return Err(key.wrong(refusal.to_owned()));
        }
        let (what, is_given) = match name {
            "delay" => (name, self.delay.is_some()),
            "flags" => (name, self.flags.is_some()),
            "size" => (name, self.size.is_some()),
            _ => ("payload", self.payload.is_some()),
        };
        if is_given {
            return Err(key.wrong(format!("second {what}; expected one")));
        }
        match name {
            "delay" => self.delay = Some(delay(value.trimmed())?),
            "flags" => self.flags = Some(parse_flags(value.trimmed(), '+')?),
            "size" => self.size = Some(size(value.trimmed())?),
            "text" => self.payload = Some(bounded(value, value.text.as_bytes().to_vec())?),
            "hex" => {
                let expected = "pairs of hexadecimal digits";
                self.payload = Some(decoded(value.trimmed(), &HEXLOWER_PERMISSIVE, expected)?);
            }
            _ => self.payload = Some(decoded(value.trimmed(), &BASE64, "base64 with its padding")?),
        }
        Ok(())
    }
}

fn delay(value: Piece<'_>) -> Result<Duration, Wrong> {
    value.text.parse().map(Duration::from_millis).map_err(|_| {
        value.wrong(format!("invalid delay {:?}; expected a whole number of milliseconds", value.text))
    })
}

fn size(value: Piece<'_>) -> Result<u16, Wrong> {
    value.text.parse().ok().filter(|size| *size <= MAX_PAYLOAD).ok_or_else(|| {
        value.wrong(format!("invalid size {:?}; expected 0 to {MAX_PAYLOAD} bytes", value.text))
    })
}

fn decoded(value: Piece<'_>, encoding: &Encoding, expected: &str) -> Result<Vec<u8>, Wrong> {
    let wrong = |DecodeError { position, kind }| {
        // Where the length is wrong, no character of it is.
        let place = match kind {
            data_encoding::DecodeKind::Length => value,
            _ => value.char_at(position).unwrap_or(value),
        };
        place.wrong(format!("invalid payload; expected {expected}"))
    };
    bounded(value, encoding.decode(value.text.as_bytes()).map_err(wrong)?)
}

fn bounded(value: Piece<'_>, payload: Vec<u8>) -> Result<Vec<u8>, Wrong> {
    if payload.len() > MAX_PAYLOAD.into() {
        return Err(value.wrong(format!("payload too long; expected at most {MAX_PAYLOAD} bytes")));
    }
    Ok(payload)
}

/// Parses names of TCP flags with this character between them, or `none`.
pub(crate) fn flags(text: &str, between: char) -> Result<TcpFlags, String> {
    parse_flags(whole(text), between).map_err(|wrong| wrong.message)
}

fn parse_flags(list: Piece<'_>, between: char) -> Result<TcpFlags, Wrong> {
    if list.trimmed().is("none") {
        return Ok(TcpFlags::NONE);
    }
    list.split(between).map(Piece::trimmed).try_fold(TcpFlags::NONE, |flags, name| {
        let flag = TcpFlags::named(name.text).ok_or_else(|| {
            name.wrong(format!(
                "{:?} is not a TCP flag; expected fin, syn, rst, psh, ack, urg or none",
                name.text
            ))
        })?;
        Ok(flags.union(flag))
    })
}
