//! A person who uses `knock`.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::fs;
use std::path::{Path, PathBuf};

use snapbox::cmd::{Command, OutputAssert, cargo_bin};

/// A user with a configuration folder of their own.
pub(crate) struct User {
    pub(crate) home: tempfile::TempDir,
}

impl User {
    /// A user with nothing.
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    /// A user with a hosts.toml that nobody else can read.
    pub(crate) fn with(text: &str) -> Self {
        let user = Self::new();
        fs::create_dir_all(user.hosts().parent().unwrap()).unwrap();
        fs::write(user.hosts(), text).unwrap();
        Self::make_private(&user.hosts());
        user
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.home.path().join("knock/hosts.toml")
    }

    pub(crate) fn text(&self) -> String {
        fs::read_to_string(self.hosts()).unwrap()
    }

    #[cfg(unix)]
    pub(crate) fn set_mode(&self, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.hosts(), fs::Permissions::from_mode(mode)).unwrap();
    }

    #[cfg(not(unix))]
    pub(crate) fn set_mode(&self, _mode: u32) {}

    #[cfg(unix)]
    pub(crate) fn make_private(path: &Path) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[cfg(not(unix))]
    pub(crate) fn make_private(_path: &Path) {}

    /// Returns the path of a file that the user has with this content.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        fs::write(&path, text).unwrap();
        Self::make_private(&path);
        path.display().to_string()
    }

    /// Runs `knock` with these words; in what it prints, `[HOSTS]` stands for the path of the file, `[HOME]`
    /// for the folder with everything.
    pub(crate) fn knock(&self, words: &[&str]) -> OutputAssert {
        self.command(words).assert()
    }

    /// What [`Self::knock`] runs.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut redactions = snapbox::Redactions::new();
        redactions.insert("[HOSTS]", self.hosts()).unwrap();
        redactions.insert("[HOME]", self.home.path().to_owned()).unwrap();
        let asserted =
            snapbox::Assert::new().action_env(snapbox::assert::DEFAULT_ACTION_ENV).redact_with(redactions);
        Command::new(cargo_bin!("knock"))
            .with_assert(asserted)
            .env_remove("COLUMNS")
            .env("XDG_CONFIG_HOME", self.home.path())
            .env_remove("VISUAL")
            .current_dir(self.home.path())
            .args(words)
    }
}
