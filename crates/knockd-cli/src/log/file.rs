//! The log file. A thread of its own opens and writes it, so a disk that hangs holds up nobody else.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::OFlags;

use super::output::Patience;
use crate::system::helper::{Named, Rights};
use crate::system::spawn;

/// How many lines wait for the disk.
const QUEUE: usize = 1024;

/// How many problems wait for the next line.
const PROBLEMS: usize = 16;

/// How long the last lines wait for the disk.
const END_WAIT: Duration = Duration::from_secs(1);

/// Hands lines to the thread that writes them, in order.
///
/// Lines that do not fit while the disk hangs are lost and counted. A disk that is slow costs at most a twentieth of
/// the time.
#[derive(Debug)]
pub(super) struct LogFile {
    /// The thread opens the file again with each new [`Arc`].
    path: Arc<Path>,
    entries: Sender<Entry>,
    problems: Receiver<String>,
    patience: Cell<Patience>,
    lost: Cell<u64>,
}

/// A message to the thread.
struct Entry {
    path: Arc<Path>,
    /// Whole lines.
    text: String,
    /// Disconnects when everything up to this entry has been written.
    written: Option<Sender<()>>,
}

impl LogFile {
    /// Opens a file.
    ///
    /// # Errors
    /// When the system has no thread left. Whatever else goes wrong is one of the [problems](Self::problems).
    pub(super) fn open(path: &Path, rights: Rights) -> anyhow::Result<Self> {
        let ((entries, incoming), (problem, problems)) = (bounded(QUEUE), bounded(PROBLEMS));
        spawn("log-file", move || write_file(&incoming, &problem, &rights))?;
        let patience = Cell::new(Patience::new(Instant::now()));
        let mut file = Self { path: path.into(), entries, problems, patience, lost: Cell::new(0) };
        file.reopen(path);
        Ok(file)
    }

    /// Writes to this path from now on, even if it is the same: the file may have been moved.
    pub(super) fn reopen(&mut self, path: &Path) {
        self.path = path.into();
        self.wait(Self::settle);
    }

    /// Has lines written, and says whether that is possible. If not, they count as one.
    pub(super) fn write(&self, text: String) -> bool {
        let entry = Entry { path: Arc::clone(&self.path), text, written: None };
        let is_sent = self.wait(|file, most| file.entries.send_timeout(entry, most).is_ok());
        self.lost.set(if is_sent { 0 } else { self.lost.get().saturating_add(1) });
        is_sent
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many lines were lost since the last one that was not.
    pub(super) fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Takes what went wrong in the meantime, for the log's other destinations.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.problems.try_iter()
    }

    /// Does something that may wait, for as long as there is patience left.
    fn wait<T>(&self, work: impl FnOnce(&Self, Duration) -> T) -> T {
        let mut patience = self.patience.get();
        let left = patience.left(Instant::now());
        // Only a disk that has kept up so far is waited for.
        let done = work(self, if self.lost.get() == 0 { left } else { Duration::ZERO });
        patience.spend_until(Instant::now());
        self.patience.set(patience);
        done
    }

    /// Waits until the file is open and everything so far is written, but not longer than this.
    fn settle(&self, most: Duration) {
        let end = Instant::now() + most;
        let (written, is_written) = bounded(0);
        let entry = Entry { path: Arc::clone(&self.path), text: String::new(), written: Some(written) };
        if self.entries.send_deadline(entry, end).is_ok() {
            let _ = is_written.recv_deadline(end);
        }
    }
}

/// Waits for the last lines, but not long.
impl Drop for LogFile {
    fn drop(&mut self) {
        self.settle(END_WAIT);
    }
}

/// Writes what comes. If it does not fit, because the disk is full or the file as long as it may become (setrlimit(2)),
/// that is a problem, once until a line fits again.
fn write_file(incoming: &Receiver<Entry>, problem: &Sender<String>, rights: &Rights) {
    let mut open: Option<(Arc<Path>, Option<File>)> = None;
    // The last line could not be written, so what there is of it needs an end.
    let mut is_failing = false;
    for Entry { path, text, written } in incoming {
        // While nobody takes them, problems beyond a few are old news.
        let report = |text: String| _ = problem.try_send(text);
        let shown = path.display();
        if open.as_ref().is_none_or(|(opened, _)| !Arc::ptr_eq(opened, &path)) {
            let file = match rights {
                Rights::Own => open_file(&path),
                Rights::Helper(helper) => {
                    helper.open(Named::Log(path.to_path_buf())).map(|(file, _)| file.into())
                }
            };
            is_failing = false;
            match &file {
                Ok(file) if is_for_all(file) => report(format!(
                    "{shown} is world-readable and tells which hits were right; run: chmod o= {shown}"
                )),
                Ok(_) => {}
                Err(error) => report(format!("cannot open log file {shown}: {error}")),
            }
            open = Some((Arc::clone(&path), file.ok()));
        }
        if let Some((_, Some(file))) = &mut open
            && !text.is_empty()
        {
            let whole = if is_failing { format!("\n{text}") } else { text };
            match file.write_all(whole.as_bytes()) {
                Ok(()) => is_failing = false,
                // A pipe that is full for a moment is no news, and has taken nothing of the line.
                Err(error) if error.kind() == ErrorKind::WouldBlock || is_failing => {}
                Err(error) => {
                    is_failing = true;
                    report(format!("cannot write to log file {shown}: {error}; lines are lost"));
                }
            }
        }
        drop(written);
    }
}

/// Opens a log file. A pipe without a reader is an error; a full pipe loses the line.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .create(true)
        .append(true)
        // Otherwise its stages would show other users which hits were right.
        .mode(0o640)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
}

fn is_for_all(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_new_log_file_is_not_for_everybody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.log");
        let file = open_file(&path).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o007, 0);
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_an_error_and_holds_up_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(open_file(&path).is_err());
    }

    #[test]
    fn a_disk_that_hangs_costs_lines_and_little_time() {
        let ((entries, incoming), (_problem, problems)) = (bounded(QUEUE), bounded(PROBLEMS));
        let patience = Cell::new(Patience::new(Instant::now()));
        let path = Path::new("/log").into();
        let file = LogFile { path, entries, problems, patience, lost: Cell::new(0) };
        let start = Instant::now();
        for number in 0..2 * QUEUE {
            assert_eq!(file.write(format!("{number}\n")), number < QUEUE);
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert_eq!(file.lost(), u64::try_from(QUEUE).unwrap());
        assert_eq!(incoming.try_iter().count(), QUEUE);
        assert!(file.write("more\n".to_owned()));
        assert_eq!(file.lost(), 0);
    }

    #[test]
    fn the_last_lines_are_written_before_the_end_and_each_file_gets_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| directory.path().join(name));
        let mut file = LogFile::open(&old, Rights::Own).unwrap();
        let lines: Vec<_> = (0..100).map(|number| format!("{number}\n")).collect();
        for line in &lines {
            assert!(file.write(line.clone()));
        }
        std::fs::rename(&old, &new).unwrap();
        file.reopen(&old);
        assert!(file.write("last\n".to_owned()));
        drop(file);
        assert_eq!(std::fs::read_to_string(new).unwrap(), lines.concat());
        assert_eq!(std::fs::read_to_string(old).unwrap(), "last\n");
    }
}
