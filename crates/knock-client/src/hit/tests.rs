use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn step(text: &str) -> Option<Step> {
    Hit::parse(text, false).ok().and_then(|hit| hit.step())
}

fn packet(text: &str) -> Packet {
    Hit::parse(text, false).unwrap_or_else(|error| panic!("{text}: {error}")).packet
}

fn udp(port: u16, payload: &[u8]) -> Packet {
    Packet::Udp { port, payload: payload.to_vec() }
}

#[test]
fn a_hit_is_a_port_with_an_optional_protocol_in_any_case() {
    assert_eq!(step("7000"), Some(Step::tcp(7000)));
    assert_eq!(step("7000:tcp"), Some(Step::tcp(7000)));
    assert_eq!(step("7000:"), Some(Step::tcp(7000)));
    assert_eq!(step("7000:UdP"), Some(Step::udp(7000)));
    assert_eq!(step("0"), Some(Step::tcp(0)));
    assert_eq!(step("65535"), Some(Step::tcp(65535)));
    assert_eq!(packet("7000:TCP-Connect"), Packet::Tcp { port: 7000, kind: Tcp::Connection });
}

#[test]
fn a_list_is_a_sequence_of_a_configuration_whole_or_as_the_shell_splits_it() {
    let expected = [Step::tcp(7101), Step::udp(8202), Step::tcp(9303)].map(Hit::from);
    for words in [
        &["7101,8202:udp,9303"][..],
        &[" 7101 , 8202 : UDP,\t9303:tcp "],
        &["7101,", "8202:udp,", "9303"],
        &["7101", ",8202:udp", ",", "9303"],
        &["7101", "8202:udp,9303"],
    ] {
        let hits: Result<Vec<_>, _> = words.iter().map(|word| Hit::parse_list(word, false)).collect();
        assert_eq!(hits.unwrap().concat(), expected, "{words:?}");
    }
    for text in ["", "7101,,8202", ",,7101", "7101;8202", "7101,x", "7101 8202"] {
        assert!(Hit::parse_list(text, false).is_err(), "{text:?}");
    }
}

#[test]
fn with_only_udp_the_protocol_of_the_argument_does_not_count() {
    let hit = Hit::parse("7000:tcp:delay=5", true).unwrap();
    assert_eq!((hit.packet, hit.delay), (udp(7000, &[0]), Some(Duration::from_millis(5))));
    for text in ["7000:tcp-connect", "7000:flags=syn", "icmp"] {
        assert!(Hit::parse(text, true).is_err(), "{text}");
    }
}

#[test]
fn a_service_name_is_looked_up_and_kept_for_display() {
    let hit = Hit::parse("domain:udp", false).unwrap();
    assert_eq!((hit.step(), hit.port_text.as_str()), (Some(Step::udp(53)), "domain"));
    assert_eq!(step("ssh"), Some(Step::tcp(22)));
}

#[test]
fn settings_stand_in_any_order_behind_the_protocol_or_the_port() {
    assert_eq!(Hit::parse("7000:delay=300", false).unwrap().delay, Some(Duration::from_millis(300)));
    assert_eq!(Hit::parse("7000::delay=300", false).unwrap().delay, Some(Duration::from_millis(300)));
    let flags = Packet::Tcp { port: 7000, kind: Tcp::Flags(TcpFlags::SYN | TcpFlags::ACK) };
    assert_eq!(packet("7000:FLAGS=Syn+ack"), flags);
    assert_eq!(packet("7000:tcp:delay=1:flags=syn+ack"), flags);
    assert_eq!(packet("7000:flags=none"), Packet::Tcp { port: 7000, kind: Tcp::Flags(TcpFlags::NONE) });
    assert_eq!(packet("icmp"), Packet::Echo { size: 56 });
    assert_eq!(packet("ICMP:delay=1:size=0"), Packet::Echo { size: 0 });
}

#[test]
fn a_payload_is_hexadecimal_text_or_base64() {
    assert_eq!(packet("4444:udp:hex=00fF"), udp(4444, &[0, 255]));
    assert_eq!(packet("4444:udp:text=open sesame=1"), udp(4444, b"open sesame=1"));
    assert_eq!(packet("4444:udp:base64=AP8="), udp(4444, &[0, 255]));
    assert_eq!(packet("4444:udp:text="), udp(4444, b""));
    let list = Hit::parse_list("1:udp:text=a b , 2", false).unwrap();
    assert_eq!(list[0].packet, udp(1, b"a b"));
}

