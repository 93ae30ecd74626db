//! The last good configuration: a copy that stands in for one that has become unusable. A typing error must not leave a guarded port
//! shut, with nobody to open it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use knockd_core::Config;
use knockd_core::config::Options;
use rustix::fs::OFlags;

use super::config_file::{ConfigFile, check_access};

/// Its name in the state directory, and its name while it is written.
pub(crate) const NAME: &str = "last-good.conf";
pub(crate) const UNFINISHED: &str = "last-good.new";

/// The first line, which says whose copy it is.
fn heading(path: &Path) -> String {
    // In quotes, so the name has no line end.
    let path = path.to_string_lossy();
    format!("# The last good configuration of {path:?}, for when that becomes unusable. Written by knockd.\n")
}

/// Keeps a configuration that was read from this path, with everything that it includes.
///
/// # Errors
/// When it cannot be written. Then the copy is as it was.
pub(crate) fn keep(config: &Config, path: &Path, state_dir: &Path) -> io::Result<()> {
    let text = format!("{}\n{config}", heading(path));
    if text.parse().as_ref() != Ok(config) {
        return Err(io::Error::other("it does not read as it was written"));
    }
    let kept = state_dir.join(NAME);
    if fs::read(&kept).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    let unfinished = state_dir.join(UNFINISHED);
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, &kept)?;
    File::open(state_dir)?.sync_all()
}

/// Removes the copy of a configuration that guards nothing any more. Returns whether there was one.
///
/// # Errors
/// When it cannot be removed; a missing one is not an error, and neither is that of another configuration.
pub(crate) fn forget(path: &Path, state_dir: &Path) -> io::Result<bool> {
    let kept = state_dir.join(NAME);
    match fs::read(&kept) {
        Ok(text) if text.starts_with(heading(path).as_bytes()) => fs::remove_file(&kept).map(|()| true),
        _ => Ok(false),
    }
}

/// Returns the copy of the configuration at this path, if there is one that only root and this user can have written. Relative paths
/// start at `directory`.
pub(crate) fn find(path: &Path, directory: &Path) -> Option<ConfigFile> {
    state_dirs(path).into_iter().find_map(|state_dir| {
        let kept = directory.join(state_dir).join(NAME);
        let text = fs::read(&kept).ok()?;
        let is_ours = text.starts_with(heading(path).as_bytes()) && check_access(&kept).is_ok();
        is_ours.then(|| ConfigFile::read(&kept, directory).ok()).flatten()
    })
}

/// Returns where the copy can be, by what an unusable configuration still says.
fn state_dirs(path: &Path) -> Vec<PathBuf> {
    // Opening a pipe would wait.
    let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    let text = if is_file { fs::read(path).unwrap_or_default() } else { Vec::new() };
    let text = String::from_utf8_lossy(&text);
    let named = text.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        key.trim().eq_ignore_ascii_case("StateDir").then(|| PathBuf::from(value.trim()))
    });
    named.chain([PathBuf::from(Options::DEFAULT_STATE_DIR)]).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config() -> Config {
        "[options]\nFirewall = nftables\n[ssh]\nSequence = 1,2:udp\nOpen = tcp/22\n".parse().unwrap()
    }

    /// A folder for a configuration and its state directory.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn config(&self) -> PathBuf {
            self.0.path().join("knockd.conf")
        }

        fn state_dir(&self) -> PathBuf {
            self.0.path().join("state")
        }

        fn keep(&self) {
            keep(&config(), &self.config(), &self.state_dir()).unwrap();
        }

        fn found(&self, text: &str) -> Option<Config> {
            fs::write(self.config(), text).unwrap();
            find(&self.config(), self.0.path()).map(|file| file.parse().unwrap().config)
        }
    }

    #[test]
    fn what_was_kept_is_found_by_what_a_broken_configuration_still_says() {
        let place = Place::new();
        place.keep();
        assert_eq!(place.found("[options]\n statedir =  state \n[broken"), Some(config()));
        assert_eq!(place.found("[options]\nStateDir = elsewhere\n"), None);
        let mode = fs::metadata(place.state_dir().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(!place.state_dir().join(UNFINISHED).exists());
    }

    #[test]
    fn the_copy_of_another_configuration_is_neither_found_nor_removed() {
        let place = Place::new();
        place.keep();
        let other = place.0.path().join("other.conf");
        fs::write(&other, "StateDir = state").unwrap();
        assert_eq!(find(&other, place.0.path()), None);
        assert!(!forget(&other, &place.state_dir()).unwrap());
        assert!(place.found("StateDir = state").is_some());
        assert!(forget(&place.config(), &place.state_dir()).unwrap());
        assert_eq!(place.found("StateDir = state"), None);
    }

    #[test]
    fn a_copy_that_anybody_can_write_is_not_found() {
        let place = Place::new();
        place.keep();
        fs::set_permissions(place.state_dir().join(NAME), fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(place.found("StateDir = state").is_some(), !rustix::process::geteuid().is_root());
    }

    #[test]
    fn a_copy_that_cannot_be_written_leaves_the_old_one() {
        let place = Place::new();
        place.keep();
        fs::create_dir(place.state_dir().join(UNFINISHED)).unwrap();
        let mut other = config();
        other.doors.truncate(0);
        keep(&other, &place.config(), &place.state_dir()).unwrap_err();
        assert_eq!(place.found("StateDir = state"), Some(config()));
        // What has not changed need not be written.
        place.keep();
    }
}
