//! Classic BPF: its instructions, and a program that is written from end to start.

/// Operation codes (`linux/bpf_common.h`): class, size, mode; or class, operation, source.
pub(super) const LOAD_WORD: u16 = 0x20;
pub(super) const LOAD_HALF: u16 = 0x28;
pub(super) const LOAD_BYTE: u16 = 0x30;
pub(super) const LOAD_HALF_AT_X: u16 = 0x48;
pub(super) const LOAD_BYTE_AT_X: u16 = 0x50;
pub(super) const LOAD_SAVED: u16 = 0x60;
pub(super) const SAVE: u16 = 0x02;
pub(super) const SET_X: u16 = 0x01;
/// Sets X to the length of the IPv4 header at the offset: four times the lower half of its first byte.
pub(super) const SET_X_TO_IPV4_HEADER_LENGTH: u16 = 0xb1;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
pub(super) const JUMP_IF_GREATER: u16 = 0x25;
pub(super) const JUMP_IF_AT_LEAST: u16 = 0x35;
pub(super) const JUMP_IF_ANY_BIT: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;

/// One instruction (`struct sock_filter`, `linux/filter.h`); the two jumps count instructions to skip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) operand: u32,
}

/// The position of an instruction, counted from the end of the program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// An unfinished program, last instruction first: jumps only lead forward, so every target is already known.
#[derive(Default)]
pub(super) struct Assembler {
    reversed: Vec<Instruction>,
}

impl Assembler {
    /// Returns the program, first instruction first.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }

    /// Adds an instruction that continues at the one added before it, or ends the program.
    pub(super) fn push(&mut self, code: u16, operand: u32) -> Label {
        self.reversed.push(Instruction { code, if_true: 0, if_false: 0, operand });
        Label(self.reversed.len() - 1)
    }

    /// How many instructions the next one must skip to reach the target.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - 1 - target.0
    }

    /// Adds an instruction that continues at `next`.
    pub(super) fn step(&mut self, code: u16, operand: u32, next: Label) -> Label {
        if self.distance(next) > 0 {
            self.jump(next);
        }
        self.push(code, operand)
    }

    #[allow(clippy::cast_possible_truncation, reason = "a program has fewer than four billion instructions")]
    fn jump(&mut self, target: Label) -> Label {
        self.push(JUMP, self.distance(target) as u32)
    }

    /// Adds a test of A, which continues at one of two places.
    #[allow(clippy::cast_possible_truncation, reason = "near() makes both distances fit")]
    pub(super) fn branch(&mut self, test: u16, operand: u32, then: Label, otherwise: Label) -> Label {
        let then = self.near(then);
        let otherwise = self.near(otherwise);
        let (if_true, if_false) = (self.distance(then) as u8, self.distance(otherwise) as u8);
        self.reversed.push(Instruction { code: test, if_true, if_false, operand });
        Label(self.reversed.len() - 1)
    }

    /// Returns a label that a branch can reach with its 8 bits: the target, or a jump to it.
    pub(super) fn near(&mut self, target: Label) -> Label {
        // One less than the maximum: the branch's other target may add a jump.
        if self.distance(target) < usize::from(u8::MAX) { target } else { self.jump(target) }
    }
}
