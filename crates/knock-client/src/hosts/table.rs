//! What the keys of a profile mean.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use knockd_core::config::Diagnostic;
use knockd_core::{pasted, similar};
use toml_edit::{Item, TableLike, Value};

use super::{finding, told};
use crate::profile::{Key, Profile};
use crate::value::{
    Families, HitList, NOT_MILLISECONDS, NOT_OWN_ADDRESS, NOT_SECONDS, Service, host, spell_flags, tcp_flags,
};

/// Every key of a profile, in the order in which we write them.
pub const KEYS: [&str; 15] = [
    "host",
    "sequence",
    "one_time",
    "close",
    "delay",
    "family",
    "verify",
    "retries",
    "timeout",
    "then",
    "tcpflags",
    "lease",
    "connect",
    "interface",
    "source",
];

/// Reads the profile in a table; `header` is the place of its name.
pub(super) fn read(
    text: &str,
    header: Range<usize>,
    table: &dyn TableLike,
) -> Result<Profile, Vec<Diagnostic>> {
    let mut reader = Reader { text, findings: Vec::new() };
    let mut profile = Profile::new("", Key::OneTime("".into()));
    let mut keys = Vec::new();
    for (name, item) in table.iter() {
        match name {
            "host" => profile.host = reader.text(name, item, host).unwrap_or_default(),
            "sequence" => keys.extend(reader.hits(name, item).map(Key::Sequence)),
            "one_time" => {
                keys.extend(reader.text(name, item, one_time).map(Key::OneTime));
            }
            "close" => profile.close = reader.hits(name, item),
            "delay" => {
                let number = reader.number(name, item, NOT_MILLISECONDS);
                profile.delay = number.map(|number| Duration::from_millis(number.into()));
            }
            "family" => profile.family = reader.text(name, item, Families::parse),
            "verify" => profile.verify = reader.text(name, item, Service::parse),
            "retries" => {
                profile.retries = reader.number(name, item, "expected a non-negative whole number");
            }
            "timeout" => profile.timeout = reader.seconds(name, item),
            "then" => profile.then = reader.words(name, item),
            "tcpflags" => profile.tcpflags = reader.text(name, item, tcp_flags),
            "lease" => profile.lease = reader.seconds(name, item),
            "connect" => profile.connect = reader.boolean(name, item),
            "interface" => {
                profile.interface =
                    reader.text(name, item, |text| not_empty(text, "the name of an interface"));
            }
            "source" => {
                profile.source = reader.text(name, item, |text| text.parse().map_err(|_| NOT_OWN_ADDRESS));
            }
            _ => reader.unknown(name, place(table, name, item)),
        }
    }
    reader.check_key(&header, table);
    let is_valid = reader.findings.is_empty();
    match keys.pop() {
        Some(key) if is_valid => Ok(Profile { key, ..profile }),
        _ => {
            reader.findings.sort_by(Diagnostic::order);
            Err(reader.findings)
        }
    }
}

/// Returns the keys with which a hosts.toml says the same as this profile, in the order of [`KEYS`].
pub fn keys(profile: &Profile) -> Vec<(&'static str, Value)> {
    let integer = |number: u128| Value::from(i64::try_from(number).unwrap_or(i64::MAX));
    let milliseconds = |time: Duration| integer(time.as_millis());
    let seconds = |time: Duration| integer(time.as_secs().into());
    let (sequence, one_time) = match &profile.key {
        Key::Sequence(list) => (Some(list.to_string()), None),
        Key::OneTime(path) => (None, Some(path.to_string_lossy().into_owned())),
    };
    let then = (!profile.then.is_empty()).then(|| profile.then.iter().collect::<Value>());
    let all = [
        ("host", Some(profile.host.as_str().into())),
        ("sequence", sequence.map(Value::from)),
        ("one_time", one_time.map(Value::from)),
        ("close", profile.close.as_ref().map(|list| list.to_string().into())),
        ("delay", profile.delay.map(milliseconds)),
        ("family", profile.family.map(|families| families.to_string().into())),
        ("verify", profile.verify.as_ref().map(|service| service.to_string().into())),
        ("retries", profile.retries.map(|retries| integer(retries.into()))),
        ("timeout", profile.timeout.map(seconds)),
        ("then", then),
        ("tcpflags", profile.tcpflags.map(|flags| spell_flags(flags).into())),
        ("lease", profile.lease.map(seconds)),
        ("connect", profile.connect.then(|| true.into())),
        ("interface", profile.interface.as_deref().map(Value::from)),
        ("source", profile.source.map(|source| source.to_string().into())),
    ];
    all.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect()
}

