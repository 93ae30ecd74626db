//! The grammar of knockd.conf's lines and values, in nom, bottom-up; the ABNF (RFC 5234) is above each parser.
//!
//! Every failure says what was expected and where. A recognised branch is cut, so no alternative or list swallows the
//! failure inside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use nom::branch::alt;
use nom::bytes::complete::{tag_no_case, take_till, take_while, take_while1};
use nom::character::complete::{alphanumeric1, char, digit1, hex_digit1};
use nom::combinator::{cut, eof, map_opt, not, opt, peek, recognize, rest, value};
use nom::error::{ErrorKind, ParseError};
use nom::multi::many0;
use nom::sequence::{delimited, preceded, terminated};
use nom::{IResult, Parser};

use crate::config::Extend;
use crate::exceptions::{Exception, Exceptions, Prefix};
use crate::forward::{Forward, Forwards, OpenFor};
use crate::sequence::{Protocol, Sequence, Step};
use crate::services::{Service, Services};
use crate::tcp_flags::{FlagRule, TcpFlags};
use crate::text::Text;

/// What was expected, and the rest of the text from where it was expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) at: &'a str,
    pub(crate) what: &'static str,
}

impl Expected<'_> {
    /// Returns the word found there: up to white space or a separator.
    pub(crate) fn word(&self) -> &str {
        let end = self.at.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(self.at.len());
        self.at.get(..end).unwrap_or(self.at)
    }

    /// Returns that word for a message: quoted, or `the end`.
    pub(crate) fn found(&self) -> String {
        match (self.word(), self.at.chars().next()) {
            ("", None) => "the end".to_owned(),
            ("", Some(separator)) => format!("{separator:?}"),
            (word, _) => format!("{word:?}"),
        }
    }
}

impl<'a> ParseError<&'a str> for Expected<'a> {
    fn from_error_kind(at: &'a str, _: ErrorKind) -> Self {
        Self { at, what: "something else" }
    }

    fn append(_: &'a str, _: ErrorKind, inner: Self) -> Self {
        inner
    }
}

pub(crate) type Parse<'a, T> = IResult<&'a str, T, Expected<'a>>;

/// A value, and the rest of the text from the first thing after the value (or after a step of it) that knockd 0.8
/// ignores; empty if there is none.
pub(crate) type Remarked<'a, T> = (T, &'a str);

/// A line that is neither blank nor a comment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Line<'a> {
    Section(&'a str),
    Directive { key: &'a str, value: Option<&'a str> },
}

/// Applies a parser to all of `text`, except surrounding white space.
pub(crate) fn whole<'a, T>(
    text: &'a str,
    parser: impl Fn(&'a str) -> Parse<'a, T>,
) -> Result<T, Expected<'a>> {
    let mut parser = delimited(space, parser, preceded(space, expect("nothing more", eof)));
    match parser.parse(text) {
        Ok((_, parsed)) => Ok(parsed),
        Err(nom::Err::Error(error) | nom::Err::Failure(error)) => Err(error),
        Err(nom::Err::Incomplete(_)) => Err(Expected { at: text, what: "more text" }),
    }
}

/// ```abnf
/// line      = section / directive
/// section   = "[" *CHAR "]"
/// directive = key [ *WSP "=" *WSP *CHAR ]
/// key       = *( %x21-3C / %x3E-7E / WSP )
/// ```
/// The line comes trimmed.
pub(crate) fn line(input: &str) -> Parse<'_, Line<'_>> {
    alt((section, directive)).parse(input)
}

fn section(input: &str) -> Parse<'_, Line<'_>> {
    let (name, _) = char('[').parse(input)?;
    match name.strip_suffix(']') {
        Some(name) => Ok(("", Line::Section(name))),
        None => Err(nom::Err::Failure(Expected { at: "", what: "`]` at the end of the line" })),
    }
}

fn directive(input: &str) -> Parse<'_, Line<'_>> {
    let (input, key) = take_till(|c| c == '=').parse(input)?;
    let (input, value) = opt(preceded((char('='), space), rest)).parse(input)?;
    Ok((input, Line::Directive { key: key.trim_end(), value }))
}

