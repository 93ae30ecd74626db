//! The extent of the measurements.

/// The extent of the measurements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// Everything that has a target, in about three minutes.
    Quick,
    /// Everything, in some twenty minutes.
    Full,
}

impl Scale {
    pub(crate) const fn rounds(self) -> usize {
        match self {
            Self::Quick => 1,
            Self::Full => 5,
        }
    }
}
