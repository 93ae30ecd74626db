//! `knockd check`: what is wrong with a configuration, without running it.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use knockd_core::Config;

use crate::Exit;
use crate::args::Format;
use crate::report;

/// Checks a configuration file and prints what is wrong with it.
///
/// # Errors
/// When the file cannot be read, or the answer cannot be printed.
pub fn run(path: &Path, strict: bool, _format: Format) -> anyhow::Result<Exit> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (findings, usable) = match Config::parse(&text) {
        Ok(parsed) => (parsed.warnings, true),
        Err(findings) => (findings, false),
    };
    let mut out = anstream::stdout().lock();
    for finding in &findings {
        writeln!(out, "{}", report::draw(path, &text, finding))?;
    }
    let passed = usable && (findings.is_empty() || !strict);
    Ok(if passed { Exit::Succeeded } else { Exit::Failed })
}
