//! `cargo xtask public-api`: what other crates can see of knockd-core, as a committed file.
//!
//! rustdoc writes it as JSON, in an unstable format, so this needs a nightly toolchain and a version of
//! cargo-public-api that reads exactly this format. If these do not match, nothing is compared.

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
/// The version of cargo-public-api, and the JSON format that it reads.
const TOOL: &str = "0.52.0";
const FORMAT: &str = "57";

/// Rewrites the committed file, or compares it with the crate.
///
/// # Errors
///
/// When they differ, or nothing can be compared.
pub(crate) fn run(write: bool) -> Result<()> {
    let mut tools = Tools::new()?;
    let outcome = write_or_compare(&mut tools, write);
    tools.report();
    outcome
}

fn write_or_compare(tools: &mut Tools, write: bool) -> Result<()> {
    let json = json(tools)?;
    let format = format_of(&json)?;
    ensure!(format == FORMAT, "{}", other_format(&format));
    ensure_tool(tools)?;
    let surface = surface(tools, &json)?;
    if write {
        fs::write(workspace_root().join(FILE), surface).with_context(|| format!("cannot write {FILE}"))?;
        println!("wrote {FILE}");
        return Ok(());
    }
    compare(&surface)
}

/// Compares the committed file with the crate, if the tools match.
///
/// # Errors
///
/// When they differ.
pub(crate) fn check(tools: &mut Tools, tally: &mut Tally) -> Result<()> {
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

/// Lets rustdoc describe the crate, with all features, outside the directory of its documentation.
fn json(tools: &mut Tools) -> Result<PathBuf> {
    ensure_nightly(tools)?;
    let directory = tools.target_directory().join("public-api");
    let place = directory.to_str().context("a path that is not UTF-8")?;
    Task::new("cargo +nightly rustdoc -p knockd-core --lib --all-features --target-dir")
        .with_word(place)
        .with_words("-- -Z unstable-options --output-format json --cap-lints allow")
        .run()?;
    Ok(directory.join("doc/knockd_core.json"))
}

/// Returns the number after `"format_version":`, which is at the end.
fn format_of(json: &Path) -> Result<String> {
    let json = fs::read_to_string(json).with_context(|| format!("cannot read {}", json.display()))?;
    let (_, version) = json.rsplit_once("\"format_version\":").context("rustdoc's JSON has no version")?;
    Ok(version.chars().take_while(char::is_ascii_digit).collect())
}

/// Returns one line per item, without what all types have.
fn surface(tools: &Tools, json: &Path) -> Result<String> {
    let output = Command::new(program(tools))
        .args(["--omit", "blanket-impls,auto-trait-impls", "--color", "never", "--rustdoc-json"])
        .arg(json)
        .current_dir(workspace_root())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo-public-api")?;
    ensure!(output.status.success(), "cargo-public-api ended with {}", output.status);
    // What the compiler derives internally varies with its version.
    let lines = String::from_utf8(output.stdout)?;
    let lines = lines.lines().filter(|line| !line.contains("core::marker::StructuralPartialEq"));
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

/// Installs exactly this version into the target directory, so the user's own version stays untouched.
fn ensure_tool(tools: &mut Tools) -> Result<()> {
    let version = Command::new(program(tools)).arg("--version").output();
    if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim_end().ends_with(TOOL)) {
        return Ok(());
    }
    let root = tools.target_directory().join("tools");
    let command =
        Task::new(&format!("cargo install cargo-public-api --version {TOOL} --locked --force --root"))
            .with_word(root.to_str().context("a path that is not UTF-8")?);
    tools.add(&format!("cargo-public-api (into {})", root.display()), &command)
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
        "the public interface of knockd-core differs from {FILE}; if that is intended, run: cargo xtask public-api --write"
    )
}

/// Returns the lines that only one of them has. Both are sorted by rustdoc's names, and duplicates do not matter.
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
