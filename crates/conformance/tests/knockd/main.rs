//! What knockd 0.8 does, rule by rule, on the C program and on ours; the crate's documentation says how it works.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "tests"
)]

mod client;
mod command_line;
mod commands;
mod config;
mod links;
mod logging;
mod matching;
mod one_time;
mod signals;

use std::process::ExitCode;

use conformance::Topic;

const TOPICS: &[Topic] = &[
    command_line::TOPIC,
    config::TOPIC,
    links::TOPIC,
    matching::TOPIC,
    commands::TOPIC,
    one_time::TOPIC,
    logging::TOPIC,
    signals::TOPIC,
    client::TOPIC,
];

fn main() -> ExitCode {
    conformance::suite::run(TOPICS)
}
