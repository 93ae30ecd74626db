//! One knock of a profile at a time: two that mix spoil each other at the server.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use etcetera::BaseStrategy;

/// The longest wait for another knock. Then both knock: a lock must not be what keeps somebody out.
const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// The lock of a profile, until it is dropped or this process ends in any way.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Whether another knock was under way, which may have opened the door.
    pub(crate) has_waited: bool,
    _file: Option<File>,
}

impl Lock {
    /// Takes the lock of a profile, or goes without one where there is no place for it. `on_wait` is called before it
    /// waits.
    pub(crate) fn take(profile: &str, on_wait: impl FnOnce()) -> Self {
        let file = open(profile).ok();
        let is_taken = || match file.as_ref().map(File::try_lock) {
            Some(Err(TryLockError::WouldBlock)) => true,
            // Some file systems have no locks.
            Some(Ok(()) | Err(TryLockError::Error(_))) | None => false,
        };
        let mut has_waited = false;
        let end = Instant::now() + PATIENCE;
        if is_taken() {
            has_waited = true;
            on_wait();
            while is_taken() && Instant::now() < end {
                thread::sleep(BETWEEN_TRIES);
            }
        }
        Self { has_waited, _file: file }
    }
}

/// Opens the file of a profile; it stays, for the next knock.
fn open(profile: &str) -> io::Result<File> {
    let folders = etcetera::choose_base_strategy().map_err(io::Error::other)?;
    let folder = folders.runtime_dir().unwrap_or_else(|| folders.cache_dir()).join("knock");
    create(&folder)?;
    OpenOptions::new().create(true).write(true).truncate(false).open(folder.join(file_name(profile)))
}

#[cfg(unix)]
fn create(folder: &PathBuf) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;

    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn create(folder: &PathBuf) -> io::Result<()> {
    fs::create_dir_all(folder)
}

/// Returns a name for the file that every system allows, and that differs for each profile.
fn file_name(profile: &str) -> String {
    let safe = |byte: u8| {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            char::from(byte).into()
        } else {
            format!("%{byte:02x}")
        }
    };
    profile.bytes().map(safe).collect::<String>() + ".lock"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_profile_has_a_name_that_leads_nowhere_else() {
        assert_eq!(file_name("home-1"), "home-1.lock");
        assert_eq!(file_name("../a.b"), "%2e%2e%2fa%2eb.lock");
        assert_ne!(file_name("a%2f"), file_name("a/"));
    }
}