fn place(table: &dyn TableLike, name: &str, item: &Item) -> Range<usize> {
    table.key(name).and_then(toml_edit::Key::span).or(item.span()).unwrap_or_default()
}

fn not_empty(text: &str, expected: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err(format!("expected {expected}")) } else { Ok(text.to_owned()) }
}

fn one_time(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("expected the absolute path of a one-time file") }
}

struct Reader<'t> {
    text: &'t str,
    findings: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn wrong(&mut self, span: Range<usize>, message: impl Into<String>, expected: impl Into<String>) {
        self.findings.push(finding(self.text, span, message, expected));
    }

    /// Notes that a value is wrong, and returns nothing.
    fn value<T>(&mut self, name: &str, item: &Item, error: &str) -> Option<T> {
        let (message, expected) = told(error);
        let message = if message == "invalid value" { format!("invalid `{name}`") } else { message };
        self.wrong(item.span().unwrap_or_default(), message, expected);
        None
    }

    fn text<T, E: ToString>(
        &mut self,
        name: &str,
        item: &Item,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let Some(text) = item.as_str() else {
            return self.value(name, item, "expected a text in quotation marks");
        };
        parse(text)
            .map_err(|error| error.to_string())
            .map_or_else(|error| self.value(name, item, &error), Some)
    }

    fn hits(&mut self, name: &str, item: &Item) -> Option<HitList> {
        let text = self.text(name, item, |text| Ok::<_, String>(text.to_owned()))?;
        let error = match HitList::parse(&text) {
            Ok(list) => return Some(list),
            Err(error) => error,
        };
        let span = item.span().unwrap_or_default();
        // Where the text stands in the file as it is, the word in it is the place.
        let start = span.start + 1;
        let is_verbatim = self.text.get(start..start + text.len()) == Some(&text);
        let span = if is_verbatim { start + error.offset..start + error.offset + error.length } else { span };
        let (message, expected) = told(&error.discreet());
        self.wrong(span, message, expected);
        None
    }

    fn number(&mut self, name: &str, item: &Item, expected: &str) -> Option<u32> {
        let number = item.as_integer().and_then(|number| number.try_into().ok());
        number.or_else(|| self.value(name, item, expected))
    }

    fn seconds(&mut self, name: &str, item: &Item) -> Option<Duration> {
        let number = self.number(name, item, NOT_SECONDS)?;
        if number == 0 {
            return self.value(name, item, NOT_SECONDS);
        }
        Some(Duration::from_secs(number.into()))
    }

    fn boolean(&mut self, name: &str, item: &Item) -> bool {
        item.as_bool().or_else(|| self.value(name, item, "expected true or false")).unwrap_or_default()
    }

    fn words(&mut self, name: &str, item: &Item) -> Vec<String> {
        let words = item.as_array().filter(|array| !array.is_empty());
        let words = words.and_then(|array| {
            array.iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        let expected = "expected a program and its arguments, such as [\"ssh\", \"home\"]";
        words.or_else(|| self.value(name, item, expected)).unwrap_or_default()
    }

    fn unknown(&mut self, name: &str, span: Range<usize>) {
        let help = match similar(name, KEYS) {
            Some(meant) => Some(format!("did you mean `{meant}`?")),
            None => pasted(name).map(|pasted| pasted.to_string()),
        };
        let mut wrong = finding(self.text, span, format!("unknown key `{name}`"), "a key of a profile");
        wrong.help = help.or_else(|| Some(format!("a profile can have {}", KEYS.join(", "))));
        self.findings.push(wrong);
    }

    /// Checks that there is a host, and one key.
    fn check_key(&mut self, header: &Range<usize>, table: &dyn TableLike) {
        if !table.contains_key("host") {
            self.wrong(header.clone(), "no host", "`host` in this profile");
        }
        match (table.contains_key("sequence"), table.get("one_time")) {
            (false, None) => {
                self.wrong(header.clone(), "nothing to knock", "`sequence` or `one_time` in this profile");
            }
            (true, Some(item)) => {
                let span = place(table, "one_time", item);
                self.wrong(span, "`sequence` and `one_time` in one profile", "one of them");
            }
            _ => {}
        }
    }
}
