//! Sizes of tests that are too expensive for every run.

/// The variable that asks for the full size; `cargo xtask test --long` sets it.
const LONG: &str = "TESTBED_LONG";

/// Returns `full` under `cargo xtask test --long`, otherwise `small`.
///
/// Such a test is in a module `at_scale`, by which `--long` finds it, and prints its figures.
pub fn scale<T>(small: T, full: T) -> T {
    if std::env::var_os(LONG).is_some() { full } else { small }
}
