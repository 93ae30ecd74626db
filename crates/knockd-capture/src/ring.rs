//! The ring of a packet socket: memory into which the kernel writes packets and from which this process reads them,
//! without a system call for each.
//!
//! This is the only module of this crate with `unsafe` code. It relies on the protocol of `TPACKET_V2` (packet(7),
//! the kernel's `Documentation/networking/packet_mmap.rst`, `linux/if_packet.h`). The ring is a row of frames, each
//! with a header. While a frame's status is [`STATUS_KERNEL`], only the kernel touches the frame; otherwise only its
//! reader does, which returns it by writing that status. The kernel fills the frames in order and wraps around after
//! the last; if a frame has not been returned by then, it drops packets.
#![allow(unsafe_code)]

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use knockd_core::Arrival;
use nix::libc::{
    self, MAP_FAILED, MAP_SHARED, PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, PROT_READ, PROT_WRITE,
    SOL_PACKET, TPACKET_ALIGNMENT, c_int, sockaddr_ll, socklen_t, tpacket_req, tpacket_stats, tpacket2_hdr,
};

/// The space for a packet with its header: 432 bytes are left for the packet, more than all relevant headers except
/// overlong IPv6 extension headers.
const FRAME: usize = 512;

/// The kernel reserves memory in blocks of this size.
const BLOCK: usize = 64 << 10;

/// How many frames a ring has: 4 MiB, which is 16 ms of packets at 500,000 a second.
const FRAMES: usize = 8192;

/// Where the kernel puts a packet's link-layer address: behind the header, aligned (`TPACKET2_HDRLEN`,
/// `linux/if_packet.h`).
const ADDRESS: usize = size_of::<tpacket2_hdr>().next_multiple_of(TPACKET_ALIGNMENT);

/// Who owns a frame (`TP_STATUS_*`, `linux/if_packet.h`); the other bits of a status describe the packet.
const STATUS_KERNEL: u32 = 0;
const STATUS_USER: u32 = 1;

/// `enum tpacket_versions`, `linux/if_packet.h`.
const TPACKET_V2: c_int = 1;

/// Gives a packet socket a ring; from now on everything that it receives goes there, and nothing to recv(2).
///
/// The ring lasts as long as the socket, even while nobody has mapped it.
///
/// # Errors
///
/// When the kernel has no memory for it.
pub(crate) fn request(socket: impl AsFd) -> io::Result<()> {
    let ring = tpacket_req {
        tp_block_size: number(BLOCK)?,
        tp_block_nr: number(FRAMES * FRAME / BLOCK)?,
        tp_frame_size: number(FRAME)?,
        tp_frame_nr: number(FRAMES)?,
    };
    set_option(&socket, PACKET_VERSION, &TPACKET_V2)?;
    set_option(&socket, PACKET_RX_RING, &ring)
}

fn number(size: usize) -> io::Result<u32> {
    size.try_into().map_err(io::Error::other)
}

