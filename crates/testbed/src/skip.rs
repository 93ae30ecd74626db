//! Tests that cannot run on the machine at hand.
//!
//! A test that returns early looks like one that passed. So it prints a line that `cargo xtask test` counts.

use std::fmt::Display;
use std::io::Write as _;

/// The start of the line of a skipped test.
pub const SKIPPED: &str = "SKIPPED: ";

/// Reports that the running test is skipped because this machine does not allow it: it is not run as root, or the
/// kernel lacks a feature.
///
/// The test must then return. A reason is one clause without a full stop.
pub fn skip(reason: impl Display) {
    // Written at once, and not through the test harness, which hides the `println!` output of a test that passes. The
    // harness may have started a line. A closed output is no reason to fail.
    let _ = std::io::stdout().write_all(format!("\n{SKIPPED}{reason}\n").as_bytes());
}

/// Reports that the running test is skipped because something installable is missing.
///
/// # Panics
///
/// In continuous integration, see [`is_ci`]: there it has to be installed.
pub fn skip_until_installed(what: impl Display) {
    assert!(!is_ci(), "{what} is not installed, and CI=true");
    skip(format_args!("{what} is not installed"));
}

/// Says whether this is continuous integration, that is, whether the variable `CI` is `true`.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}
