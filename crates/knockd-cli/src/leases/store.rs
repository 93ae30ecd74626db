//! Leases on disk: one small readable file each, so nothing can tear and a person can read them.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use knockd_core::{LeaseId, LeaseRecord};
use nix::libc;

use super::left_open::LeftOpen;
use crate::system::last_good;

/// The file that the daemon locks.
const LOCK: &str = "lock";
/// The suffix of a lease's file name.
const SUFFIX: &str = ".lease";
/// The suffixes of files that are kept for a person: leases that could not be read, and those that were given up.
const DAMAGED: &str = ".damaged";
const FAILED: &str = ".failed";
/// The beginning of what follows the record in the file of a lease that was given up.
const REASON: &str = "# the stop command failed: ";
/// The prefix of an unfinished file's name.
const UNFINISHED: &str = "new-";
/// How many letters and digits follow it.
const RANDOM: usize = 6;
/// The directory that some file systems create in their root.
const LOST_AND_FOUND: &str = "lost+found";

/// Files with larger numbers are not ours, so counting up never overflows.
const MAX_NUMBER: u64 = u64::MAX / 2;

/// The state directory of this daemon, which no other daemon uses at the same time.
#[derive(Debug)]
pub(crate) struct LeaseStore {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

/// The contents of a state directory.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) records: Vec<LeaseRecord>,
    /// What is kept for a person, with the numbers of the files.
    pub(crate) left_open: Vec<(LeaseId, LeftOpen)>,
    /// The highest number of any file, including those kept for a person to inspect.
    pub(crate) last_id: LeaseId,
    /// What could not be read, in words.
    pub(crate) problems: Vec<String>,
}

impl Default for Restored {
    fn default() -> Self {
        Self { records: Vec::new(), left_open: Vec::new(), last_id: LeaseId(0), problems: Vec::new() }
    }
}

/// How to lock the directory: [`crate::system::lock`] is patient, and [`File::try_lock`] holds up nobody.
pub(crate) type Lock = fn(&File) -> Result<(), TryLockError>;

impl LeaseStore {
    /// Opens the directory, creating it if necessary, readable only by its owner.
    ///
    /// # Errors
    /// When it cannot be created, locked or written; when others may write to it, because its contents will be
    /// executed; or when it contains anything that knockd did not write. Then nothing in it changes.
    pub(crate) fn open(path: PathBuf, lock: Lock) -> anyhow::Result<Self> {
        let in_path = || format!("cannot use the state directory {}", path.display());
        let opened = (|| {
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            let metadata = fs::metadata(&path)?;
            let user = nix::unistd::geteuid().as_raw();
            if metadata.uid() != user && metadata.uid() != 0 {
                bail!("owned by another user; it must belong to user {user}");
            }
            if metadata.mode() & 0o022 != 0 {
                bail!(
                    "writable by others, although its contents are executed; check its files, then run: chmod 700 {}",
                    path.display()
                );
            }
            if let Some(foreign) = foreign_entry(&path)? {
                bail!(
                    "contains {foreign:?}, which knockd did not write; set `StateDir` to a directory for knockd alone"
                );
            }
            if metadata.mode() & 0o077 != 0 {
                fs::set_permissions(&path, Permissions::from_mode(0o700))
                    .context("accessible to others, and its mode cannot be changed")?;
            }
            let open = || open_options().write(true).create(true).truncate(false).open(path.join(LOCK));
            let locked = open()?;
            if lock(&locked).is_err() {
                bail!("in use by another knockd; give each its own `StateDir`");
            }
            remove_unfinished(&path)?;
            Ok(locked)
        })();
        let lock = opened.with_context(in_path)?;
        Ok(Self { path, _lock: lock })
    }

    /// Says whether a directory has leases of an earlier daemon, or what it has left open: both take commands.
    pub(crate) fn has_leases(path: &Path) -> bool {
        let is_lease =
            |path: &Path| matches!(OwnFile::named(path), Some(OwnFile::Lease(_) | OwnFile::Kept(_)));
        fs::read_dir(path).into_iter().flatten().flatten().any(|entry| is_lease(&entry.path()))
    }

