//! Finding the programs of this workspace from tests of any of its crates.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Builds the binary `bin` of the workspace's package `package`, in the profile of the caller, and returns where it is.
///
/// Cargo itself is asked, since only it knows the target directory and whether the file is fresh; when nothing has
/// changed that takes a fraction of a second. It may be called from tests: `cargo test` and `cargo run` have released
/// the build directory's lock by then.
///
/// # Errors
///
/// When cargo cannot be started, or the binary does not exist or compile; cargo's own messages go to stderr.
pub fn build(package: &str, bin: &str) -> Result<PathBuf> {
    build_as(package, bin, !cfg!(debug_assertions))
}

/// Builds a binary as [`build`] does, in the release profile whatever the caller's is.
///
/// # Errors
///
/// As [`build`].
pub fn build_release(package: &str, bin: &str) -> Result<PathBuf> {
    build_as(package, bin, true)
}

fn build_as(package: &str, bin: &str, is_release: bool) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--message-format=json-render-diagnostics"])
        .args(["--package", package, "--bin", bin])
        .current_dir(workspace_root());
    if is_release {
        command.arg("--release");
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo could not build the program `{bin}` of the package `{package}`");

    let messages = String::from_utf8(output.stdout)?;
    // Only the binary's own message has a path here, in the others it is null. It is the one string that is needed, so no
    // JSON library is; a path with a quote or a backslash in it is not found.
    let path = messages.split_once(r#""executable":""#).and_then(|(_, rest)| rest.split_once('"'));
    let (path, _) = path.with_context(|| format!("cargo did not say where it put the program `{bin}`"))?;
    Ok(PathBuf::from(path))
}

/// Returns the directory of the workspace that the running test or tool belongs to.
pub fn workspace_root() -> PathBuf {
    // Cargo sets the variable for what it runs. The one at compile time may be wrong: with a shared target directory cargo
    // takes a binary that was compiled in another clone for fresh.
    let manifest_dir =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(manifest_dir).join("../..")
}
