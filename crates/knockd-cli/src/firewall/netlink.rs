//! The socket to the kernel's nftables: one batch goes out, and the kernel has carried it out or refused it when the call returns.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, send,
    setsockopt, socket, sockopt,
};

use super::nft::Batch;

/// Enough for a batch of 100,000 addresses.
const SEND_BUFFER: usize = 32 * 1024 * 1024;

/// The subsystem of the messages between the begin and the end of a batch, `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;

/// The length of family, version and number before the attributes of a message, `nfgenmsg`.
const NETFILTER_HEADER: usize = 4;

/// Room for any answer: an error carries the message that it is about.
const ANSWER: usize = 64 * 1024;

/// The messages about new and removed tables, chains and rules, from `NFT_MSG_NEWTABLE` to `NFT_MSG_DELRULE`
/// (`linux/netfilter/nf_tables.h`). Who is let in is not among them: addresses that others remove close, and do not open.
const RULES: RangeInclusive<u16> = NFTABLES << 8..=NFTABLES << 8 | 8;

/// `NFNLGRP_NFTABLES`, as a bit.
const CHANGES: u32 = 1 << (7 - 1);

/// Notices when others change what decides about packets.
#[derive(Debug)]
pub(super) struct Watch {
    socket: OwnedFd,
    /// The address of the socket whose changes are our own.
    own: u32,
}

impl Watch {
    /// # Errors
    /// When the kernel has no nfnetlink.
    pub(super) fn open(own: &Netlink) -> Result<Self, Errno> {
        let own = getsockname::<NetlinkAddr>(own.socket.as_raw_fd())?.pid();
        let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, CHANGES))?;
        Ok(Self { socket, own })
    }

    /// Waits until others have changed or removed some table, chain or rule, or may have.
    ///
    /// # Errors
    /// When the kernel tells nothing any more.
    pub(super) fn wait(&self) -> Result<(), Errno> {
        let mut buffer = vec![0; ANSWER];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                // Some messages were lost.
                Err(Errno::ENOBUFS) => return Ok(()),
                Err(error) => return Err(error),
            };
            let is_change = |message| {
                NetlinkBuffer::new_checked(message)
                    .is_ok_and(|it| RULES.contains(&it.message_type()) && it.port_number() != self.own)
            };
            if split(buffer.get(..length).unwrap_or_default()).any(is_change) {
                return Ok(());
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    /// The number of the latest message.
    sequence: u32,
}