/// ```abnf
/// sequence = item *( "," *WSP item )         ; 1 to 32
/// item     = step [ WSP *( %x21-2B / %x2D-7E / WSP ) ]
/// ```
pub(crate) fn remarked_sequence(input: &str) -> Parse<'_, Remarked<'_, Sequence>> {
    let item = |input| (step, remark_in_list).parse(input);
    let (mut input, (first, mut remark)) = item(input)?;
    let mut others = Vec::new();
    while let (after, Some(_)) = opt((char(','), space)).parse(input)? {
        let (rest, (step, another)) = item(after)?;
        others.push(step);
        if others.len() == Sequence::MAX_STEPS {
            return Err(nom::Err::Failure(Expected { at: after, what: "at most 32 steps" }));
        }
        remark = if remark.is_empty() { another } else { remark };
        input = rest;
    }
    match Sequence::new(first, others) {
        Some(sequence) => Ok((input, (sequence, remark))),
        None => Err(nom::Err::Failure(Expected { at: input, what: "at most 32 steps" })),
    }
}

/// ```abnf
/// sequence = step *( *WSP "," *WSP step )    ; 1 to 32
/// ```
pub(crate) fn sequence(input: &str) -> Parse<'_, Sequence> {
    match remarked_sequence(input)? {
        (input, (sequence, "")) => Ok((input, sequence)),
        (_, (_, remark)) => Err(nom::Err::Failure(Expected { at: remark, what: "a comma or the end" })),
    }
}

/// ```abnf
/// step = port [ *WSP ":" *WSP protocol ]     ; tcp when absent
/// ```
pub(crate) fn step(input: &str) -> Parse<'_, Step> {
    let (input, port) = port(input)?;
    let (input, protocol) = opt(preceded((space, char(':'), space), protocol)).parse(input)?;
    Ok((input, Step { port, protocol: protocol.unwrap_or(Protocol::Tcp) }))
}

/// ```abnf
/// protocol = "tcp" / "udp"                   ; in any case
/// ```
pub(crate) fn protocol(input: &str) -> Parse<'_, Protocol> {
    let names = alt((value(Protocol::Tcp, tag_no_case("tcp")), value(Protocol::Udp, tag_no_case("udp"))));
    expect("`tcp` or `udp`", terminated(names, end_of_word)).parse(input)
}

/// ```abnf
/// port = [ "+" ] 1*DIGIT                     ; 0 to 65535
/// ```
fn port(input: &str) -> Parse<'_, u16> {
    let number = |input| terminated(integer, peek(alt((end_of_word, recognize(char(':')))))).parse(input);
    expect("a port number from 0 to 65535", number).parse(input)
}

/// ```abnf
/// services = service *( *WSP "," *WSP service )
/// ```
pub(crate) fn services(input: &str) -> Parse<'_, Services> {
    let separator = (space, char(','), space);
    let (input, first) = service(input)?;
    let (input, rest) = many0(preceded(separator, cut(service))).parse(input)?;
    Ok((input, Services::new(first, rest)))
}

/// ```abnf
/// service = protocol "/" port [ "-" port ]   ; 1 to 65535, the smaller one first
/// ```
fn service(input: &str) -> Parse<'_, Service> {
    let what = "a service such as `tcp/22` or `udp/60000-61000`";
    let names = alt((value(Protocol::Tcp, tag_no_case("tcp")), value(Protocol::Udp, tag_no_case("udp"))));
    let (input, protocol) = expect(what, terminated(names, peek(not(alphanumeric1)))).parse(input)?;
    let (input, _) = expect("`/` and a port", char('/')).parse(input)?;
    let ports = (integer, opt(preceded(char('-'), integer)));
    let ports = map_opt(ports, |(first, last)| Service::new(protocol, first..=last.unwrap_or(first)));
    let what = "a port from 1 to 65535, or a range such as `60000-61000`";
    expect(what, terminated(ports, end_of_word)).parse(input)
}

/// ```abnf
/// forwards = forward *( *WSP "," *WSP forward )   ; no two lead a source to different places
/// ```
pub(crate) fn forwards(input: &str) -> Parse<'_, Forwards> {
    let (mut input, first) = forward(input)?;
    let mut rest = Vec::new();
    let another = "a port that does not lead elsewhere already";
    while let (after, Some(_)) = opt((space, char(','), space)).parse(input)? {
        let (after_it, next) = forward(after)?;
        if std::iter::once(&first).chain(&rest).any(|earlier: &Forward| next.contradicts(*earlier)) {
            return Err(nom::Err::Failure(Expected { at: after, what: another }));
        }
        rest.push(next);
        input = after_it;
    }
    let forwards = Forwards::new(first, rest);
    forwards.map(|forwards| (input, forwards)).ok_or(nom::Err::Failure(Expected { at: input, what: another }))
}

