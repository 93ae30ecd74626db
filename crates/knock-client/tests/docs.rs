//! Keeps the manual page of `knock` and its help text together.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory;
use knock_client::args::Args;

/// The options of a manual page: of each bold word behind a `.TP` that starts with a dash.
fn options_in(page: &str) -> BTreeSet<String> {
    let mut lines = page.lines();
    let mut options = BTreeSet::new();
    while let Some(line) = lines.next() {
        if line == ".TP"
            && let Some(tag) = lines.next()
        {
            let words = tag.split("\\fB").filter_map(|bold| bold.split("\\fR").next());
            options.extend(words.map(|word| word.replace("\\-", "-")).filter(|word| word.starts_with('-')));
        }
    }
    options
}

#[test]
fn the_manual_page_has_the_options_of_the_program_and_no_others() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man/knock.1");
    let page = std::fs::read_to_string(path).unwrap();
    let mut command = Args::command();
    command.build();
    let options: BTreeSet<String> = command
        .get_arguments()
        .flat_map(|arg| {
            let short = arg.get_short().map(|short| format!("-{short}"));
            short.into_iter().chain(arg.get_long().map(|long| format!("--{long}")))
        })
        .collect();
    assert!(options.contains("--tcpflags") && options.contains("-V"), "{options:?}");
    assert_eq!(options_in(&page), options);
}

#[test]
fn the_manual_page_is_of_this_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man/knock.1");
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.contains(&format!("\"knockd {}\"", env!("CARGO_PKG_VERSION"))));
}
