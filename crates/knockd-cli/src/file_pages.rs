//! Gives back the memory of code and constants that only the start has needed: reading the command line and the configuration,
//! preparing the sandbox. They are a large part of the program and its libraries, and the daemon mostly waits for years.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ptr::NonNull;

use rustix::mm::{Advice, madvise};

/// The pages of this process that are the same as in a file: of its program and of the libraries.
#[derive(Debug)]
pub(crate) struct FilePages {
    mappings: Vec<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl FilePages {
    /// Looks where the kernel has put them (`/proc/pid/smaps`, proc(5)); none are found where that cannot be known.
    ///
    /// There must be no other thread yet: what a library is loaded into by another thread may look so before it is ready.
    pub(crate) fn find() -> Self {
        let maps = File::open("/proc/self/smaps").map(BufReader::new);
        let mut mappings = Vec::new();
        // A mapping has a line of its own, followed by those with its figures.
        let (mut latest, mut zeros) = (None, 0);
        for line in maps.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                // Neither in memory nor elsewhere is there a page that was changed.
                ["Anonymous:" | "Swap:", "0", "kB"] => {
                    zeros += 1;
                    mappings.extend(latest.take_if(|_| zeros == 2));
                }
                // Never written to, and from a file, of which the names begin with a slash.
                [range, "r-xp" | "r--p", _, _, _, file, ..] if file.starts_with('/') => {
                    (latest, zeros) = (Mapping::of(range), 0);
                }
                [range, permissions, ..] if range.contains('-') && permissions.len() == 4 => latest = None,
                _ => {}
            }
        }
        Self { mappings }
    }

    /// Gives all of them back; what is used from now on is read from the files again, out of the system's cache.
    pub(crate) fn give_back(&self) {
        for Mapping { start, length } in &self.mappings {
            // SAFETY: the range is one whole mapping of a file, private and not writable, in which no page differs from the
            // file, so the pages are the same when they are read again, and the kernel reads them whenever they are used.
            // What was mapped when there was but one thread is neither unmapped nor made writable afterwards: it is the program
            // and the libraries that it was started with.
            // An error leaves everything as it was.
            let _ = unsafe { madvise(start.as_ptr().cast(), *length, Advice::LinuxDontNeed) };
        }
    }
}

impl Mapping {
    /// Reads such as `5578ad58a000-5578ad618000`.
    fn of(range: &str) -> Option<Self> {
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let length = end.checked_sub(start)?;
        Some(Self { start: NonNull::new(std::ptr::with_exposed_provenance_mut(start))?, length })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// The addresses of functions are written into it when the program is loaded.
    static TABLE: [fn() -> FilePages; 1] = [FilePages::find];

    const ALONE: &str = "KNOCKD_TEST_ALONE";

    static VARIABLE: AtomicUsize = AtomicUsize::new(7);

    /// KiB of these pages that lie in memory, by the kernel's account.
    fn resident(pages: &FilePages) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let size = |mapping: &Mapping| {
            let heading = format!("{:x}-", mapping.start.addr());
            let mut lines = maps.lines().skip_while(|line| !line.starts_with(&heading));
            let size = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
            size.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
        };
        pages.mappings.iter().map(size).sum()
    }

    #[test]
    fn what_was_given_back_is_still_the_same() {
        // In a process of its own, without the threads of other tests.
        if std::env::var_os(ALONE).is_none() {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "file_pages::tests::what_was_given_back_is_still_the_same",
                    "--test-threads=1",
                ])
                .env(ALONE, "1")
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
            return;
        }
        let pages = FilePages::find();
        let has = |address: usize| {
            pages.mappings.iter().any(|Mapping { start, length }| {
                (start.addr().get()..start.addr().get() + length).contains(&address)
            })
        };
        let constant = "7,8";
        assert!(has(resident as *const () as usize) && has(constant.as_ptr() as usize));
        assert!(!has(TABLE.as_ptr() as usize) && !has((&raw const VARIABLE) as usize));
        let before = resident(&pages);
        pages.give_back();
        let after = resident(&pages);
        assert!(after < before, "{after} of {before} KiB");
        assert_eq!(constant.parse::<knockd_core::Sequence>().unwrap().len(), 2);
    }
}