/// ```abnf
/// forward = protocol "/" port *WSP ">" *WSP target ":" port   ; ports are 1 to 65535
/// target  = "self" / IPv4address / "[" IPv6address "]"        ; one host, and not a loopback address
/// ```
fn forward(input: &str) -> Parse<'_, Forward> {
    let what = "a port such as `tcp/2222`";
    let names = alt((value(Protocol::Tcp, tag_no_case("tcp")), value(Protocol::Udp, tag_no_case("udp"))));
    let (input, protocol) = expect(what, terminated(names, peek(not(alphanumeric1)))).parse(input)?;
    let (input, _) = expect("`/` and a port", char('/')).parse(input)?;
    let what = if input.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("random")) {
        "a port from 1 to 65535; random ports are not supported yet"
    } else {
        "a port from 1 to 65535, without a range"
    };
    let end = peek(alt((recognize(char('>')), end_of_word)));
    let port = map_opt(terminated(integer, end), |port: u16| (port > 0).then_some(port));
    let (input, port) = expect(what, port).parse(input)?;
    let (input, _) = preceded(space, expect("`>` and a target", char('>'))).parse(input)?;
    let word = |input| take_while1(|c: char| !c.is_whitespace() && c != ',').parse(input);
    let target = map_opt(word, |word: &str| {
        let (host, target_port) = word.rsplit_once(':')?;
        let target_port = target_port.parse().ok()?;
        let target: Option<IpAddr> = match host.strip_prefix('[') {
            Some(address) => Some(address.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into()),
            None if host.eq_ignore_ascii_case("self") => None,
            None => Some(host.parse::<Ipv4Addr>().ok()?.into()),
        };
        Forward::new(protocol, port, target, target_port)
    });
    let what = "a target such as `172.17.0.2:22` or `[fd00::2]:22`: another host, or `self` for this one";
    preceded(space, expect(what, target)).parse(input)
}

/// ```abnf
/// open-for = "address" / size *( *WSP "," *WSP size )
/// size     = "/24" / "/64"
/// ```
pub(crate) fn open_for(input: &str) -> Parse<'_, OpenFor> {
    let address = terminated(tag_no_case("address"), end_of_word);
    if let (input, Some(_)) = opt(address).parse(input)? {
        return Ok((input, OpenFor::default()));
    }
    let size = |input| {
        let ipv4 = value(OpenFor { ipv4_24: true, ipv6_64: false }, tag_no_case("/24"));
        let ipv6 = value(OpenFor { ipv4_24: false, ipv6_64: true }, tag_no_case("/64"));
        expect("`address`, `/24` or `/64`", terminated(alt((ipv4, ipv6)), end_of_word)).parse(input)
    };
    let (input, first) = size(input)?;
    let (input, rest) = many0(preceded((space, char(','), space), cut(size))).parse(input)?;
    let both = |all: OpenFor, one: OpenFor| OpenFor {
        ipv4_24: all.ipv4_24 || one.ipv4_24,
        ipv6_64: all.ipv6_64 || one.ipv6_64,
    };
    Ok((input, rest.into_iter().fold(first, both)))
}

/// ```abnf
/// mark = "0x" 1*8HEXDIG                      ; not 0
/// ```
pub(crate) fn mark(input: &str) -> Parse<'_, NonZeroU32> {
    let digits = terminated(hex_digit1, end_of_word);
    let number = map_opt(digits, |digits| u32::from_str_radix(digits, 16).ok().and_then(NonZeroU32::new));
    expect("a mark such as `0x01000000`", preceded(tag_no_case("0x"), number)).parse(input)
}

/// ```abnf
/// exceptions = exception *( *WSP "," *WSP exception )
/// ```
pub(crate) fn exceptions(input: &str) -> Parse<'_, Exceptions> {
    let separator = (space, char(','), space);
    let (input, first) = exception(input)?;
    let (input, rest) = many0(preceded(separator, cut(exception))).parse(input)?;
    Ok((input, Exceptions::new(first, rest)))
}

