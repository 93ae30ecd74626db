//! The claim of a daemon to an interface: with one configuration file, one daemon listens there. Two would run every
//! command twice.
//!
//! A claim is an address of a socket that is in no file system (unix(7), "abstract"). Like the interface, it belongs to
//! the network namespace; it needs no directory to write to, and it ends with the process that holds it. The file is
//! known by its directory and its name, because editors replace it by another one, and also by what a link leads to.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use crate::system::{patiently, users};

/// What makes claims for the daemon's configuration file.
#[derive(Clone, Debug)]
pub(crate) struct Claimant {
    config: PathBuf,
    /// One for each way to know the file; none for a pipe, which no other daemon can read as well.
    files: BTreeSet<u64>,
}

/// Keeps other daemons with the same configuration file from an interface until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    _sockets: Vec<UnixDatagram>,
}

/// Another daemon has the claim.
#[derive(Debug, thiserror::Error)]
#[error(
    "another knockd already does, with {} (pid {pid}); to apply changes, run: kill -HUP {pid}; to replace it, first run: \
     kill {pid}; to run both, use another configuration file",
    config.display()
)]
pub(crate) struct Taken {
    config: PathBuf,
    pid: u32,
}

impl Claimant {
    pub(crate) fn new(config: &Path) -> Self {
        let is_file = fs::metadata(config).is_ok_and(|metadata| metadata.is_file());
        let paths = [Some(config.to_owned()), fs::canonicalize(config).ok()];
        let files = paths.iter().flatten().filter(|_| is_file).filter_map(|path| place(path));
        Self { config: config.to_owned(), files: files.collect() }
    }

    /// Claims the interface with this number at startup. A daemon that was killed holds its claims for a moment, so
    /// this tries for up to 2 seconds.
    ///
    /// # Errors
    /// When another daemon keeps its claim.
    pub(crate) fn claim_patiently(&self, index: u32) -> Result<Claim, Taken> {
        patiently(|| self.claim(index), |_| true)
    }

    /// Claims the interface with this number.
    ///
    /// # Errors
    /// When another daemon has claimed it: one of root or of our user. Anybody can take the address, so a stranger is
    /// no reason to stay away; nor is a system without such sockets.
    pub(crate) fn claim(&self, index: u32) -> Result<Claim, Taken> {
        let mut sockets = Vec::new();
        for file in &self.files {
            let name = format!("knockd-{file:016x}-{index}");
            match bind(&name) {
                Ok(socket) => sockets.push(socket),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if let Some(pid) = holder(&name) {
                        return Err(Taken { config: self.config.clone(), pid });
                    }
                }
                Err(_) => {}
            }
        }
        Ok(Claim { _sockets: sockets })
    }
}

/// Identifies a file by its directory and its name.
fn place(path: &Path) -> Option<u64> {
    let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let directory = fs::metadata(directory).ok()?;
    // Without a key, it gives the same number in every process.
    let mut hasher = DefaultHasher::new();
    (directory.dev(), directory.ino(), path.file_name()?).hash(&mut hasher);
    Some(hasher.finish())
}

fn bind(name: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    // Nobody shall leave anything in it.
    socket.shutdown(Shutdown::Both)?;
    Ok(socket)
}

/// Returns the process with this socket, if it is another one, of root or of our user, and can be seen.
fn holder(name: &str) -> Option<u32> {
    // Number, reference count, protocol, flags, type, state, inode, path (proc(5)); a zero byte in front is an @ here.
    let sockets = fs::read_to_string("/proc/net/unix").ok()?;
    let columns = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let at = format!("@{name}");
    let inode = columns.into_iter().find(|columns| columns.get(7) == Some(&at.as_str()))?.get(6)?.to_string();
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let has_it = |process: &PathBuf| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|target| target == socket))
    };
    let process = processes.into_iter().find(has_it)?;
    let status = fs::read_to_string(process.join("status")).ok()?;
    let numbers = |field: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.into_iter().flat_map(str::split_whitespace).filter_map(|word| word.parse().ok()).collect()
    };
    let user = *numbers("Uid:").get(1)?;
    if user != 0 && user != rustix::process::geteuid().as_raw() && Some(user) != users::user(users::ENGINE) {
        return None;
    }
    // Its number there is that of the namespace that /proc is of, which may be an outer one.
    let namespace = |process: &Path| fs::read_link(process.join("ns/pid")).ok();
    let ids = numbers("NSpid:");
    let is_near = namespace(&process) == namespace(Path::new("/proc/self"));
    let pid = *if is_near { ids.last() } else { ids.first() }?;
    (pid != std::process::id() || !is_near).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No interface of the machine has such numbers.
    const INDEX: u32 = u32::MAX;

    fn config() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("knockd.conf");
        fs::write(&path, "").unwrap();
        (directory, path)
    }

    /// Whether the address is free; our own process is never a reason to stay away.
    fn is_free(claimant: &Claimant, index: u32) -> bool {
        claimant.files.iter().all(|file| bind(&format!("knockd-{file:016x}-{index}")).is_ok())
    }

    #[test]
    fn a_claim_is_to_one_interface_and_ends_when_it_is_dropped() {
        let (_directory, path) = config();
        let claimant = Claimant::new(&path);
        let claim = claimant.claim(INDEX).unwrap();
        assert!(!is_free(&claimant, INDEX) && is_free(&claimant, INDEX - 1));
        drop(claim);
        assert!(is_free(&claimant, INDEX));
    }

    #[test]
    fn a_file_stays_the_same_when_an_editor_replaces_it_and_whatever_path_leads_to_it() {
        let (directory, path) = config();
        let _claim = Claimant::new(&path).claim(INDEX).unwrap();
        fs::write(directory.path().join("new"), "other").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert!(!is_free(&Claimant::new(&path), INDEX), "replaced");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(!is_free(&Claimant::new(&link), INDEX), "through a link");
        assert!(!is_free(&Claimant::new(&directory.path().join("./knockd.conf")), INDEX), "another spelling");
        let (_other_directory, other) = config();
        assert!(is_free(&Claimant::new(&other), INDEX), "the same name elsewhere");
        assert_eq!(Claimant::new(Path::new("/dev/null")).files.len(), 0);
    }
}
