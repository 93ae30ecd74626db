//! Links that hold a profile: `knock://HOST/NAME?v=p1&sequence=...`.
//!
//! docs/client.md has the grammar. A link never holds what runs a command or means something on one machine only.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use toml_edit::{Item, Table, Value};

use crate::hosts::{keys, profile_of};
use crate::profile::{Key, Profile};

/// The scheme of our links.
pub const SCHEME: &str = "knock://";

/// The version of the format for plain sequences. Other kinds of knock get versions of their own.
const VERSION: &str = "p1";

/// The keys of a profile that a link can hold, in the order in which it has them.
const KEYS: [&str; 10] =
    ["sequence", "close", "delay", "family", "verify", "retries", "timeout", "tcpflags", "lease", "connect"];

/// What cannot stand for itself in the name or a value (RFC 3986, sections 3.3 and 3.4).
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'&')
    .add(b'+')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
const ESCAPED_IN_HOST: &AsciiSet = &ESCAPED.add(b'/').add(b':');

/// Why a text is not a link, or a profile does not fit into one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each prints what it says")]
pub enum UriError {
    #[error("not a knock:// link; expected knock://HOST/NAME?v=p1&sequence=PORT,...")]
    NotALink,
    #[error("no host in the link; expected knock://HOST/NAME?v=p1&sequence=PORT,...")]
    NoHost,
    #[error("the link is of version {0:?}, which this knock does not know; expected v={VERSION}")]
    Version(String),
    #[error("no version in the link; expected v={VERSION}")]
    NoVersion,
    #[error("unknown key {0:?} in the link; expected {list}", list = KEYS.join(", "))]
    UnknownKey(String),
    #[error("key {0:?} twice in the link; expected it once")]
    Twice(String),
    #[error("invalid percent-encoding in {0:?}; expected UTF-8")]
    NotUtf8(String),
    #[error("{message} in the link; expected {expected}")]
    Invalid { message: String, expected: String },
    #[error("a one-time file does not fit into a link; copy the file, and export the profile as json")]
    OneTime,
}

/// Says whether a text is meant to be a link of ours.
pub fn is_link(text: &str) -> bool {
    text.trim().get(..SCHEME.len()).is_some_and(|start| start.eq_ignore_ascii_case(SCHEME))
}

/// Makes a link of a profile.
///
/// # Errors
///
/// When the profile has a one-time file.
pub fn write(name: &str, profile: &Profile) -> Result<String, UriError> {
    if matches!(profile.key, Key::OneTime(_)) {
        return Err(UriError::OneTime);
    }
    let escape = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
    let address = profile.host.split('%').next().unwrap_or_default();
    let host = match address.parse::<Ipv6Addr>() {
        Ok(_) => format!("[{}]", escape(&profile.host)),
        Err(_) => utf8_percent_encode(&profile.host, ESCAPED_IN_HOST).to_string(),
    };
    let all = keys(profile);
    let pairs = KEYS.iter().filter_map(|key| {
        let (_, value) = all.iter().find(|(name, _)| name == key)?;
        let value = value.as_str().map_or_else(|| value.to_string().trim().to_owned(), str::to_owned);
        Some(format!("&{key}={}", escape(&value)))
    });
    let pairs: String = pairs.collect();
    Ok(format!("{SCHEME}{host}/{}?v={VERSION}{pairs}", escape(name)))
}

/// Reads a link: the name that it suggests, if any, and the profile.
///
/// # Errors
///
/// When it is not a link of ours, or what it holds is not a valid profile.
pub fn read(text: &str) -> Result<(Option<String>, Profile), UriError> {
    // Scanners and mail programs add blanks and line ends.
    let text = text.trim();
    let scheme = text.get(..SCHEME.len()).filter(|scheme| scheme.eq_ignore_ascii_case(SCHEME));
    let rest = scheme.and_then(|scheme| text.get(scheme.len()..)).ok_or(UriError::NotALink)?;
    let (place, query) = rest.split_once('?').ok_or(UriError::NotALink)?;
    let (host, name) = place.split_once('/').unwrap_or((place, ""));
    let host = decode(host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host))?;
    if host.is_empty() {
        return Err(UriError::NoHost);
    }
    let name = decode(name)?;
    let mut version = None;
    let mut table = Table::new();
    table.insert("host", Item::Value(host.into()));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value)?;
        if key == "v" {
            if version.replace(value).is_some() {
                return Err(UriError::Twice(key.to_owned()));
            }
        } else if !KEYS.contains(&key) {
            return Err(UriError::UnknownKey(key.to_owned()));
        } else if table.insert(key, Item::Value(typed(key, &value))).is_some() {
            return Err(UriError::Twice(key.to_owned()));
        }
    }
    match version {
        Some(version) if version == VERSION => {}
        Some(version) => return Err(UriError::Version(version)),
        None => return Err(UriError::NoVersion),
    }
    let profile = profile_of(table).map_err(|(message, expected)| UriError::Invalid { message, expected })?;
    Ok(((!name.is_empty()).then_some(name), profile))
}

