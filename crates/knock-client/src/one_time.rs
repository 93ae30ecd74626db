//! One-time files on this side: the next unused line, struck out in step with the server.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use knockd_core::{OneTime, STRIKE, Unused};

use crate::Hit;
use crate::send::reason;
use crate::value::HitList;

/// The next unused line of a one-time file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OneTimeLine {
    path: PathBuf,
    unused: Unused,
}

/// Why a line cannot be used, or cannot be struck out.
#[derive(Debug, thiserror::Error)]
pub enum OneTimeError {
    /// The file cannot be read, or not be written: then no line could be struck out.
    #[error("cannot use one-time file {}: {}", path.display(), reason(cause))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// Every line is used.
    #[error("no sequence left in one-time file {}; get a new file from the server", .0.display())]
    UsedUp(PathBuf),
    /// The line that was sent could not be struck out, so the next knock would send it again.
    #[error(
        "cannot strike out the used sequence in {}: {}; put a # before its first unused line",
        path.display(),
        reason(cause)
    )]
    NotStruckOut {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
}

impl OneTimeLine {
    /// Reads the next unused line of a file.
    ///
    /// # Errors
    ///
    /// [`OneTimeError::Unusable`] and [`OneTimeError::UsedUp`].
    pub fn next(path: &Path) -> Result<Self, OneTimeError> {
        let content = open(path).and_then(|mut file| content(&mut file));
        let mut content = content.map_err(|cause| OneTimeError::Unusable { path: path.to_owned(), cause })?;
        let unused = content.use_up().ok_or_else(|| OneTimeError::UsedUp(path.to_owned()))?;
        Ok(Self { path: path.to_owned(), unused })
    }

    /// The hits of the line.
    pub fn hits(&self) -> Vec<Hit> {
        HitList::of(&self.unused.sequence).hits().to_vec()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Strikes the line out; it is on disk when this returns.
    ///
    /// # Errors
    ///
    /// [`OneTimeError::NotStruckOut`], also when the line is no longer the first unused one.
    pub fn strike_out(&self) -> Result<(), OneTimeError> {
        self.try_to_strike_out()
            .map_err(|cause| OneTimeError::NotStruckOut { path: self.path.clone(), cause })
    }

    fn try_to_strike_out(&self) -> io::Result<()> {
        let mut file = open(&self.path)?;
        // The file may have been edited since it was read.
        if content(&mut file)?.next() != Some(&self.unused) {
            return Err(io::Error::other("file has changed"));
        }
        file.seek(SeekFrom::Start(self.unused.offset.try_into().map_err(io::Error::other)?))?;
        file.write_all(&[STRIKE])?;
        file.sync_data()
    }
}

/// Opens a file for reading and writing. Anything but a regular file is refused: a pipe could block for ever.
fn open(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    OpenOptions::new().read(true).write(true).open(path)
}

fn content(file: &mut File) -> io::Result<OneTime> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(OneTime::parse(&text))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn lines_are_used_one_after_the_other_until_none_is_left() {
        let file = file("# mine\n7101,8202:udp\r\n 9303\n");
        let mut used = Vec::new();
        let end = loop {
            match OneTimeLine::next(file.path()) {
                Ok(line) => {
                    line.strike_out().unwrap();
                    used.push(
                        line.hits().iter().map(|hit| hit.step().unwrap().to_string()).collect::<Vec<_>>(),
                    );
                }
                Err(error) => break error,
            }
        };
        assert_eq!(used, [vec!["7101:tcp", "8202:udp"], vec!["9303:tcp"]]);
        assert!(matches!(end, OneTimeError::UsedUp(_)), "{end}");
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "# mine\n#101,8202:udp\r\n#9303\n");
    }

    #[test]
    fn a_file_that_was_edited_meanwhile_is_not_damaged() {
        let file = file("1,2\n3,4\n");
        let line = OneTimeLine::next(file.path()).unwrap();
        fs::write(file.path(), "5,6\n1,2\n").unwrap();
        let error = line.strike_out().unwrap_err();
        assert!(matches!(error, OneTimeError::NotStruckOut { .. }), "{error}");
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "5,6\n1,2\n");
    }

    #[test]
    fn only_a_regular_file_holds_lines() {
        for path in ["/nonexistent", "/"] {
            let error = OneTimeLine::next(Path::new(path)).unwrap_err();
            assert!(matches!(error, OneTimeError::Unusable { .. }), "{error}");
        }
    }
}
