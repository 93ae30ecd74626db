//! The `knock` program.
#![forbid(unsafe_code)]

mod commands;
mod plan;
mod qr;

use std::io::{self, Write};
use std::process::ExitCode;

use clap_complete::CompleteEnv;
use knock_client::args::{Args, Command, Invocation, command, hint};
use knock_client::hosts::HostsError;
use knock_client::{Hit, KnockError, reason};

use crate::commands::{COMPLETE, CommandError};
use crate::plan::{Plan, PlanError};

/// The exit status of `knock`. clap itself exits with the same `Usage`, and with `Sent` after `--help` and
/// `--version`.
#[derive(Clone, Copy)]
enum Exit {
    /// Every hit was sent or reported as not sent.
    Sent = 0,
    /// The host does not resolve, the privilege is missing or a file is not usable, and nothing was sent; or, with
    /// `--strict`, a hit was not sent.
    Failed = 1,
    /// The command line is invalid; nothing was sent.
    Usage = 2,
}

fn main() -> ExitCode {
    CompleteEnv::with_factory(command).var(COMPLETE).complete();
    let exit = match Invocation::of_process() {
        Invocation::Knock(args) => knock(&args),
        Invocation::Command(command) => run(&command),
    };
    ExitCode::from(exit as u8)
}

fn run(command: &Command) -> Exit {
    let Err(error) = commands::run(command) else { return Exit::Sent };
    report(&error.to_string());
    match error {
        CommandError::Usage(_) | CommandError::Hosts(HostsError::NoProfile { .. }) => Exit::Usage,
        _ => Exit::Failed,
    }
}

fn knock(args: &Args) -> Exit {
    match send(args) {
        Ok(false) if args.strict => Exit::Failed,
        Ok(_) => Exit::Sent,
        Err(error) => {
            report_plan_error(&error, args);
            if let Some(hint) = hint() {
                report(&hint);
            }
            match error {
                PlanError::Knock(KnockError::NotAPort(_))
                | PlanError::Hosts(HostsError::NoProfile { .. })
                | PlanError::CloseOfHost => Exit::Usage,
                _ => Exit::Failed,
            }
        }
    }
}

fn report_plan_error(error: &PlanError, args: &Args) {
    let PlanError::Hosts(HostsError::NoProfile { similar, .. }) = error else {
        return report(&error.to_string());
    };
    let ports = format!("to knock at a host, add its ports: knock {} PORT...", args.host);
    if similar.is_none() {
        return report(&format!("{error}; {ports}"));
    }
    report(&error.to_string());
    report(&ports);
}

/// Knocks and says whether every hit was sent.
fn send(args: &Args) -> Result<bool, PlanError> {
    let plan = Plan::of(args, |warning| report(&format!("warning: {warning}")))?;
    let prepared = plan.knock.prepare()?;
    let target = prepared.target();
    let count = plan.knock.hits.len();
    let name = |number: usize, hit: &Hit| {
        if plan.is_profile {
            format!("step {number} of {count} at {target}")
        } else {
            format!("{} {target}:{}", hit.step.protocol, hit.port_text)
        }
    };
    let before = |number: usize, hit: &Hit| {
        if args.verbose {
            // A reader that is gone is no reason to stop in the middle of a knock.
            let _ = writeln!(io::stdout(), "hitting {}", name(number, hit));
        }
    };
    let failed = |number: usize, hit: &Hit, error: &io::Error| {
        report(&format!("cannot send {}: {}", name(number, hit), reason(error)));
    };
    let are_sent = prepared.send(before, failed);
    if let Some(line) = &plan.line {
        line.strike_out()?;
    }
    Ok(are_sent)
}

fn report(message: &str) {
    // Standard error may be closed; the exit status still tells.
    let _ = writeln!(io::stderr(), "knock: {message}");
}
