//! `knock add`, and what it shares with `knock edit`.

use std::io::{self, IsTerminal};

use knock_client::args::{Add, Keys};
use knock_client::hosts::Hosts;
use knock_client::profile::{Key, Profile};
use knock_client::value::HitList;
use knock_client::{reason, uri};

use super::{CommandError, change, say, warn};

pub(super) fn run(add: &Add) -> Result<(), CommandError> {
    let name = &add.name;
    check_new(&Hosts::read()?, name)?;
    let mut profile = if uri::is_link(&add.host) {
        if !add.ports.is_empty() {
            return Err(CommandError::Usage(
                "a link has a sequence of its own; expected no ports".to_owned(),
            ));
        }
        let (_, profile) = uri::read(&add.host)?;
        warn_of_history("the link");
        profile
    } else {
        let key = match &add.keys.one_time {
            Some(_) if !add.ports.is_empty() => {
                return Err(CommandError::Usage("ports and --one-time; expected one of them".to_owned()));
            }
            // `set` takes the path.
            Some(path) => Key::OneTime(path.clone()),
            None if add.ports.is_empty() => Key::Sequence(ask_for_sequence(name)?),
            None => {
                let list = HitList::parse(&add.ports.join(","))
                    .map_err(|error| CommandError::Usage(error.to_string()))?;
                warn_of_history("the sequence");
                Key::Sequence(list)
            }
        };
        Profile::new(&*add.host, key)
    };
    set(&mut profile, &add.keys)?;
    // Time has passed if a person was asked.
    let hosts = change(|hosts| {
        check_new(hosts, name)?;
        Ok(hosts.with(name, &profile)?)
    })?;
    say(&format!("added {name} to {}; to knock, run: knock {name}", hosts.path().display()));
    Ok(())
}

fn check_new(hosts: &Hosts, name: &str) -> Result<(), CommandError> {
    if hosts.names().all(|known| known != name) {
        return Ok(());
    }
    let path = hosts.path().display();
    Err(CommandError::Failed(format!(
        "profile {name:?} exists in {path}; to change it, run: knock edit {name}"
    )))
}

/// Says that a secret stood on the command line.
pub(super) fn warn_of_history(what: &str) {
    warn(&format!("{what} may be in your shell's history, and other users could see it while knock ran"));
}

/// Asks for a sequence on the terminal without showing it, or reads it from a pipe.
pub(super) fn ask_for_sequence(name: &str) -> Result<HitList, CommandError> {
    let cannot =
        |error: io::Error| CommandError::Failed(format!("cannot read the sequence: {}", reason(&error)));
    let text = if io::stdin().is_terminal() {
        ask(&format!("sequence of {name} (not shown): "))
    } else {
        io::read_to_string(io::stdin())
    };
    let text = text.map_err(cannot)?;
    let words: Vec<_> = text.split_whitespace().collect();
    if words.is_empty() {
        return Err(CommandError::Usage("empty sequence; expected ports, such as 7101,8202:udp".to_owned()));
    }
    // Blanks part ports as well, as on the command line.
    HitList::parse(&words.join(",").replace(",,", ",")).map_err(|error| CommandError::Usage(error.discreet()))
}

#[cfg(unix)]
fn ask(prompt: &str) -> io::Result<String> {
    use nix::sys::signal::{SigSet, Signal};
    // At control-C, the library ends the program before it gives the terminal its echo back. So the signal waits.
    let interrupt = SigSet::from(Signal::SIGINT);
    interrupt.thread_block()?;
    let typed = rpassword::prompt_password(prompt);
    interrupt.thread_unblock()?;
    typed
}

#[cfg(not(unix))]
fn ask(prompt: &str) -> io::Result<String> {
    rpassword::prompt_password(prompt)
}

/// Sets what the options say.
pub(super) fn set(profile: &mut Profile, keys: &Keys) -> Result<(), CommandError> {
    fn replace<T: Clone>(value: &mut Option<T>, option: Option<&T>) {
        if let Some(option) = option {
            *value = Some(option.clone());
        }
    }
    replace(&mut profile.close, keys.close.as_ref());
    replace(&mut profile.delay, keys.delay.as_ref());
    replace(&mut profile.family, keys.family.as_ref());
    replace(&mut profile.verify, keys.verify.as_ref());
    replace(&mut profile.retries, keys.retries.as_ref());
    replace(&mut profile.timeout, keys.timeout.as_ref());
    replace(&mut profile.tcpflags, keys.tcpflags.as_ref());
    replace(&mut profile.lease, keys.lease.as_ref());
    replace(&mut profile.interface, keys.interface.as_ref());
    replace(&mut profile.source, keys.source.as_ref());
    profile.connect |= keys.connect;
    if !keys.then.is_empty() {
        profile.then.clone_from(&keys.then);
    }
    if let Some(path) = &keys.one_time {
        let path = std::path::absolute(path).map_err(|error| {
            CommandError::Failed(format!("cannot use {}: {}", path.display(), reason(&error)))
        })?;
        profile.key = Key::OneTime(path);
    }
    if keys.close.is_some() {
        warn_of_history("the closing sequence");
    }
    Ok(())
}

/// Says whether any option is given.
pub(super) fn has_any(keys: &Keys) -> bool {
    let Keys {
        close,
        delay,
        family,
        verify,
        retries,
        timeout,
        tcpflags,
        lease,
        one_time,
        connect,
        interface,
        source,
        then,
    } = keys;
    close.is_some()
        || delay.is_some()
        || family.is_some()
        || verify.is_some()
        || retries.is_some()
        || timeout.is_some()
        || tcpflags.is_some()
        || lease.is_some()
        || one_time.is_some()
        || *connect
        || interface.is_some()
        || source.is_some()
        || !then.is_empty()
}
