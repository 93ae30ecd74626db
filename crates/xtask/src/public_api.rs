//! `cargo xtask public-api`: what other crates can see of knockd-core, as a committed file.
//!
//! rustdoc writes it as JSON, in a format that is not stable: a nightly toolchain is needed, and a version of cargo-public-api that reads
//! this very format. Where these do not go together, nothing is compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anstream::println;
use anyhow::{Context, Result, bail, ensure};
use testbed::workspace_root;

use crate::checks::ensure_nightly;
use crate::tally::Tally;
use crate::task::Task;
use crate::tools::Tools;

/// The committed file.
const FILE: &str = "crates/knockd-core/public-api.txt";
/// The version of cargo-public-api, and the format of JSON that it reads.
const TOOL: &str = "0.52.0";
const FORMAT: &str = "57";

/// Rewrites the committed file, or compares it with what the crate has.
///
/// # Errors
///
/// When they differ, or nothing can be compared.
pub(crate) fn run(write: bool) -> Result<()> {
    let tools = Tools::new()?;
    let json = json(&tools)?;
    let format = format_of(&json)?;
    ensure!(format == FORMAT, "{}", other_format(&format));
    ensure_tool(&tools)?;
    let surface = surface(&tools, &json)?;
    if write {
        fs::write(workspace_root().join(FILE), surface).with_context(|| format!("cannot write {FILE}"))?;
        println!("written: {FILE}");
        return Ok(());
    }
    compare(&surface)
}

/// Compares the committed file with what the crate has, where the tools go together.
///
/// # Errors
///
/// When they differ.
pub(crate) fn check(tools: &Tools, tally: &mut Tally) -> Result<()> {
    let json = match json(tools) {
        Ok(json) => json,
        Err(error) => return tally.skip_until_installed(format_args!("the public interface: {error:#}")),
    };
    let format = format_of(&json)?;
    if format != FORMAT {
        tally.skip(format_args!("the public interface: {}", other_format(&format)));
        return Ok(());
    }
    if let Err(error) = ensure_tool(tools) {
        return tally.skip_until_installed(format_args!("the public interface: {error:#}"));
    }
    compare(&surface(tools, &json)?)
}

fn other_format(format: &str) -> String {
    format!(
        "cargo-public-api {TOOL} reads rustdoc's JSON in format {FORMAT}, and this nightly writes {format}"
    )
}

/// Lets rustdoc describe the crate, with all its features, beside the documentation that people read.
fn json(tools: &Tools) -> Result<PathBuf> {
    ensure_nightly()?;
    let directory = tools.target_directory().join("public-api");
    let place = directory.to_str().context("a path that is not UTF-8")?;
    Task::new("cargo +nightly rustdoc -p knockd-core --lib --all-features --target-dir")
        .with_word(place)
        .with_words("-- -Z unstable-options --output-format json --cap-lints allow")
        .run()?;
    Ok(directory.join("doc/knockd_core.json"))
}

/// The number behind `"format_version":`, which stands at the end.
fn format_of(json: &Path) -> Result<String> {
    let json = fs::read_to_string(json).with_context(|| format!("cannot read {}", json.display()))?;
    let (_, version) = json.rsplit_once("\"format_version\":").context("rustdoc's JSON has no version")?;
    Ok(version.chars().take_while(char::is_ascii_digit).collect())
}

/// One line for each item, without what all types have.
fn surface(tools: &Tools, json: &Path) -> Result<String> {
    let output = Command::new(program(tools))
        .args(["--omit", "blanket-impls,auto-trait-impls", "--color", "never", "--rustdoc-json"])
        .arg(json)
        .current_dir(workspace_root())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo-public-api")?;
    ensure!(output.status.success(), "cargo-public-api ended with {}", output.status);
    // What the compiler derives for itself comes and goes with its version.
    let lines = String::from_utf8(output.stdout)?;
    let lines = lines.lines().filter(|line| !line.contains("core::marker::StructuralPartialEq"));
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

/// Installs the very version into the target directory, so that another one of the user's stays what it is.
fn ensure_tool(tools: &Tools) -> Result<()> {
    let version = Command::new(program(tools)).arg("--version").output();
    if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim_end().ends_with(TOOL)) {
        return Ok(());
    }
    let root = tools.target_directory().join("tools");
    Task::new(&format!("cargo install cargo-public-api --version {TOOL} --locked --force --root"))
        .with_word(root.to_str().context("a path that is not UTF-8")?)
        .run()
}

fn program(tools: &Tools) -> PathBuf {
    tools.unpacked().join("cargo-public-api")
}

fn compare(surface: &str) -> Result<()> {
    let committed = fs::read_to_string(workspace_root().join(FILE)).unwrap_or_default();
    let changes = differences(&committed, surface);
    if changes.is_empty() {
        return Ok(());
    }
    for change in &changes {
        println!("{change}");
    }
    bail!(
        "knockd-core has another public interface than {FILE}; if it should: cargo xtask public-api --write"
    )
}

/// The lines that only one of them has. Both are sorted by rustdoc's names and repeat none that matters.
fn differences(committed: &str, surface: &str) -> Vec<String> {
    let gone = committed.lines().filter(|line| !surface.lines().any(|other| other == *line));
    let new = surface.lines().filter(|line| !committed.lines().any(|other| other == *line));
    gone.map(|line| format!("-{line}")).chain(new.map(|line| format!("+{line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_and_what_is_new_is_told_and_nothing_else() {
        assert_eq!(differences("a\nb\nc\n", "a\nc\nd\n"), ["-b", "+d"]);
        assert_eq!(differences("a\nb\n", "a\nb\n"), [""; 0]);
    }

    #[test]
    fn the_format_is_the_last_number_of_that_name() {
        let directory = testbed::target_directory().unwrap().join("format-of-json");
        fs::write(&directory, r#"{"docs":"\"format_version\":1","format_version":57}"#).unwrap();
        assert_eq!(format_of(&directory).unwrap(), "57");
    }
}
