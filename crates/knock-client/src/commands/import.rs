//! `knock import`: profiles of the doors in a server's configuration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use knock_client::args::Import;
use knock_client::draw::draw;
use knock_client::hosts::Hosts;
use knock_client::profile::{Key, Profile, check_name};
use knock_client::reason;
use knock_client::value::{HitList, Service};
use knockd_core::config::{self, Door, Severity, Source};
use knockd_core::{Config, Protocol, TcpFlags, similar};
use wildmatch::WildMatch;

use super::{CommandError, lock, read, say, steps, warn};

pub(super) fn run(import: &Import) -> Result<(), CommandError> {
    let config = read_config(&import.file)?;
    let file = import.file.display();
    let _lock = lock();
    let mut changed = read()?;
    let doors: Vec<&Door> = match &import.door {
        Some(name) => vec![door(&config, name, &import.file)?],
        None => config.doors.iter().collect(),
    };
    if doors.is_empty() {
        return Err(CommandError::Failed(format!("no door in {file}")));
    }
    let close = import.close.as_ref().map(|name| door(&config, name, &import.file)).transpose()?;
    let close = close.map(closing_sequence).transpose()?;
    let (count, mut failures) = (doors.len(), Vec::new());
    for door in doors {
        let name = import.name.as_deref().unwrap_or(&door.name);
        match profile(&changed, name, door, import.host.as_deref()) {
            Ok(mut profile) => {
                profile.close.clone_from(&close);
                say(&format!("imported {name}: {}", told(&profile)));
                if let Key::OneTime(path) = &profile.key {
                    warn(&format!(
                        "{name}: knock needs a copy of its own of the one-time file, at {}; to use another \
                         path, run: knock edit {name} --one-time FILE",
                        path.display()
                    ));
                }
                changed = changed.with(name, &profile)?;
            }
            Err(reason) => failures.push(format!("door {:?} is not imported: {reason}", &*door.name)),
        }
    }
    if failures.len() < count {
        changed.write()?;
    }
    match failures.pop() {
        None => Ok(()),
        Some(reason) if count == 1 => Err(CommandError::Failed(reason)),
        Some(reason) => {
            failures.push(reason);
            for reason in &failures {
                say(reason);
            }
            let imported = count - failures.len();
            Err(CommandError::Failed(format!("imported {imported} of {count} doors of {file}")))
        }
    }
}

fn door<'c>(config: &'c Config, name: &str, file: &Path) -> Result<&'c Door, CommandError> {
    let found = config.doors.iter().find(|door| &*door.name == name);
    found.ok_or_else(|| {
        let names = config.doors.iter().map(|door| &*door.name);
        let hint = similar(name, names.clone()).map_or_else(
            || format!("; it has {}", names.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")),
            |name| format!("; did you mean {name:?}?"),
        );
        CommandError::Failed(format!("no door {name:?} in {}{hint}", file.display()))
    })
}

fn closing_sequence(door: &Door) -> Result<HitList, CommandError> {
    match &door.key {
        config::Key::Sequence(sequence) => Ok(HitList::of(sequence)),
        _ => Err(CommandError::Failed(format!(
            "door {:?} has no fixed sequence, so it cannot close another one",
            &*door.name
        ))),
    }
}

/// Makes the profile of a door, or says why there is none.
fn profile(hosts: &Hosts, name: &str, door: &Door, host: Option<&str>) -> Result<Profile, String> {
    check_name(name).map_err(|error| {
        let wrong = error.split(';').next().unwrap_or_default();
        format!("{wrong}; to give it another name, run: knock import FILE {:?} --name NAME", &*door.name)
    })?;
    if hosts.names().any(|known| known == name) {
        return Err(format!("profile {name:?} exists in {}", hosts.path().display()));
    }
    let host = host.map(str::to_owned).or_else(|| door.target.map(|target| target.to_string()));
    let host = host.ok_or("it has no Target, so the server is not known; give its name: --host HOST")?;
    let (key, has_tcp) = match &door.key {
        config::Key::Sequence(sequence) => {
            let has_tcp = sequence.steps().any(|step| step.protocol == Protocol::Tcp);
            (Key::Sequence(HitList::of(sequence)), has_tcp)
        }
        config::Key::OneTime(path) if Path::new(&**path).is_absolute() => {
            (Key::OneTime(PathBuf::from(&**path)), true)
        }
        config::Key::OneTime(_) => return Err("the path of its one-time file is not absolute".to_owned()),
        _ => return Err("this knock does not know its kind of key".to_owned()),
    };
    let is_closed_later = door.is_guarded() || door.action.is_undone();
    let lease = Duration::from_secs(door.cmd_timeout.get().into());
    Ok(Profile {
        tcpflags: (has_tcp && !door.tcp_flags.accepts(TcpFlags::SYN)).then(|| door.tcp_flags.must_be_set()),
        lease: (is_closed_later && !lease.is_zero()).then_some(lease),
        verify: service(door),
        ..Profile::new(host, key)
    })
}