/// Gives a value the type that the key has in a hosts.toml; what does not fit stays a text, and is refused there.
fn typed(key: &str, value: &str) -> Value {
    match key {
        "delay" | "retries" | "timeout" | "lease" => {
            value.parse::<i64>().map_or_else(|_| value.into(), Value::from)
        }
        "connect" => value.parse::<bool>().map_or_else(|_| value.into(), Value::from),
        _ => value.into(),
    }
}

fn decode(text: &str) -> Result<String, UriError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| UriError::NotUtf8(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::value::{Families, HitList, Service};

    fn profile(host: &str) -> Profile {
        Profile::new(host, Key::Sequence(HitList::parse("7101,8202:udp,9303").unwrap()))
    }

    #[test]
    fn a_link_holds_what_another_device_needs_and_nothing_else() {
        let all = Profile {
            close: Some(HitList::parse("9303").unwrap()),
            delay: Some(Duration::from_millis(200)),
            family: Some(Families::Both),
            verify: Some(Service::parse("22").unwrap()),
            retries: Some(0),
            timeout: Some(Duration::from_secs(3)),
            tcpflags: Some(knockd_core::TcpFlags::SYN),
            lease: Some(Duration::from_secs(30)),
            connect: true,
            ..profile("gate.example.com")
        };
        let link = write("home", &all).unwrap();
        assert_eq!(
            link,
            "knock://gate.example.com/home?v=p1&sequence=7101,8202:udp,9303&close=9303&delay=200&family=both\
             &verify=tcp/22&retries=0&timeout=3&tcpflags=syn&lease=30&connect=true"
        );
        assert_eq!(read(&link).unwrap(), (Some("home".to_owned()), all.clone()));
        let local = Profile {
            then: vec!["ssh".to_owned()],
            interface: Some("eth0".to_owned()),
            source: Some("192.0.2.1".parse().unwrap()),
            ..all
        };
        assert_eq!(write("home", &local).unwrap(), link);
    }

    #[test]
    fn any_host_and_name_come_back() {
        for (name, host) in [
            ("home", "192.0.2.1"),
            ("büro/1?&=#%+", "2001:db8::1"),
            ("a b", "fe80::1%eth0"),
            ("[x]", "xn--bro-hoa.example"),
        ] {
            let link = write(name, &profile(host)).unwrap();
            assert_eq!(read(&link).unwrap(), (Some(name.to_owned()), profile(host)), "{link}");
        }
    }

    #[test]
    fn what_is_no_link_of_ours_is_refused_with_the_reason() {
        for (text, reason) in [
            ("https://a/b", "not a knock:// link"),
            ("knock://host", "not a knock:// link"),
            ("knock:///x?v=p1&sequence=1", "no host"),
            ("knock://a/b?sequence=1", "no version"),
            ("knock://a/b?v=s1&sequence=1", "version \"s1\""),
            ("knock://a/b?v=p1&sequence=1&then=rm", "unknown key \"then\""),
            ("knock://a/b?v=p1&sequence=1&sequence=2", "key \"sequence\" twice"),
            ("knock://a/%ff?v=p1&sequence=1", "percent-encoding"),
            ("knock://a/b?v=p1", "nothing to knock"),
            ("knock://a/b?v=p1&sequence=1&delay=x", "invalid `delay`"),
            ("knock://a/b?v=p1&sequence=70000", "invalid step 1"),
            ("knock://a/b?v=p1&v=p1&sequence=1", "key \"v\" twice"),
            ("knock://-oProxyCommand=id/b?v=p1&sequence=1", "invalid `host`"),
            ("knock://user@a/b?v=p1&sequence=1", "invalid `host`"),
            ("knock://a:22/b?v=p1&sequence=1", "invalid `host`"),
            ("knock://[::1/b?v=p1&sequence=1", "invalid `host`"),
            ("knock://a%0ab/b?v=p1&sequence=1", "invalid `host`"),
            ("knock://a%20b/b?v=p1&sequence=1", "invalid `host`"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
