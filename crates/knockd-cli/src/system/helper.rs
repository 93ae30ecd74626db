//! The helper, as the daemon sees it: the process that opens files and starts decoders for an engine without rights.
//!
//! Each request is a datagram with the socket for its reply, so threads do not wait for each other, and what comes too late
//! meets nobody.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::config_file::{ConfigFile, ConfigFileError, check_access, read_files};
use super::spawn;

/// The program name that makes this program the helper.
pub const NAME: &str = "knockd-helper";

/// The longest request or reply.
const LONGEST: usize = 64 << 10;

/// How many descriptors come with one.
const DESCRIPTORS: usize = 2;

/// How long the disk may take to open a file.
const LIMIT: Duration = Duration::from_secs(10);

/// Who has the rights over files and processes.
#[derive(Clone, Debug)]
pub(crate) enum Rights {
    /// This process.
    Own,
    /// The helper.
    Helper(Helper),
}

/// A file that the configuration names, for its purpose.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) enum Named {
    OneTime(PathBuf),
    Log(PathBuf),
    Control(PathBuf),
    Metrics(PathBuf),
    PidFile(PathBuf),
}

/// What the helper is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// The first one, from a daemon that still has its rights: comes with the list of files.
    Begin,
    /// Read the configuration again.
    ReadConfig,
    /// Keep what was read for a start with an unusable configuration, or forget what was kept.
    KeepConfig,
    /// Say who else may use a file.
    Check(Named),
    Open(Named),
    /// Put what was opened in its place.
    Publish(Named),
    Remove(Named),
    /// Start a decoder under this number: comes with its socket.
    StartDecoder {
        number: u64,
        interface: String,
    },
    /// End it, and say why.
    EndDecoder {
        number: u64,
        reason: Option<String>,
    },
    /// End it without a word.
    DropDecoder {
        number: u64,
    },
}

/// What the helper answers; a descriptor may come with it.
#[derive(Default, Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) texts: Vec<String>,
    /// The error number, if there is one, and the text.
    error: Option<(Option<i32>, String)>,
}

impl Reply {
    pub(crate) fn done(texts: Vec<String>) -> Self {
        Self { texts, error: None }
    }

    pub(crate) fn failed(error: &io::Error) -> Self {
        Self { error: Some((error.raw_os_error(), error.to_string())), ..Self::default() }
    }
}

/// The files that a configuration names.
pub(crate) type Files = BTreeSet<Named>;

/// A configuration with warnings about who else may use its files.
pub(crate) type ReadFiles = (ConfigFile, Vec<String>);

/// The way to the helper; when the last one is dropped, the helper ends.
#[derive(Clone, Debug)]
pub(crate) struct Helper {
    socket: Arc<OwnedFd>,
    /// The number of the next decoder.
    next: Arc<AtomicU64>,
}

