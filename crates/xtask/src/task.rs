//! Command lines that xtask runs and a person can repeat.

use std::ffi::OsString;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anstream::println;
use anyhow::{Context, Result, bail, ensure};
use testbed::workspace_root;

use crate::tally::Tally;

/// A command line, run in the root of the workspace.
pub(crate) struct Task {
    words: Vec<String>,
    env: Vec<(&'static str, OsString)>,
}

impl Task {
    /// Splits at spaces, without quoting.
    pub(crate) fn new(command_line: &str) -> Self {
        Self { words: command_line.split_whitespace().map(str::to_owned).collect(), env: Vec::new() }
    }

    pub(crate) fn env(mut self, key: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((key, value.into()));
        self
    }

    /// Adds words, without quoting.
    pub(crate) fn with_words(mut self, words: &str) -> Self {
        self.words.extend(words.split_whitespace().map(str::to_owned));
        self
    }

    /// Adds a word that may contain spaces.
    pub(crate) fn with_word(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Says whether it runs and succeeds, without showing anything.
    pub(crate) fn works(&self) -> bool {
        self.command().is_ok_and(|mut command| {
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        })
    }

    pub(crate) fn run(&self) -> Result<()> {
        println!("{self}");
        let status = self.command()?.status().with_context(|| format!("cannot run: {self}"))?;
        ensure!(status.success(), "{status}; to repeat it: {self}");
        Ok(())
    }

    /// Runs it, forwards its stdout line by line, and counts its tests.
    pub(crate) fn run_counting(&self, tally: &mut Tally, out: &mut impl Write) -> Result<()> {
        writeln!(out, "{self}")?;
        let mut child =
            self.command()?.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run: {self}"))?;
        for line in BufReader::new(child.stdout.take().context("no stdout")?).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            tally.add(&line);
            writeln!(out, "{line}")?;
        }
        let status = child.wait()?;
        ensure!(status.success(), "{status}; to repeat it: {self}");
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let Some((program, arguments)) = self.words.split_first() else { bail!("an empty command line") };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(workspace_root());
        Ok(command)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in &self.env {
            write!(out, "{key}={} ", quoted(&value.to_string_lossy()))?;
        }
        out.write_str(&self.words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "))
    }
}

/// Quotes a word for a shell.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_prints_as_what_a_person_can_type() {
        let task = Task::new("cargo doc  --no-deps").env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(task.to_string(), "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps");
        assert_eq!(Task::new("sh -c").with_word("echo 'a'").to_string(), r"sh -c 'echo '\''a'\'''");
    }

    #[test]
    fn a_task_that_fails_says_how_to_repeat_it_and_its_tests_are_counted() {
        let task = Task::new("sh -c").with_word("echo 'test result: FAILED. 2 passed; 1 failed;'; exit 3");
        let (mut tally, mut out) = (Tally::default(), Vec::new());
        let error = task.run_counting(&mut tally, &mut out).unwrap_err().to_string();
        assert!(error.contains("exit status: 3; to repeat it: sh -c "), "{error}");
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 0 skipped");
        assert!(String::from_utf8(out).unwrap().ends_with("test result: FAILED. 2 passed; 1 failed;\n"));
    }
}
