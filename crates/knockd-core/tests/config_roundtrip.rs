//! Properties of the configuration: printing and parsing are inverse, and no text confuses the parser.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod placement;
mod values;

use knockd_core::Config;
use knockd_core::config::{Parsed, Severity};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use values::configs;

/// Bytes that look like a configuration often enough to get far.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let words = b"[options]|[a]|[|]|[]|sequence|seq_timeout|Start_Command_6|target|tcpflags|logfile|UseSyslog|maxattempts\
        |one_time_sequences|reopen|seqence|=| = |= |\n|\n|\r\n|\r|\t| |#|1|7000|65536|8000:udp|,|:|!|syn|192.0.2.1|run|\0|\xff\
        |\xc3\xa9|\xc2\xa0|\xe3\x80\x80|\xef\xbb\xbf|\x0b\
        |firewall = nftables\n|open|forward|masquerade|open_for|tcp/22|tcp/1 > self:2|> [fd00::1]:1|/24|/64\
        |include|command|%ip%|;|//|\"|\\|\xe2\x80\x9c|\xe2\x80\x8b|\xe2\x80\x93";
    let words: Vec<_> = words.split(|&byte| byte == b'|').collect();
    let piece = prop_oneof![9 => select(words).prop_map(<[u8]>::to_vec), 1 => vec(any::<u8>(), 1..4)];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_printed_config_parses_back_equal(config in configs()) {
        let text = config.to_string();
        let parsed = Config::parse(text.as_bytes()).map(|parsed| parsed.config);
        prop_assert_eq!(parsed, Ok(config), "{}", text);
    }

    #[test]
    fn what_is_parsed_prints_as_something_that_parses_equal(text in texts()) {
        if let Ok(Parsed { config, .. }) = Config::parse(&text) {
            let again = Config::parse(config.to_string().as_bytes()).map(|parsed| parsed.config);
            prop_assert_eq!(again, Ok(config));
        }
    }

    #[test]
    fn every_finding_about_any_text_points_into_it_in_file_order(text in texts()) {
        let (findings, is_usable) = match Config::parse(&text) {
            Ok(parsed) => (parsed.warnings, true),
            Err(error) => (error.findings, false),
        };
        placement::check(&findings, &text);
        let has_errors = findings.iter().any(|finding| finding.severity == Severity::Error);
        prop_assert_eq!(has_errors, !is_usable);
    }
}
