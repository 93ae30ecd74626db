//! One-time files: which sequence is next, and which byte strikes it out.

use crate::grammar;
use crate::sequence::Sequence;

/// The byte that 0.8 and this program write over the first byte of a used line.
pub const STRIKE: u8 = b'#';

/// A one-time file: its content, and how much has been used since it was read.
///
/// Lines end in LF or CRLF; empty lines and lines that start with `#` are skipped. A line has the grammar of
/// `Sequence`, including text after a step, which is also ignored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OneTime {
    text: Vec<u8>,
    next: Option<Unused>,
    passed_over: Vec<usize>,
}

/// An unused line.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Unused {
    /// The sequence to knock.
    pub sequence: Sequence,
    /// Offset in the file of the byte that [`STRIKE`] replaces once the line is used.
    pub offset: usize,
}

impl OneTime {
    /// Parses the content of a file.
    pub fn parse(text: &[u8]) -> Self {
        let mut file = Self { text: text.to_vec(), ..Self::default() };
        file.find_next();
        file
    }

    /// Returns the first unused line; `None` if all are used up.
    pub const fn next(&self) -> Option<&Unused> {
        self.next.as_ref()
    }

    /// Returns the numbers, from 1, of the lines before it that are neither comments nor sequences.
    pub fn passed_over(&self) -> &[usize] {
        &self.passed_over
    }

    /// Moves on to the next line, and returns the used one, which must be struck out on disk.
    pub fn use_up(&mut self) -> Option<Unused> {
        let used = self.next.take()?;
        if let Some(byte) = self.text.get_mut(used.offset) {
            *byte = STRIKE;
        }
        self.find_next();
        Some(used)
    }

    /// Marks this line as used, wherever it is, if it still exists.
    pub(crate) fn pass_over(&mut self, line: &Unused) {
        let Some((before, after)) = self.text.split_at_checked(line.offset) else { return };
        let begins = before.last().is_none_or(|&byte| byte == b'\n');
        let found = after.split(|&byte| byte == b'\n').next().and_then(sequence_of);
        if begins && found.is_some_and(|sequence| sequence == line.sequence) {
            if let Some(byte) = self.text.get_mut(line.offset) {
                *byte = STRIKE;
            }
            self.next = None;
            self.find_next();
        }
    }

    fn find_next(&mut self) {
        self.passed_over.clear();
        let mut offset = 0;
        for (number, line) in (1..).zip(self.text.split_inclusive(|&byte| byte == b'\n')) {
            let start = offset;
            offset += line.len();
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(&[STRIKE]) {
                continue;
            }
            match sequence_of(line) {
                Some(sequence) => {
                    self.next = Some(Unused { sequence, offset: start });
                    return;
                }
                None => self.passed_over.push(number),
            }
        }
    }
}

/// Parses the sequence of a line that is neither empty nor a comment.
fn sequence_of(line: &[u8]) -> Option<Sequence> {
    let line = std::str::from_utf8(line.trim_ascii()).ok()?;
    grammar::whole(line, grammar::remarked_sequence).ok().map(|(sequence, _)| sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(text: &str) -> Option<(String, usize)> {
        OneTime::parse(text.as_bytes()).next().map(|unused| (unused.sequence.to_string(), unused.offset))
    }

    #[test]
    fn the_first_line_that_is_a_sequence_is_next() {
        assert_eq!(next("# used\n\n 1,2\r\n 3,4\n"), Some(("1:tcp,2:tcp".to_owned(), 8)));
        assert_eq!(next("1,2:udp"), Some(("1:tcp,2:udp".to_owned(), 0)));
    }

    #[test]
    fn lines_that_are_no_sequence_are_passed_over_and_named() {
        let parsed = OneTime::parse(b"hello\n \xff\n 70000\n 5\n");
        assert_eq!(parsed.passed_over(), [1, 2, 3]);
        assert_eq!(parsed.next().unwrap().offset, 16);
    }

    #[test]
    fn a_used_up_file_has_no_next_line() {
        assert_eq!(next("#1,2\n#3,4\n"), None);
        assert_eq!(next(""), None);
    }

    #[test]
    fn striking_out_at_the_offset_moves_on_to_the_next_line() {
        let mut text = b"1,2\n 3,4\n".to_vec();
        for expected in ["1:tcp,2:tcp", "3:tcp,4:tcp"] {
            let unused = OneTime::parse(&text).next().cloned().unwrap();
            assert_eq!(unused.sequence.to_string(), expected);
            text[unused.offset] = STRIKE;
        }
        assert_eq!(OneTime::parse(&text).next(), None);
        assert_eq!(text, b"#,2\n#3,4\n");
    }

    #[test]
    fn a_line_is_passed_over_wherever_it_stands_if_it_is_still_the_same() {
        let line = |offset, steps: &str| Unused { offset, sequence: steps.parse().unwrap() };
        let mut file = OneTime::parse(b"1,2\n 3,4 \r\n5");
        let before = file.clone();
        for other in [line(4, "3,5"), line(5, "1,2"), line(99, "5"), line(7, "4")] {
            file.pass_over(&other);
            assert_eq!(file, before);
        }
        file.pass_over(&line(4, "3,4"));
        assert_eq!(file.use_up(), Some(line(0, "1,2")));
        assert_eq!(file.next(), Some(&line(11, "5")));
        file.pass_over(&line(11, "5"));
        assert_eq!(file.next(), None);
    }

    #[test]
    fn using_a_line_up_is_what_striking_it_out_on_disk_is() {
        let mut text = b"1,2\n 3,4\n".to_vec();
        let mut file = OneTime::parse(&text);
        while let Some(used) = file.use_up() {
            text[used.offset] = STRIKE;
            assert_eq!(file, OneTime::parse(&text));
        }
        assert_eq!(text, b"#,2\n#3,4\n");
    }
}
