//! Whether our outputs go to the systemd journal, which wants the priority of each line.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use super::Level;

/// Which outputs go to the journal.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Journal {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

impl Journal {
    /// Finds the output that `JOURNAL_STREAM` names (systemd.exec(5)): the variable may come from a process with
    /// other outputs.
    pub(crate) fn find() -> Self {
        let Some(named) = std::env::var("JOURNAL_STREAM").ok().and_then(|named| parse(&named)) else {
            return Self::default();
        };
        Self { stdout: is(named, io::stdout()), stderr: is(named, io::stderr()) }
    }
}

/// The device and inode in `JOURNAL_STREAM`.
fn parse(named: &str) -> Option<(u64, u64)> {
    let (device, inode) = named.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

fn is(named: (u64, u64), output: impl AsFd) -> bool {
    let metadata = output.as_fd().try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
    metadata.is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == named)
}

/// Prefixes every line with the priority for the journal (sd-daemon(3)).
pub(crate) fn prefixed(text: &str, level: Level, is_journal: bool) -> String {
    if !is_journal {
        return text.to_owned();
    }
    let lines: Vec<_> = text.lines().map(|line| format!("<{}>{line}", level as u8)).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_output_that_is_named_is_the_journals() {
        let file = tempfile::tempfile().unwrap();
        let metadata = file.metadata().unwrap();
        let named = parse(&format!("{}:{}", metadata.dev(), metadata.ino()));
        assert!(is(named.unwrap(), &file) && !is(named.unwrap(), tempfile::tempfile().unwrap()));
        assert_eq!([parse(""), parse("8"), parse("8:x"), parse(":")], [None; 4]);
    }

    #[test]
    fn every_line_has_its_priority_and_without_a_journal_none() {
        assert_eq!(prefixed("a\nb", Level::Error, true), "<3>a\n<3>b");
        assert_eq!(prefixed("a\nb", Level::Error, false), "a\nb");
    }
}
