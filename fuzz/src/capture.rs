//! The reader of capture files against a part of the same file.

use std::ops::ControlFlow;
use std::time::Duration;

use knockd_tools::capture_file::{Damage, read};
use knockd_core::Packet;

/// Every part of a file, cut off where its last byte says, has the packets that the file begins with, numbered from 1.
pub fn capture(file: &[u8]) {
    let (whole, result) = read_all(file);
    // A packet takes at least the 16 bytes of its header.
    assert!(whole.len() <= file.len() / 16);
    if let Err(Damage::Damaged { number } | Damage::Truncated { number }) = result {
        assert_eq!(number, whole.len() as u64 + 1);
    }
    let length = file.len() * usize::from(file.last().copied().unwrap_or(0)) / 256;
    let (part, _) = read_all(&file[..length]);
    assert!(whole.starts_with(&part));
}

type Packets = Vec<(Duration, Option<Packet>)>;

fn read_all(file: &[u8]) -> (Packets, Result<(), Damage>) {
    let mut packets = Vec::new();
    let result = read(file, |captured| {
        packets.push((captured.time, captured.packet().ok()));
        assert_eq!(captured.number, packets.len() as u64);
        ControlFlow::Continue(())
    });
    (packets, result)
}
