//! The keyed hash for looking up strangers' addresses.

use std::fmt;
use std::hash::{Hash, Hasher as _};

use siphasher::sip::SipHasher13;

/// The secret key of the hash that spreads sources over tables.
///
/// A daemon takes it from the operating system's randomness, once per run: a stranger who knew it could choose
/// addresses that collide and make every packet slow. Tests and replays use a fixed one, because it decides which of
/// several sources makes room for another: with the same seed, the same calls have the same results, on any machine.
///
/// `Debug` does not show it.
#[derive(Clone, Copy)]
pub struct Seed(u64, u64);

impl Seed {
    /// Creates a seed from 128 bits.
    pub const fn new(first: u64, second: u64) -> Self {
        Self(first, second)
    }

    /// Returns SipHash-1-3, as the standard library's tables use it, of a number's bytes in little-endian order on
    /// any machine.
    pub(crate) fn hash(self, number: u64) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        hasher.write_u64(number.to_le());
        hasher.finish()
    }

    /// Returns the hash of the bytes of several numbers. All at once, three take 16 ns less than one after another.
    pub(crate) fn hash_all<const N: usize>(self, numbers: [u64; N]) -> u64 {
        let bytes = numbers.map(u64::to_le_bytes);
        SipHasher13::new_with_keys(self.0, self.1).hash(bytes.as_flattened())
    }

    /// Returns the hash of any value. It may differ between machines, so it only finds things and never orders them.
    pub(crate) fn hash_of(self, value: &impl Hash) -> ShortHash {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        value.hash(&mut hasher);
        ShortHash::of(hasher.finish())
    }
}

/// A hash that a table keeps with what it finds: so the table can grow without reading it again, and rarely reads anything in vain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ShortHash(u32);

impl ShortHash {
    pub(crate) fn of(hash: u64) -> Self {
        Self(u32::try_from(hash >> 32).unwrap_or_default())
    }

    /// The form that a table wants: it takes its place from the lowest bits and seven more from the highest.
    pub(crate) const fn wide(self) -> u64 {
        (self.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Seed(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::hash::DefaultHasher;
    use std::num::NonZeroU32;

    use super::*;
    use crate::matcher::Matcher;
    use crate::scanners::Scanners;

    #[test]
    fn the_hash_is_the_one_of_the_standard_library_whose_key_is_zero() {
        let (numbers, seed) = ([0x0102_0304_0506_0708, u64::MAX, 1], Seed::new(0, 0));
        let mut reference = DefaultHasher::new();
        for number in numbers {
            reference.write(&number.to_le_bytes());
            if number == numbers[0] {
                assert_eq!(seed.hash(number), reference.finish());
                assert_eq!(seed.hash_all([number]), reference.finish());
            }
        }
        assert_eq!(seed.hash_all(numbers), reference.finish());
    }

    #[test]
    fn both_halves_of_the_key_count() {
        let keys = [(0, 0), (1, 0), (0, 1), (1, 1)];
        let hashes = keys.map(|(first, second)| Seed::new(first, second).hash(7));
        for (index, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..index].contains(hash), "{hashes:x?}");
        }
    }

    #[test]
    fn neither_the_seed_nor_what_keeps_it_prints_it() {
        let seed = Seed::new(7_777_777_777, 0x8888_8888);
        let matcher = Matcher::new(&[], NonZeroU32::MIN, seed);
        let scanners = Scanners::new(NonZeroU32::new(10), seed);
        for text in [format!("{seed:?}"), format!("{matcher:?}"), format!("{scanners:#?}")] {
            assert!(text.contains("Seed(..)"), "{text}");
            assert!(
                !text.contains("7777") && !text.contains("2290649224") && !text.contains("8888"),
                "{text}"
            );
        }
    }
}
