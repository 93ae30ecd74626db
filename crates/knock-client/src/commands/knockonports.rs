//! The file that the Android app Knock on Ports imports (version 1 of its format; app version 2.1.10).

use knock_client::profile::Profile;
use knock_client::value::{Families, HitList, Service};
use knock_client::{Family, Hit, Packet, ZERO_BYTE};
use serde::Serialize;

#[derive(Serialize)]
struct File<'p> {
    version: u8,
    sequences: Vec<Sequence<'p>>,
}

/// Mind the spelling: one key is in camel case, the others are not. The app's own defaults stand for what is absent.
#[derive(Serialize)]
struct Sequence<'p> {
    name: String,
    host: &'p str,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv: Option<&'static str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    check: Option<Check<'p>>,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Check<'p> {
    #[serde(rename = "checkAccess")]
    access: bool,
    #[serde(rename = "check_type")]
    kind: &'static str,
    #[serde(rename = "check_port")]
    port: u16,
    #[serde(rename = "check_host")]
    host: &'p str,
    #[serde(rename = "check_timeout")]
    timeout: u64,
    #[serde(rename = "check_post_knock")]
    post_knock: bool,
    #[serde(rename = "check_max_retries")]
    max_retries: u32,
}

#[derive(Serialize, Default)]
struct Step {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_size: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_count: Option<u8>,
}

/// Returns the content of the file. The closing sequence, if there is one, becomes a second sequence.
///
/// # Errors
///
/// When a step is nothing that the app sends.
pub(super) fn write(name: &str, profile: &Profile, open: &HitList) -> Result<String, serde_json::Error> {
    let check = profile.verify.as_ref().map(|service| check(profile, service));
    let close = profile.close.as_ref().map(|close| sequence(format!("{name}-close"), profile, close, None));
    let open = sequence(name.to_owned(), profile, open, check);
    let file = File { version: 1, sequences: std::iter::once(open).chain(close).collect() };
    serde_json::to_string_pretty(&file)
}

fn sequence<'p>(
    name: String,
    profile: &'p Profile,
    list: &HitList,
    check: Option<Check<'p>>,
) -> Sequence<'p> {
    Sequence {
        name,
        host: &profile.host,
        delay: profile.delay.and_then(|delay| delay.as_millis().try_into().ok()),
        ipv: profile.family.map(|families| match families {
            Families::Only(Family::V4) => "only_ipv4",
            Families::Only(Family::V6) => "only_ipv6",
            Families::Both => "both_ipv4_ipv6",
        }),
        check,
        steps: list.hits().iter().map(step).collect(),
    }
}

/// The app has the same defaults as `knock`: three seconds, two retries.
fn check<'p>(profile: &'p Profile, service: &Service) -> Check<'p> {
    Check {
        access: true,
        kind: "PORT",
        port: service.port,
        host: &profile.host,
        timeout: profile.timeout.map_or(3, |timeout| timeout.as_secs()),
        post_knock: true,
        max_retries: profile.retries.unwrap_or(2),
    }
}

fn step(hit: &Hit) -> Step {
    match &hit.packet {
        Packet::Tcp { port, .. } => Step { kind: "tcp", port: Some(*port), ..Step::default() },
        Packet::Udp { port, payload } if *payload == ZERO_BYTE => {
            Step { kind: "udp", port: Some(*port), ..Step::default() }
        }
        Packet::Udp { port, payload } => Step {
            kind: "udp",
            port: Some(*port),
            content: Some(data_encoding::HEXLOWER.encode(payload)),
            encoding: Some("hex"),
            ..Step::default()
        },
        Packet::Echo { size } => {
            Step { kind: "icmp", icmp_size: Some(*size), icmp_count: Some(1), ..Step::default() }
        }
    }
}
