//! What each fuzz target does with its bytes: every one asserts something.
//!
//! The targets proper are in `fuzz_targets/` and need nightly: `cargo +nightly fuzz run TARGET`. The tests below run
//! the same functions on stable.

mod capture;
mod frame;
mod gate;
#[path = "../../crates/knockd-core/tests/gates/mod.rs"]
mod gates;
mod hits;
mod matcher;
#[path = "../../crates/knockd-core/tests/model/mod.rs"]
mod model;
#[path = "../../crates/knockd-core/tests/placement/mod.rs"]
mod placement;
mod profiles;

use knockd_cli::capture::record::Record;
use knockd_cli::control::{MAX_REQUEST, Request};
use knockd_core::config::{Parsed, Severity, Source};
use knockd_core::{Config, LeaseId, LeaseRecord, OneTime, STRIKE};

pub use capture::capture;
pub use frame::frame;
pub use gate::gate;
pub use hits::hits;
pub use matcher::matcher;
pub use profiles::profiles;

/// Any text is either refused for a reason or used; every finding points into it; what is used prints as its equal, and
/// an included file adds the same doors.
pub fn config(text: &[u8]) {
    let sources = [Source::new(text), Source::included("again", text)];
    let twice = Config::parse_files(&sources);
    let findings = match Config::parse(text) {
        Ok(Parsed { config, warnings, .. }) => {
            assert!(warnings.iter().all(|finding| finding.severity == Severity::Warning));
            let printed = config.to_string();
            let again = Config::parse(printed.as_bytes()).map(|parsed| parsed.config);
            assert_eq!(again.as_ref(), Ok(&config), "{printed}");
            let doors = twice.as_ref().map(|twice| &twice.config.doors[..]).unwrap_or_default();
            assert_eq!(doors, [&config.doors[..], &config.doors].concat());
            warnings
        }
        Err(error) => {
            assert!(!Config::includes(text).is_empty() || twice.is_err());
            assert!(error.findings.iter().any(|finding| finding.severity == Severity::Error));
            error.findings
        }
    };
    placement::check(&findings, text);
    let (own, again): (Vec<_>, Vec<_>) = match twice {
        Ok(Parsed { warnings, .. }) => warnings,
        Err(error) => error.findings,
    }
    .into_iter()
    .partition(|finding| finding.file.is_none());
    placement::check(&own, text);
    placement::check(&again, text);
}

/// Striking out one line after the other uses up the file, and each strike changes one line only.
pub fn one_time(text: &[u8]) {
    let mut text = text.to_vec();
    let lines = text.split(|&byte| byte == b'\n').count();
    for _ in 0..=lines {
        let mut file = OneTime::parse(&text);
        let passed_over = file.passed_over();
        assert!(
            passed_over.is_sorted_by(|a, b| a < b)
                && passed_over.iter().all(|line| (1..=lines).contains(line))
        );
        let Some(unused) = file.next().cloned() else { return };
        let before = &text[..unused.offset];
        assert!(before.is_empty() || before.ends_with(b"\n"), "the strike is not at the start of a line");
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        assert!(passed_over.iter().all(|&other| other < line));
        assert_ne!(text[unused.offset], STRIKE);
        text[unused.offset] = STRIKE;
        file.use_up();
        assert_eq!(file, OneTime::parse(&text));
    }
    panic!("a line is used twice");
}

/// What is read as a lease is written as what was read, and a part of it is no lease.
pub fn state(text: &[u8]) {
    let parse = |text: &[u8]| {
        let text = std::str::from_utf8(text).ok()?;
        LeaseRecord::parse(LeaseId(7), text).ok()
    };
    if let Some(lease) = parse(text) {
        assert_eq!(parse(lease.to_string().as_bytes()), Some(lease));
        assert_eq!(parse(&text[..text.len() - 1]), None);
    }
}

/// What the decoder process says is a record that is written as the same bytes, or is refused.
pub fn record(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk() else { return };
    if let Ok(record) = Record::from_bytes(bytes) {
        assert_eq!(record.to_bytes(), *bytes);
    }
}

/// What a control client says is a request that is written and read as its equal, or is refused.
pub fn control(line: &[u8]) {
    if let Ok(request) = Request::parse(line) {
        let written = serde_json::to_vec(&request).unwrap();
        assert!(!written.contains(&b'\n'));
        assert!(written.len() > MAX_REQUEST || Request::parse(&written) == Ok(request));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    /// Runs a target over its seeds, over the seeds slightly changed, and over random bytes.
    fn run(name: &str, target: fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let seeds: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(!seeds.is_empty());
        seeds.iter().for_each(|seed| target(seed));
        let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8);
        let changed = (prop::sample::select(seeds), vec(change, 1..4)).prop_map(|(mut bytes, changes)| {
            for (index, byte, how) in changes {
                let at = index.index(bytes.len() + 1);
                match how {
                    0 => bytes.insert(at, byte),
                    1 if at < bytes.len() => bytes[at] = byte,
                    _ => bytes.truncate(at),
                }
            }
            bytes
        });
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) };
        TestRunner::new(config)
            .run(&prop_oneof![changed, vec(any::<u8>(), 0..300)], |bytes| {
                target(&bytes);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn config() {
        run("config", super::config);
    }

    #[test]
    fn one_time() {
        run("one_time", super::one_time);
    }

    #[test]
    fn matcher() {
        run("matcher", super::matcher);
    }

    #[test]
    fn capture() {
        run("capture", super::capture);
    }

    #[test]
    fn frame() {
        run("frame", super::frame);
    }

    #[test]
    fn gate() {
        run("gate", super::gate);
    }

    #[test]
    fn hits() {
        run("hits", super::hits);
    }

    #[test]
    fn state() {
        run("state", super::state);
    }

    #[test]
    fn control() {
        run("control", super::control);
    }

    #[test]
    fn record() {
        run("record", super::record);
    }

    #[test]
    fn profiles() {
        run("profiles", super::profiles);
    }
}
