//! Keeps what is written about `knockd` and what it does together: options, directives and example configurations.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use knockd_cli::args::Args;
use knockd_core::Config;
use knockd_core::config::{Code, Diagnostic, Parsed, Severity, Source};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The bold words in the tags behind `.TP` lines, as in `\fB\-i\fR, \fB\-\-interface\fR` or `.B UseSyslog`.
fn tags(page: &str) -> BTreeSet<String> {
    let mut lines = page.lines();
    let mut tags = BTreeSet::new();
    while let Some(line) = lines.next() {
        if line == ".TP"
            && let Some(tag) = lines.next()
        {
            let bold = tag.strip_prefix(".B ").map(|word| format!("\\fB{word}\\fR"));
            let tag = bold.as_deref().unwrap_or(tag);
            let words = tag.split("\\fB").skip(1).filter_map(|bold| bold.split("\\fR").next());
            tags.extend(words.map(|word| word.replace("\\-", "-")));
        }
    }
    tags
}

/// The part of a manual page from one section's heading to the next one's.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("\n.SH {name}\n")).unwrap();
    rest.split("\n.SH ").next().unwrap()
}

/// The blocks between `.EX` and `.EE`, without roff's escapes.
fn examples(page: &str) -> Vec<String> {
    page.split("\n.EX\n")
        .skip(1)
        .map(|rest| rest.split("\n.EE").next().unwrap().replace("\\-", "-").replace("\\e", "\\"))
        .collect()
}

/// The blocks of a Markdown page that are fenced as `ini` or `conf`.
fn fenced(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if matches!(line.trim(), "```ini" | "```conf") {
            let block: Vec<_> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
            blocks.push(block.join("\n"));
        }
    }
    blocks
}

