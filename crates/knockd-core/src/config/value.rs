//! The values of directives, and the report of what is wrong with them.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::Range;

use super::{Code, Diagnostic, Places, ScanLimit, Seconds, Severity, Source, Text};
use crate::grammar::{self, Expected, Parse, Remarked};
use crate::typography::pasted;

/// The byte order mark with which some editors start a UTF-8 file.
pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// The value of a directive, and the report to write to. `None` for a key without `=`.
pub(super) struct Value<'t, 'r> {
    pub(super) text: Option<&'t str>,
    pub(super) span: Range<usize>,
    pub(super) report: &'r mut Report<'t>,
}

impl<'t> Value<'t, '_> {
    /// Takes what a switch may be set to; alone on its line, it is on.
    pub(super) fn switch(self) -> bool {
        let Some(text) = self.text else { return true };
        let is = |words: [&str; 4]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
        if is(["no", "false", "off", "0"]) {
            return false;
        }
        if !is(["yes", "true", "on", "1"]) {
            self.report.warning(self.span, "value ignored", "`yes` or `no`, or no value", None);
        }
        true
    }

    /// Takes a path or a name; an empty one has no effect, as in 0.8.
    pub(super) fn name(self) -> Option<Text> {
        let text = self.text.and_then(|text| Text::new(text).ok());
        if text.is_none() {
            self.report.warning(
                self.span,
                "empty value",
                "a name; an empty value counts as no directive",
                None,
            );
        }
        text
    }

    pub(super) fn path(self) -> Option<Text> {
        let text = self.text.and_then(|text| Text::new(text).ok());
        if text.is_none() {
            self.report.error(self.span, "empty value", "a file path", None);
        }
        text
    }

    pub(super) fn command(self) -> Option<String> {
        let text = self.text?;
        let mut words = text.match_indices('%').filter_map(|(at, _)| Some((at, text.get(at..at + 4)?)));
        let misspelled = |&(_, word): &(usize, &str)| word.eq_ignore_ascii_case("%IP%") && word != "%IP%";
        if let Some((at, word)) = words.find(misspelled) {
            let start = self.span.start + at;
            let message = format!("`{word}` is not replaced");
            self.report.warning(start..start + word.len(), &message, "`%IP%`, in upper case", None);
        }
        Some(text.to_owned())
    }

    /// Takes a path of files to include, which only the configuration itself may.
    pub(super) fn include(self) {
        if !self.report.may_include {
            let expected = "`Include` in the configuration file itself, not in one that it includes";
            return self.report.error(self.span, "files cannot be included here", expected, None);
        }
        if let Some(path) = self.text.and_then(|text| Text::new(text).ok()) {
            self.report.includes.push(path);
        } else {
            self.report.error(self.span, "empty value", "a file path", None);
        }
    }

    pub(super) fn seconds(self) -> Option<Seconds> {
        self.remarked(grammar::seconds).map(Seconds::new)
    }

    pub(super) fn count(self) -> Option<u32> {
        self.remarked(grammar::count)
    }

    pub(super) fn positive(self) -> Option<NonZeroU32> {
        self.remarked(|input| {
            let (rest, (count, remark)) = grammar::count(input)?;
            let what = "a whole number from 1 to 4294967295";
            let zero = nom::Err::Failure(Expected { at: input, what });
            Ok((rest, (NonZeroU32::new(count).ok_or(zero)?, remark)))
        })
    }

    /// Takes a number from 0, for no limit, to the guard's maximum.
    pub(super) fn scan_limit(self) -> Option<u32> {
        self.remarked(|input| {
            let (rest, (count, remark)) = grammar::count(input)?;
            if count > ScanLimit::MAX {
                return Err(nom::Err::Failure(Expected { at: input, what: "a whole number from 0 to 64" }));
            }
            Ok((rest, (count, remark)))
        })
    }

    pub(super) fn address(self) -> Option<IpAddr> {
        let text = self.text.unwrap_or_default();
        let address = text.parse().ok();
        if address.is_none() {
            let help = Some("host names and networks are not supported".to_owned());
            let message = if text.is_empty() { "empty value" } else { "invalid address" };
            self.report.error(self.span, message, "an IPv4 or IPv6 address", help);
        }
        address
    }

    /// Takes one of several words, in any case.
    pub(super) fn choice<T: Copy>(self, choices: &[(&str, T)], expected: &str) -> Option<T> {
        let text = self.text.unwrap_or_default();
        let chosen = choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
        if chosen.is_none() {
            self.report.error(self.span, &format!("unexpected {text:?}"), expected, None);
        }
        chosen.map(|&(_, value)| value)
    }

    pub(super) fn parse<T>(self, parser: impl Fn(&'t str) -> Parse<'t, T>) -> Option<T> {
        let text = self.text.unwrap_or_default();
        grammar::whole(text, parser)
            .map_err(|expected| {
                let message = match expected.found().as_str() {
                    "the end" if text.is_empty() => "empty value".to_owned(),
                    "the end" => "incomplete value".to_owned(),
                    found => format!("unexpected {found}"),
                };
                self.report.expected(&message, text, self.span.start, &expected);
            })
            .ok()
    }

    /// Parses a value after which 0.8 ignores everything; so do we, with a warning.
    pub(super) fn remarked<T>(self, parser: impl Fn(&'t str) -> Parse<'t, Remarked<'t, T>>) -> Option<T> {
        let Value { text, span, report } = self;
        let start = span.start;
        let (parsed, remark) = Value { text, span, report: &mut *report }.parse(parser)?;
        if !remark.is_empty() {
            let at = start + text.map_or(0, str::len) - remark.len();
            let length = remark.find(',').unwrap_or(remark.len());
            let expected = "nothing; a comment needs its own line";
            report.warning(at..at + length, "text ignored", expected, None);
        }
        Some(parsed)
    }
}

/// What has been found in a file so far: findings, positions of doors, and paths of files to include.
pub(super) struct Report<'t> {
    pub(super) source: Source<'t>,
    pub(super) may_include: bool,
    pub(super) findings: Vec<Diagnostic>,
    pub(super) places: Vec<Places>,
    pub(super) includes: Vec<Text>,
}