/// Returns the first TCP service behind a door.
fn service(door: &Door) -> Option<Service> {
    let services = door.services()?;
    let tcp = services.iter().find(|service| service.protocol() == Protocol::Tcp)?;
    Some(Service::at(*tcp.ports().start()))
}

/// Says what was imported, without the sequence.
fn told(profile: &Profile) -> String {
    let mut parts = vec![match &profile.key {
        Key::Sequence(list) => steps(list.hits().len()),
        Key::OneTime(_) => "one-time file".to_owned(),
    }];
    parts.push(format!("at {}", profile.host));
    parts.extend(profile.close.as_ref().map(|list| format!("closed by {}", steps(list.hits().len()))));
    parts.extend(profile.tcpflags.map(|flags| {
        format!("TCP flags {}, which need root to be sent", knock_client::value::spell_flags(flags))
    }));
    parts.extend(profile.lease.map(|lease| format!("open for {} s", lease.as_secs())));
    parts.extend(profile.verify.as_ref().map(|service| format!("opens {service}")));
    parts.join(", ")
}

/// How many findings are shown.
const MAX_SHOWN: usize = 5;

/// Reads a configuration with the files that it includes.
fn read_config(path: &Path) -> Result<Config, CommandError> {
    let read = |path: &Path| {
        fs::read(path).map_err(|error| {
            CommandError::Failed(format!("cannot read {}: {}", path.display(), reason(&error)))
        })
    };
    let text = read(path)?;
    let mut included = Vec::new();
    for include in Config::includes(&text) {
        let pattern = path.parent().unwrap_or(Path::new("")).join(&*include);
        let files = files_of(&pattern).map_err(|error| {
            CommandError::Failed(format!("cannot read {}: {}", pattern.display(), reason(&error)))
        })?;
        for file in files {
            included.push((file.display().to_string(), read(&file)?));
        }
    }
    let main = std::iter::once(Source::new(&text));
    let sources: Vec<_> =
        main.chain(included.iter().map(|(name, text)| Source::included(name, text))).collect();
    let error = match Config::parse_files(&sources) {
        Ok(parsed) => return Ok(parsed.config),
        Err(error) => error,
    };
    let drawn = error.findings.iter().filter(|finding| finding.severity == Severity::Error).map(|finding| {
        let of_included =
            finding.file.as_ref().and_then(|file| included.iter().find(|(name, _)| name == file));
        let (path, text) = of_included.map_or((path, &text), |(name, text)| (Path::new(name), text));
        draw(path, &String::from_utf8_lossy(text), finding)
    });
    let mut drawn: Vec<_> = drawn.collect();
    // A file that is no configuration at all would fill the screen.
    let more = drawn.len().saturating_sub(MAX_SHOWN);
    drawn.truncate(MAX_SHOWN);
    if more > 0 {
        drawn.push(format!("and {more} more"));
    }
    Err(CommandError::Failed(format!("invalid configuration:\n{}", drawn.join("\n"))))
}

/// Returns the files that an `Include` names: a path, or a pattern in its last part.
fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(folder) = path.parent().filter(|_| name.contains(['*', '?'])) else {
        return Ok(vec![path.to_owned()]);
    };
    let pattern = WildMatch::new(name);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| !name.starts_with('.') && pattern.matches(name)) {
            files.push(folder.join(name));
        }
    }
    files.sort();
    Ok(files)
}
