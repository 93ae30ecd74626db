//! The PID file: locked while the daemon runs, removed afterwards.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::system::helper::{Named, Rights};
use crate::system::lock;

/// How often to look for the file again when somebody else has removed or locked it.
const ROUNDS: usize = 8;

/// The PID file of this process; dropping it removes it.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    /// Holds the lock.
    file: File,
    rights: Rights,
}

/// Why there is no PID file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PidFileError {
    /// Another daemon has it.
    #[error(
        "pid file {} belongs to a running knockd (pid {pid}); to apply changes, run: kill -HUP {pid}; to replace it, first \
         run: kill {pid}; to run both, choose another pid file with -p or `PidFile`",
        path.display()
    )]
    InUse { path: PathBuf, pid: Pid },
    /// The system refuses.
    #[error("cannot create pid file {}: {source}", path.display())]
    Other { path: PathBuf, source: io::Error },
}

impl PidFile {
    /// Writes the process ID and a line feed.
    ///
    /// # Errors
    /// When the file cannot be written, or when another running process holds it: that process's ID stays in it.
    pub(crate) fn write(path: &Path, rights: Rights) -> Result<Self, PidFileError> {
        let other = |source| PidFileError::Other { path: path.to_owned(), source };
        let mut file = open(path).map_err(other)?;
        for _ in 0..ROUNDS {
            // Lock first, then truncate: another process's ID must not be lost.
            match lock(&file) {
                Ok(()) if is_at(path, &file) => break,
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => match process_in(path) {
                    Some(pid) => return Err(PidFileError::InUse { path: path.to_owned(), pid }),
                    // Anybody can lock what a killed daemon has left.
                    None => fs::remove_file(path).map_err(other)?,
                },
                Err(TryLockError::Error(error)) => return Err(other(error)),
            }
            file = open(path).map_err(other)?;
        }
        file.set_len(0).map_err(other)?;
        writeln!(file, "{}", std::process::id()).map_err(|error| {
            // It is a regular file and ours, and an empty one would mislead.
            let _ = fs::remove_file(path);
            other(error)
        })?;
        Ok(Self { path: path.to_owned(), file, rights })
    }

    /// Lets another daemon have the file from now on; as long as none has taken it, it stays and goes with this one.
    pub(crate) fn release(&self) {
        let _ = self.file.unlock();
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody else may have removed it, and another daemon may have taken it.
        if self.file.try_lock().is_ok() && is_at(&self.path, &self.file) {
            match &self.rights {
                Rights::Own => drop(fs::remove_file(&self.path)),
                Rights::Helper(helper) => helper.remove(Named::PidFile(self.path.clone())),
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Otherwise somebody could leave a link there and choose which file loses its contents.
    options.create(true).truncate(false).write(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Returns the process whose number is in the file, if there is one.
fn process_in(path: &Path) -> Option<Pid> {
    let number = fs::read_to_string(path).ok()?.trim().parse().ok().filter(|number| *number > 0)?;
    let pid = Pid::from_raw(number);
    (kill(pid, None) != Err(Errno::ESRCH)).then_some(pid)
}

/// Says whether this file is the one with this name.
fn is_at(path: &Path, file: &File) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let named = fs::symlink_metadata(path).map(identity);
    file.metadata().map(identity).is_ok_and(|identity| named.is_ok_and(|named| named == identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_pid_and_a_newline_and_goes_with_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.pid");
        fs::write(&path, "an old and much longer content").unwrap();
        let pid_file = PidFile::write(&path, Rights::Own).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(pid_file);
        assert!(!path.exists());
    }

    #[test]
    fn one_that_another_process_holds_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.pid");
        let pid = std::os::unix::process::parent_id();
        fs::write(&path, format!("{pid}\n")).unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        let error = PidFile::write(&path, Rights::Own).unwrap_err().to_string();
        let expected = format!("pid file {} belongs to a running knockd (pid {pid}); ", path.display());
        assert!(error.starts_with(&expected), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{pid}\n"));
    }

    #[test]
    fn what_a_killed_daemon_has_left_is_taken_over_whoever_locks_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.pid");
        // No process has such a number (proc_sys_kernel(5), pid_max).
        fs::write(&path, "4194305\n").unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        let _pid_file = PidFile::write(&path, Rights::Own).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn one_that_a_daemon_removes_while_the_next_waits_for_it_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.pid");
        let first = PidFile::write(&path, Rights::Own).unwrap();
        let opened = open(&path).unwrap();
        let next = std::thread::spawn({
            let path = path.clone();
            move || PidFile::write(&path, Rights::Own).unwrap()
        });
        // The next has it open once there are three.
        let links = || {
            let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
            files.filter(|file| fs::read_link(file.path()).is_ok_and(|target| target == path)).count()
        };
        while links() < 3 {
            std::thread::yield_now();
        }
        drop(first);
        let _next = next.join().unwrap();
        assert!(!is_at(&path, &opened), "the one that was removed");
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn one_that_is_released_goes_with_its_daemon_unless_the_next_has_taken_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.pid");
        let first = PidFile::write(&path, Rights::Own).unwrap();
        first.release();
        let next = PidFile::write(&path, Rights::Own).unwrap();
        drop(first);
        assert!(path.exists(), "it belongs to the next");
        next.release();
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn no_link_is_followed_and_nobody_else_may_write_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("knockd.pid"), directory.path().join("other"));
        fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        PidFile::write(&path, Rights::Own).unwrap_err();
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        let _pid_file = PidFile::write(&path, Rights::Own).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap()) & 0o022, 0);
    }
}
