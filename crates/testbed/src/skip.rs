//! Tests that cannot be run on the machine at hand.
//!
//! A test that returns early looks like one that has passed. So it says that it does, in a line that `cargo xtask test` counts.

use std::fmt::Display;
use std::io::Write as _;

/// What the line of a skipped test begins with.
pub const SKIPPED: &str = "SKIPPED: ";

/// Says that the running test is skipped, because this machine does not allow it: there is no root, or the kernel lacks something.
///
/// The test has to return then. A reason is one clause without a full stop.
pub fn skip(reason: impl Display) {
    // Written in one piece, and past the test harness, which keeps what a test prints with `println!` to itself if it passes. The
    // harness may have begun a line. That nobody reads the output is no reason to fail.
    let _ = std::io::stdout().write_all(format!("\n{SKIPPED}{reason}\n").as_bytes());
}

/// Says that the running test is skipped, because something is missing that could be installed.
///
/// # Panics
///
/// In continuous integration, see [`is_ci`]: there it has to be installed.
pub fn skip_until_installed(what: impl Display) {
    assert!(!is_ci(), "{what} is not installed, and CI=true");
    skip(format_args!("{what} is not installed"));
}

/// Says whether this is continuous integration: whether the variable `CI` is `true`.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}
