//! From the text of a knockd.conf to a [`Config`], line by line, collecting everything that is wrong on the way.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Duration;

use super::{Commands, Config, Diagnostic, Door, Options, Parsed, Reopen, Secret, Severity};
use crate::command::CommandTemplate;
use crate::grammar::{self, Expected, Line, Parse, Remarked};
use crate::tcp_flags::FlagRule;

/// A directive: its name, the older name that means the same, and what its value does to the section it stands in.
struct Directive<Section> {
    name: &'static str,
    alias: Option<&'static str>,
    apply: fn(&mut Section, Value<'_, '_>),
}

impl<Section> Directive<Section> {
    const fn new(name: &'static str, apply: fn(&mut Section, Value<'_, '_>)) -> Self {
        Self { name, alias: None, apply }
    }

    const fn with_alias(self, alias: &'static str) -> Self {
        Self { alias: Some(alias), ..self }
    }

    fn is_called(&self, key: &str) -> bool {
        self.names().any(|name| name.eq_ignore_ascii_case(key))
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.alias)
    }
}

const OPTION_DIRECTIVES: [Directive<Options>; 5] = [
    Directive::new("UseSyslog", |options, value| {
        options.use_syslog = true;
        value.ignore();
    }),
    Directive::new("LogFile", |options, value| options.log_file = value.name()),
    Directive::new("PidFile", |options, value| options.pid_file = value.name()),
    Directive::new("Interface", |options, value| options.interface = value.name()),
    Directive::new("MaxAttempts", |options, value| {
        if let Some(count) = value.count() {
            options.max_attempts = count;
        }
    }),
];

const DOOR_DIRECTIVES: [Directive<Draft>; 11] = [
    Directive::new("Sequence", |door, value| {
        let sequence = value.remarked(grammar::remarked_sequence);
        set(&mut door.secret, sequence.map(Secret::Sequence));
    }),
    Directive::new("One_Time_Sequences", |door, value| {
        set(&mut door.secret, value.path().map(Secret::OneTime));
    }),
    Directive::new("Seq_Timeout", |door: &mut Draft, value| {
        set(&mut door.seq_timeout, value.seconds());
    })
    .with_alias("Timeout"),
    Directive::new("TCPFlags", |door, value| set(&mut door.tcp_flags, value.parse(grammar::tcp_flags))),
    Directive::new("Target", |door, value| set(&mut door.target, value.address())),
    Directive::new("Start_Command", |door: &mut Draft, value| set(&mut door.start, value.command()))
        .with_alias("Command"),
    Directive::new("Start_Command_6", |door: &mut Draft, value| set(&mut door.start_6, value.command()))
        .with_alias("Command_6"),
    Directive::new("Cmd_Timeout", |door, value| set(&mut door.cmd_timeout, value.seconds())),
    Directive::new("Stop_Command", |door, value| set(&mut door.stop, value.command())),
    Directive::new("Stop_Command_6", |door, value| set(&mut door.stop_6, value.command())),
    Directive::new("Reopen", |door, value| set(&mut door.reopen, value.reopen())),
];

/// A later directive replaces an earlier one; one that is wrong changes nothing, its error is already reported.
fn set<T>(field: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *field = value;
    }
}

/// A door of which not every line has been read.
#[derive(Default)]
struct Draft {
    name: String,
    header: Range<usize>,
    /// The name of each directive that was given, by its main spelling.
    given: Vec<&'static str>,
    secret: Option<Secret>,
    seq_timeout: Option<Duration>,
    tcp_flags: Option<FlagRule>,
    target: Option<IpAddr>,
    /// Commands as written: an empty one means something else than an absent one.
    start: Option<String>,
    start_6: Option<String>,
    stop: Option<String>,
    stop_6: Option<String>,
    cmd_timeout: Option<Duration>,
    reopen: Option<Reopen>,
}

/// The section that the current line stands in.
enum Section {
    /// None yet.
    Outside,
    Options,
    Door(Box<Draft>),
    /// A header that is wrong: its directives are not looked at, since it is not known whose they are.
    Unknown,
}

