//! Files of one-time sequences on disk, and the thread that strikes out what was used.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, Sender, unbounded};
use knockd_core::{Door, OneTime, STRIKE, Sequence, Unused};

/// A door's supply of sequences: the path, and what its file said when it was read, but for those that were used since.
#[derive(Debug)]
pub(crate) struct OneTimeFile {
    path: PathBuf,
    text: Vec<u8>,
    content: OneTime,
}

impl OneTimeFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or not be written: no sequence could be struck out.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        OpenOptions::new().write(true).open(&path)?;
        let text = fs::read(&path)?;
        let content = OneTime::parse(&text);
        Ok(Self { path, text, content })
    }

    /// The sequence that opens the door now; `None` when all are used up.
    pub(crate) fn sequence(&self) -> Option<&Sequence> {
        self.content.next.as_ref().map(|unused| &unused.sequence)
    }

    /// The numbers of the lines passed over because they are neither comments nor sequences.
    pub(crate) fn passed_over(&self) -> &[usize] {
        &self.content.passed_over
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves on to the next sequence, and returns the line to strike out on disk.
    pub(crate) fn use_up(&mut self) -> Option<Unused> {
        let used = self.content.next.take()?;
        if let Some(byte) = self.text.get_mut(used.offset) {
            *byte = STRIKE;
        }
        self.content = OneTime::parse(&self.text);
        Some(used)
    }

    /// Has no sequence any more.
    pub(crate) fn disable(&mut self) {
        self.text.clear();
        self.content = OneTime::parse(&self.text);
    }

    /// Moves on to the next sequence if this line is the current one here: it was struck out on disk.
    pub(crate) fn pass_over(&mut self, used: &Unused) {
        if self.content.next.as_ref() == Some(used) {
            self.use_up();
        }
    }
}

/// A line that was knocked: it has to be struck out, on disk, before the door may open.
#[derive(Debug)]
pub(crate) struct Strike {
    pub(crate) path: PathBuf,
    pub(crate) used: Unused,
    /// What is to be opened then, and for whom.
    pub(crate) door: Door,
    pub(crate) source: IpAddr,
}

impl Strike {
    /// Strikes out the line, on disk when this returns.
    ///
    /// # Errors
    /// When the file cannot be written, or no longer has the line as its first unused one.
    fn carry_out(&self) -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        // The file may have been edited since it was read, or another door may have used the line.
        if OneTime::parse(&fs::read(&self.path)?).next.as_ref() != Some(&self.used) {
            return Err(io::Error::other("the file has changed"));
        }
        let offset = u64::try_from(self.used.offset).map_err(io::Error::other)?;
        file.write_all_at(&[STRIKE], offset)?;
        file.sync_data()
    }
}

/// What became of a strike. With an error comes what the file says now, if it can be used at all.
pub(crate) type Struck = (Strike, Result<(), (io::Error, Option<OneTimeFile>)>);

/// The thread that strikes out lines, one after the other: the loop does not wait for the disk, and no line is used twice.
#[derive(Debug)]
pub(crate) struct Striker {
    strikes: Sender<Strike>,
    pub(crate) struck: Receiver<Struck>,
}

impl Striker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (strikes, work) = unbounded::<Strike>();
        let (done, struck) = unbounded();
        crate::system::spawn("striker", move || {
            for strike in work {
                let result =
                    strike.carry_out().map_err(|error| (error, OneTimeFile::open(strike.path.clone()).ok()));
                if done.send((strike, result)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { strikes, struck })
    }

    /// Strikes out a line soon; exactly one answer follows.
    pub(crate) fn strike(&self, strike: Strike) {
        // The thread ends only when this sender is dropped.
        let _ = self.strikes.send(strike);
    }
}

#[cfg(test)]
mod tests {
    use knockd_core::config::Secret;

    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, OneTimeFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sequences");
        fs::write(&path, text).unwrap();
        let file = OneTimeFile::open(path).unwrap();
        (directory, file)
    }

    fn strike(file: &OneTimeFile, used: Unused) -> Strike {
        let (path, source) = (file.path.clone(), "192.0.2.1".parse().unwrap());
        let door = Door::new("door", Secret::OneTime(path.display().to_string()));
        Strike { path, used, door, source }
    }

    #[test]
    fn each_sequence_is_struck_out_on_disk_and_followed_by_the_next() {
        let (_directory, mut file) = file("# mine\n 1,2\nwhat?\n 3\n");
        assert_eq!(file.sequence().unwrap().to_string(), "1:tcp,2:tcp");
        let used = file.use_up().unwrap();
        assert_eq!((file.sequence().unwrap().to_string().as_str(), file.passed_over()), ("3:tcp", &[3][..]));
        strike(&file, used).carry_out().unwrap();
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "# mine\n#1,2\nwhat?\n 3\n");
        file.use_up().unwrap();
        assert_eq!(file.sequence(), None);
        assert_eq!(file.use_up(), None);
    }

    #[test]
    fn a_file_that_was_edited_meanwhile_is_not_damaged() {
        let (_directory, mut file) = file(" 1,2\n 3\n");
        let edited = "# a new comment\n 1,2\n 3\n";
        fs::write(&file.path, edited).unwrap();
        let used = file.use_up().unwrap();
        assert!(strike(&file, used).carry_out().is_err());
        assert_eq!(fs::read_to_string(&file.path).unwrap(), edited);
    }

    #[test]
    fn a_line_is_struck_out_once_and_who_comes_too_late_is_told_what_is_next() {
        let (_directory, mut file) = file(" 1,2\n 3\n");
        let used = file.use_up().unwrap();
        let striker = Striker::start().unwrap();
        for _ in 0..2 {
            striker.strike(strike(&file, used.clone()));
        }
        assert!(striker.struck.recv().unwrap().1.is_ok());
        let (_, result) = striker.struck.recv().unwrap();
        let (error, now) = result.unwrap_err();
        assert_eq!(error.to_string(), "the file has changed");
        assert_eq!(now.unwrap().sequence().unwrap().to_string(), "3:tcp");
    }

    #[test]
    fn a_line_that_another_door_has_used_is_passed_over() {
        let (_directory, mut file) = file(" 1,2\n 3\n");
        let mut twin = OneTimeFile::open(file.path.clone()).unwrap();
        let used = file.use_up().unwrap();
        for _ in 0..2 {
            twin.pass_over(&used);
            assert_eq!(twin.sequence().unwrap().to_string(), "3:tcp");
        }
    }
}