impl Netlink {
    /// # Errors
    /// When the kernel has no nfnetlink.
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Without the right to exceed the limit, only very large batches are refused.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER);
        Ok(Self { socket, sequence: 0 })
    }

    /// Takes a socket from another process, which may have left answers in it.
    ///
    /// # Errors
    /// When it is none to nfnetlink.
    pub(super) fn of(socket: OwnedFd) -> Result<Self, Errno> {
        getsockname::<NetlinkAddr>(socket.as_raw_fd())?;
        let netlink = Self { socket, sequence: 0 };
        while netlink.read()?.is_some() {}
        Ok(netlink)
    }

    /// Returns another descriptor for the socket.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Has the kernel carry out a batch, all of it or nothing.
    ///
    /// # Errors
    /// What the kernel has against the first message that it refuses.
    pub(super) fn carry_out(&mut self, batch: Batch) -> Result<(), Errno> {
        let header = |subsystem| NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem);
        let control = |message| NetlinkMessage::from(NetfilterMessage::new(header(NFTABLES), message));
        let first = self.sequence.wrapping_add(1);
        let mut messages = vec![control(ControlMessage::BatchBegin)];
        messages.extend(batch.into_messages());
        // An answer to the last one shows that there is none to the others.
        if let Some(last) = messages.last_mut() {
            last.header.flags |= NLM_F_ACK;
        }
        messages.push(control(ControlMessage::BatchEnd));
        let mut bytes = Vec::new();
        for message in &mut messages {
            self.sequence = self.sequence.wrapping_add(1);
            message.header.sequence_number = self.sequence;
            message.header.flags |= NLM_F_REQUEST;
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(bytes.get_mut(start..).unwrap_or_default());
        }
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        self.read_answers(first)
    }

    /// Sends one message of its own.
    ///
    /// # Errors
    /// What the kernel has against it.
    pub(super) fn tell(&mut self, mut message: NetlinkMessage<NetfilterMessage>) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        message.header.sequence_number = self.sequence;
        message.header.flags |= NLM_F_REQUEST | NLM_F_ACK;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        self.read_answers(self.sequence)
    }

    /// Asks for all objects of one kind, and returns the attributes of each.
    ///
    /// # Errors
    /// As [`Self::for_each`].
    pub(super) fn dump(&mut self, request: &NetlinkMessage<NetfilterMessage>) -> Result<Vec<Vec<u8>>, Errno> {
        let mut objects = Vec::new();
        self.for_each(request, |object| objects.push(object.to_vec()))?;
        Ok(objects)
    }

    /// Asks for all objects of one kind, and passes on the attributes of each.
    ///
    /// # Errors
    /// When the kernel refuses to tell, or the objects have changed meanwhile.
    pub(super) fn for_each(
        &mut self,
        request: &NetlinkMessage<NetfilterMessage>,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        self.send(request, NLM_F_DUMP)?;
        let mut result = Ok(());
        loop {
            let answers = self.receive()?.ok_or(Errno::ENOMSG)?;
            // The crate would take seconds to parse the elements of a large set.
            for answer in split(&answers) {
                let buffer = NetlinkBuffer::new_checked(answer).map_err(|_| Errno::EBADMSG)?;
                if buffer.sequence_number() != self.sequence {
                    continue;
                }
                if buffer.flags() & NLM_F_DUMP_INTR != 0 {
                    // The kernel answers no other question before it has told the rest.
                    result = Err(Errno::EINTR);
                }
                match buffer.message_type() {
                    NLMSG_DONE => return result,
                    NLMSG_ERROR => return Err(refusal(answer).unwrap_or(Errno::EBADMSG)),
                    _ => buffer.payload().get(NETFILTER_HEADER..).into_iter().for_each(&mut each),
                }
            }
        }
    }

    /// Asks for one object, and returns its attributes.
    ///
    /// # Errors
    /// When the kernel refuses to tell, with `ENOENT` if there is no such object.
    pub(super) fn find(&mut self, request: &NetlinkMessage<NetfilterMessage>) -> Result<Vec<u8>, Errno> {
        self.send(request, NLM_F_ACK)?;
        let mut found = Err(Errno::ENOMSG);
        while let Some(answers) = self.receive()? {
            for answer in split(&answers) {
                let buffer = NetlinkBuffer::new_checked(answer).map_err(|_| Errno::EBADMSG)?;
                match buffer.message_type() {
                    _ if buffer.sequence_number() != self.sequence => {}
                    NLMSG_ERROR => found = refusal(answer).map_or(found, Err),
                    _ => {
                        let object = buffer.payload().get(NETFILTER_HEADER..);
                        found = object.map(<[u8]>::to_vec).ok_or(Errno::EBADMSG);
                    }
                }
            }
        }
        found
    }

    fn send(&mut self, request: &NetlinkMessage<NetfilterMessage>, flags: u16) -> Result<(), Errno> {
        let mut request = request.clone();
        self.sequence = self.sequence.wrapping_add(1);
        request.header.sequence_number = self.sequence;
        request.header.flags = NLM_F_REQUEST | flags;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map(drop)
    }

    /// Reads the answers to the messages from this number on. The kernel has answered when a message has been sent.
    fn read_answers(&self, first: u32) -> Result<(), Errno> {
        let (mut refused, mut is_answered) = (None, false);
        while let Some(answers) = self.read()? {
            for NetlinkMessage { header, payload, .. } in answers {
                // There may be answers to an earlier batch that were not read.
                let is_ours = header.sequence_number.wrapping_sub(first) <= self.sequence.wrapping_sub(first);
                if let NetlinkPayload::Error(error) = payload
                    && is_ours
                {
                    is_answered = true;
                    if error.code.is_some() {
                        refused.get_or_insert(errno(&error));
                    }
                }
            }
        }
        match refused {
            Some(error) => Err(error),
            None if is_answered => Ok(()),
            None => Err(Errno::ENOMSG),
        }
    }

    /// Reads some answers; `None` if there are no more.
    fn read(&self) -> Result<Option<Vec<NetlinkMessage<NetfilterMessage>>>, Errno> {
        let Some(answers) = self.receive()? else { return Ok(None) };
        let parse = |answer| NetlinkMessage::deserialize(answer).map_err(|_| Errno::EBADMSG);
        split(&answers).map(parse).collect::<Result<_, _>>().map(Some)
    }

    /// Receives some answers; `None` if there are no more.
    fn receive(&self) -> Result<Option<Vec<u8>>, Errno> {
        let mut buffer = vec![0; ANSWER];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Ok(Some(buffer));
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Splits what was received into messages.
fn split(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?);
        let length = usize::try_from(length).unwrap_or(usize::MAX).clamp(4, rest.len());
        let message = rest.get(..length);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        message
    })
}

/// Returns the error in an answer; `None` if it says that there was none.
fn refusal(answer: &[u8]) -> Option<Errno> {
    match NetlinkMessage::<NetfilterMessage>::deserialize(answer).ok()?.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Some(errno(&error)),
        _ => None,
    }
}

fn errno(error: &ErrorMessage) -> Errno {
    Errno::from_raw(error.raw_code().wrapping_neg())
}