pub(super) fn parse(text: &[u8]) -> Result<Parsed, Vec<Diagnostic>> {
    let mut config = Config::default();
    let mut report = Report { text, findings: Vec::new() };
    let mut section = Section::Outside;
    let mut offset = 0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let start = offset;
        offset += line.len();
        // Some editors begin a UTF-8 file with a byte order mark.
        let bom = if start == 0 && line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let line = line.get(bom..).unwrap_or_default();
        let start = start + bom + (line.len() - line.trim_ascii_start().len());
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        match std::str::from_utf8(line) {
            Ok(line) if line.contains('\0') => {
                let at = start + line.find('\0').unwrap_or(0);
                report.error(at..at + 1, "this line contains a zero byte", "text", None);
            }
            Ok(line) => read_line(line, start, &mut section, &mut config, &mut report),
            Err(error) => {
                let at = start + error.valid_up_to();
                let expected = "UTF-8; only comments may be in another encoding";
                report.error(at..at, "this line is not UTF-8 text", expected, None);
            }
        }
    }
    finish(section, &mut config, &mut report);
    if config.doors.is_empty() && !report.has_errors() {
        let end = text.len();
        report.warning(end..end, "this file has no door", "a section such as `[openSSH]`", None);
    }
    report.findings.sort_by_key(|finding| finding.span.start);
    if report.has_errors() {
        return Err(report.findings);
    }
    Ok(Parsed { config, warnings: report.findings })
}

fn read_line<'t>(
    line: &'t str,
    start: usize,
    section: &mut Section,
    config: &mut Config,
    report: &mut Report<'t>,
) {
    match grammar::whole(line, grammar::line) {
        Err(expected) => {
            report.expected("this section header is not complete", line, start, &expected);
            finish(std::mem::replace(section, Section::Unknown), config, report);
        }
        Ok(Line::Section(name)) => {
            let header = start..start + line.len();
            let next = match name {
                "options" => Section::Options,
                "" => {
                    report.error(
                        header,
                        "this section has no name",
                        "`[options]` or the name of a door",
                        None,
                    );
                    Section::Unknown
                }
                name => Section::Door(Box::new(Draft { name: name.to_owned(), header, ..Draft::default() })),
            };
            finish(std::mem::replace(section, next), config, report);
        }
        Ok(Line::Directive { key, value }) => {
            let key = Key { text: key, span: start..start + key.len() };
            let value = Value { text: value, span: value_span(line, start, value), report };
            match section {
                Section::Unknown => (),
                Section::Outside => {
                    let message = format!("`{}` stands before any section", key.text);
                    report.error(key.span, &message, "a section header such as `[options]` above it", None);
                }
                Section::Options => {
                    apply(&OPTION_DIRECTIVES, &mut config.options, &key, value, "[options]");
                }
                Section::Door(door) => {
                    let Some(name) = apply(&DOOR_DIRECTIVES, door, &key, value, "a door") else { return };
                    if door.given.contains(&name) {
                        let message = format!("`{name}` is given twice in this door");
                        report.warning(key.span, &message, "once; the last one counts", None);
                    }
                    door.given.push(name);
                }
            }
        }
    }
}

/// The place of a value: the end of the line, since nothing follows it; just behind a key that has none.
fn value_span(line: &str, start: usize, value: Option<&str>) -> Range<usize> {
    let end = start + line.len();
    end - value.map_or(0, str::len)..end
}