/// Every file below a directory, with its path from the root.
fn files(directory: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{directory}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The options of a command as they are typed.
fn options(command: &clap::Command) -> BTreeSet<String> {
    let spellings = command.get_arguments().flat_map(|arg| {
        let short = arg.get_short().map(|short| format!("-{short}"));
        short.into_iter().chain(arg.get_long().map(|long| format!("--{long}")))
    });
    spellings.collect()
}

fn parsed(place: &str, text: &str) -> Parsed {
    Config::parse_files(&[Source::new(text.as_bytes())]).unwrap_or_else(|error| {
        let findings: Vec<_> = error.findings.iter().map(Diagnostic::to_string).collect();
        panic!("{place}:\n{}\nin:\n{text}", findings.join("\n"))
    })
}

#[test]
fn the_manual_page_has_the_options_of_the_program_and_no_others() {
    let mut command = Args::command();
    command.build();
    let options = options(&command);
    assert!(options.contains("--only-ip-v4") && options.contains("-V"), "{options:?}");
    let page = read("docs/man/knockd.1");
    assert_eq!(tags(section(&page, "OPTIONS")), options);
}

#[test]
fn the_manual_page_has_the_commands_of_the_program_with_their_options_and_no_others() {
    let mut command = Args::command();
    command.build();
    let page = read("docs/man/knockd.1");
    let documented: BTreeMap<_, _> = section(&page, "COMMANDS")
        .split("\n.SS ")
        .skip(1)
        .map(|part| {
            // Values that can be chosen, such as `json`, are bold, too.
            let options = tags(part).into_iter().filter(|tag| tag.starts_with('-'));
            (part.split_whitespace().next().unwrap().to_owned(), options.collect())
        })
        .collect();
    let commands = command.get_subcommands().filter(|command| command.get_name() != "help");
    let expected: BTreeMap<_, _> = commands
        .map(|command| {
            let mut options = options(command);
            // They are those of the program.
            options.retain(|option| !["-h", "--help", "-V", "--version"].contains(&option.as_str()));
            (command.get_name().to_owned(), options)
        })
        .collect();
    assert!(expected.contains_key("check"), "{expected:?}");
    assert_eq!(documented, expected);
}

#[test]
fn the_manual_page_has_the_directives_of_the_program_and_no_others() {
    let source = read("crates/knockd-core/src/config/directives.rs");
    let named = |before: &str| {
        let starts = source.split(before).skip(1).filter_map(|rest| rest.split('"').next());
        starts.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let directives = named("Directive::new(\"");
    assert!(directives.contains("UseSyslog") && directives.contains("Stop_Command_6"), "{directives:?}");
    let page = read("docs/man/knockd.1");
    let configuration = section(&page, "CONFIGURATION");
    // Values that can be chosen, such as `close`, are bold and in lower case.
    let documented: BTreeSet<_> =
        tags(configuration).into_iter().filter(|tag| tag.starts_with(char::is_uppercase)).collect();
    assert_eq!(documented, directives);
    for alias in named(".with_alias(\"") {
        assert!(configuration.contains(&format!("\n.B {alias}\n")), "{alias} is not in the manual page");
    }
}

#[test]
fn the_manual_page_is_of_this_version() {
    assert!(read("docs/man/knockd.1").contains(&format!("\"knockd {}\"", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn the_examples_of_the_manual_page_are_right() {
    let page = read("docs/man/knockd.1");
    let examples = examples(&page);
    assert!(examples.len() >= 3);
    for example in examples {
        let Parsed { config, warnings, .. } = parsed("knockd.1", &example);
        assert_eq!(warnings, [], "{example}");
        assert!(!config.doors.is_empty(), "{example}");
    }
}

#[test]
fn the_configurations_in_the_readme_are_right() {
    let blocks = fenced(&read("README.md"));
    assert!(blocks.len() >= 2);
    for block in blocks {
        let Parsed { config, warnings, .. } = parsed("README.md", &block);
        assert_eq!(warnings, [], "{block}");
        assert!(!config.doors.is_empty(), "{block}");
    }
}

/// The crates that are linked into the program of a package, without those that run in the compiler.
fn linked_into(package: &str) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = "tree --locked --edges normal,no-proc-macro --prefix none --package";
    let output = Command::new(cargo)
        .args(arguments.split(' ').chain([package]))
        .current_dir(testbed::workspace_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    // Name and version; what follows is a path or a mark.
    lines.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn the_daemon_has_as_many_crates_as_the_page_says_and_none_that_only_tools_need() {
    let [daemon, tools] = ["knockd-cli", "knockd-tools"].map(linked_into);
    let only_tools = tools.difference(&daemon).count();
    for needed_by_tools in ["ratatui ", "crossterm ", "pcap-parser ", "knockd-tools "] {
        assert!(tools.iter().any(|linked| linked.starts_with(needed_by_tools)), "{tools:?}");
        assert!(!daemon.iter().any(|linked| linked.starts_with(needed_by_tools)), "{daemon:?}");
    }
    let architecture = read("docs/architecture.md").replace('\n', " ");
    for said in
        [format!("it consists of {} crates", daemon.len()), format!("with another {only_tools} crates")]
    {
        assert!(architecture.contains(&said), "docs/architecture.md does not say: {said}");
    }
    let threats = read("docs/threat-model.md");
    let said = format!("Only {} crates are linked into the daemon", daemon.len());
    assert!(threats.contains(&said), "docs/threat-model.md does not say: {said}");
}

/// The codes of what `knockd check` finds unwise, machine or not.
fn advised(text: &str) -> BTreeSet<Code> {
    let advice = knockd_core::advise(&[Source::new(text.as_bytes())], &parsed("", text));
    advice
        .into_iter()
        .filter(|finding| finding.severity == Severity::Warning)
        .map(|finding| finding.code)
        .collect()
}

#[test]
fn nothing_is_unwise_in_our_examples_but_what_the_reader_is_to_change() {
    for block in fenced(&read("README.md")) {
        assert_eq!(advised(&block), BTreeSet::from([Code::KnownSequence]), "{block}");
    }
}

#[test]
fn every_code_that_check_prints_is_documented_and_no_other() {
    let page = read("docs/json.md");
    let (_, check) = page.split_once("\n## knockd check\n").unwrap();
    let (_, table) = check.split_once("\n| `code` | severity |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let documented: Vec<_> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    assert_eq!(documented, Code::ALL.iter().map(|code| code.name()).collect::<Vec<_>>());
}

#[test]
fn every_configuration_in_docs_and_packaging_can_be_used() {
    let ours = |path: &String| {
        !["fail2ban", "sysusers.d", "knockd.service.d"]
            .iter()
            .any(|other| path.starts_with(&format!("packaging/{other}/")))
    };
    for path in files("docs").into_iter().chain(files("packaging")).filter(ours) {
        match Path::new(&path).extension().and_then(|extension| extension.to_str()) {
            Some("conf") => drop(parsed(&path, &read(&path))),
            Some("md") => fenced(&read(&path)).iter().for_each(|block| drop(parsed(&path, block))),
            _ => {}
        }
    }
}

#[test]
fn the_default_configuration_has_no_door_until_somebody_writes_a_sequence() {
    let text = read("packaging/knockd.conf");
    assert_eq!(parsed("packaging/knockd.conf", &text).config.doors, []);

    let lines: Vec<_> = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| rest.starts_with(['[', '\t'])).unwrap_or(line))
        .collect();
    let uncommented = lines.join("\n");
    let findings = Config::parse_files(&[Source::new(uncommented.as_bytes())]).unwrap_err().findings;
    let [Diagnostic { line, .. }] = &findings[..] else { panic!("{findings:?}") };
    assert!(lines[line - 1].contains("Sequence"), "{findings:?}");

    let chosen = uncommented.replace("FIRST,SECOND:udp,THIRD,FOURTH", "20011,4207:udp,11393,1404");
    assert_eq!(advised(&chosen), BTreeSet::new());
    let Parsed { config, warnings, .. } = parsed("packaging/knockd.conf", &chosen);
    assert_eq!((config.doors.len(), warnings), (1, Vec::new()));
}

#[test]
fn the_threat_model_names_tests_that_exist() {
    let page = read("docs/threat-model.md");
    let quoted = page.split('`').skip(1).step_by(2);
    let named: BTreeSet<_> = quoted.filter(|word| word.matches('_').count() > 3).collect();
    assert!(named.len() > 15, "{named:?}");
    let sources = ["knock-client", "knockd-core", "knockd-capture", "knockd-cli"]
        .into_iter()
        .flat_map(|package| ["src", "tests"].map(|folder| format!("crates/{package}/{folder}")))
        .chain(["crates/knockd-tools/src".to_owned()])
        .flat_map(|directory| files(&directory));
    let tests: BTreeSet<_> = sources.flat_map(|path| tests(&read(&path))).collect();
    let missing: Vec<_> = named.into_iter().filter(|name| !tests.contains(*name)).collect();
    assert_eq!(missing, [""; 0]);
}

/// The names of the functions that are tests: those marked so, and those that `from_ring_and_queue` marks.
fn tests(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim_start) {
        if let Some(name) = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) {
            if is_test || line.ends_with("(buffer) {") {
                found.push(name.to_owned());
            }
            is_test = false;
        } else if line == "#[test]" {
            is_test = true;
        }
    }
    found
}
