//! Finds what cargo builds in this workspace, for tests and tools of any of its crates.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cargo_metadata::camino::Utf8Path;
use cargo_metadata::{Artifact, Message, MetadataCommand};

/// A directory that already contains the workspace's programs, for machines that cannot build any.
const BUILT: &str = "TESTBED_PROGRAMS";

/// Builds the binary `bin` of the workspace's package `package`, in the caller's profile, and returns its path.
///
/// It asks cargo, because only cargo knows the target directory and whether the file is fresh; if nothing has
/// changed, that takes a fraction of a second. Tests may call it: `cargo test` and `cargo run` have released the
/// build directory's lock by then. If the variable `TESTBED_PROGRAMS` names a directory, the program comes from there
/// instead.
///
/// # Errors
///
/// When cargo cannot start, or the binary does not exist or compile; cargo's own messages go to stderr.
pub fn build(package: &str, bin: &str) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(BUILT) {
        return Ok(PathBuf::from(directory).join(bin));
    }
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
    let mut arguments = vec!["build", "--package", package, "--bin", bin];
    if is_release {
        arguments.push("--release");
    }
    let built = artifacts(&arguments)?;
    let path = built.into_iter().find_map(|artifact| artifact.executable);
    Ok(path.with_context(|| format!("cargo did not say where it put the program `{bin}`"))?.into())
}

/// The output of [`build_tests`].
pub struct Built {
    /// The directory of the workspace's programs, for the variable `TESTBED_PROGRAMS`.
    pub programs: PathBuf,
    /// The test binaries, with their packages.
    tests: Vec<(String, Artifact)>,
}

impl Built {
    /// Returns the test binary for this source in this package: `state` means `tests/state.rs`, and `knockd_cli`
    /// means the unit tests of the package `knockd-cli`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn test(&self, package: &str, name: &str) -> Result<PathBuf> {
        let found = self.tests.iter().find(|(of, test)| of == package && test.target.name == name);
        let file = found.and_then(|(_, test)| test.executable.clone());
        Ok(file.with_context(|| format!("the package {package} has no tests `{name}`"))?.into())
    }
}

/// Builds every program and test of the workspace, with these arguments of `cargo build` and `cargo test`, and returns
/// where they are.
///
/// # Errors
///
/// When cargo cannot start, or something does not compile.
pub fn build_tests(arguments: &[&str]) -> Result<Built> {
    // For tests, cargo builds the programs of packages with integration tests only.
    let programs = artifacts(&[&["build", "--workspace", "--bins"], arguments].concat())?;
    let tests = artifacts(&[&["test", "--workspace", "--no-run"], arguments].concat())?;
    let program = programs.into_iter().find_map(|artifact| artifact.executable);
    let programs = program.as_deref().and_then(Utf8Path::parent).context("cargo has built no program")?;
    // Every package is in a directory with its name.
    let package = |test: &Artifact| test.manifest_path.parent()?.file_name().map(str::to_owned);
    let tests = tests.into_iter().filter(|artifact| artifact.profile.test);
    let tests = tests.filter_map(|test| Some((package(&test)?, test))).collect();
    Ok(Built { programs: programs.into(), tests })
}

/// Runs a cargo command and returns the artifacts that it reports.
fn artifacts(arguments: &[&str]) -> Result<Vec<Artifact>> {
    let output = Command::new(cargo())
        .args(arguments)
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .current_dir(workspace_root())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "`cargo {}` has failed", arguments.join(" "));
    let mut artifacts = Vec::new();
    for message in Message::parse_stream(output.stdout.as_slice()) {
        if let Message::CompilerArtifact(artifact) = message? {
            artifacts.push(artifact);
        }
    }
    Ok(artifacts)
}

/// Returns cargo's build directory, according to its configuration and `CARGO_TARGET_DIR`.
///
/// # Errors
///
/// When cargo cannot run.
pub fn target_directory() -> Result<PathBuf> {
    let metadata = MetadataCommand::new().cargo_path(cargo()).current_dir(workspace_root()).no_deps().exec();
    Ok(metadata.context("cannot ask cargo for its target directory")?.target_directory.into())
}

/// Finds a program of knockd 0.8, the C program: where its package puts it, such as `usr/sbin/knockd`, or below the
/// directory into which `cargo xtask` unpacks Debian's package.
pub fn original(path: &str) -> Option<PathBuf> {
    let installed = Some(Path::new("/").join(path)).filter(|file| file.exists());
    let unpacked = || Some(target_directory().ok()?.join("tools/knockd/root").join(path));
    installed.or_else(unpacked).filter(|file| file.exists())
}

/// Finds the root directory with ufw and firewalld that `cargo xtask test` unpacks from Debian's packages.
pub fn firewalls() -> Option<PathBuf> {
    Some(target_directory().ok()?.join("tools/firewalls/root")).filter(|root| root.exists())
}

/// Returns the directory of the workspace that the running test or tool belongs to.
pub fn workspace_root() -> PathBuf {
    // Cargo sets the variable for what it runs. The value from compile time may be wrong: with a shared target
    // directory, cargo treats a binary from another clone as fresh.
    let manifest_dir =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(manifest_dir).join("../..")
}

fn cargo() -> PathBuf {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_where_it_builds() {
        let program = std::env::current_exe().unwrap().canonicalize().unwrap();
        let target = target_directory().unwrap().canonicalize().unwrap();
        assert!(program.starts_with(&target), "{} is not below {}", program.display(), target.display());
    }
}