    /// Reads all leases. A file that cannot be read is renamed, so it is kept but not read again.
    pub(crate) fn restore(&self) -> Restored {
        let mut restored = Restored::default();
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) => {
                restored.problems.push(format!("{}: {error}", self.path.display()));
                return restored;
            }
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let id = match OwnFile::named(&path) {
                Some(OwnFile::Lease(id)) => id,
                Some(OwnFile::Kept(id)) => {
                    restored.last_id = restored.last_id.max(id);
                    restored.left_open.push((id, read_kept(path, id)));
                    continue;
                }
                Some(OwnFile::Lock | OwnFile::LastGood | OwnFile::Unfinished) | None => continue,
            };
            restored.last_id = restored.last_id.max(id);
            match read(&path, id) {
                Ok(record) => restored.records.push(record),
                Err(error) => {
                    let kept = self.path_of(id, DAMAGED);
                    let (moved, at) = match fs::rename(&path, &kept) {
                        Ok(()) => (format!("kept as {}", kept.display()), kept),
                        Err(error) => (format!("cannot rename it: {error}"), path.clone()),
                    };
                    restored.left_open.push((id, LeftOpen::Unreadable(at)));
                    restored.problems.push(format!("{}: {error:#}; {moved}", path.display()));
                }
            }
        }
        restored.records.sort_by_key(|record| record.id);
        restored.left_open.sort_by_key(|(id, _)| *id);
        restored
    }

    /// Writes a lease to disk; its file name is durable only after [`Self::sync`].
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn store(&self, record: &LeaseRecord) -> io::Result<()> {
        self.write(&self.path_of(record.id, SUFFIX), &record.to_string())
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut file =
            tempfile::Builder::new().prefix(UNFINISHED).rand_bytes(RANDOM).tempfile_in(&self.path)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    /// Makes the list of files durable.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Removes a lease.
    ///
    /// # Errors
    /// When it cannot be removed; a missing file is not an error.
    pub(crate) fn forget(&self, id: LeaseId) -> io::Result<()> {
        remove(&self.path_of(id, SUFFIX))
    }

    /// Keeps a lease for a person to deal with, under a name that is not restored, with the reason why it was given up
    /// in one line; durable only after [`Self::sync`].
    ///
    /// # Errors
    /// When it cannot be renamed or written.
    pub(crate) fn set_aside(&self, record: &LeaseRecord, reason: &str) -> io::Result<()> {
        let kept = self.path_of(record.id, FAILED);
        // First, so its stop command never runs again, not even if the disk has no room for the reason.
        match fs::rename(self.path_of(record.id, SUFFIX), &kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.write(&kept, &format!("{record}{REASON}{reason}\n"))
    }

    /// Removes what was kept of a lease.
    ///
    /// # Errors
    /// When it cannot be removed; a missing file is not an error.
    pub(crate) fn dismiss(&self, id: LeaseId) -> io::Result<()> {
        // A damaged one that could not be renamed has its old name.
        [FAILED, DAMAGED, SUFFIX].into_iter().try_for_each(|suffix| remove(&self.path_of(id, suffix)))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn path_of(&self, id: LeaseId, suffix: &str) -> PathBuf {
        self.path.join(format!("{}{suffix}", id.0))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file that knockd writes, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OwnFile {
    Lock,
    /// The last good configuration.
    LastGood,
    Unfinished,
    Lease(LeaseId),
    Kept(LeaseId),
}

impl OwnFile {
    fn named(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let number = |suffix| {
            let digits = name.strip_suffix(suffix)?;
            let number = digits.parse().ok().filter(|number| *number <= MAX_NUMBER)?;
            // As knockd writes it: no sign, no leading zero.
            (u64::to_string(&number) == digits).then_some(LeaseId(number))
        };
        match name {
            LOCK => Some(Self::Lock),
            last_good::NAME | last_good::UNFINISHED => Some(Self::LastGood),
            _ if is_unfinished(name) => Some(Self::Unfinished),
            _ => match number(SUFFIX) {
                Some(id) => Some(Self::Lease(id)),
                None => [DAMAGED, FAILED].into_iter().find_map(number).map(Self::Kept),
            },
        }
    }
}

/// Says whether tempfile makes such names.
fn is_unfinished(name: &str) -> bool {
    let random = name.strip_prefix(UNFINISHED).unwrap_or_default();
    random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Returns an entry of the directory that knockd did not write, if any.
fn foreign_entry(directory: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_ours = match OwnFile::named(&entry.path()) {
            None => entry.file_name() == LOST_AND_FOUND,
            Some(OwnFile::Lock | OwnFile::LastGood | OwnFile::Kept(_)) => entry.file_type()?.is_file(),
            // knockd may remove or rename a file with such a name, so its contents must look like a lease as well.
            Some(OwnFile::Lease(_) | OwnFile::Unfinished) => begins_like_a_lease(&entry.path())?,
        };
        if !is_ours {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Says whether a file is a lease or, as after a power failure, the start of one.
fn begins_like_a_lease(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(false);
    }
    let mut beginning = Vec::new();
    let limit = LeaseRecord::HEADER.len().try_into().unwrap_or(u64::MAX);
    open_options().read(true).open(path)?.take(limit).read_to_end(&mut beginning)?;
    Ok(LeaseRecord::HEADER.as_bytes().starts_with(&beginning))
}

/// Returns options that follow no symbolic link and do not block on a pipe.
fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

fn read(path: &Path, id: LeaseId) -> anyhow::Result<LeaseRecord> {
    Ok(LeaseRecord::parse(id, &read_text(path)?)?)
}

/// Reads a file that is kept for a person. Earlier versions stored no reason.
fn read_kept(path: PathBuf, id: LeaseId) -> LeftOpen {
    let text = read_text(&path).unwrap_or_default();
    // No line of a record begins like this.
    let end = text.find(&format!("\n{REASON}")).map_or(text.len(), |end| end + 1);
    let (record, reason) = text.split_at_checked(end).unwrap_or((&text, ""));
    let reason = reason.strip_prefix(REASON).unwrap_or_default().trim_end().to_owned();
    match LeaseRecord::parse(id, record) {
        Ok(record) => LeftOpen::GivenUp { record, reason },
        Err(_) => LeftOpen::Unreadable(path),
    }
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let mut file = open_options().read(true).open(path)?;
    let metadata = file.metadata()?;
    let user = nix::unistd::geteuid().as_raw();
    ensure!(metadata.is_file() && [user, 0].contains(&metadata.uid()), "not a regular file of this user");
    ensure!(metadata.mode() & 0o022 == 0, "writable by others");
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Removes what a daemon was writing when it died.
fn remove_unfinished(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if OwnFile::named(&path) == Some(OwnFile::Unfinished) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use knockd_core::{Access, DoorName, LeaseKey, Milliseconds, StartState, UnixTime};

    use std::time::Duration;

    use super::*;

    fn record(id: u64, seconds: u64) -> LeaseRecord {
        let (start, stop) = ("open = 1 # x".parse().unwrap(), "close 2001:db8::1".parse().unwrap());
        let access = Access::Commands { start, stop };
        let source = "2001:db8::1".parse().unwrap();
        let key = LeaseKey { door: DoorName::new("ssh door").unwrap(), source, access }.into();
        let until = UnixTime::new(Duration::from_secs(seconds));
        LeaseRecord {
            id: LeaseId(id),
            key,
            cmd_timeout: Milliseconds::new(Duration::from_secs(60)),
            until,
            failed: false,
            start: StartState::Ended,
            boot: None,
        }
    }

    fn open(directory: &tempfile::TempDir) -> LeaseStore {
        LeaseStore::open(directory.path().join("state"), File::try_lock).unwrap()
    }

    fn names(state: &LeaseStore) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&state.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_stored_is_restored_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let state = open(&directory);
        for id in [7, 3] {
            state.store(&record(id, 30)).unwrap();
        }
        state.sync().unwrap();
        drop(state);
        let state = open(&directory);
        let restored = state.restore();
        assert_eq!(restored.problems, Vec::<String>::new());
        assert_eq!(restored.records.iter().map(|record| record.id.0).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(restored.records[0], record(3, 30));
        state.forget(LeaseId(3)).unwrap();
        state.forget(LeaseId(3)).unwrap();
        assert_eq!(names(&state), ["7.lease", "lock"]);
    }

    #[test]
    fn damaged_files_are_kept_under_another_name_and_reported() {
        let directory = tempfile::tempdir().unwrap();
        let state = open(&directory);
        state.store(&record(1, 30)).unwrap();
        let whole = fs::read(state.path_of(LeaseId(1), SUFFIX)).unwrap();
        fs::write(state.path_of(LeaseId(2), SUFFIX), &whole[..whole.len() - 3]).unwrap();
        fs::write(state.path_of(LeaseId(4), SUFFIX), &whole).unwrap();
        fs::set_permissions(state.path_of(LeaseId(4), SUFFIX), Permissions::from_mode(0o666)).unwrap();
        let restored = state.restore();
        assert_eq!((restored.records.len(), restored.problems.len()), (1, 2), "{restored:?}");
        assert_eq!(names(&state), ["1.lease", "2.damaged", "4.damaged", "lock"]);
        let again = state.restore();
        assert_eq!(
            (again.problems.len(), again.last_id),
            (0, LeaseId(4)),
            "their numbers are not used again"
        );
    }

    /// What a store has kept for a person.
    fn left_open(state: &LeaseStore) -> Vec<LeftOpen> {
        state.restore().left_open.into_iter().map(|(_, left_open)| left_open).collect()
    }

    #[test]
    fn what_is_set_aside_is_kept_with_the_reason_and_not_restored_until_it_is_dismissed() {
        let directory = tempfile::tempdir().unwrap();
        let state = open(&directory);
        let stop = format!("close {REASON}one {REASON}").parse().unwrap();
        let access = Access::Commands { start: "open".parse().unwrap(), stop };
        let key = LeaseKey { access, ..(*record(1, 0).key).clone() }.into();
        let given_up = LeaseRecord { key, ..record(1, 30) };
        state.store(&record(1, 20)).unwrap();
        // What could not be stored before is set aside all the same.
        let never_stored = LeaseRecord { id: LeaseId(2), ..given_up.clone() };
        for record in [&given_up, &never_stored] {
            state.set_aside(record, "status 2: why").unwrap();
        }
        assert_eq!(names(&state), ["1.failed", "2.failed", "lock"]);
        drop(state);
        let state = open(&directory);
        assert_eq!((state.restore().records, state.restore().last_id), (vec![], LeaseId(2)));
        let reason = "status 2: why".to_owned();
        let expected =
            [given_up, never_stored].map(|record| LeftOpen::GivenUp { record, reason: reason.clone() });
        assert_eq!(left_open(&state), expected);
        state.dismiss(LeaseId(1)).unwrap();
        state.dismiss(LeaseId(1)).unwrap();
        assert_eq!(left_open(&state), expected[1..]);
    }

    #[test]
    fn what_an_earlier_version_set_aside_is_known_and_so_is_what_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let state = open(&directory);
        fs::write(state.path_of(LeaseId(1), FAILED), record(1, 30).to_string()).unwrap();
        fs::write(state.path_of(LeaseId(2), FAILED), [0; 10]).unwrap();
        fs::write(state.path_of(LeaseId(3), SUFFIX), LeaseRecord::HEADER).unwrap();
        let unreadable = |name| LeftOpen::Unreadable(state.path.join(name));
        let known = LeftOpen::GivenUp { record: record(1, 30), reason: String::new() };
        let expected = [known, unreadable("2.failed"), unreadable("3.damaged")];
        assert_eq!(left_open(&state), expected);
        assert_eq!(left_open(&state), expected, "also at the next start");
        for id in [1, 2, 3] {
            state.dismiss(LeaseId(id)).unwrap();
        }
        assert_eq!(names(&state), ["lock"]);
    }

    #[test]
    fn what_was_being_written_when_a_daemon_died_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let state = open(&directory);
        fs::write(state.path.join("new-a1B2c3"), "# knockd le").unwrap();
        drop(state);
        assert_eq!(names(&open(&directory)), ["lock"]);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        for mode in [0o770, 0o702] {
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = LeaseStore::open(path.clone(), File::try_lock).unwrap_err();
            assert!(format!("{error:#}").contains("writable by others"), "{error:#}");
            fs::remove_dir(&path).unwrap();
        }
    }

    #[test]
    fn two_daemons_do_not_share_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let _first = open(&directory);
        let error = LeaseStore::open(directory.path().join("state"), File::try_lock).unwrap_err();
        assert!(format!("{error:#}").ends_with("give each its own `StateDir`"), "{error:#}");
    }

    #[test]
    fn a_directory_with_anything_that_is_not_ours_is_refused_and_left_as_it_is() {
        type Make = fn(&Path);
        let foreign: [(&str, Make); 11] = [
            ("index.html", |path| fs::write(path, "").unwrap()),
            ("new-plans", |path| fs::write(path, "").unwrap()),
            ("new-letter1", |path| fs::write(path, LeaseRecord::HEADER).unwrap()),
            ("7.lease", |path| fs::write(path, "of a flat").unwrap()),
            ("new-plans", |path| fs::write(path, "for the garden").unwrap()),
            ("+15.lease", |path| fs::write(path, LeaseRecord::HEADER).unwrap()),
            ("016.lease", |path| fs::write(path, LeaseRecord::HEADER).unwrap()),
            ("18446744073709551615.lease", |path| fs::write(path, LeaseRecord::HEADER).unwrap()),
            ("8.lease", |path| fs::create_dir(path).unwrap()),
            ("9.lease", |path| symlink("/etc/passwd", path).unwrap()),
            ("lock", |path| symlink("/etc/passwd", path).unwrap()),
        ];
        for (name, make) in foreign {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("srv");
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            make(&path.join(name));
            // A symbolic link leads to the same directory.
            let link = directory.path().join("link");
            symlink(&path, &link).unwrap();
            for path in [&path, &link] {
                let error = LeaseStore::open(path.clone(), File::try_lock).unwrap_err();
                assert!(format!("{error:#}").contains(name), "{error:#}");
            }
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o755, "{name}");
            assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "{name}");
        }
    }

    #[test]
    fn the_root_of_a_file_system_of_its_own_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        fs::create_dir_all(path.join(LOST_AND_FOUND)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        LeaseStore::open(path, File::try_lock).unwrap();
    }
}
