//! Runs rules against both programs and compares.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{Rule, Session, Subject, Topic, Verdict, page};

/// Tests mostly wait, so more of them than processors run at once.
const THREADS: usize = 6;

/// Names of the tests that failed.
type Failures = Arc<Mutex<BTreeSet<String>>>;

/// Runs the rules and checks the generated page, as `cargo test` expects of a test binary: with its arguments, its
/// output and its exit status.
///
/// With the environment variable `CONFORMANCE` set to `table`, a table of all rules follows; set to `write`, it only
/// rewrites the page.
pub fn run(topics: &'static [Topic]) -> ExitCode {
    let mode = std::env::var("CONFORMANCE").unwrap_or_default();
    if mode == "write" {
        page::write(topics);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let mut subjects = vec![Subject::Ours];
    if Subject::Theirs.knockd().is_some() {
        subjects.push(Subject::Theirs);
    } else {
        eprintln!("There is no knockd 0.8 here, so the suite runs against ours only.");
    }
    panic::set_hook(Box::new(|info| {
        PANIC.with_borrow_mut(|text| *text = info.to_string());
    }));

    let failures = Failures::default();
    let mut trials = vec![Trial::test("page::is_what_the_rules_say", move || Ok(page::check(topics)?))];
    for topic in topics {
        for rule in topic.rules {
            for &subject in &subjects {
                let name = format!("{}::{} [{subject}]", topic.name, rule.name);
                let (failures, name_of_failure) = (Arc::clone(&failures), name.clone());
                trials.push(Trial::test(name, move || {
                    check(rule, subject).inspect_err(|_| {
                        failures.lock().unwrap_or_else(PoisonError::into_inner).insert(name_of_failure);
                    })
                }));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if mode == "table" {
        let failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        print_table(topics, &subjects, &failures);
    }
    conclusion.exit_code()
}

thread_local! {
    /// The message of this thread's latest panic.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn check(rule: &Rule, subject: Subject) -> Result<(), Failed> {
    let mut session = Session::new(subject, matches!(rule.verdict, Verdict::Differs(_)));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (rule.check)(&mut session)));
    let message = || PANIC.with_borrow(|text| format!("{text}\n\n{}", session.transcript()));
    match (rule.verdict, outcome) {
        (Verdict::NotYet(_), Ok(())) if subject == Subject::Ours => {
            Err("it passes now; make it `Rule::same`".into())
        }
        (Verdict::NotYet(_), Err(_)) if subject == Subject::Ours => Ok(()),
        (_, Err(_)) => Err(message().into()),
        (Verdict::Differs(_), Ok(())) if !session.has_differed() => {
            Err("it does not say by `pick` what differs".into())
        }
        (_, Ok(())) => Ok(()),
    }
}

fn print_table(topics: &[Topic], subjects: &[Subject], failures: &BTreeSet<String>) {
    let (mut same, mut differ, mut not_yet, mut wrong) = (0, 0, 0, 0);
    for topic in topics {
        println!("\n{}", topic.title);
        for rule in topic.rules {
            let failed =
                |subject: &&Subject| failures.contains(&format!("{}::{} [{subject}]", topic.name, rule.name));
            let failed: Vec<_> = subjects.iter().filter(failed).map(Subject::to_string).collect();
            let (count, mark, reason) = match rule.verdict {
                _ if !failed.is_empty() => (&mut wrong, format!("WRONG ({})", failed.join(", ")), ""),
                Verdict::Same => (&mut same, "same".to_owned(), ""),
                Verdict::Differs(here) => (&mut differ, "differs".to_owned(), here),
                Verdict::NotYet(reason) => (&mut not_yet, "not yet".to_owned(), reason),
            };
            *count += 1;
            println!("  {mark:8} {}", rule.text);
            if !reason.is_empty() {
                println!("  {:8}   -> {reason}", "");
            }
        }
    }
    println!("\n{same} same, {differ} differ on purpose, {not_yet} not yet, {wrong} wrong");
    if subjects.len() < 2 {
        println!(
            "(There is no knockd 0.8 here: nothing was compared, these are the expectations for ours alone.)"
        );
    }
}
