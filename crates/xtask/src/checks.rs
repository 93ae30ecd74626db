//! `cargo xtask test`: everything that must pass from a clean clone.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, bail, ensure};
use testbed::workspace_root;

use crate::machine::Machine;
use crate::tools::{
    CXX, FAIL2BAN, IP, IPTABLES, NFT, NMAP, NSENTER, SETPRIV, TCPDUMP, UNSHARE, ensure_original,
    ensure_present,
};

const HEADING: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Runs every step until one fails. The last line on stdout is always `N passed, N failed`.
pub(crate) fn run() -> ExitCode {
    let mut counts = Counts::default();
    let outcome = run_steps(&mut counts);
    if let Err(error) = &outcome {
        // Told again, since much may have been printed after it.
        println!("{}", counts.failures);
        eprintln!("\n{BAD}failed:{BAD:#} {error:#}\n");
        // A step that is not a test, or tests that do not compile, count as one.
        counts.failed = counts.failed.max(1);
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if outcome.is_ok() && counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_steps(counts: &mut Counts) -> Result<()> {
    step("Needed tools", || {
        ensure_present(&[IPTABLES, NFT, IP, UNSHARE, NSENTER, SETPRIV, NMAP, TCPDUMP, FAIL2BAN])?;
        ensure_original()?;
        for (component, command) in [("rustfmt", "cargo fmt --version"), ("clippy", "cargo clippy --version")]
        {
            if !Task::new(command).works() {
                Task::new(&format!("rustup component add {component}")).run()?;
            }
        }
        Ok(())
    })?;
    step("Format", || Task::new("cargo fmt --all --check").run())?;
    step("Lints", || Task::new("cargo clippy --workspace --all-targets -- -D warnings").run())?;
    // Some tests ask cargo for these. Had it to compile them then, it would disturb the others, which have an eye on the clock.
    step("Programs that tests run", || {
        ["testbed", "knockd-cli --bin knockd", "knock-client --bin knock", "conformance --bin tun"]
            .iter()
            .try_for_each(|package| Task::new(&format!("cargo build --package {package}")).run())
    })?;
    // Every test is run and counted, also after one has failed.
    step("Tests", || Task::new("cargo test --workspace --no-fail-fast").run_counting(counts))?;
    step("Tests under another kernel", || match Machine::prepare() {
        Ok(machine) => machine.run(counts),
        Err(error) => {
            println!(
                "No machine can be emulated here ({error:#}); the tests have run under this kernel only."
            );
            Ok(())
        }
    })?;
    step("Documentation", || {
        Task::new("cargo doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings").run()
    })?;
    step("The core without an operating system", check_wasm)?;
    step("Unsafe code under Miri", || miri(counts))?;
    if !workspace_root().join("fuzz/Cargo.toml").exists() {
        println!("\n(There are no fuzz targets yet.)");
        return Ok(());
    }
    step("Fuzz targets", || fuzz(counts))
}

/// Prints a heading, does the work, and prints how long it took.
fn step(heading: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n{HEADING}== {heading}{HEADING:#}");
    let start = Instant::now();
    work()?;
    println!("{HEADING}== {heading}: ok, {:.1} s{HEADING:#}", start.elapsed().as_secs_f64());
    Ok(())
}

/// Compiles the core for a target that has no files, sockets, processes or threads.
fn check_wasm() -> Result<()> {
    const TARGET: &str = "wasm32-unknown-unknown";
    let libraries = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(workspace_root())
        .output()
        .context("cannot run rustc")?;
    if !Path::new(String::from_utf8(libraries.stdout)?.trim_end()).exists() {
        Task::new(&format!("rustup target add {TARGET}")).run().context(
            "Rust's library for WebAssembly is missing; install it with rustup or the system's package manager",
        )?;
    }
    Task::new(&format!("cargo check -p knockd-core --target {TARGET}")).run()
}

/// Runs the tests of the module with unsafe code in an interpreter that knows what is undefined, where that can be had.
fn miri(counts: &mut Counts) -> Result<()> {
    let ensure_miri = || {
        ensure_nightly()?;
        if !Task::new("cargo +nightly miri --version").works() {
            Task::new("rustup component add --toolchain nightly miri rust-src").run()?;
        }
        // It builds the standard library, which may fail where nothing can be fetched.
        Task::new("cargo +nightly miri setup").run()
    };
    if let Err(error) = ensure_miri() {
        println!("Miri cannot be used here ({error:#}); the tests have run without it.");
        return Ok(());
    }
    Task::new("cargo +nightly miri test -p knockd-capture --lib ring::").run_counting(counts)
}

/// Runs each fuzz target for some seconds, or, where cargo-fuzz cannot be had, at least the tests of their crate.
fn fuzz(counts: &mut Counts) -> Result<()> {
    if let Err(error) = ensure_cargo_fuzz() {
        println!("cargo-fuzz cannot be used here ({error:#}), so only the fuzz crate's tests are run.");
        return Task::new("cargo test --manifest-path fuzz/Cargo.toml").run_counting(counts);
    }
    let mut targets = BTreeSet::new();
    for entry in std::fs::read_dir(workspace_root().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            targets.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
        }
    }
    for target in targets {
        // libFuzzer writes what it finds into the first directory it is given: not into the committed seeds.
        let found = format!("fuzz/target/found/{target}");
        std::fs::create_dir_all(workspace_root().join(&found))?;
        let seeds = format!("fuzz/corpus/{target}");
        let seeds = if workspace_root().join(&seeds).exists() { seeds } else { String::new() };
        let limits = "-runs=20000 -max_total_time=10 -verbosity=0 -print_final_stats=1";
        Task::new(&format!("cargo +nightly fuzz run {target} {found} {seeds} -- {limits}")).run()?;
    }
    Ok(())
}

fn ensure_cargo_fuzz() -> Result<()> {
    ensure_present(&[CXX])?;
    ensure_nightly()?;
    if !Task::new("cargo fuzz --version").works() {
        Task::new("cargo install cargo-fuzz --locked").run()?;
    }
    Ok(())
}

fn ensure_nightly() -> Result<()> {
    if !Task::new("cargo +nightly --version").works() {
        Task::new("rustup toolchain install nightly --profile minimal").run()?;
    }
    Ok(())
}

/// What cargo's test runs have said so far.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Counts {
    /// How many test programs have told their result.
    pub(crate) results: u64,
    passed: u64,
    pub(crate) failed: u64,
    /// What the test program that runs has printed.
    program: String,
    /// What the tests that failed have printed.
    failures: String,
}

impl Counts {
    /// Adds a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; …`, and remembers the other ones until then.
    fn add(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else {
            self.program += line.trim_end();
            self.program.push('\n');
            return;
        };
        if let Some((_, failures)) = std::mem::take(&mut self.program).split_once("\nfailures:\n") {
            self.failures += failures;
        }
        let number_before = |word: &str| -> u64 {
            let before = result.split_once(word).map_or("", |(before, _)| before);
            before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        self.results += 1;
        self.passed += number_before(" passed;");
        self.failed += number_before(" failed;");
    }
}

/// A command line without quoting, run in the root of the workspace.
pub(crate) struct Task {
    words: Vec<String>,
    env: Option<(&'static str, &'static str)>,
}

impl Task {
    pub(crate) fn new(command_line: &str) -> Self {
        Self { words: command_line.split_whitespace().map(str::to_owned).collect(), env: None }
    }

    fn env(mut self, key: &'static str, value: &'static str) -> Self {
        self.env = Some((key, value));
        self
    }

    /// Adds one that may have spaces.
    pub(crate) fn with_word(mut self, word: &str) -> Self {
        self.words.push(word.to_owned());
        self
    }

    /// Says whether it can be run and succeeds, and shows nothing.
    fn works(&self) -> bool {
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

    /// Runs it and returns its stdout.
    pub(crate) fn output(&self) -> Result<String> {
        println!("{self}");
        let output = self
            .command()?
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run: {self}"))?;
        ensure!(output.status.success(), "{}; to repeat it: {self}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs it, passes its stdout on line by line, and adds up the tests.
    pub(crate) fn run_counting(&self, counts: &mut Counts) -> Result<()> {
        println!("{self}");
        let mut child =
            self.command()?.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run: {self}"))?;
        for line in BufReader::new(child.stdout.take().context("no stdout")?).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            counts.add(&line);
            println!("{line}");
        }
        let status = child.wait()?;
        ensure!(status.success(), "{status}; to repeat it: {self}");
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let Some((program, arguments)) = self.words.split_first() else { bail!("an empty command line") };
        let mut command = Command::new(program);
        command.args(arguments).envs(self.env).current_dir(workspace_root());
        Ok(command)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((key, value)) = self.env {
            write!(out, "{key}='{value}' ")?;
        }
        let words =
            self.words.iter().map(|word| if word.contains(' ') { format!("'{word}'") } else { word.clone() });
        out.write_str(&words.collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_with_and_without_colours() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            "test result: \u{1b}[31mFAILED\u{1b}(B\u{1b}[m. 10 passed; 3 failed; 2 ignored; 0 measured",
            "the text of a test: 5 passed; 7 failed;",
        ] {
            counts.add(line);
        }
        let expected = Counts { results: 2, passed: 22, failed: 3, ..Counts::default() };
        assert_eq!(Counts { program: String::new(), ..counts }, expected);
    }

    #[test]
    fn what_failed_tests_have_printed_is_kept() {
        let mut counts = Counts::default();
        for line in [
            "test a ... FAILED\r",
            "failures:\r",
            "---- a stdout ----\r",
            "no line with `x`\r",
            "failures:\r",
            "    a\r",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored\r",
            "running 1 test",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
        ] {
            counts.add(line);
        }
        assert_eq!(counts.failures, "---- a stdout ----\nno line with `x`\nfailures:\n    a\n");
        assert_eq!(counts.failed, 1);
    }

    #[test]
    fn a_task_prints_as_what_a_person_can_type() {
        let task = Task::new("cargo doc  --no-deps").env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(task.to_string(), "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps");
        assert_eq!(Task::new("sh -c").with_word("echo a").to_string(), "sh -c 'echo a'");
    }
}
