//! Files of profiles and links against each other.

use std::ops::Range;

use knock_client::hosts::{Hosts, HostsError};
use knock_client::profile::{Key, Profile};
use knock_client::uri;

/// Any text is refused with its reason, or its profiles are written and read as their equals: into an empty file, over
/// themselves, and as links. What is a link makes the same link again.
pub fn profiles(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok((name, profile)) = uri::read(text) {
        check_link(name.as_deref().unwrap_or("name"), &profile);
    }
    let hosts = match Hosts::parse("hosts.toml".into(), text) {
        Ok(hosts) => hosts,
        Err(error) => return check_error(&error, text),
    };
    let empty = Hosts::parse("hosts.toml".into(), "").unwrap();
    for name in hosts.names() {
        let profile = match hosts.profile(name) {
            Ok(profile) => profile,
            Err(error) => {
                check_error(&error, text);
                continue;
            }
        };
        let written = empty.with(name, &profile).unwrap();
        assert_eq!(written.profile(name).unwrap(), profile, "{}", written.text());
        // What says the same already stays as it is, and removing it leaves the others. toml_edit drops blanks around the
        // dot of a dotted key.
        let visible = |text: &str| text.split_whitespace().collect::<String>();
        assert_eq!(visible(hosts.with(name, &profile).unwrap().text()), visible(text));
        let without = hosts.without(name).unwrap();
        assert!(without.names().all(|other| other != name));
        for other in without.names() {
            assert_eq!(without.profile(other).ok(), hosts.profile(other).ok(), "{}", without.text());
        }
        check_link(name, &profile);
    }
}

fn check_link(name: &str, profile: &Profile) {
    let Ok(link) = uri::write(name, profile) else {
        assert!(matches!(profile.key, Key::OneTime(_)));
        return;
    };
    let local = Profile::new("", profile.key.clone());
    let expected =
        Profile { then: local.then, interface: local.interface, source: local.source, ..profile.clone() };
    let (read_name, read) = uri::read(&link).unwrap();
    assert_eq!((read_name.as_deref().unwrap_or_default(), &read), (name, &expected), "{link}");
    assert_eq!(uri::write(name, &read).unwrap(), link);
}

/// Every finding names a line of the text.
fn check_error(error: &HostsError, text: &str) {
    let HostsError::Invalid(drawn) = error else { panic!("{error}") };
    let lines: Range<usize> = 1..text.split('\n').count() + 1;
    let mut findings = drawn.lines().filter_map(|line| line.strip_prefix("hosts.toml:")).peekable();
    assert!(findings.peek().is_some(), "{drawn}");
    for finding in findings {
        let line = finding.split(':').next().and_then(|line| line.parse().ok());
        assert!(line.is_some_and(|line| lines.contains(&line)), "{drawn}");
    }
}
