//! Gives back the memory of code that only the start has needed: reading the command line and the configuration, preparing
//! the sandbox. It is a large part of the program, and the daemon mostly waits for years.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use rustix::mm::{Advice, madvise};

/// The code of this program, as far as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code {
    start: NonNull<u8>,
    length: usize,
}

impl Code {
    /// Looks where the kernel has put it (`proc_pid_maps(5)`); `None` where that cannot be known.
    pub(crate) fn find() -> Option<Self> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let address = Self::find as *const () as usize;
        maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
            // Executable, and never written to: such pages are the file's own.
            let is_it = (start..end).contains(&address) && rest.starts_with("r-xp");
            let start = NonNull::new(std::ptr::with_exposed_provenance_mut(start)).filter(|_| is_it)?;
            Some(Self { start, length: end.checked_sub(start.addr().get())? })
        })
    }

    /// Gives all of it back; what is executed from now on is read from the file again, out of the system's cache.
    pub(crate) fn give_back(self) {
        // SAFETY: the range is one whole mapping of this program's file, private and not writable, so its pages are the same
        // when they are read again; the kernel reads them whenever they are executed. Nothing in Rust's memory lies there.
        // An error leaves everything as it was.
        let _ = unsafe { madvise(self.start.as_ptr().cast(), self.length, Advice::LinuxDontNeed) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of this program's code that lie in memory, by the kernel's account.
    fn resident(code: Code) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let heading = format!("{:x}-", code.start.addr());
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&heading));
        let size = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        size.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_that_was_given_back_still_runs() {
        let code = Code::find().unwrap();
        let before = resident(code);
        code.give_back();
        let after = resident(code);
        assert!(after < before, "{after} of {before} KiB");
        assert_eq!("7,8".parse::<knockd_core::Sequence>().unwrap().len(), 2);
    }
}
