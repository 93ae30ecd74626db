//! The `knock` program.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;

use knock_client::args::{Args, hint};
use knock_client::{Hit, KnockError, Sender, Target, reason};
use knockd_core::Protocol;

/// The exit status of `knock`. clap itself exits with the same `Usage`, and with `Sent` after `--help` and
/// `--version`.
#[derive(Clone, Copy)]
enum Exit {
    /// Every hit was sent or reported as not sent.
    Sent = 0,
    /// The host does not resolve or the privilege is missing, and nothing was sent; or, with `--strict`, a hit was not
    /// sent.
    Failed = 1,
    /// The command line is invalid; nothing was sent.
    Usage = 2,
}

fn main() -> ExitCode {
    let args = Args::of_process();
    let exit = match run(&args) {
        Ok(false) if args.strict => Exit::Failed,
        Ok(_) => Exit::Sent,
        Err(error) => {
            report(&error.to_string());
            if let Some(hint) = hint() {
                report(&hint);
            }
            match error {
                KnockError::NotAPort(_) => Exit::Usage,
                KnockError::Unresolved { .. } | KnockError::RawForbidden | KnockError::RawUnavailable(_) => {
                    Exit::Failed
                }
            }
        }
    };
    ExitCode::from(exit as u8)
}

/// Knocks and says whether every hit was sent.
fn run(args: &Args) -> Result<bool, KnockError> {
    let lists = args.ports.iter().map(|text| Hit::parse_list(text, args.udp));
    let hits = lists.collect::<Result<Vec<_>, _>>()?.concat();
    if hits.is_empty() {
        return Err(KnockError::NotAPort(args.ports.concat()));
    }
    let target = Target::resolve(&args.host, args.family())?;
    let any_tcp = hits.iter().any(|hit| hit.step.protocol == Protocol::Tcp);
    let sender = match args.tcpflags {
        Some(flags) if any_tcp => Sender::with_flags(target, flags)?,
        _ => Sender::new(target),
    };
    let mut are_sent = true;
    for hit in &hits {
        let name = format!("{} {target}:{}", hit.step.protocol, hit.port_text);
        if args.verbose {
            // A reader that is gone is no reason to stop in the middle of a knock.
            let _ = writeln!(io::stdout(), "hitting {name}");
        }
        if let Err(error) = sender.send(hit.step) {
            report(&format!("cannot send {name}: {}", reason(&error)));
            are_sent = false;
        }
        // As in 0.8, also after the last hit: `knock -d 500 host 1 2 3 && ssh host` gives the door time to open.
        thread::sleep(args.delay);
    }
    Ok(are_sent)
}

fn report(message: &str) {
    // Standard error may be closed; the exit status still tells.
    let _ = writeln!(io::stderr(), "knock: {message}");
}