/// ```abnf
/// exception = interface / network
/// interface = 1*15( ALPHA / DIGIT / "." / "-" / "_" / ":" / "@" ) [ "*" ]   ; 15 in all, not "." or ".."
/// network   = address [ "/" 1*3DIGIT ]       ; not 0, and no bits are set after these
/// ```
fn exception(input: &str) -> Parse<'_, Exception> {
    let word = |input| take_while1(|c: char| !c.is_whitespace() && c != ',').parse(input);
    let network = map_opt(word, |word| network_of(word).map(Exception::Network));
    let interface = map_opt(word, |word: &str| {
        let name = word.strip_suffix('*').unwrap_or(word);
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:@".contains(&byte);
        let is_name = !name.is_empty() && name.bytes().all(is_allowed) && ![".", ".."].contains(&word);
        let name = Some(word).filter(|word| is_name && word.len() <= 15)?;
        Text::new(name).ok().map(Exception::Interface)
    });
    let what =
        "an interface such as `docker0` or `br-*`, or a network such as `10.0.0.0/8` with no other bits set";
    expect(what, alt((network, interface))).parse(input)
}

/// Takes a network, as [`exception`] does.
pub(crate) fn network(input: &str) -> Parse<'_, Prefix> {
    let word = take_while1(|c: char| !c.is_whitespace() && c != ',');
    expect("a network such as `10.0.0.0/8` with no other bits set", map_opt(word, network_of)).parse(input)
}

fn network_of(word: &str) -> Option<Prefix> {
    let Some((address, digits)) = word.split_once('/') else {
        return word.parse::<IpAddr>().ok().map(Prefix::from);
    };
    let length = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    Prefix::new(address.parse().ok()?, length?)
}

/// ```abnf
/// extend = ( "idle" / "connected" ) 1*WSP time   ; in any case
/// ```
pub(crate) fn extend(input: &str) -> Parse<'_, Extend> {
    let what = "`idle` or `connected` and a number of seconds, such as `idle 300`";
    let names = alt((value(true, tag_no_case("idle")), value(false, tag_no_case("connected"))));
    let (input, is_idle) = expect(what, terminated(names, peek(not(alphanumeric1)))).parse(input)?;
    let (input, time) = preceded(space, time).parse(input)?;
    let connected = Extend::Connected { time, idle_limit: Extend::DEFAULT_IDLE_LIMIT };
    Ok((input, if is_idle { Extend::Idle(time) } else { connected }))
}

/// ```abnf
/// time = [ "+" ] 1*DIGIT                     ; 1 to 4294967295
/// ```
pub(crate) fn time(input: &str) -> Parse<'_, NonZeroU32> {
    let number = map_opt(terminated(integer, end_of_number), NonZeroU32::new);
    expect("a whole number of seconds from 1 to 4294967295", number).parse(input)
}

/// ```abnf
/// uses = "1"
/// ```
pub(crate) fn uses(input: &str) -> Parse<'_, ()> {
    expect("`1`", value((), terminated(char('1'), end_of_number))).parse(input)
}

/// ```abnf
/// seconds = [ "+" ] 1*DIGIT [ ( WSP / "." ) *CHAR ]   ; 0 to 4294967295
/// ```
/// knockd 0.8 reads `1.5` as 1.
pub(crate) fn seconds(input: &str) -> Parse<'_, Remarked<'_, u32>> {
    let end = alt((end_of_number, recognize(char('.'))));
    let number = terminated(integer, peek(end));
    (expect("a whole number of seconds from 0 to 4294967295", number), preceded(space, rest)).parse(input)
}

/// ```abnf
/// count = [ "+" ] 1*DIGIT [ WSP *CHAR ]
/// ```
pub(crate) fn count(input: &str) -> Parse<'_, Remarked<'_, u32>> {
    let number = terminated(integer, end_of_number);
    (expect("a whole number up to 4294967295", number), preceded(space, rest)).parse(input)
}

/// ```abnf
/// tcpflags = flag *( *WSP "," *WSP flag )
/// flag     = [ "!" ] ( "fin" / "syn" / "rst" / "psh" / "ack" / "urg" )   ; in any case
/// ```
pub(crate) fn tcp_flags(input: &str) -> Parse<'_, FlagRule> {
    let separator = (space, char(','), space);
    let (input, first) = flag(input)?;
    let (input, others) = many0(preceded(separator, cut(flag))).parse(input)?;
    let rule = std::iter::once(first)
        .chain(others)
        .fold(FlagRule::ANY, |rule, (not, flag)| if not { rule.and_clear(flag) } else { rule.and_set(flag) });
    Ok((input, rule))
}

