//! The two programs and their paths.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program under test.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// The knockd of this workspace.
    Ours,
    /// The C program.
    Theirs,
}

impl Subject {
    /// Returns the `knockd` to run; `None` for the C program if this machine does not have it.
    pub fn knockd(self) -> Option<&'static Path> {
        static OURS: OnceLock<PathBuf> = OnceLock::new();
        static THEIRS: OnceLock<Option<PathBuf>> = OnceLock::new();
        match self {
            Self::Ours => Some(OURS.get_or_init(|| {
                std::env::var_os("KNOCKD_OURS").map_or_else(
                    || testbed::build("knockd-cli", "knockd").expect("our knockd"),
                    PathBuf::from,
                )
            })),
            Self::Theirs => {
                THEIRS.get_or_init(|| original("KNOCKD_THEIRS", "usr/sbin/knockd", "knockd")).as_deref()
            }
        }
    }

    /// Returns the client `knock` to run; like [`Subject::knockd`], with the variables `KNOCK_OURS` and
    /// `KNOCK_THEIRS`.
    pub fn knock(self) -> Option<&'static Path> {
        static OURS: OnceLock<PathBuf> = OnceLock::new();
        static THEIRS: OnceLock<Option<PathBuf>> = OnceLock::new();
        match self {
            Self::Ours => Some(OURS.get_or_init(|| {
                std::env::var_os("KNOCK_OURS").map_or_else(
                    || testbed::build("knock-client", "knock").expect("our knock"),
                    PathBuf::from,
                )
            })),
            Self::Theirs => {
                THEIRS.get_or_init(|| original("KNOCK_THEIRS", "usr/bin/knock", "knock")).as_deref()
            }
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Ours => "ours",
            Self::Theirs => "theirs",
        })
    }
}

/// Returns the C program named by the environment variable, or this one, if it reports version 0.8 of `name`: where
/// our own package is installed, the usual path leads to ours.
fn original(variable: &str, path: &str, name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).or_else(|| testbed::original(path))?;
    let output = Command::new(&path).arg("-V").output().ok()?;
    let version = format!("{name} 0.8\nCopyright (C) 2004-2012 Judd Vinet");
    output.stdout.starts_with(version.as_bytes()).then_some(path)
}
