//! The PID file: locked while the daemon runs, removed afterwards.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::system::lock;

/// The PID file of this process; dropping it removes it.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl PidFile {
    /// Writes the process ID and a line feed.
    ///
    /// # Errors
    /// When the file cannot be written, or when another running process holds it: that process's ID stays in it.
    pub(crate) fn write(path: &Path) -> io::Result<Self> {
        let in_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let open = || {
            let mut options = OpenOptions::new();
            // Otherwise somebody could leave a link there and choose which file loses its contents.
            options
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o644)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
        };
        let mut file = open().map_err(in_path)?;
        // Lock first, then truncate: another process's ID must not be lost.
        lock(&file).map_err(|error| match error {
            TryLockError::WouldBlock => {
                in_path(io::Error::other("in use by another knockd that is still running"))
            }
            TryLockError::Error(error) => in_path(error),
        })?;
        file.set_len(0).map_err(in_path)?;
        writeln!(file, "{}", std::process::id()).map_err(|error| {
            // It is a regular file and ours, and an empty one would mislead.
            let _ = fs::remove_file(path);
            in_path(error)
        })?;
        Ok(Self { path: path.to_owned(), _file: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_pid_and_a_newline_and_goes_with_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.pid");
        fs::write(&path, "an old and much longer content").unwrap();
        let pid_file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(pid_file);
        assert!(!path.exists());
    }

    #[test]
    fn one_that_another_process_holds_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.pid");
        fs::write(&path, "42\n").unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        let error = PidFile::write(&path).unwrap_err().to_string();
        assert!(error.ends_with("in use by another knockd that is still running"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "42\n");
    }

    #[test]
    fn no_link_is_followed_and_nobody_else_may_write_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("knockd.pid"), directory.path().join("other"));
        fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        PidFile::write(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        let _pid_file = PidFile::write(&path).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap()) & 0o022, 0);
    }
}
