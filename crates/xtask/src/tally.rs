//! The results of test programs, added up.

use std::fmt;

use anyhow::{Result, bail};
use testbed::{SKIPPED, is_ci};

/// The results of the tests so far.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Tally {
    /// How many test programs have reported a result.
    pub(crate) programs: u64,
    passed: u64,
    pub(crate) failed: u64,
    /// Why tests, or whole steps, did not run.
    skipped: Vec<String>,
    /// The output of the current test program.
    printed: String,
    /// How many of its tests were skipped, which it counts as passed.
    skipped_here: u64,
    /// The output of the tests that failed.
    pub(crate) failures: String,
}

impl Tally {
    /// Adds a line of a test program's output: its result, such as `test result: ok. 12 passed; 0 failed; 1 ignored;
    /// …`, a skipped test ([`testbed::skip`]), or anything else, which is kept until the result arrives.
    pub(crate) fn add(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(reason) = line.strip_prefix(SKIPPED) {
            self.skipped.push(reason.to_owned());
            self.skipped_here += 1;
            return;
        }
        let Some((_, result)) = line.split_once("test result: ") else {
            self.printed += line;
            self.printed.push('\n');
            return;
        };
        if let Some((_, failures)) = std::mem::take(&mut self.printed).split_once("\nfailures:\n") {
            self.failures += failures;
        }
        let number_before = |word: &str| -> u64 {
            let before = result.split_once(word).map_or("", |(before, _)| before);
            before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        self.programs += 1;
        self.passed += number_before(" passed;").saturating_sub(std::mem::take(&mut self.skipped_here));
        self.failed += number_before(" failed;");
    }

    /// Notes that something did not run because this machine does not allow it.
    pub(crate) fn skip(&mut self, reason: impl fmt::Display) {
        self.skipped.push(reason.to_string());
        anstream::println!("{SKIPPED}{reason}");
    }

    /// Notes that something did not run because something installable is missing.
    ///
    /// # Errors
    ///
    /// In continuous integration: there it has to be installed.
    pub(crate) fn skip_until_installed(&mut self, reason: impl fmt::Display) -> Result<()> {
        if is_ci() {
            bail!("{reason}; where CI=true this is a failure");
        }
        self.skip(reason);
        Ok(())
    }

    /// Adds the results of another tally.
    pub(crate) fn join(&mut self, other: Self) {
        self.programs += other.programs;
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.failures += &other.failures;
    }

    /// Returns the reasons for skips, each once, with its count.
    pub(crate) fn reasons(&self) -> Vec<(&str, usize)> {
        let mut reasons: Vec<&str> = self.skipped.iter().map(String::as_str).collect();
        reasons.sort_unstable();
        let same = reasons.chunk_by(|one, other| one == other);
        same.filter_map(|same| Some((*same.first()?, same.len()))).collect()
    }
}

/// Prints `12 passed, 0 failed, 1 skipped`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.add(line);
        }
        tally
    }

    #[test]
    fn results_are_added_up_with_and_without_colours() {
        let tally = of(&[
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            "test result: \u{1b}[31mFAILED\u{1b}(B\u{1b}[m. 10 passed; 3 failed; 2 ignored; 0 measured",
            "the text of a test: 5 passed; 7 failed;",
        ]);
        assert_eq!(tally.programs, 2);
        assert_eq!(tally.to_string(), "22 passed, 3 failed, 0 skipped");
    }

    #[test]
    fn a_test_that_is_skipped_has_not_passed() {
        let tally = of(&[
            "test a ... \r",
            "SKIPPED: not root\r",
            "ok",
            "SKIPPED: no IPv6",
            "SKIPPED: not root",
            "test result: ok. 5 passed; 0 failed; 0 ignored",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
        ]);
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 3 skipped");
        assert_eq!(tally.reasons(), [("no IPv6", 1), ("not root", 2)]);
    }

    #[test]
    fn what_testbed_prints_for_a_skipped_test_is_counted_though_the_test_passes() {
        // Runs as a separate test program, whose output the harness does not capture.
        if std::env::var_os("SKIP_A_TEST").is_some() {
            testbed::skip("for another test");
            return;
        }
        let name = "tally::tests::what_testbed_prints_for_a_skipped_test_is_counted_though_the_test_passes";
        for threads in ["1", "2"] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--test-threads", threads])
                .env("SKIP_A_TEST", "1")
                .output()
                .unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            let tally = of(&printed.lines().collect::<Vec<_>>());
            assert_eq!(tally.to_string(), "0 passed, 0 failed, 1 skipped", "{printed}");
        }
    }

    #[test]
    fn tallies_are_joined() {
        let mut tally = of(&["SKIPPED: not root", "test result: FAILED. 5 passed; 1 failed; 0 ignored"]);
        tally.join(of(&["SKIPPED: not root", "test result: ok. 2 passed; 0 failed; 0 ignored"]));
        assert_eq!(tally.to_string(), "5 passed, 1 failed, 2 skipped");
        assert_eq!(tally.programs, 2);
    }

    #[test]
    fn what_failed_tests_have_printed_is_kept() {
        let tally = of(&[
            "test a ... FAILED\r",
            "failures:\r",
            "---- a stdout ----\r",
            "no line with `x`\r",
            "failures:\r",
            "    a\r",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored\r",
            "running 1 test",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
        ]);
        assert_eq!(tally.failures, "---- a stdout ----\nno line with `x`\nfailures:\n    a\n");
        assert_eq!(tally.failed, 1);
    }
}
