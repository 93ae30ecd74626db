//! `knockd guard --try`: the guard for a while, for good once it has been seen to let somebody in.

use std::io::BufRead;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use crossbeam_channel::{RecvTimeoutError, bounded, never};
use knockd_core::Config;

use super::ask::{Answer, ask};
use super::{keep, say, socket};
use crate::control::Request;
use crate::firewall::{self, Order, Standing};
use crate::system::text::span;

/// How often to look whether the trial has ended.
const LOOK: Duration = Duration::from_secs(1);

/// Guards for this time, and waits until the guard stands or is lifted. Should this process end, the trial goes on.
pub(super) fn run(config: &Config, seconds: u32) -> anyhow::Result<()> {
    let has_daemon = match ask(socket(config), Request::Guard { seconds: Some(seconds) }) {
        Answer::Done(_) => true,
        Answer::Refused(reason) => bail!("{reason}"),
        Answer::Silence => {
            bail!("knockd does not answer; restart it, or remove the guard: knockd guard --remove")
        }
        Answer::NobodyThere => {
            let order = Order::Try(Duration::from_secs(seconds.into()));
            firewall::guard(config, order).context("cannot close the ports")?;
            false
        }
    };
    explain(config, seconds, has_daemon);
    wait(config)
}

fn explain(config: &Config, seconds: u32, has_daemon: bool) {
    let doors = config.doors.iter().filter_map(|door| Some((&door.name, door.open.as_ref()?)));
    let doors: Vec<_> = doors.map(|(name, services)| format!("{services} (door {name})")).collect();
    say(format_args!("closed: {}", doors.join("; ")));
    let time = span(seconds.into());
    say(format_args!(
        "In {time}, the kernel opens all of this again, even if this session has been cut off."
    ));
    if !has_daemon {
        say("knockd is not running, so nobody can knock: start it now, in another terminal.");
    }
    say(
        "To keep the guard, knock and connect from another terminal; or press Enter here; or run: knockd guard",
    );
}

fn wait(config: &Config) -> anyhow::Result<()> {
    let mut confirmed = confirmation();
    loop {
        match confirmed.recv_timeout(LOOK) {
            Ok(()) => return keep(config),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => confirmed = never(),
        }
        match firewall::standing().context("cannot see whether the guard stands")? {
            Standing::OnTrial(_) => {}
            Standing::Firm => {
                say("the guard stands");
                return Ok(());
            }
            Standing::Lifted | Standing::Gone => {
                bail!(
                    "the guard is lifted, and the ports are open for everybody; to close them, run: knockd guard"
                )
            }
        }
    }
}

/// Waits for Enter on a thread of its own. The end of the input, as of a terminal that is gone, confirms nothing.
fn confirmation() -> crossbeam_channel::Receiver<()> {
    let (sender, confirmed) = bounded(1);
    let reading = thread::Builder::new().spawn(move || {
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).is_ok() && line.ends_with('\n') {
            let _ = sender.send(());
        }
    });
    if reading.is_ok() { confirmed } else { never() }
}
