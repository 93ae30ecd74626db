//! The files that `Include` names. They may be read while the daemon runs, so nothing here waits or takes much memory,
//! whatever lies in a folder.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

/// How many files may be included, and how long all of them together may be, in bytes.
const MAX_FILES: usize = 1000;
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// An included file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Included {
    /// Its path.
    pub(super) path: PathBuf,
    /// Its path for messages.
    pub(super) name: String,
    /// Its content.
    pub(super) text: Vec<u8>,
}

/// A path, and why it cannot be read.
pub(super) type Unreadable = (PathBuf, io::Error);

/// Reads the files that these paths name, in their order; those that match a pattern in the order of their names,
/// without hidden ones. A pattern in a folder that does not exist names none.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Included>, Unreadable> {
    let mut included = Vec::new();
    let mut left = MAX_BYTES;
    for path in paths {
        for path in files_of(path).map_err(|error| (path.clone(), error))? {
            let text = match read_file(&path, left) {
                Ok(text) if included.len() < MAX_FILES => text,
                Ok(_) => {
                    return Err((
                        path,
                        io::Error::other(format!("more than {MAX_FILES} files are included")),
                    ));
                }
                Err(error) => return Err((path, error)),
            };
            left = left.saturating_sub(u64::try_from(text.len()).unwrap_or(u64::MAX));
            included.push(Included { name: path.display().to_string(), path, text });
        }
    }
    Ok(included)
}

/// Returns the folder of a path that has a pattern, if it does.
pub(super) fn folder(path: &Path) -> Option<&Path> {
    path.file_name()?.to_str()?.contains(['*', '?']).then(|| path.parent()).flatten()
}

fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(folder) = folder(path) else { return Ok(vec![path.to_owned()]) };
    if folder.to_str().is_some_and(|folder| folder.contains(['*', '?'])) {
        return Err(io::Error::other("only the last part of a path may be a pattern"));
    }
    let pattern = WildMatch::new(path.file_name().and_then(|name| name.to_str()).unwrap_or_default());
    let here = if folder == Path::new("") { Path::new(".") } else { folder };
    let entries = match fs::read_dir(here) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| !name.starts_with('.') && pattern.matches(name)) {
            if files.len() == MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} files match")));
            }
            files.push(folder.join(name));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a regular file of at most this length. Opening a pipe does not wait for somebody to write to it.
fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        let all = path.join("*.conf");
        return Err(io::Error::other(format!("a directory; include {}", all.display())));
    }
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(limit + 1).read_to_end(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > limit {
        return Err(io::Error::other(format!("included files are longer than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn names(result: &Result<Vec<Included>, Unreadable>) -> Vec<&str> {
        let files = result.as_ref().unwrap().iter();
        files.map(|file| file.path.file_name().unwrap().to_str().unwrap()).collect()
    }

    fn reason(result: Result<Vec<Included>, Unreadable>) -> String {
        let (path, error) = result.unwrap_err();
        format!("{}: {error}", path.file_name().unwrap().display())
    }

    #[test]
    fn files_come_by_name_and_hidden_and_other_ones_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.conf", "a.conf", "10-z.conf", ".c.conf", "a.conf~", "a.conf.dpkg-old", "README"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let found = read(&[folder.path().join("*.conf")]);
        assert_eq!(names(&found), ["10-z.conf", "a.conf", "b.conf"]);
        assert_eq!(found.unwrap()[1].text, b"a.conf");
        assert_eq!(
            names(&read(&[folder.path().join("?.conf"), folder.path().join("README")])),
            ["a.conf", "b.conf", "README"]
        );
        assert_eq!(names(&read(&[folder.path().join("none/*.conf")])), [""; 0]);
        assert_eq!(names(&read(&[])), [""; 0]);
    }

    #[test]
    fn what_is_no_file_or_missing_or_too_long_is_named_with_the_reason_and_nothing_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let of = |name: &str| reason(read(&[path(name)]));
        assert!(of("missing.conf").starts_with("missing.conf: No such file or directory"));
        assert!(reason(read(&[folder.path().to_owned()])).contains(": a directory; include "));
        assert!(of("x*/*.conf").ends_with("only the last part of a path may be a pattern"));

        mknodat(CWD, path("pipe.conf"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(of("*.conf"), "pipe.conf: not a regular file");
        fs::remove_file(path("pipe.conf")).unwrap();
        File::create(path("huge.conf")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(of("*.conf"), "huge.conf: included files are longer than 4 MiB");
        File::create(path("huge.conf")).unwrap().set_len(MAX_BYTES).unwrap();
        assert_eq!(names(&read(&[path("*.conf")])), ["huge.conf"]);
        fs::write(path("one-more.conf"), "x").unwrap();
        assert_eq!(of("*.conf"), "one-more.conf: included files are longer than 4 MiB");
        fs::remove_file(path("huge.conf")).unwrap();
        for number in 0..MAX_FILES {
            File::create(path(&format!("{number}.conf"))).unwrap();
        }
        assert_eq!(of("*.conf"), "*.conf: more than 1000 files match");
        assert_eq!(of("[ab].conf"), "[ab].conf: No such file or directory (os error 2)");
    }
}