#[test]
fn an_error_points_at_the_part_that_is_wrong_and_says_what_would_be_right() {
    for (text, part, message) in [
        ("99999", "99999", "invalid port \"99999\"; expected 0 to 65535 or a service name"),
        ("7000, 80a0:udp", "80a0", "invalid port \"80a0\"; expected 0 to 65535 or a service name"),
        (":tcp", "", "invalid port \"\"; expected 0 to 65535 or a service name"),
        ("1:foo", "foo", "invalid protocol \"foo\"; expected tcp, udp or tcp-connect"),
        ("1:icmp", "icmp", "invalid protocol \"icmp\"; an echo request has no port: write `icmp` alone"),
        ("1:delay", "delay", "\"delay\" has no value; expected delay=…"),
        ("1:tcp:udp", "udp", "invalid setting \"udp\"; expected delay=… or flags=…"),
        ("1:dely=5", "dely", "unknown setting \"dely\"; did you mean delay?"),
        ("1:x=5", "x", "unknown setting \"x\"; expected delay, flags, hex, text, base64, size"),
        ("1:delay=5ms", "5ms", "invalid delay \"5ms\"; expected a whole number of milliseconds"),
        ("1:delay=1:delay=2", "delay", "second delay; expected one"),
        ("1:udp:text=a:b", "b", "invalid setting \"b\"; a text ends at a colon: write it as hex= or base64="),
        ("1:udp:text=a:hex=00", "hex", "second payload; expected one"),
        ("1:hex=00", "hex", "only UDP has a payload: write `udp` before it"),
        ("1:udp:hex=000", "000", "invalid payload; expected pairs of hexadecimal digits"),
        ("1:udp:hex=0g", "g", "invalid payload; expected pairs of hexadecimal digits"),
        ("1:udp:hex=00ää", "ä", "invalid payload; expected pairs of hexadecimal digits"),
        ("1:udp:base64=AA", "AA", "invalid payload; expected base64 with its padding"),
        ("1:udp:flags=syn", "flags", "only TCP has flags"),
        (
            "1:flags=syn+foo",
            "foo",
            "\"foo\" is not a TCP flag; expected fin, syn, rst, psh, ack, urg or none",
        ),
        ("1:tcp-connect:flags=syn", "flags", "the kernel chooses the flags of a connection; write `tcp`"),
        ("1:size=4", "size", "only an echo request has a size: icmp:size=…"),
        ("icmp:size=65508", "65508", "invalid size \"65508\"; expected 0 to 65507 bytes"),
        ("icmp:tcp", "tcp", "invalid setting \"tcp\"; expected delay=… or size=…"),
    ] {
        let error = Hit::parse_list(text, false).unwrap_err();
        assert_eq!((text.get(error.place()), error.to_string().as_str()), (Some(part), message), "{text}");
    }
    // Of two parts that are alike, it is the second.
    assert_eq!(Hit::parse("1:delay=1:delay=2", false).unwrap_err().place(), 10..15);
}

#[test]
fn a_pointer_shows_the_whole_text_unless_all_of_it_is_wrong() {
    let pointer = |text| Hit::parse_list(text, false).unwrap_err().pointer();
    assert_eq!(pointer("7000, 1:\u{7}ö:x").as_deref(), Some("7000, 1:\u{fffd}ö:x\n        ^^"));
    assert_eq!(pointer("1,,2").as_deref(), Some("1,,2\n  ^"));
    assert_eq!(pointer("99999"), None);
}

#[test]
fn what_is_not_a_port_is_refused() {
    for text in
        ["", ":tcp", "65536", "99999", "+99999", "-1", "1:foo", "1:tcp:udp", "7000x", "no-such-service"]
    {
        assert_eq!(step(text), None, "{text:?}");
    }
}

fn any_hit() -> impl Strategy<Value = Hit> {
    let flags = any::<u8>().prop_map(TcpFlags::from_wire);
    let kind = prop_oneof![Just(Tcp::Syn), Just(Tcp::Connection), flags.prop_map(Tcp::Flags)];
    let payload = prop_oneof![Just(vec![0]), vec(any::<u8>(), 0..40)];
    let packet = prop_oneof![
        (any::<u16>(), kind).prop_map(|(port, kind)| Packet::Tcp { port, kind }),
        (any::<u16>(), payload).prop_map(|(port, payload)| Packet::Udp { port, payload }),
        (0..=65507_u16).prop_map(|size| Packet::Echo { size }),
    ];
    let delay = prop::option::of((0..100_000_u64).prop_map(Duration::from_millis));
    (packet, delay).prop_map(|(packet, delay)| {
        let port_text = match packet {
            Packet::Tcp { port, .. } | Packet::Udp { port, .. } => port.to_string(),
            Packet::Echo { .. } => "icmp".to_owned(),
        };
        Hit { packet, delay, port_text }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_printed_is_read_as_the_same_hits(hits in vec(any_hit(), 1..5)) {
        let texts: Vec<String> = hits.iter().map(ToString::to_string).collect();
        prop_assert_eq!(Hit::parse_list(&texts.join(","), false), Ok(hits));
    }

    #[test]
    fn a_text_that_is_no_hit_is_refused_at_a_place_within_it(text in "([0-9]{1,5}|icmp)?(:|=|,|udp|tcp|delay|hex|base64|text|size|flags|\\PC){0,6}") {
        if let Err(error) = Hit::parse_list(&text, false) {
            prop_assert!(text.get(error.place()).is_some(), "{:?}", error);
        }
    }
}
