//! `knock export`: a profile for another program or device.

use std::ffi::OsStr;
use std::path::Path;

use knock_client::args::{Export, Format};
use knock_client::hosts::{keys, write_private};
use knock_client::profile::{Key, Profile};
use knock_client::value::HitList;
use knock_client::{Hit, Packet, Tcp, reason, uri};
use knockd_core::{Config, FlagRule, Sequence, TcpFlags};

use super::{CommandError, knockonports, print, read, say, warn};
use crate::qr::Qr;

pub(super) fn run(export: &Export) -> Result<(), CommandError> {
    let name = &export.name;
    let profile = read()?.profile(name)?;
    let output = export.output.as_deref().filter(|path| !STANDARD_OUTPUT.map(Path::new).contains(path));
    let exported = match export.format {
        Format::Knockd => knockd(name, &profile)?.into_bytes(),
        Format::Knockonports => {
            let Key::Sequence(list) = &profile.key else {
                return Err(failed(
                    "Knock on Ports has no one-time files, so this profile cannot be exported to it",
                ));
            };
            warn_of_loss(&profile, list);
            let json =
                knockonports::write(name, &profile, list).map_err(|error| failed(error.to_string()))?;
            (json + "\n").into_bytes()
        }
        Format::Uri => (uri::write(name, &profile)? + "\n").into_bytes(),
        Format::Qr => qr(&uri::write(name, &profile)?, output)?,
        Format::Json => (json(name, &profile)? + "\n").into_bytes(),
    };
    let Some(path) = output else {
        warn(&format!("anyone who sees this can knock at {name}"));
        return print(&String::from_utf8_lossy(&exported));
    };
    write_private(path, &exported)
        .map_err(|error| failed(format!("cannot write {}: {}", path.display(), reason(&error))))?;
    say(&format!("wrote {}; anyone who sees it can knock at {name}", path.display()));
    Ok(())
}

/// The names that programs have for standard output.
const STANDARD_OUTPUT: [&str; 2] = ["-", "/dev/stdout"];

fn failed(message: impl Into<String>) -> CommandError {
    CommandError::Failed(message.into())
}

/// Warns of what Knock on Ports cannot send.
fn warn_of_loss(profile: &Profile, list: &HitList) {
    if profile.tcpflags.is_some() || has_flags(list) {
        warn("Knock on Ports cannot send TCP flags of its own, which this door needs");
    }
    let connects = |hit: &Hit| matches!(hit.packet, Packet::Tcp { kind: Tcp::Connection, .. });
    if profile.connect || list.hits().iter().any(connects) {
        warn("Knock on Ports does not wait for connections, which this network may need");
    }
    if list.hits().iter().any(|hit| hit.delay.is_some()) {
        warn("Knock on Ports has one delay for all hits; those of single hits are left out");
    }
}

fn has_flags(list: &HitList) -> bool {
    list.hits().iter().any(|hit| matches!(hit.packet, Packet::Tcp { kind: Tcp::Flags(_), .. }))
}

fn qr(link: &str, output: Option<&Path>) -> Result<Vec<u8>, CommandError> {
    let qr = Qr::of(link)?;
    let Some(path) = output else { return Ok(qr.text().into_bytes()) };
    match path.extension().and_then(OsStr::to_str).map(str::to_lowercase).as_deref() {
        Some("png") => Ok(qr.png()),
        Some("svg") => Ok(qr.svg().into_bytes()),
        _ => Err(CommandError::Usage(format!(
            "unknown kind of picture {}; expected .png or .svg",
            path.display()
        ))),
    }
}

fn json(name: &str, profile: &Profile) -> Result<String, CommandError> {
    let mut all = serde_json::Map::new();
    all.insert("name".to_owned(), name.into());
    for (key, value) in keys(profile) {
        let value = if let Some(text) = value.as_str() {
            text.into()
        } else if let Some(number) = value.as_integer() {
            number.into()
        } else if let Some(is) = value.as_bool() {
            is.into()
        } else {
            value.as_array().iter().flat_map(|array| array.iter()).filter_map(|word| word.as_str()).collect()
        };
        all.insert(key.to_owned(), value);
    }
    serde_json::to_string_pretty(&all).map_err(|error| failed(error.to_string()))
}

/// Makes a configuration of a server whose door this profile opens.
///
/// The app Knock on Ports reads it as well: it looks for names and sequences only.
fn knockd(name: &str, profile: &Profile) -> Result<String, CommandError> {
    let flags = match profile.tcpflags {
        None => FlagRule::SYN,
        Some(TcpFlags::NONE) => FlagRule::ANY.and_clear(TcpFlags::SYN),
        Some(flags) => FlagRule::ANY.and_set(flags),
    };
    let key = match &profile.key {
        Key::Sequence(list) => {
            if has_flags(list) {
                warn("a door of knockd has one `TCPFlags` for all hits; those of single hits are left out");
            }
            format!("Sequence = {}", sequence(list)?)
        }
        Key::OneTime(path) => format!("One_Time_Sequences = {}", path.display()),
    };
    let mut lines = Vec::new();
    if profile.verify.is_some() {
        lines.extend(["[options]".to_owned(), "    Firewall = nftables".to_owned(), String::new()]);
    }
    lines.extend([format!("[{name}]"), format!("    {key}"), format!("    TCPFlags = {flags}")]);
    lines.extend(profile.verify.as_ref().map(|service| format!("    Open = tcp/{}", service.port)));
    lines.extend(profile.lease.map(|lease| format!("    Lease = {}", lease.as_secs())));
    if let Some(close) = &profile.close {
        let key = format!("    Sequence = {}", sequence(close)?);
        lines.extend([String::new(), format!("[{name}-close]"), key, format!("    TCPFlags = {flags}")]);
    }
    let text = lines.join("\n") + "\n";
    // Not every name or path can stand in a knockd.conf; one with a line end could even bring commands with it.
    let config = Config::parse(text.as_bytes())
        .map_err(|error| failed(format!("this profile does not fit into a knockd.conf: {error}")))?
        .config;
    let close = profile.close.is_some().then(|| format!("{name}-close"));
    let doors = config.doors.iter().map(|door| &*door.name);
    if !doors.eq(std::iter::once(name).chain(close.as_deref())) || has_control(name) || has_control(&key) {
        return Err(failed(
            "this profile does not fit into a knockd.conf: its name or path cannot stand there",
        ));
    }
    Ok(text)
}

fn has_control(text: &str) -> bool {
    text.contains(char::is_control)
}

fn sequence(list: &HitList) -> Result<Sequence, CommandError> {
    let step =
        |hit: &Hit| hit.step().ok_or_else(|| failed("a door of knockd cannot ask for an echo request"));
    let mut steps = list.hits().iter().map(step).collect::<Result<Vec<_>, _>>()?.into_iter();
    let sequence = steps.next().and_then(|first| Sequence::new(first, steps.collect()));
    sequence.ok_or_else(|| failed(format!("knockd takes at most {} steps", Sequence::MAX_STEPS)))
}
