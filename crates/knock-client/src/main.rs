//! The `knock` program.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use knock_client::args::{Args, Invocation, hint};
use knock_client::{Hit, Knock, KnockError, reason};

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
    let exit = match Invocation::of_process() {
        Invocation::Knock(args) => knock(&args),
        Invocation::Command(command) => match command {},
    };
    ExitCode::from(exit as u8)
}

fn knock(args: &Args) -> Exit {
    match send(args) {
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
    }
}

/// Knocks and says whether every hit was sent.
fn send(args: &Args) -> Result<bool, KnockError> {
    let knock = Knock::of_line(args)?;
    let prepared = knock.prepare()?;
    let target = prepared.target();
    let name = |hit: &Hit| format!("{} {target}:{}", hit.step.protocol, hit.port_text);
    let before = |hit: &Hit| {
        if args.verbose {
            // A reader that is gone is no reason to stop in the middle of a knock.
            let _ = writeln!(io::stdout(), "hitting {}", name(hit));
        }
    };
    let failed =
        |hit: &Hit, error: &io::Error| report(&format!("cannot send {}: {}", name(hit), reason(error)));
    Ok(prepared.send(before, failed))
}

fn report(message: &str) {
    // Standard error may be closed; the exit status still tells.
    let _ = writeln!(io::stderr(), "knock: {message}");
}
