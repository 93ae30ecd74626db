//! The client on other systems, and as one file that needs nothing of the system it runs on.

use std::path::{Path, PathBuf};
use std::process::Command;

use anstream::println;
use anyhow::{Context, Result, ensure};
use testbed::workspace_root;

use crate::tally::Tally;
use crate::task::Task;
use crate::tools::Tools;

/// The bytes that the static client may have.
const MOST: u64 = 2_000_000;

/// Compiles the client for systems other than Linux; no linker for them is needed.
pub(crate) fn check_elsewhere(tools: &mut Tools, tally: &mut Tally) -> Result<()> {
    for target in ["x86_64-pc-windows-gnu", "aarch64-apple-darwin", "x86_64-unknown-freebsd"] {
        if let Err(error) = ensure_target(tools, target) {
            tally.skip_until_installed(format_args!("the client for {target}: {error:#}"))?;
            continue;
        }
        Task::new(&format!("cargo clippy -p knock-client --target {target} -- -D warnings")).run()?;
    }
    Ok(())
}

/// Builds the static client and holds its size against what it may have.
pub(crate) fn check_static(tools: &mut Tools, tally: &mut Tally) -> Result<()> {
    let target = static_target();
    if let Err(error) = ensure_target(tools, &target) {
        return tally.skip_until_installed(format_args!("the static client: {error:#}"));
    }
    let program = build_static(tools)?;
    let size = std::fs::metadata(&program)?.len();
    println!("{}: {size} bytes", program.display());
    ensure!(size <= MOST, "the static client has {size} bytes; it may have {MOST}");
    let task = Task::new("").with_word(program.display().to_string()).with_word("--version");
    ensure!(task.works(), "it does not run: {task}");
    Ok(())
}

/// Builds the client without shared libraries and symbols, and returns its path.
pub(crate) fn build_static(tools: &mut Tools) -> Result<PathBuf> {
    let target = static_target();
    ensure_target(tools, &target)?;
    Task::new(&format!("cargo build --profile dist -p knock-client --bin knock --target {target}")).run()?;
    Ok(tools.target_directory().join(target).join("dist/knock"))
}

fn static_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// Installs Rust's library for a target if it is missing.
pub(crate) fn ensure_target(tools: &mut Tools, target: &str) -> Result<()> {
    let libraries = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .current_dir(workspace_root())
        .output()
        .context("cannot run rustc")?;
    if !Path::new(String::from_utf8(libraries.stdout)?.trim_end()).exists() {
        tools.add(target, &Task::new(&format!("rustup target add {target}"))).with_context(|| {
            format!("Rust's library for {target} is missing; install it with rustup or the system's package manager")
        })?;
    }
    Ok(())
}
