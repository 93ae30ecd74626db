//! `docs/conformance.md`: a handwritten introduction, then tables generated from the rules.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::{Rule, Topic, Verdict};

/// The suite generates the page below this line.
const MARK: &str =
    "<!-- The rest of this page is generated from the rules by cargo xtask conformance --write-page -->\n";

/// A part of the page, with one table per topic, for rules with the same kind of verdict.
struct Section {
    title: &'static str,
    head: &'static str,
    /// Returns the note beside a rule of this section.
    note_of: fn(&Rule) -> Option<&'static str>,
}

const SECTIONS: [Section; 3] = [
    Section {
        title: "Differences, and why",
        head: "| knockd 0.8 | here | test |\n| --- | --- | --- |",
        note_of: |rule| if let Verdict::Differs(here) = rule.verdict { Some(here) } else { None },
    },
    Section {
        title: "Not yet the same",
        head: "| knockd 0.8 | here | test |\n| --- | --- | --- |",
        note_of: |rule| if let Verdict::NotYet(reason) = rule.verdict { Some(reason) } else { None },
    },
    Section {
        title: "Same behaviour",
        head: "| rule | test |\n| --- | --- |",
        note_of: |rule| (rule.verdict == Verdict::Same).then_some(""),
    },
];

/// Checks that the page is what [`write()`] generates.
///
/// # Errors
///
/// When it is not, or cannot be read.
pub(crate) fn check(topics: &[Topic]) -> Result<(), String> {
    let text = std::fs::read_to_string(path()).map_err(|error| format!("docs/conformance.md: {error}"))?;
    if text == page(&text, topics) {
        return Ok(());
    }
    Err("docs/conformance.md does not match the rules; run `cargo xtask conformance --write-page`".into())
}

/// Writes the tables into the page and keeps its introduction.
pub(crate) fn write(topics: &[Topic]) {
    let text = std::fs::read_to_string(path()).expect("docs/conformance.md");
    std::fs::write(path(), page(&text, topics)).expect("docs/conformance.md");
}

fn path() -> PathBuf {
    testbed::workspace_root().join("docs/conformance.md")
}

/// Returns the page as it should be, with the introduction of `text`.
fn page(text: &str, topics: &[Topic]) -> String {
    let introduction = text.split_once(MARK).map_or(text, |(introduction, _)| introduction);
    let mut page = format!("{introduction}{MARK}");
    for Section { title, head, note_of } in SECTIONS {
        write!(page, "\n## {title}\n").unwrap();
        let mut is_empty = true;
        for topic in topics {
            let rows: Vec<_> =
                topic.rules.iter().filter_map(|rule| note_of(rule).map(|note| (rule, note))).collect();
            if rows.is_empty() {
                continue;
            }
            is_empty = false;
            writeln!(page, "\n### {}\n\n{head}", topic.title).unwrap();
            for (rule, note) in rows {
                let note = if note.is_empty() { String::new() } else { format!(" {note} |") };
                writeln!(page, "| {} |{note} `{}::{}` |", rule.text, topic.name, rule.name).unwrap();
            }
        }
        if is_empty {
            page.push_str("\nNothing.\n");
        }
    }
    page
}
