//! Carries out a knock: sends it, verifies it, reports it, strikes out its one-time line.

use std::io::{self, Write as _};

use knock_client::one_time::OneTimeLine;
use knock_client::{Hit, Outcome, Prepared, Sent, Target, Verdict, Verification, reason};

use crate::exit::Exit;
use crate::plan::{Plan, PlanError};
use crate::report::Report;

/// How to carry out a knock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct How {
    /// Whether to print each hit.
    pub(crate) is_verbose: bool,
    /// Whether a hit that was not sent is a failure.
    pub(crate) is_strict: bool,
}

/// Knocks, and verifies it if the plan says so.
pub(crate) fn run(plan: &Plan, how: How, report: &mut Report) -> Result<Exit, PlanError> {
    let mut prepared = plan.knock.prepare()?;
    let Some(verify) = &plan.knock.verify else {
        let sent = send(&mut prepared, how, report, 1);
        report.sent(&prepared, sent);
        let exit = if how.is_strict && sent.not_sent > 0 { Exit::Failed } else { Exit::Done };
        return Ok(match &plan.line {
            Some(line) if sent.not_sent == 0 && !strike_out(line, report) => Exit::Failed,
            _ => exit,
        });
    };
    let targets = prepared.targets().to_vec();
    let mut verification = Verification::new(verify, &targets);
    let outcome = if plan.has_waited() || plan.line.is_some() {
        // Another knock may have opened it; and a one-time line is not used up on a door that is open.
        verification.look_and_wait()
    } else {
        verification.look();
        None
    };
    let knock = |number| send(&mut prepared, how, report, number);
    let Some(outcome) = outcome.or_else(|| verification.knock_until_open(knock)) else {
        return Ok(Exit::Failed);
    };
    let exit = report.verdict(&verify.service, &outcome);
    if exit != Exit::Done
        && plan.knock.families.is_none()
        && let Some(other) = of_other_family(&plan.knock.host, outcome.target)
    {
        report.error(&format!(
            "{} also has the address {other}; to knock at both, add --both",
            plan.knock.host
        ));
    }
    match &plan.line {
        Some(line) if !settle(line, &outcome, report) => Ok(Exit::Failed),
        _ => Ok(exit),
    }
}

/// Returns an address of a host that is not of the family of the one that was tried.
fn of_other_family(host: &str, tried: Target) -> Option<Target> {
    let all = Target::resolve_all(host, None).ok()?;
    all.into_iter().find(|target| target.family() != tried.family() && target.source().is_ok())
}

/// Strikes out a one-time line that the server has used up, as far as anybody can see; says whether all is well.
pub(crate) fn settle(line: &OneTimeLine, outcome: &Outcome, report: &mut Report) -> bool {
    match outcome.verdict {
        Verdict::Opened(_) | Verdict::AlreadyOpen if outcome.knocks > 0 => strike_out(line, report),
        Verdict::StillClosed(_) => {
            report.error(&format!(
                "kept the sequence in {} for the next knock; if the server has used it up, put a # before it",
                line.path().display()
            ));
            true
        }
        _ => true,
    }
}

/// Strikes out a line that was sent. If that fails, the knock is still what it was, and so is its report.
fn strike_out(line: &OneTimeLine, report: &mut Report) -> bool {
    line.strike_out().map_err(|error| report.error(&error.to_string())).is_ok()
}

/// Sends a knock once, as the try of this number.
pub(crate) fn send(prepared: &mut Prepared<'_>, how: How, report: &mut Report, number: u32) -> Sent {
    let knock = prepared.knock();
    // Without anything to wait for, it is as quiet as 0.8.
    if let Some(verify) = &knock.verify {
        let at = prepared.targets().iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let tries = verify.retries.saturating_add(1);
        let count = if tries > 1 { format!(" (try {number} of {tries})") } else { String::new() };
        report.progress(&format!("knocking at {at}{count}"));
    }
    let name = |target: Target, hit: &Hit, number: usize| {
        if knock.is_secret {
            format!("step {number} of {} at {target}", knock.hits.len())
        } else {
            hit.name_at(target)
        }
    };
    let before = |target: Target, hit: &Hit, number: usize| {
        if how.is_verbose {
            // A reader that is gone is no reason to stop in the middle of a knock.
            let _ = writeln!(io::stdout(), "hitting {}", name(target, hit, number));
        }
    };
    let mut errors = Vec::new();
    let failed = |target: Target, hit: &Hit, number: usize, error: &io::Error| {
        errors.push(format!("cannot send {}: {}", name(target, hit, number), reason(error)));
    };
    let sent = prepared.send(before, failed);
    // The verdict says it of a knock of which nothing was sent, and once is enough.
    if knock.verify.is_none() || (sent.hits > 0 && number == 1) {
        for error in &errors {
            report.error(error);
        }
    }
    sent
}
