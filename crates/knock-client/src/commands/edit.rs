//! `knock edit`: by options, or in an editor.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process;

use knock_client::args::Edit;
use knock_client::hosts::{Hosts, HostsError, read_text};
use knock_client::profile::Key;
use knock_client::reason;

use super::add::{ask_for_sequence, has_any, set, warn_of_history};
use super::{CommandError, change, lock, read, say};

pub(super) fn run(edit: &Edit) -> Result<(), CommandError> {
    let has_options = has_any(&edit.keys) || edit.host.is_some() || edit.sequence.is_some();
    match &edit.name {
        Some(name) if has_options => by_options(edit, name),
        None if has_options => {
            Err(CommandError::Usage("options without a profile; expected: knock edit NAME ...".to_owned()))
        }
        name => in_editor(name.as_deref()),
    }
}

fn by_options(edit: &Edit, name: &str) -> Result<(), CommandError> {
    Hosts::read()?.profile(name)?;
    if edit.sequence.is_some() && edit.keys.one_time.is_some() {
        return Err(CommandError::Usage("--sequence and --one-time; expected one of them".to_owned()));
    }
    let key = match &edit.sequence {
        None => None,
        Some(None) => Some(Key::Sequence(ask_for_sequence(name)?)),
        Some(Some(list)) => {
            warn_of_history("the sequence");
            Some(Key::Sequence(list.clone()))
        }
    };
    let hosts = change(|hosts| {
        let mut profile = hosts.profile(name)?;
        if let Some(host) = &edit.host {
            profile.host.clone_from(host);
        }
        profile.key = key.unwrap_or(profile.key);
        set(&mut profile, &edit.keys)?;
        Ok(hosts.with(name, &profile)?)
    })?;
    say(&format!("changed {name} in {}", hosts.path().display()));
    Ok(())
}

/// Has all profiles edited in a copy, which replaces the file only if it is valid.
fn in_editor(name: Option<&str>) -> Result<(), CommandError> {
    let (path, before) = match read() {
        Ok(hosts) => {
            // A mistyped name would otherwise be noticed only in the editor.
            if let Some(name) = name {
                match hosts.profile(name) {
                    Ok(_) | Err(HostsError::Invalid(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            (hosts.path().to_owned(), hosts.text().to_owned())
        }
        // The editor is where an invalid file is mended.
        Err(HostsError::Invalid(_)) => {
            let path = Hosts::default_path()?;
            let text = read_text(&path)?;
            (path, text)
        }
        Err(error) => return Err(error.into()),
    };
    let copy =
        copy_of(&path, &before).map_err(|cause| HostsError::Unwritable { path: path.clone(), cause })?;
    let edited = loop {
        let failure = run_editor(&copy).err();
        let text = read_text(&copy)?;
        match failure {
            Some(reason) if text == before => {
                remove(&copy);
                return Err(CommandError::Failed(reason));
            }
            Some(reason) => return Err(kept(&copy, &reason)),
            None => {}
        }
        let checked = Hosts::parse(path.clone(), &text).and_then(|hosts| hosts.check().map(|()| hosts));
        match checked {
            Ok(hosts) => break hosts,
            Err(error) => say(&error.to_string()),
        }
        if !wants_another_try()? {
            return Err(kept(&copy, "the file is as it was"));
        }
    };
    let _lock = lock();
    if read_text(&path).unwrap_or_default() != before {
        return Err(kept(&copy, "another program has changed the file meanwhile"));
    }
    if edited.text() == before {
        say("nothing changed");
    } else {
        edited.write()?;
        say(&format!("changed {}", path.display()));
    }
    remove(&copy);
    Ok(())
}

/// Removes a copy that holds nothing that the file does not.
fn remove(copy: &Path) {
    // If it cannot be removed, nothing is lost: nobody else can read it.
    let _ = fs::remove_file(copy);
}

fn kept(copy: &Path, reason: &str) -> CommandError {
    CommandError::Failed(format!("{reason}; your version is in {}", copy.display()))
}

/// Writes a copy next to the file: secrets belong in no shared folder. It stays until it is removed.
fn copy_of(path: &Path, text: &str) -> io::Result<std::path::PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("."));
    knock_client::hosts::create_private(folder)?;
    let mut copy = tempfile::Builder::new().prefix("hosts-").suffix(".toml").tempfile_in(folder)?;
    copy.write_all(text.as_bytes())?;
    let (_, copy) = copy.keep()?;
    Ok(copy)
}

fn run_editor(copy: &Path) -> Result<(), String> {
    let given = ["VISUAL", "EDITOR"].into_iter().filter_map(|name| std::env::var(name).ok());
    let editor = given.into_iter().find(|editor| !editor.trim().is_empty());
    let editor = editor.unwrap_or_else(|| if cfg!(windows) { "notepad" } else { "vi" }.to_owned());
    // An editor may come with arguments, such as `code --wait`.
    let mut words = editor.split_whitespace();
    let status = process::Command::new(words.next().unwrap_or_default()).args(words).arg(copy).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the editor failed, {status}; nothing changed")),
        Err(error) => Err(format!(
            "cannot run the editor {editor:?}: {}; to use another one, set EDITOR",
            reason(&error)
        )),
    }
}

/// Asks whether to edit again; whoever cannot answer does not want to.
fn wants_another_try() -> Result<bool, CommandError> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    let _ = write!(io::stderr(), "edit again? [Y/n] ");
    let mut answer = String::new();
    let length = io::stdin().lock().read_line(&mut answer).map_err(CommandError::Output)?;
    Ok(length > 0 && !answer.trim().to_lowercase().starts_with('n'))
}
