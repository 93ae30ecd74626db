//! `knock list` and `knock show`.

use knock_client::args::Show;
use knock_client::hosts::{Hosts, keys};
use knock_client::one_time::OneTimeLine;
use knock_client::profile::{Key, Profile};

use super::{CommandError, print, read, say, steps, warn};
use crate::report::harmless;

pub(super) fn list() -> Result<(), CommandError> {
    let hosts = read()?;
    if hosts.names().next().is_none() {
        let path = hosts.path().display();
        say(&format!("no profile in {path}; to add one, run: knock add NAME HOST"));
        return Ok(());
    }
    let rows: Vec<_> = hosts.names().map(|name| row(&hosts, name)).collect();
    let mut widths = [0; 4];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text += line.trim_end();
        text.push('\n');
    }
    print(&harmless(&text))?;
    Ok(hosts.check()?)
}

fn row(hosts: &Hosts, name: &str) -> [String; 4] {
    let (host, key, verify) = match hosts.profile(name) {
        Ok(profile) => {
            let verify = profile.verify.as_ref().map(ToString::to_string);
            (profile.host.clone(), key(&profile), verify.unwrap_or_default())
        }
        Err(_) => ("invalid".to_owned(), String::new(), String::new()),
    };
    [name.to_owned(), host, key, verify]
}

/// What the profile knocks, without saying it.
fn key(profile: &Profile) -> String {
    match &profile.key {
        Key::Sequence(list) => steps(list.hits().len()),
        Key::OneTime(path) => match OneTimeLine::next(path) {
            Ok(_) => "one-time file".to_owned(),
            Err(_) => "one-time file (unusable)".to_owned(),
        },
    }
}

pub(super) fn run(show: &Show) -> Result<(), CommandError> {
    let hosts = read()?;
    let profile = hosts.profile(&show.name)?;
    if show.reveal {
        warn(&format!("anyone who sees this can knock at {}", show.name));
    }
    let mut lines = vec![show.name.clone()];
    for (key, value) in keys(&profile) {
        let value = match (key, &profile) {
            ("sequence", Profile { key: Key::Sequence(list), .. })
            | ("close", Profile { close: Some(list), .. })
                if !show.reveal =>
            {
                steps(list.hits().len())
            }
            ("delay", _) => format!("{value} ms"),
            ("timeout" | "lease", _) => format!("{value} s"),
            _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
        };
        lines.push(format!("  {key:<10}{}", value.trim()));
    }
    print(&(harmless(&lines.join("\n")) + "\n"))?;
    if let Key::OneTime(path) = &profile.key {
        OneTimeLine::next(path)?;
    }
    Ok(())
}
