//! One-time files on disk: reading them, and striking out used lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use knockd_core::{OneTime, STRIKE, Unused};
use rustix::fs::OFlags;

use crate::system::helper::{Named, Rights};

/// Reads a file.
///
/// # Errors
/// When it cannot be read, or cannot be written: then no sequence could be struck out.
pub(crate) fn read(path: &Path, rights: &Rights) -> io::Result<OneTime> {
    content(&open_with(path, rights)?)
}

fn open_with(path: &Path, rights: &Rights) -> io::Result<File> {
    match rights {
        Rights::Own => open(path),
        Rights::Helper(helper) => Ok(helper.open(Named::OneTime(path.to_owned()))?.0.into()),
    }
}

/// Opens a file for reading and writing. Anything but a regular file is refused: a pipe could block for ever.
///
/// # Errors
/// When it cannot be opened, or is no regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file =
        options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

fn content(mut file: &File) -> io::Result<OneTime> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(OneTime::parse(&text))
}

/// Why a line was not struck out.
#[derive(Debug)]
pub(crate) struct StrikeError {
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
    /// The current content of the file, if it can be read.
    pub(crate) content: Option<OneTime>,
}

/// Strikes out a line; it is on disk when this returns.
///
/// # Errors
/// When the file cannot be written, or the line is no longer its first unused one.
pub(crate) fn strike_out(path: &Path, line: &Unused, rights: &Rights) -> Result<(), StrikeError> {
    try_to(path, line, rights).map_err(|error| StrikeError {
        path: path.to_owned(),
        error,
        content: read(path, rights).ok(),
    })
}

fn try_to(path: &Path, line: &Unused, rights: &Rights) -> io::Result<()> {
    let file = open_with(path, rights)?;
    // The file may have been edited since it was read.
    if content(&file)?.next() != Some(line) {
        return Err(io::Error::other("file has changed"));
    }
    let offset = u64::try_from(line.offset).map_err(io::Error::other)?;
    file.write_all_at(&[STRIKE], offset)?;
    file.sync_data()
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
    fn a_line_is_struck_out_on_disk_and_nothing_else_changes() {
        let file = file("# mine\n 1,2\nwhat?\n 3\n");
        let used = read(file.path(), &Rights::Own).unwrap().use_up().unwrap();
        strike_out(file.path(), &used, &Rights::Own).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "# mine\n#1,2\nwhat?\n 3\n");
    }

    #[test]
    fn a_file_that_was_edited_meanwhile_is_not_damaged() {
        let file = file(" 1,2\n 3\n");
        let used = read(file.path(), &Rights::Own).unwrap().use_up().unwrap();
        let edited = "# a new comment\n 1,2\n 3\n";
        fs::write(file.path(), edited).unwrap();
        assert!(strike_out(file.path(), &used, &Rights::Own).is_err());
        assert_eq!(fs::read_to_string(file.path()).unwrap(), edited);
    }

    #[test]
    fn a_line_is_struck_out_once_and_whoever_comes_too_late_is_told_what_is_next() {
        let file = file(" 1,2\n 3\n");
        let used = read(file.path(), &Rights::Own).unwrap().use_up().unwrap();
        strike_out(file.path(), &used, &Rights::Own).unwrap();
        let StrikeError { error, content, .. } = strike_out(file.path(), &used, &Rights::Own).unwrap_err();
        assert_eq!(error.to_string(), "file has changed");
        assert_eq!(content.unwrap().next().unwrap().sequence.to_string(), "3:tcp");
    }
}