/// Hands the value to the directive; returns the directive's main name.
fn apply<S>(
    directives: &[Directive<S>],
    section: &mut S,
    key: &Key<'_>,
    value: Value<'_, '_>,
    place: &str,
) -> Option<&'static str> {
    if let Some(directive) = directives.iter().find(|directive| directive.is_called(key.text)) {
        if value.text.is_none() && directive.name != "UseSyslog" {
            let message = format!("`{}` has no value", key.text);
            value.report.error(value.span, &message, "`= value`", None);
            return None;
        }
        (directive.apply)(section, value);
        return Some(directive.name);
    }
    let message = format!("`{}` is not a directive of {place}", key.text);
    let elsewhere = |home: &str| Some(format!("it belongs in {home}"));
    let help = if DOOR_DIRECTIVES.iter().any(|directive| directive.is_called(key.text)) {
        elsewhere("a door's section")
    } else if OPTION_DIRECTIVES.iter().any(|directive| directive.is_called(key.text)) {
        elsewhere("`[options]`")
    } else {
        let names = directives.iter().flat_map(Directive::names);
        similar(key.text, names).map(|name| format!("did you mean `{name}`?"))
    };
    value.report.error(key.span.clone(), &message, "a known directive", help);
    None
}

/// The name that `word` was probably meant to be.
fn similar(word: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let word = word.to_lowercase();
    names
        .map(|name| (strsim::normalized_damerau_levenshtein(&word, &name.to_lowercase()), name))
        .filter(|&(similarity, _)| similarity > 0.6)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// Makes a door of the section that has just ended, if it was one.
fn finish(section: Section, config: &mut Config, report: &mut Report<'_>) {
    let Section::Door(draft) = section else { return };
    let Some(secret) = draft.secret else {
        if !draft.given.iter().any(|&name| name == "Sequence" || name == "One_Time_Sequences") {
            let message = format!("door `{}` has no sequence", draft.name);
            report.error(
                draft.header,
                &message,
                "a `Sequence` or `One_Time_Sequences` directive in it",
                None,
            );
        }
        return;
    };
    let seq_timeout = draft.seq_timeout.unwrap_or(Door::DEFAULT_SEQ_TIMEOUT);
    if seq_timeout.is_zero() && !matches!(&secret, Secret::Sequence(sequence) if sequence.len() == 1) {
        let message = format!("door `{}` can never open", draft.name);
        let expected = "a `Seq_Timeout` of 1 or more, since its sequence has more than one step";
        report.warning(draft.header.clone(), &message, expected, None);
    }
    if let Secret::Sequence(sequence) = &secret
        && sequence.steps().any(|step| step.port == 0)
    {
        let message = format!("door `{}` uses port 0", draft.name);
        let expected = "a port from 1 to 65535; many programs and networks cannot send to port 0";
        report.warning(draft.header.clone(), &message, expected, None);
    }
    let commands = |plain: Option<String>, six: Option<String>| {
        let v4 = plain.and_then(|text| CommandTemplate::parse(&text));
        let v6 = six.map_or_else(|| v4.clone(), |text| CommandTemplate::parse(&text));
        Commands { v4, v6 }
    };
    config.doors.push(Door {
        name: draft.name,
        secret,
        seq_timeout,
        tcp_flags: draft.tcp_flags.unwrap_or(FlagRule::ANY),
        target: draft.target,
        start: commands(draft.start, draft.start_6),
        stop: commands(draft.stop, draft.stop_6),
        cmd_timeout: draft.cmd_timeout.unwrap_or(Door::DEFAULT_CMD_TIMEOUT),
        reopen: draft.reopen.unwrap_or_default(),
    });
}

struct Key<'t> {
    text: &'t str,
    span: Range<usize>,
}

/// The value of a directive, and the place to report what is wrong with it. `None` is a key without `=`.
struct Value<'t, 'r> {
    text: Option<&'t str>,
    span: Range<usize>,
    report: &'r mut Report<'t>,
}

