//! Keeps the manual page of `knock` and its help text together.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory;
use knock_client::args::{Args, command};
use knock_client::hosts::{Hosts, KEYS};

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

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man/knock.1");
    std::fs::read_to_string(path).unwrap()
}

/// The part of the page below a heading, to the next one of the same kind or a greater one.
fn below<'p>(page: &'p str, heading: &str) -> &'p str {
    let (_, rest) = page.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
    rest.split("\n.SH ").next().unwrap().split("\n.SS ").next().unwrap()
}

/// The options of a command in its definition.
fn options_of(command: &clap::Command) -> BTreeSet<String> {
    let options = command.get_arguments().filter(|arg| arg.get_id() != "help");
    let names = options.flat_map(|arg| {
        let short = arg.get_short().map(|short| format!("-{short}"));
        short.into_iter().chain(arg.get_long().map(|long| format!("--{long}")))
    });
    names.collect()
}

#[test]
fn the_manual_page_has_the_options_of_the_program_and_no_others() {
    let mut command = Args::command();
    command.build();
    let mut options = options_of(&command);
    assert!(options.contains("--tcpflags") && options.contains("-V"), "{options:?}");
    options.extend(["-h".to_owned(), "--help".to_owned()]);
    assert_eq!(options_in(below(&page(), "\n.SH OPTIONS")), options);
}

#[test]
fn the_manual_page_has_the_commands_with_their_options_and_no_others() {
    let page = page();
    let mut everything = command();
    everything.build();
    let shared = options_in(below(&page, "\n.SS \"Options of add and edit\""));
    let mut names = Vec::new();
    for command in everything.get_subcommands() {
        let name = command.get_name();
        names.push(name.to_owned());
        let mut documented = options_in(below(&page, &format!("\n.SS \"knock {name}")));
        if ["add", "edit"].contains(&name) {
            documented.extend(shared.iter().cloned());
        }
        assert_eq!(documented, options_of(command), "{name}");
    }
    let headings = page.lines().filter_map(|line| line.strip_prefix(".SS \"knock "));
    let headings: Vec<_> = headings.map(|rest| rest.split([' ', '"']).next().unwrap().to_owned()).collect();
    assert_eq!(headings, names);
}

#[test]
fn the_manual_page_has_the_keys_of_a_profile_and_no_others() {
    let page = page();
    let tags = below(&page, "\n.SH PROFILES").split("\n.TP\n.B ").skip(1);
    let keys: Vec<_> = tags.map(|tag| tag.lines().next().unwrap()).collect();
    assert_eq!(keys, KEYS);
}

#[test]
fn the_page_about_the_client_has_the_keys_of_a_profile_and_its_example_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/client.md");
    let page = std::fs::read_to_string(path).unwrap();
    let rows: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    for key in KEYS {
        assert!(rows.contains(&key), "{key} in {rows:?}");
    }
    let example = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let hosts = Hosts::parse("hosts.toml".into(), example).unwrap();
    hosts.check().unwrap();
    let link = page.lines().find(|line| line.trim().starts_with("knock://")).unwrap();
    knock_client::uri::read(link).unwrap();
}

#[test]
fn the_manual_page_is_of_this_version() {
    assert!(page().contains(&format!("\"knockd {}\"", env!("CARGO_PKG_VERSION"))));
}
