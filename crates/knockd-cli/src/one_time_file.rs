//! A file of one-time sequences on disk.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use knockd_core::{OneTime, STRIKE, Sequence};

/// An open door's supply of sequences: the path, and what its file said when it was last looked at.
#[derive(Debug)]
pub(crate) struct OneTimeFile {
    path: PathBuf,
    content: OneTime,
}

impl OneTimeFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or not be written: no sequence could be struck out.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        OpenOptions::new().write(true).open(&path)?;
        let content = OneTime::parse(&fs::read(&path)?);
        Ok(Self { path, content })
    }

    /// The sequence that opens the door now; `None` when all are used up.
    pub(crate) fn sequence(&self) -> Option<&Sequence> {
        self.content.next.as_ref().map(|unused| &unused.sequence)
    }

    /// The numbers of the lines passed over because they are neither comments nor sequences.
    pub(crate) fn passed_over(&self) -> &[usize] {
        &self.content.passed_over
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Strikes out the current sequence, on disk when this returns, and moves on to the next one in the file.
    ///
    /// # Errors
    /// When the file cannot be written: the sequence is then still unused on disk, and there is no current one any more. When
    /// the file no longer has the sequence where it was read: then what it says now counts.
    pub(crate) fn strike_out(&mut self) -> io::Result<()> {
        let Some(used) = self.content.next.take() else { return Ok(()) };
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        // The file may have been edited since it was read; the strike has to hit the line that was used.
        let now = OneTime::parse(&fs::read(&self.path)?);
        match &now.next {
            Some(unused) if *unused == used => {}
            _ => {
                self.content = now;
                return Err(io::Error::other("the file has changed, and what it says now counts"));
            }
        }
        let offset = u64::try_from(used.offset).map_err(io::Error::other)?;
        file.write_all_at(&[STRIKE], offset)?;
        file.sync_data()?;
        self.content = OneTime::parse(&fs::read(&self.path)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, OneTimeFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sequences");
        fs::write(&path, text).unwrap();
        let file = OneTimeFile::open(path).unwrap();
        (directory, file)
    }

    #[test]
    fn each_sequence_is_struck_out_on_disk_and_followed_by_the_next() {
        let (_directory, mut file) = file("# mine\n 1,2\nwhat?\n 3\n");
        assert_eq!(file.sequence().unwrap().to_string(), "1:tcp,2:tcp");
        file.strike_out().unwrap();
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "# mine\n#1,2\nwhat?\n 3\n");
        assert_eq!((file.sequence().unwrap().to_string().as_str(), file.passed_over()), ("3:tcp", &[3][..]));
        file.strike_out().unwrap();
        assert_eq!(file.sequence(), None);
    }

    #[test]
    fn a_file_that_was_edited_meanwhile_is_not_damaged() {
        let (_directory, mut file) = file(" 1,2\n 3\n");
        fs::write(&file.path, "# a new comment\n 1,2\n 3\n").unwrap();
        assert!(file.strike_out().is_err());
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "# a new comment\n 1,2\n 3\n");
        file.strike_out().unwrap();
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "# a new comment\n#1,2\n 3\n");
    }
}