fn flag(input: &str) -> Parse<'_, (bool, TcpFlags)> {
    let (name, not) = opt(char('!')).parse(input)?;
    let (after, word) = take_while(|c: char| !c.is_whitespace() && c != ',').parse(name)?;
    match TcpFlags::named(word) {
        Some(flag) => Ok((after, (not.is_some(), flag))),
        None => Err(nom::Err::Failure(Expected {
            at: input,
            what: "a TCP flag: fin, syn, rst, psh, ack or urg, with a leading `!` if it must be clear",
        })),
    }
}

/// ```abnf
/// remark = [ WSP *( %x21-2B / %x2D-7E / WSP ) ]
/// ```
/// What stands between a step and the next comma; returns the text from there on, or nothing if only white space does.
fn remark_in_list(input: &str) -> Parse<'_, &str> {
    let (after, text) = take_till(|c| c == ',').parse(input)?;
    match input.trim_start() {
        _ if text.trim().is_empty() => Ok((after, "")),
        remark if remark.len() < input.len() => Ok((after, remark)),
        _ => Err(nom::Err::Failure(Expected { at: input, what: "a comma or the end" })),
    }
}

fn integer<T: std::str::FromStr>(input: &str) -> Parse<'_, T> {
    let (after, digits) = preceded(opt(char('+')), digit1).parse(input)?;
    match digits.parse() {
        Ok(number) => Ok((after, number)),
        Err(_) => Err(nom::Err::Error(Expected { at: input, what: "a smaller number" })),
    }
}

/// Succeeds where a word ends: at white space, a comma or the end.
fn end_of_word(input: &str) -> Parse<'_, &str> {
    peek(alt((eof, take_while1(|c: char| c.is_whitespace() || c == ',')))).parse(input)
}

/// Succeeds where a number outside a list ends: at white space or the end.
fn end_of_number(input: &str) -> Parse<'_, &str> {
    peek(alt((eof, take_while1(char::is_whitespace)))).parse(input)
}

fn space(input: &str) -> Parse<'_, ()> {
    value((), take_while(char::is_whitespace)).parse(input)
}

/// Makes the failure of a parser final and says what was expected at its start.
fn expect<'a, T>(
    what: &'static str,
    mut parser: impl Parser<&'a str, Output = T, Error = Expected<'a>>,
) -> impl FnMut(&'a str) -> Parse<'a, T> {
    move |input| parser.parse(input).map_err(|_| nom::Err::Failure(Expected { at: input, what }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_at_the_first_equals_sign() {
        let parsed = line("key = a=b").unwrap().1;
        assert_eq!(parsed, Line::Directive { key: "key", value: Some("a=b") });
    }

    #[test]
    fn a_section_runs_to_the_bracket_at_the_end_of_the_line() {
        assert_eq!(line("[a]b]").unwrap().1, Line::Section("a]b"));
        assert!(line("[a").is_err());
    }

    #[test]
    fn what_follows_a_step_after_white_space_is_handed_back() {
        let (sequence, remark) = whole("7000 junk,8000:udp # x", remarked_sequence).unwrap();
        assert_eq!((sequence.to_string().as_str(), remark), ("7000:tcp,8000:udp", "junk,8000:udp # x"));
        assert_eq!(whole("7000 , 8000 ", remarked_sequence).unwrap().1, "");
    }

    #[test]
    fn what_follows_a_step_without_white_space_is_an_error() {
        for text in
            ["8000x", "8000.5", "7000;8000", "7000:udpx", "7000:", "7000:tcp:udp", "-1", "0x10", ",1", "1,,2"]
        {
            assert!(whole(text, remarked_sequence).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_are_read_as_0_8_reads_them() {
        for (text, expected) in
            [("5", (5, "")), ("5 s", (5, "s")), ("1.5", (1, ".5")), ("+5", (5, "")), ("007", (7, ""))]
        {
            assert_eq!(whole(text, seconds), Ok(expected), "{text}");
        }
        for text in ["", "abc", "-1", "5s", "5,6", "4294967296"] {
            assert!(whole(text, seconds).is_err(), "{text}");
        }
    }

    #[test]
    fn a_failure_in_the_middle_of_a_list_is_not_swallowed() {
        let error = whole("1, 70000, 3", remarked_sequence).unwrap_err();
        assert_eq!((error.word(), error.what), ("70000", "a port number from 0 to 65535"));
        let error = whole("syn,!foo", tcp_flags).unwrap_err();
        assert_eq!(error.word(), "!foo");
    }
}
