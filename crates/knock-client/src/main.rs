//! The `knock` program.
#![forbid(unsafe_code)]

mod commands;
mod exit;
mod lock;
mod plan;
mod proxy;
mod qr;
mod report;
mod run;
mod then;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;
use std::thread;

use clap_complete::CompleteEnv;
use knock_client::args::{self, Args, Command, Invocation, command, hint};
use knock_client::hosts::HostsError;
use knock_client::profile::COMMANDS;
use knock_client::{Knock, KnockError, Route, reason};
use knockd_core::similar;

use crate::commands::{COMPLETE, CommandError};
use crate::exit::Exit;
use crate::plan::{Plan, PlanError};
use crate::report::Report;
use crate::run::How;
use crate::watch::{BETWEEN_LOOKS, Due, LastKnock, Moment};

fn main() -> ExitCode {
    CompleteEnv::with_factory(command).var(COMPLETE).complete();
    match Invocation::of_process() {
        Invocation::Knock(args) if args.watch => watch(&args),
        Invocation::Knock(args) => knock(&args),
        Invocation::Command(command) => run(&command).into(),
    }
}

fn run(command: &Command) -> Exit {
    commands::run(command).unwrap_or_else(|error| {
        report::error(&error.to_string());
        match error {
            CommandError::Usage(_) | CommandError::Hosts(HostsError::NoProfile { .. }) => Exit::Usage,
            _ => Exit::Failed,
        }
    })
}

fn knock(args: &Args) -> ExitCode {
    let mut report = Report::new(&args.host, args.format, args.verbose);
    let (exit, then) = knock_once(args, &mut report).map_or_else(
        |error| (report_error(&error, args, &mut report), Vec::new()),
        |(exit, plan)| (exit, plan.then),
    );
    match then.split_first() {
        Some((program, arguments)) if exit == Exit::Done => follow(program, arguments, &mut report),
        _ => exit.into(),
    }
}

/// Knocks as the line says. The plan is returned because its lock ends with it.
fn knock_once(args: &Args, report: &mut Report) -> Result<(Exit, Plan), PlanError> {
    let mut warning = None;
    let on_wait = || report.progress("waiting for another knock");
    let plan = Plan::of(args, |text| warning = Some(format!("warning: {text}")), on_wait)?;
    if let Some(warning) = warning {
        report.error(&warning);
    }
    let how = How { is_verbose: args.verbose && args.format == args::Report::Text, is_strict: args.strict };
    run::run(&plan, how, report).map(|exit| (exit, plan))
}

fn report_error(error: &PlanError, args: &Args, report: &mut Report) -> Exit {
    match error {
        PlanError::Hosts(HostsError::NoProfile { similar, .. }) => {
            let ports = format!("to knock at a host, add its ports: knock {} PORT...", args.host);
            if similar.is_none() {
                report.failure(&format!("{error}; {ports}"));
            } else {
                report.failure(&error.to_string());
                report.error(&ports);
            }
        }
        PlanError::Knock(KnockError::NotAHit(hit)) => {
            report.failure(&error.to_string());
            if let Some(pointer) = hit.pointer() {
                report.pointer(&pointer);
            }
        }
        _ => report.failure(&error.to_string()),
    }
    if let PlanError::Hosts(HostsError::NoProfile { similar: None, .. })
    | PlanError::Knock(KnockError::NotAHit(_)) = error
        && let Some(command) = similar(&args.host, COMMANDS)
    {
        report.error(&format!("did you mean the command {command}?"));
    }
    if let Some(hint) = hint() {
        report.error(&hint);
    }
    error.into()
}

fn follow(program: &OsString, arguments: &[OsString], report: &mut Report) -> ExitCode {
    then::run(program, arguments).unwrap_or_else(|error| {
        report.error(&format!("cannot run {}: {}", program.display(), reason(&error)));
        Exit::Failed.into()
    })
}

/// Knocks again and again, until a signal ends it or the profile is not usable.
fn watch(args: &Args) -> ExitCode {
    let mut report = Report::new(&args.host, args.format, args.verbose).with_success();
    let mut lease = None;
    let mut knock: Option<Knock> = None;
    loop {
        let at = Moment::now();
        let is_good = match knock_once(args, &mut report) {
            Ok((exit, plan)) => {
                lease = plan.lease;
                knock = Some(plan.knock.clone());
                exit == Exit::Done
            }
            Err(error @ PlanError::Knock(KnockError::Unresolved { .. })) => {
                report_error(&error, args, &mut report);
                false
            }
            // It was here before, so it may come back.
            Err(error @ PlanError::Knock(KnockError::Interface { .. } | KnockError::Source { .. }))
                if knock.is_some() =>
            {
                report_error(&error, args, &mut report);
                false
            }
            Err(error) => return report_error(&error, args, &mut report).into(),
        };
        // The address to which the way leads is kept: asking for it every two seconds would be asking a name server.
        let target = knock.as_ref().and_then(|knock| knock.targets().ok());
        let target = target.and_then(|targets| targets.first().copied());
        // An interface that comes back has another number.
        let source = || {
            let knock = knock.as_ref()?;
            let route = Route::new(knock.interface.as_deref(), knock.source).ok()?;
            target?.via(route).source().ok()
        };
        let last = LastKnock { at, source: source(), is_good: is_good && target.is_some() };
        let next = last.next(lease).map(|next| format!("in {} s, or ", next.as_secs()));
        report.say(&format!("next knock {}when the address changes", next.unwrap_or_default()));
        let due = loop {
            thread::sleep(BETWEEN_LOOKS);
            if target.is_none() {
                // Without an address of the host, only another look for it tells whether there is a network again.
                thread::sleep(last.next(None).unwrap_or(BETWEEN_LOOKS));
                break Due::Failed;
            }
            if let Some(due) = last.due(lease, Moment::now(), source()) {
                break due;
            }
        };
        report.say(&due.to_string());
    }
}