fn set_option<T>(socket: &impl AsFd, option: c_int, value: &T) -> io::Result<()> {
    let length = socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `value` is valid for reads of `length` bytes during the call, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a packet from the queue of a socket without a ring; returns its length, if there is one, and how it came.
///
/// # Errors
///
/// Those of recvfrom(2).
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Arrival)>> {
    // SAFETY: all of its fields are integers, for which zero is a value.
    let mut address: sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = socklen_t::try_from(size_of::<sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: `buffer` is valid for writes of its length during the call, `address` for writes of `length` bytes, any
    // bytes are good for its integers, and `length` is valid for reads and writes.
    let received = unsafe {
        libc::recvfrom(
            socket.as_fd().as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    match usize::try_from(received) {
        Ok(received) => Ok(Some((received, arrival_of(&address)))),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}

/// Reads how a packet came from its link-layer address (packet(7)).
fn arrival_of(address: &sockaddr_ll) -> Arrival {
    match (address.sll_hatype, address.sll_pkttype) {
        (libc::ARPHRD_LOOPBACK, _) => Arrival::Loopback,
        (_, libc::PACKET_OUTGOING) => Arrival::Outgoing,
        (_, libc::PACKET_OTHERHOST) => Arrival::OtherHost,
        _ => Arrival::Incoming,
    }
}

/// The counts of a packet socket since the last request (`PACKET_STATISTICS`, packet(7)).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Statistics {
    /// Packets that its filter accepted, including dropped ones.
    pub packets: u32,
    /// Packets dropped for lack of space.
    pub drops: u32,
}

/// Returns the counts of a packet socket, which then restart at zero.
///
/// # Errors
///
/// When the descriptor is not a packet socket.
pub fn statistics(socket: impl AsFd) -> io::Result<Statistics> {
    let mut counts = tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = socklen_t::try_from(size_of::<tpacket_stats>()).map_err(io::Error::other)?;
    // SAFETY: `counts` is valid for writes of `length` bytes during the call, any bytes are good for its integers, and
    // `length` is valid for reads and writes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            SOL_PACKET,
            PACKET_STATISTICS,
            (&raw mut counts).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(Statistics { packets: counts.tp_packets, drops: counts.tp_drops })
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A ring, mapped into this process, and its only reader.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: Mapping,
    frames: usize,
    /// The frame that the kernel fills next, as far as known; `None` before the first one is found.
    position: Option<usize>,
    /// Whether the frame at the position was read and has to be returned.
    is_lent: bool,
}

impl Ring {
    /// Maps the ring of a socket; another process may have read from it before, but none may at the same time.
    ///
    /// # Errors
    ///
    /// When the socket has no ring.
    pub(crate) fn map(socket: impl AsFd) -> io::Result<Self> {
        Ok(Self::over(Mapping::new(Some(&socket), FRAMES * FRAME)?, FRAMES))
    }

    const fn over(memory: Mapping, frames: usize) -> Self {
        Self { memory, frames, position: None, is_lent: false }
    }

    /// Returns the next packet and how it came, if there is one; the next call returns it to the kernel.
    pub(crate) fn next_packet(&mut self) -> Option<(&[u8], Arrival)> {
        let mut position = match self.position {
            Some(position) => position,
            None => self.find_first()?,
        };
        if self.is_lent {
            self.status(position).store(STATUS_KERNEL, Ordering::Release);
            self.is_lent = false;
            position = (position + 1) % self.frames;
        }
        self.position = Some(position);
        if self.status(position).load(Ordering::Acquire) & STATUS_USER == 0 {
            return None;
        }
        self.is_lent = true;
        Some((self.packet(position), self.arrival(position)))
    }

    /// Says whether the packet for [`Self::next_packet`] has not arrived yet, while none is lent.
    pub(crate) fn is_behind(&self) -> bool {
        self.position.is_some_and(|frame| self.status(frame).load(Ordering::Acquire) & STATUS_USER == 0)
    }

    /// Makes the next call search everywhere: for when the kernel announces a packet and there is none at the
    /// position.
    pub(crate) const fn lose_position(&mut self) {
        self.position = None;
        self.is_lent = false;
    }

    /// Returns the frame that was filled first among those not returned yet.
    fn find_first(&self) -> Option<usize> {
        let is_filled = |frame| self.status(frame).load(Ordering::Acquire) & STATUS_USER != 0;
        let filled = (0..self.frames).find(|&frame| is_filled(frame))?;
        let before = |frame: usize| frame.checked_sub(1).unwrap_or(self.frames - 1);
        // Frames before it may have been filled meanwhile, and the row of filled frames may wrap around.
        let row = std::iter::successors(Some(filled), |&frame| {
            Some(before(frame)).filter(|&before| is_filled(before))
        });
        let first = row.take(self.frames).last()?;
        if is_filled(before(first)) {
            // All are filled: the kernel's time stamps decide.
            return (0..self.frames).min_by_key(|&frame| self.time(frame));
        }
        Some(first)
    }

    fn status(&self, frame: usize) -> &AtomicU32 {
        debug_assert!(frame < self.frames);
        // SAFETY: the frame lies within the memory, which is mapped as long as `self` lives, and starts at a multiple
        // of FRAME from the page where the memory starts, so it is aligned. The only other writer, the kernel, writes
        // the status as a whole.
        unsafe { AtomicU32::from_ptr(self.field(frame, offset_of!(tpacket2_hdr, tp_status)).cast().as_ptr()) }
    }

    /// Returns when the packet in a frame arrived; the frame must be filled.
    fn time(&self, frame: usize) -> (u32, u32) {
        let read = |offset| {
            // SAFETY: the field lies within the frame, and is aligned as in the header's type, which is `repr(C)`. The
            // kernel does not touch a filled frame, and any bytes are good for an integer.
            unsafe { self.field(frame, offset).cast::<u32>().read() }
        };
        (read(offset_of!(tpacket2_hdr, tp_sec)), read(offset_of!(tpacket2_hdr, tp_nsec)))
    }

    /// Returns the packet in a frame, which must be filled.
    fn packet(&self, frame: usize) -> &[u8] {
        // SAFETY: the header lies at the start of the frame, and is aligned as above. The kernel does not touch a
        // filled frame, and any bytes are good for its integers.
        let header = unsafe { self.field(frame, 0).cast::<tpacket2_hdr>().read() };
        let offset = usize::from(header.tp_mac).min(FRAME);
        let length = usize::try_from(header.tp_snaplen).unwrap_or(FRAME).min(FRAME - offset);
        // SAFETY: `offset` and `length` together stay within the frame. It is filled, so nobody writes to it until it
        // is given back, which takes `&mut self`; the slice borrows `self`.
        unsafe { std::slice::from_raw_parts(self.field(frame, offset).as_ptr(), length) }
    }

    /// Returns how the packet in a frame came, which must be filled.
    fn arrival(&self, frame: usize) -> Arrival {
        // SAFETY: the address lies within the frame, behind the header, and is aligned, because `ADDRESS` is a multiple
        // of TPACKET_ALIGNMENT. The kernel does not touch a filled frame, and any bytes are good for its integers.
        arrival_of(&unsafe { self.field(frame, ADDRESS).cast::<sockaddr_ll>().read() })
    }

    /// Returns the address of a frame's byte at this offset, which may be its end.
    fn field(&self, frame: usize, offset: usize) -> NonNull<u8> {
        debug_assert!(frame < self.frames && offset <= FRAME);
        // SAFETY: `frames` frames fit into the memory, so this stays within it or points behind its end.
        unsafe { self.memory.start.add(frame * FRAME + offset) }
    }
}

/// Memory that stays mapped as long as this lives.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to no thread: it is the same for all, and its last owner unmaps it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the ring of a socket; without one, zeros that are private to this process.
    fn new(socket: Option<&impl AsFd>, length: usize) -> io::Result<Self> {
        let (descriptor, flags) = match socket {
            Some(socket) => (socket.as_fd().as_raw_fd(), MAP_SHARED),
            None => (-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        };
        // SAFETY: the kernel chooses where, so nothing that is mapped already is touched.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, PROT_READ | PROT_WRITE, flags, descriptor, 0) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != MAP_FAILED => Ok(Self { start: start.cast(), length }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is what was mapped, and nothing borrows from it any more. The only failure would be a wrong
        // argument.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Says whether the calendar of this machine is kept right, by NTP for example; `None` if the system does not tell.
pub fn clock_is_synchronised() -> Option<bool> {
    // SAFETY: a structure of numbers, for which zeros are valid. They ask for a report and change nothing
    // (adjtimex(2)).
    let state = unsafe {
        let mut clock: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut clock)
    };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::thread;

    use super::*;

    const MAC: usize = 80;

    /// Does to a ring's memory what the kernel does.
    struct Kernel {
        start: NonNull<u8>,
        frames: usize,
        position: usize,
        clock: u32,
        dropped: u32,
    }

    // SAFETY: it follows the protocol, whatever thread it is in; the memory outlives the threads of these tests.
    unsafe impl Send for Kernel {}

    impl Kernel {
        fn of(ring: &Ring) -> Self {
            Self { start: ring.memory.start, frames: ring.frames, position: 0, clock: 0, dropped: 0 }
        }

        /// Receives a packet of these bytes, as if it had been longer if `snaplen` says so.
        fn receive_as(&mut self, bytes: &[u8], mac: u16, snaplen: u32) -> bool {
            // SAFETY: within the memory, aligned, and only touched while the frame is the kernel's.
            unsafe {
                let frame = self.start.add(self.position * FRAME);
                let status = AtomicU32::from_ptr(frame.cast().as_ptr());
                if status.load(Ordering::Acquire) != STATUS_KERNEL {
                    self.dropped += 1;
                    return false;
                }
                self.clock += 1;
                let header = frame.cast::<tpacket2_hdr>().as_ptr();
                (&raw mut (*header).tp_mac).write(mac);
                (&raw mut (*header).tp_snaplen).write(snaplen);
                (&raw mut (*header).tp_sec).write(7);
                (&raw mut (*header).tp_nsec).write(self.clock);
                frame.add(MAC).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
                // With some of the other bits: checksum not ready, copied.
                status.store(STATUS_USER | 8 | 2, Ordering::Release);
            }
            self.position = (self.position + 1) % self.frames;
            true
        }

        /// Receives a packet that came like this.
        fn receive_from(&mut self, hatype: u16, pkttype: u8) {
            // SAFETY: within the memory and aligned. The frame is the kernel's, because nothing was received into it.
            unsafe {
                let address = self.start.add(self.position * FRAME + ADDRESS).cast::<sockaddr_ll>().as_ptr();
                (&raw mut (*address).sll_hatype).write(hatype);
                (&raw mut (*address).sll_pkttype).write(pkttype);
            }
            assert!(self.receive(1));
        }

        fn receive(&mut self, byte: u8) -> bool {
            self.receive_as(&[byte, byte], 80, 2)
        }
    }

    fn ring(frames: usize) -> (Ring, Kernel) {
        let ring = Ring::over(Mapping::new(None::<&BorrowedFd<'_>>, frames * FRAME).unwrap(), frames);
        let kernel = Kernel::of(&ring);
        (ring, kernel)
    }

    fn read(ring: &mut Ring) -> Vec<u8> {
        let mut read = Vec::new();
        while let Some(packet) = ring.next_packet() {
            read.push(packet.0[0]);
        }
        read
    }

    /// A new reader of the same ring, after the first has ended.
    fn anew(ring: Ring) -> Ring {
        Ring { position: None, is_lent: false, ..ring }
    }

    #[test]
    fn packets_are_read_in_order_around_the_end_and_given_back() {
        let (mut ring, mut kernel) = ring(4);
        assert_eq!(read(&mut ring), [0; 0]);
        for round in 0..5 {
            for byte in 0..3 {
                assert!(kernel.receive(round * 3 + byte));
            }
            assert_eq!(read(&mut ring), [0, 1, 2].map(|byte| round * 3 + byte));
        }
        assert_eq!(kernel.dropped, 0);
    }

    #[test]
    fn a_packet_stays_the_readers_until_the_next_call() {
        let (mut ring, mut kernel) = ring(2);
        kernel.receive(1);
        kernel.receive(2);
        assert_eq!(ring.next_packet(), Some((&[1, 1][..], Arrival::Incoming)));
        assert!(!kernel.receive(3), "both frames are still in use");
        assert_eq!(ring.next_packet(), Some((&[2, 2][..], Arrival::Incoming)));
        assert!(kernel.receive(4));
        assert_eq!(ring.next_packet(), Some((&[4, 4][..], Arrival::Incoming)));
        assert_eq!(ring.next_packet(), None);
    }

    #[test]
    fn lengths_and_offsets_that_lead_out_of_the_frame_are_cut() {
        let (mut ring, mut kernel) = ring(8);
        for (mac, snaplen, length) in [
            (80, 0, 0),
            (80, 432, 432),
            (80, 433, 432),
            (80, u32::MAX, 432),
            (512, 1, 0),
            (u16::MAX, u32::MAX, 0),
            (511, 9, 1),
        ] {
            kernel.receive_as(&[1], mac, snaplen);
            assert_eq!(ring.next_packet().map(|(packet, _)| packet.len()), Some(length), "{mac} {snaplen}");
        }
    }

    #[test]
    fn how_a_packet_came_stands_behind_the_header() {
        let (mut ring, mut kernel) = ring(8);
        for (hatype, pkttype, arrival) in [
            (1, 0, Arrival::Incoming),
            (1, 1, Arrival::Incoming),
            (1, 2, Arrival::Incoming),
            (1, 3, Arrival::OtherHost),
            (1, 4, Arrival::Outgoing),
            (772, 0, Arrival::Loopback),
            (65534, 255, Arrival::Incoming),
        ] {
            kernel.receive_from(hatype, pkttype);
            assert_eq!(ring.next_packet(), Some((&[1, 1][..], arrival)));
        }
    }

    #[test]
    fn another_reader_goes_on_where_the_first_has_stopped_wherever_that_was() {
        for given_back in 0..8 {
            for waiting in 0..=4 {
                let (mut ring, mut kernel) = ring(4);
                for byte in 0..given_back {
                    kernel.receive(byte);
                    ring.next_packet();
                }
                // The last frame was read but never returned; then the kernel continues.
                let kept = u8::from(given_back > 0);
                for byte in 0..waiting {
                    kernel.receive(100 + byte);
                }
                let mut expected: Vec<u8> = (given_back - kept..given_back).collect();
                expected.extend((100..100 + waiting).take(4 - usize::from(kept)));
                let mut ring = anew(ring);
                assert_eq!(read(&mut ring), expected, "after {given_back}, {waiting} waiting");
                kernel.receive(200);
                assert_eq!(read(&mut ring), [200]);
            }
        }
    }

    #[test]
    fn a_lost_position_is_found_again() {
        let (mut ring, mut kernel) = ring(4);
        for byte in 0..3 {
            kernel.receive(byte);
        }
        read(&mut ring);
        kernel.position = 2;
        kernel.receive(9);
        assert_eq!(ring.next_packet(), None);
        ring.lose_position();
        assert_eq!(read(&mut ring), [9]);
    }

    #[test]
    fn reader_and_kernel_can_work_at_the_same_time() {
        let (mut ring, mut kernel) = ring(4);
        let count = if cfg!(miri) { 50 } else { 100_000 };
        let sender = thread::spawn(move || {
            for number in 0_u32..count {
                let [.., byte] = number.to_be_bytes();
                while !kernel.receive(byte) {
                    thread::yield_now();
                }
            }
        });
        let mut next = 0_u32;
        while next < count {
            match ring.next_packet() {
                Some((packet, _)) => {
                    let [.., byte] = next.to_be_bytes();
                    assert_eq!(packet, [byte, byte]);
                    next += 1;
                }
                None => thread::yield_now(),
            }
        }
        sender.join().unwrap();
    }
}
