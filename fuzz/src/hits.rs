//! Lists of hits for the client, and a slow, obvious reader of them.

use std::collections::BTreeMap;
use std::time::Duration;

use knock_client::{Hit, Packet, Tcp, ZERO_BYTE};
use knockd_core::TcpFlags;

/// A text is a list of hits just when the model says so, and the same one; an error points into the text; what is read
/// prints as its equal.
pub fn hits(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let read = Hit::parse_list(text, false);
    assert_eq!(read.clone().ok(), model(text), "{read:?}");
    match read {
        Ok(hits) if hits.is_empty() => {}
        Ok(hits) => {
            let printed: Vec<String> = hits.iter().map(ToString::to_string).collect();
            assert_eq!(Hit::parse_list(&printed.join(","), false), Ok(hits));
        }
        Err(error) => {
            let wrong = text.get(error.place()).expect("a place in the text");
            assert!(!error.to_string().contains('\n'));
            let pointer = error.pointer();
            assert_eq!(pointer.is_none(), wrong.len() == text.len(), "{error:?}");
            assert!(pointer.is_none_or(|pointer| pointer.lines().count() <= 2));
        }
    }
}

fn model(text: &str) -> Option<Vec<Hit>> {
    let mut hits: Vec<&str> = text.trim().split(',').collect();
    // The shell leaves a comma at either end of a word.
    if hits.len() > 1 && hits.first() == Some(&"") {
        hits.remove(0);
    }
    if hits.len() > 1 && hits.last() == Some(&"") {
        hits.pop();
    }
    if text.contains(',') && hits.iter().all(|hit| hit.trim().is_empty()) && hits.len() == 1 {
        return Some(Vec::new());
    }
    hits.into_iter().map(hit).collect()
}

fn hit(text: &str) -> Option<Hit> {
    let mut words: Vec<&str> = text.trim().split(':').collect();
    let port = words.remove(0).trim();
    let mut protocol = String::new();
    if port.eq_ignore_ascii_case("icmp") {
        protocol.push_str("icmp");
    } else if let Some(word) = words.first()
        && !word.contains('=')
    {
        protocol = words.remove(0).trim().to_ascii_lowercase();
    }
    let mut settings = BTreeMap::new();
    for word in words {
        let (key, value) = word.split_once('=')?;
        let key = key.trim().to_ascii_lowercase();
        // Nothing of a text is left out.
        let value = if key == "text" { value } else { value.trim() };
        if settings.insert(key, value).is_some() {
            return None;
        }
    }
    let delay = match settings.remove("delay") {
        Some(value) => Some(Duration::from_millis(value.parse().ok()?)),
        None => None,
    };
    let number = || match Hit::parse(port, false).ok()?.packet {
        Packet::Tcp { port, .. } => Some(port),
        _ => None,
    };
    let packet = match protocol.as_str() {
        "" | "tcp" => {
            let kind = settings.remove("flags").map_or(Some(Tcp::Syn), flags)?;
            Packet::Tcp { port: number()?, kind }
        }
        "tcp-connect" => Packet::Tcp { port: number()?, kind: Tcp::Connection },
        "udp" => {
            let hex = settings.remove("hex").map(hex);
            let base64 = settings.remove("base64").map(base64);
            let text = settings.remove("text").map(|text| Some(text.as_bytes().to_vec()));
            let payload = match [hex, base64, text].into_iter().flatten().collect::<Vec<_>>().as_slice() {
                [] => ZERO_BYTE.to_vec(),
                [payload] => payload.clone()?,
                _ => return None,
            };
            let port = match Hit::parse(&format!("{port}:udp"), false).ok()?.packet {
                Packet::Udp { port, .. } => port,
                _ => return None,
            };
            (payload.len() <= 65_507).then_some(Packet::Udp { port, payload })?
        }
        "icmp" => {
            let size = settings.remove("size").map_or(Some(56), |size| size.parse().ok())?;
            (size <= 65_507).then_some(Packet::Echo { size })?
        }
        _ => return None,
    };
    let port_text = if protocol == "icmp" { "icmp" } else { port };
    settings.is_empty().then(|| Hit { packet, delay, port_text: port_text.to_owned() })
}

fn flags(text: &str) -> Option<Tcp> {
    if text.eq_ignore_ascii_case("none") {
        return Some(Tcp::Flags(TcpFlags::NONE));
    }
    let mut bits = 0;
    for name in text.split('+') {
        bits |= match name.trim().to_ascii_lowercase().as_str() {
            "fin" => 1,
            "syn" => 2,
            "rst" => 4,
            "psh" => 8,
            "ack" => 16,
            "urg" => 32,
            _ => return None,
        };
    }
    Some(Tcp::Flags(TcpFlags::from_wire(bits)))
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|char| char.to_digit(16)).collect::<Option<_>>()?;
    let byte = |pair: &[u32]| u8::try_from(pair.first()? * 16 + pair.get(1)?).ok();
    digits.chunks(2).map(byte).collect()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    for block in text.chars().collect::<Vec<_>>().chunks(4) {
        let digits: String = block.iter().collect();
        let used = digits.trim_end_matches('=');
        if block.len() != 4 || used.len() < 2 {
            return None;
        }
        let mut number = 0;
        for char in used.chars() {
            number = number * 64 + DIGITS.find(char)?;
        }
        let spare = match used.len() {
            2 => 4,
            3 => 2,
            _ => 0,
        };
        if number % (1 << spare) != 0 {
            return None;
        }
        let count = used.len() - 1;
        bytes.extend((number >> spare).to_be_bytes().iter().skip(size_of::<usize>() - count));
    }
    Some(bytes)
}