impl<'t> Value<'t, '_> {
    fn ignore(self) {
        if self.text.is_some() {
            self.report.warning(self.span, "this value is ignored", "`UseSyslog` alone on its line", None);
        }
    }

    /// A path or a name; an empty one says nothing, as in 0.8.
    fn name(self) -> Option<String> {
        let text = self.text.filter(|text| !text.is_empty());
        if text.is_none() {
            self.report.warning(self.span, "this value is empty", "a name; the directive is ignored", None);
        }
        text.map(str::to_owned)
    }

    fn path(self) -> Option<String> {
        let text = self.text.filter(|text| !text.is_empty());
        if text.is_none() {
            self.report.error(self.span, "this value is empty", "the path of a file", None);
        }
        text.map(str::to_owned)
    }

    fn command(self) -> Option<String> {
        self.text.map(str::to_owned)
    }

    fn seconds(self) -> Option<Duration> {
        self.remarked(grammar::seconds).map(|seconds| Duration::from_secs(seconds.into()))
    }

    fn count(self) -> Option<NonZeroU32> {
        let parser = |input| {
            let (rest, (count, remark)) = grammar::count(input)?;
            let what = "a whole number from 1 to 4294967295";
            let zero = nom::Err::Failure(Expected { at: input, what });
            Ok((rest, (NonZeroU32::new(count).ok_or(zero)?, remark)))
        };
        self.remarked(parser)
    }

    fn address(self) -> Option<IpAddr> {
        let text = self.text.unwrap_or_default();
        let address = text.parse().ok();
        if address.is_none() {
            let help = Some("host names and networks are not looked up here".to_owned());
            let message = if text.is_empty() { "this value is empty" } else { "this is not an address" };
            self.report.error(self.span, message, "an IPv4 or IPv6 address", help);
        }
        address
    }

    fn reopen(self) -> Option<Reopen> {
        let text = self.text.unwrap_or_default();
        match text.to_ascii_lowercase().as_str() {
            "extend" => Some(Reopen::Extend),
            "run" => Some(Reopen::Run),
            _ => {
                self.report.error(self.span, "this is not a way to reopen a door", "`extend` or `run`", None);
                None
            }
        }
    }

    fn parse<T>(self, parser: impl Fn(&'t str) -> Parse<'t, T>) -> Option<T> {
        let text = self.text.unwrap_or_default();
        grammar::whole(text, parser)
            .map_err(|expected| {
                let message = match expected.found().as_str() {
                    "the end" if text.is_empty() => "this value is empty".to_owned(),
                    "the end" => "this value is not complete".to_owned(),
                    found => format!("{found} does not belong here"),
                };
                self.report.expected(&message, text, self.span.start, &expected);
            })
            .ok()
    }

    /// Parses a value behind which 0.8 ignores whatever stands; so do we, but we say so.
    fn remarked<T>(self, parser: impl Fn(&'t str) -> Parse<'t, Remarked<'t, T>>) -> Option<T> {
        let Value { text, span, report } = self;
        let start = span.start;
        let (parsed, remark) = Value { text, span, report: &mut *report }.parse(parser)?;
        if !remark.is_empty() {
            let at = start + text.map_or(0, str::len) - remark.len();
            let length = remark.find(',').unwrap_or(remark.len());
            let expected = "a comment on a line of its own, or nothing";
            report.warning(at..at + length, "this text is ignored", expected, None);
        }
        Some(parsed)
    }
}

/// The findings so far.
struct Report<'t> {
    text: &'t [u8],
    findings: Vec<Diagnostic>,
}

impl Report<'_> {
    fn error(&mut self, span: Range<usize>, message: &str, expected: &str, help: Option<String>) {
        self.add(Severity::Error, span, message, expected, help);
    }

    fn warning(&mut self, span: Range<usize>, message: &str, expected: &str, help: Option<String>) {
        self.add(Severity::Warning, span, message, expected, help);
    }

    /// Reports what a parser expected within `text`, which begins at byte `start` of the file.
    fn expected(&mut self, message: &str, text: &str, start: usize, expected: &Expected<'_>) {
        let at = start + text.len() - expected.at.len();
        self.error(at..at + expected.word().len(), message, expected.what, None);
    }

    fn add(
        &mut self,
        severity: Severity,
        span: Range<usize>,
        message: &str,
        expected: &str,
        help: Option<String>,
    ) {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let in_line = before.get(line_start..).unwrap_or_default();
        self.findings.push(Diagnostic {
            severity,
            line: before.split(|&byte| byte == b'\n').count(),
            column: String::from_utf8_lossy(in_line).chars().count() + 1,
            span,
            message: message.to_owned(),
            expected: expected.to_owned(),
            help,
        });
    }

    fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}