impl<'t> Report<'t> {
    pub(super) const fn new(source: Source<'t>, may_include: bool) -> Self {
        Self { source, may_include, findings: Vec::new(), places: Vec::new(), includes: Vec::new() }
    }

    pub(super) fn error(&mut self, span: Range<usize>, message: &str, expected: &str, help: Option<String>) {
        self.add(Severity::Error, span, message, expected, help);
    }

    pub(super) fn warning(
        &mut self,
        span: Range<usize>,
        message: &str,
        expected: &str,
        help: Option<String>,
    ) {
        self.add(Severity::Warning, span, message, expected, help);
    }

    /// Reports what a parser expected within `text`, which starts at byte `start` of the file.
    pub(super) fn expected(&mut self, message: &str, text: &str, start: usize, expected: &Expected<'_>) {
        let at = start + text.len() - expected.at.len();
        self.error(at..at + expected.word().len(), message, expected.what, None);
    }

    /// Warns about characters that are hardly meant, in a line without errors.
    pub(super) fn doubt_characters(&mut self, line: &str, start: usize) {
        if let Some(pasted) = pasted(line) {
            let at = start + pasted.offset;
            let expected = pasted.meant.unwrap_or("nothing");
            self.warning(at..at + pasted.character.len_utf8(), &pasted.title(), expected, None);
        } else if line.ends_with('\\') {
            let end = start + line.len();
            self.warning(end - 1..end, "`\\` at the end of the line", "the whole value on one line", None);
        }
    }

    fn add(
        &mut self,
        severity: Severity,
        span: Range<usize>,
        message: &str,
        expected: &str,
        help: Option<String>,
    ) {
        let code = if severity == Severity::Error { Code::Invalid } else { Code::Doubtful };
        let help = if severity == Severity::Error { self.hint(&span, help) } else { help };
        let finding = Diagnostic::new(self.source, span, severity, code, message, expected);
        self.findings.push(Diagnostic { help, ..finding });
    }

    /// Returns the help for an error: a name that differs by an invisible character only is no help.
    fn hint(&self, span: &Range<usize>, help: Option<String>) -> Option<String> {
        let text =
            |span: Range<usize>| std::str::from_utf8(self.source.text.get(span).unwrap_or_default()).ok();
        let in_span = text(span.clone()).and_then(pasted).map(|pasted| pasted.to_string());
        in_span.or(help).or_else(|| hint(text(self.line_around(span.start))?.trim(), text(span.clone())?))
    }

    /// The bytes of the line with this byte, without a byte order mark.
    fn line_around(&self, at: usize) -> Range<usize> {
        let text = self.source.text;
        let (before, after) = text.split_at_checked(at).unwrap_or((text, &[]));
        let first = if text.starts_with(BOM) { BOM.len() } else { 0 };
        let start = before.iter().rposition(|&byte| byte == b'\n').map_or(first, |newline| newline + 1);
        let length = after.iter().position(|&byte| byte == b'\n').unwrap_or(after.len());
        start..at + length
    }

    pub(super) fn has_errors(&self) -> bool {
        self.has_errors_since(0)
    }

    /// Says whether there are errors among the findings from this one on.
    pub(super) fn has_errors_since(&self, first: usize) -> bool {
        self.findings.iter().skip(first).any(|finding| finding.severity == Severity::Error)
    }
}

/// Says what of another kind of file may be wrong with a line, in which `word` is not what was expected.
fn hint(line: &str, word: &str) -> Option<String> {
    let begins_like_a_comment = |text: &str| [";", "//"].iter().any(|mark| text.starts_with(mark));
    if let Some(pasted) = pasted(line) {
        return Some(pasted.to_string());
    }
    let hint = if begins_like_a_comment(line) {
        "a comment starts with `#`"
    } else if line.starts_with('[') && line.contains("] ") || begins_like_a_comment(word) {
        "a comment needs its own line and starts with `#`"
    } else if line.ends_with('\\') {
        "a line is not continued on the next one: write it as a whole"
    } else if word.starts_with(['"', '\'']) {
        "values are written without quotes"
    } else {
        return None;
    };
    Some(hint.to_owned())
}
