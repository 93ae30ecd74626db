//! A test: a sentence and the function that shows it.

use crate::Session;

/// Rules about one topic, in their own file.
#[derive(Clone, Copy, Debug)]
pub struct Topic {
    /// The first part of the test names.
    pub name: &'static str,
    /// The heading on the page.
    pub title: &'static str,
    /// The rules, in the order of the page.
    pub rules: &'static [Rule],
}

/// Something that knockd 0.8 does.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The second part of the test name.
    pub name: &'static str,
    /// What 0.8 does, in one sentence of Markdown.
    pub text: &'static str,
    /// How ours compares.
    pub verdict: Verdict,
    /// Shows it, or panics.
    pub check: fn(&mut Session),
}

/// How ours compares to the C program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It does the same.
    Same,
    /// It deliberately does something else: what, and why.
    Differs(&'static str),
    /// It should do the same, and does not: the reason.
    NotYet(&'static str),
}

impl Rule {
    /// Creates a rule that both programs follow.
    pub const fn same(name: &'static str, text: &'static str, check: fn(&mut Session)) -> Self {
        Self { name, text, verdict: Verdict::Same, check }
    }

    /// Creates a rule that ours deliberately breaks: `here` says what it does instead, and why. The check must use
    /// [`Session::pick`].
    pub const fn differs(
        name: &'static str,
        text: &'static str,
        here: &'static str,
        check: fn(&mut Session),
    ) -> Self {
        Self { name, text, verdict: Verdict::Differs(here), check }
    }

    /// Creates a rule that ours should follow but does not yet.
    pub const fn not_yet(
        name: &'static str,
        text: &'static str,
        reason: &'static str,
        check: fn(&mut Session),
    ) -> Self {
        Self { name, text, verdict: Verdict::NotYet(reason), check }
    }
}