impl Helper {
    /// Starts the helper, with the same arguments as this process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(files: &Files) -> io::Result<Self> {
        let (socket, theirs) = pair()?;
        Command::new("/proc/self/exe")
            .arg0(NAME)
            .args(std::env::args_os().skip(1))
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let helper = Self { socket: Arc::new(socket), next: Arc::default() };
        helper.ask(&Job::Begin, Some(to_memory(files)?.as_fd()), Some(LIMIT))?;
        Ok(helper)
    }

    /// Returns a number that no other decoder has had.
    pub(crate) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Has a file opened; the texts are remarks about it.
    ///
    /// # Errors
    /// When it cannot be opened, or the configuration does not name it.
    pub(crate) fn open(&self, file: Named) -> io::Result<(OwnedFd, Vec<String>)> {
        let (Reply { texts, .. }, descriptor) = self.ask(&Job::Open(file), None, Some(LIMIT))?;
        Ok((descriptor.ok_or_else(without_descriptor)?, texts))
    }

    /// Has a file put in its place.
    ///
    /// # Errors
    /// When that is impossible.
    pub(crate) fn publish(&self, file: Named) -> io::Result<()> {
        self.ask(&Job::Publish(file), None, Some(LIMIT)).map(drop)
    }

    /// Has a file removed.
    pub(crate) fn remove(&self, file: Named) {
        let _ = self.ask(&Job::Remove(file), None, Some(LIMIT));
    }

    /// Has a decoder started; returns where its records arrive.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start_decoder(
        &self,
        number: u64,
        interface: &str,
        socket: BorrowedFd<'_>,
    ) -> io::Result<OwnedFd> {
        let job = Job::StartDecoder { number, interface: interface.to_owned() };
        // The disk with the program may hang for as long as it likes, as without a helper.
        let (_, records) = self.ask(&job, Some(socket), None)?;
        records.ok_or_else(without_descriptor)
    }

    /// Has a decoder ended; returns why it has ended.
    pub(crate) fn end_decoder(&self, number: u64, reason: Option<String>) -> String {
        match self.ask(&Job::EndDecoder { number, reason }, None, Some(LIMIT)) {
            Ok((Reply { texts, .. }, _)) => texts.into_iter().next().unwrap_or_default(),
            Err(error) => format!("packet decoder ended: {error}"),
        }
    }

    /// Has a decoder ended.
    pub(crate) fn drop_decoder(&self, number: u64) {
        let _ = self.ask(&Job::DropDecoder { number }, None, Some(LIMIT));
    }

    /// Has the configuration kept for a start at which it is unusable; one without a guard is forgotten. Says whether
    /// there was one to forget.
    ///
    /// # Errors
    /// When that is impossible.
    pub(crate) fn keep_config(&self) -> io::Result<bool> {
        self.ask(&Job::KeepConfig, None, Some(LIMIT)).map(|(reply, _)| !reply.texts.is_empty())
    }

    fn read_config(&self) -> io::Result<ReadFiles> {
        let (_, read) = self.ask(&Job::ReadConfig, None, Some(LIMIT))?;
        from_memory(read.ok_or_else(without_descriptor)?)
    }

    fn ask(
        &self,
        job: &Job,
        descriptor: Option<BorrowedFd<'_>>,
        limit: Option<Duration>,
    ) -> io::Result<(Reply, Option<OwnedFd>)> {
        let (answer, theirs) = pair()?;
        let descriptors: Vec<_> = std::iter::once(theirs.as_fd()).chain(descriptor).collect();
        send(&*self.socket, job, &descriptors, SendFlags::empty()).map_err(|_| has_ended())?;
        drop(descriptors);
        drop(theirs);
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        loop {
            match poll(&mut [PollFd::new(&answer, PollFlags::IN)], limit.as_ref()) {
                Ok(0) => return Err(io::Error::other("the disk has not answered for 10 s")),
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let (reply, descriptors): (Reply, _) = receive(&answer)?.ok_or_else(has_ended)?;
        match reply.error {
            Some((Some(number), _)) => Err(io::Error::from_raw_os_error(number)),
            Some((None, text)) => Err(io::Error::other(text)),
            None => Ok((reply, descriptors.into_iter().next())),
        }
    }
}

impl Rights {
    /// Returns a channel that ends when the helper has; one without messages if there is none.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn watch(&self) -> anyhow::Result<Receiver<()>> {
        let Self::Helper(helper) = self else { return Ok(never()) };
        let (socket, (alive, end)) = (Arc::clone(&helper.socket), bounded(0));
        spawn("helper", move || {
            // Without wishes, nothing but the other side's end ends this.
            let wait = || poll(&mut [PollFd::new(&*socket, PollFlags::empty())], None);
            while wait() == Err(rustix::io::Errno::INTR) {}
            drop::<Sender<()>>(alive);
        })?;
        Ok(end)
    }

    /// Reads the configuration and the files that it includes, again if the daemon runs already, and says who else
    /// may use them.
    ///
    /// # Errors
    /// When one is missing or cannot be read, or everybody may write one with commands for root.
    pub(crate) fn read_config(
        &self,
        path: &Path,
        directory: &Path,
        again: bool,
    ) -> Result<ReadFiles, ConfigFileError> {
        match self {
            Self::Own => read_files(path, directory, again),
            Self::Helper(helper) => helper.read_config().map_err(|error| ConfigFileError::told(&error)),
        }
    }

    /// Says who else may use a one-time file.
    ///
    /// # Errors
    /// When everybody may write it, and this is root.
    pub(crate) fn check_one_time(&self, path: &Path) -> Result<Vec<String>, ConfigFileError> {
        match self {
            Self::Own => check_access(path),
            Self::Helper(helper) => {
                let job = Job::Check(Named::OneTime(path.to_owned()));
                let (reply, _) =
                    helper.ask(&job, None, Some(LIMIT)).map_err(|error| ConfigFileError::told(&error))?;
                Ok(reply.texts)
            }
        }
    }
}

fn has_ended() -> io::Error {
    io::Error::other("the helper process has ended")
}

fn without_descriptor() -> io::Error {
    io::Error::other("the helper process has sent no file")
}

/// Returns two sockets that know where a message ends.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a reply; waits for nobody, because a socket for one reply has room for it.
///
/// # Errors
/// When it is too long, or nobody receives it.
pub(crate) fn reply(socket: &OwnedFd, reply: &Reply, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    send(socket, reply, descriptors, SendFlags::DONTWAIT)
}

fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > LONGEST {
        return Err(io::Error::other("message too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message with its descriptors; `None` when the other side has ended.
///
/// # Errors
/// When it cannot be understood.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let Some(message) = bytes.get(..received.bytes).filter(|message| !message.is_empty()) else {
        return Ok(None);
    };
    Ok(Some((serde_json::from_slice(message)?, descriptors)))
}

/// Puts what may be long into memory that a descriptor stands for.
///
/// # Errors
/// When there is no memory left.
pub(crate) fn to_memory(content: &impl Serialize) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("knockd", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(io::BufWriter::new(&file), content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads it.
///
/// # Errors
/// When it is not that.
pub(crate) fn from_memory<T: DeserializeOwned>(descriptor: OwnedFd) -> io::Result<T> {
    let mut text = Vec::new();
    File::from(descriptor).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_whole_with_its_descriptors_and_the_end_is_known() {
        let (one, other) = pair().unwrap();
        let file = to_memory(&["content"]).unwrap();
        send(&one, &Job::ReadConfig, &[file.as_fd(), file.as_fd()], SendFlags::empty()).unwrap();
        let (job, mut descriptors) = receive::<Job>(&other).unwrap().unwrap();
        assert!(matches!(job, Job::ReadConfig));
        assert_eq!(descriptors.len(), 2);
        let content: Vec<String> = from_memory(descriptors.pop().unwrap()).unwrap();
        assert_eq!(content, ["content"]);
        send(&one, &"x".repeat(LONGEST), &[], SendFlags::empty()).unwrap_err();
        drop(one);
        assert!(receive::<Job>(&other).unwrap().is_none());
    }
}
