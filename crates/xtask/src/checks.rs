//! `cargo xtask test`: everything that must pass from a clean clone.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, anyhow, ensure};
use testbed::{Built, workspace_root};

use crate::client;
use crate::firewalls;
use crate::machine::{EARLIER_KERNEL, KERNEL, Machine};
use crate::public_api;
use crate::tally::Tally;
use crate::task::Task;
use crate::tools::{
    CXX, FAIL2BAN, IP, IPTABLES, LOGROTATE, NFT, NMAP, NSENTER, PYTHON, SETPRIV, SSH_KEYSCAN, SSHD, TCPDUMP,
    TMUX, Tools, UNSHARE,
};

const HEADING: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Runs every step until one fails. The last line on stdout is always `N passed, N failed, N skipped`.
pub(crate) fn run(long: bool) -> ExitCode {
    let mut checks = Checks::default();
    let outcome = Tools::new().and_then(|mut tools| {
        let outcome = if long { checks.run_long(&mut tools) } else { checks.run(&mut tools) };
        tools.report();
        outcome
    });
    let Checks { mut tally, times } = checks;
    println!("\n{HEADING}Times:{HEADING:#}");
    for (heading, time) in times {
        println!("{:7.1} s  {heading}", time.as_secs_f64());
    }
    for (reason, count) in tally.reasons() {
        println!("skipped, {count} of: {reason}");
    }
    if let Err(error) = &outcome {
        // Repeated here, because much may have been printed since.
        println!("{}", tally.failures);
        eprintln!("\n{BAD}failed:{BAD:#} {error:#}\n");
        // A failed step that is not a test, or tests that do not compile, count as one failure.
        tally.failed = tally.failed.max(1);
    }
    println!("{tally}");
    if outcome.is_ok() && tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The results so far.
#[derive(Default)]
struct Checks {
    tally: Tally,
    times: Vec<(&'static str, Duration)>,
}

impl Checks {
    fn run(&mut self, tools: &mut Tools) -> Result<()> {
        self.step("Needed tools", |tally| needed_tools(tools, tally))?;
        self.step("Format", |_| Task::new("cargo fmt --all --check").run())?;
        self.step("Lints", |_| Task::new("cargo clippy --workspace --all-targets -- -D warnings").run())?;
        self.step("Documentation", |_| {
            Task::new("cargo doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings").run()
        })?;
        self.step("The core without an operating system", |_| check_wasm(tools))?;
        self.step("The client on other systems", |tally| client::check_elsewhere(tools, tally))?;
        self.step("The static client", |tally| client::check_static(tools, tally))?;
        let mut built = None;
        self.step("Building the tests", |_| {
            // Once for cargo's progress, and once for the list of binaries.
            Task::new("cargo build --workspace --bins").run()?;
            Task::new("cargo test --workspace --no-run").run()?;
            built = Some(testbed::build_tests(&[])?);
            Ok(())
        })?;
        let built = built.context("nothing was built")?;
        let mut machines = Vec::new();
        self.step("Emulated machines", |tally| {
            machines = emulated_machines(tools, &built, tally)?;
            Ok(())
        })?;
        self.step("Tests", |tally| tests(tools, &built, &machines, tally))?;
        self.step("The core's public interface", |tally| public_interface(tools, tally))?;
        self.step("Unsafe code under Miri", |tally| miri(tools, tally))?;
        self.step("Fuzz targets", |tally| fuzz(tools, tally))
    }

    /// Runs the expensive tests at full size.
    fn run_long(&mut self, tools: &mut Tools) -> Result<()> {
        self.step("Needed tools", |tally| needed_tools(tools, tally))?;
        let mut built = None;
        self.step("Building the tests", |_| {
            Task::new("cargo build --release --workspace --bins").run()?;
            Task::new("cargo test --release --workspace --no-run").run()?;
            built = Some(testbed::build_tests(&["--release"])?);
            Ok(())
        })?;
        let built = built.context("nothing was built")?;
        self.step("Long tests", |tally| {
            // One at a time: each needs the machine for itself, and its figures stand below its name.
            let options = "--include-ignored --nocapture --test-threads=1";
            Task::new(&format!("cargo test --release --workspace --no-fail-fast at_scale -- {options}"))
                .env("TESTBED_LONG", "1")
                .env("TESTBED_PROGRAMS", &built.programs)
                .env("PATH", tools.path())
                .run_counting(tally, &mut anstream::stdout())
        })
    }

    /// Prints a heading, does the work, and prints the time that it took.
    fn step(&mut self, heading: &'static str, work: impl FnOnce(&mut Tally) -> Result<()>) -> Result<()> {
        println!("\n{HEADING}== {heading}{HEADING:#}");
        let start = Instant::now();
        let outcome = work(&mut self.tally);
        self.times.push((heading, start.elapsed()));
        outcome?;
        println!("{HEADING}== {heading}: ok, {:.1} s{HEADING:#}", start.elapsed().as_secs_f64());
        Ok(())
    }
}

fn needed_tools(tools: &mut Tools, tally: &mut Tally) -> Result<()> {
    tools.ensure_present(&[IPTABLES, NFT, IP, UNSHARE, NSENTER, SETPRIV, NMAP, TCPDUMP, PYTHON])?;
    // The only tests that need these skip themselves.
    for needed in [&[FAIL2BAN][..], &[SSHD, SSH_KEYSCAN], &[LOGROTATE], &[TMUX]] {
        if let Err(error) = tools.ensure_present(needed) {
            println!("{error:#}");
        }
    }
    if let Err(error) = firewalls::unpack(tools) {
        println!("{error:#}");
    }
    if !tools.ensure_original()? {
        tally.skip("the comparison with knockd 0.8, which only Debian has");
    }
    for (component, command) in [("rustfmt", "cargo fmt --version"), ("clippy", "cargo clippy --version")] {
        if !Task::new(command).works() {
            tools.add(component, &Task::new(&format!("rustup component add {component}")))?;
        }
    }
    Ok(())
}

/// Returns the machines for some of the tests, if this system can have them.
fn emulated_machines(tools: &mut Tools, built: &Built, tally: &mut Tally) -> Result<Vec<Machine>> {
    let mut machines = Vec::new();
    if let Some(obstacle) = Machine::obstacle() {
        tally.skip(format_args!("the tests under other kernels: {obstacle}"));
        return Ok(machines);
    }
    match Machine::prepare(tools, built, &KERNEL) {
        Ok(machine) => machines.push(machine),
        Err(error) => {
            tally.skip_until_installed(format_args!("the tests under another kernel: {error:#}"))?;
        }
    }
    match Machine::prepare(tools, built, &EARLIER_KERNEL) {
        Ok(machine) => machines.push(machine),
        // One day, Debian's servers will have this release no longer.
        Err(error) => {
            tally.skip(format_args!("the tests under the kernel of {}: {error:#}", EARLIER_KERNEL.release));
        }
    }
    Ok(machines)
}

/// Runs all tests here and, at the same time, some of them in one emulated machine after the other: most tests here wait
/// more than they compute.
fn tests(tools: &Tools, built: &Built, machines: &[Machine], tally: &mut Tally) -> Result<()> {
    // They take the programs from the directory of the fresh build: tests that watch the clock must not wait for
    // cargo.
    let here = Task::new("cargo test --workspace --no-fail-fast")
        .env("TESTBED_PROGRAMS", &built.programs)
        .env("PATH", tools.path());
    let (outcome, emulated) = thread::scope(|scope| {
        let emulated = scope.spawn(|| {
            let run = |machine: &Machine| {
                let (start, mut printed) = (Instant::now(), Vec::new());
                let outcome = machine.run(&mut printed);
                (outcome, printed, start.elapsed())
            };
            machines.iter().map(run).collect::<Vec<_>>()
        });
        // Every test runs and is counted, even after a failure.
        let outcome = here.run_counting(tally, &mut anstream::stdout());
        (outcome, emulated.join())
    });
    for (emulated, printed, time) in emulated.map_err(|_| anyhow!("the emulated machine panicked"))? {
        println!("{}", String::from_utf8_lossy(&printed));
        println!("In the emulated machine, meanwhile: {:.1} s", time.as_secs_f64());
        tally.join(emulated?);
    }
    outcome?;
    ensure!(tally.failed == 0, "tests have failed");
    Ok(())
}

/// Compiles the core for a target without files, sockets, processes and threads.
fn check_wasm(tools: &mut Tools) -> Result<()> {
    const TARGET: &str = "wasm32-unknown-unknown";
    client::ensure_target(tools, TARGET)?;
    Task::new(&format!("cargo check -p knockd-core --target {TARGET}")).run()
}

/// Checks the core as another crate sees it: with its feature, and with no unnoticed change of its interface.
fn public_interface(tools: &mut Tools, tally: &mut Tally) -> Result<()> {
    Task::new("cargo clippy -p knockd-core --all-targets --all-features -- -D warnings").run()?;
    Task::new("cargo test -p knockd-core --all-features --test serde_forms")
        .run_counting(tally, &mut anstream::stdout())?;
    public_api::check(tools, tally)
}

/// Runs the tests of the module with unsafe code in Miri, which detects undefined behaviour, if it is available.
fn miri(tools: &mut Tools, tally: &mut Tally) -> Result<()> {
    let ensure_miri = |tools: &mut Tools| {
        ensure_nightly(tools)?;
        if !Task::new("cargo +nightly miri --version").works() {
            let command = Task::new("rustup component add --toolchain nightly miri rust-src");
            tools.add("miri and rust-src for nightly Rust", &command)?;
        }
        // This builds the standard library, which may fail if nothing can be downloaded.
        Task::new("cargo +nightly miri setup").run()
    };
    if let Err(error) = ensure_miri(tools) {
        return tally.skip_until_installed(format_args!("the tests under Miri: {error:#}"));
    }
    Task::new("cargo +nightly miri test -p knockd-capture --lib ring::")
        .run_counting(tally, &mut anstream::stdout())
}

/// Runs each fuzz target for some seconds or, if cargo-fuzz is unavailable, at least the tests of their crate.
fn fuzz(tools: &mut Tools, tally: &mut Tally) -> Result<()> {
    if let Err(error) = ensure_cargo_fuzz(tools) {
        tally.skip_until_installed(format_args!("the fuzz targets: {error:#}"))?;
        return Task::new("cargo test --manifest-path fuzz/Cargo.toml")
            .run_counting(tally, &mut anstream::stdout());
    }
    let mut targets = BTreeSet::new();
    for entry in std::fs::read_dir(workspace_root().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            targets.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
        }
    }
    for target in targets {
        // libFuzzer writes its findings into the first directory: it must not be that of the committed seeds.
        let found = tools.target_directory().join("fuzz-found").join(&target);
        std::fs::create_dir_all(&found)?;
        let found = found.to_str().context("a path that is not UTF-8")?;
        let seeds = format!("fuzz/corpus/{target}");
        let seeds = if workspace_root().join(&seeds).exists() { seeds } else { String::new() };
        let limits = "-runs=20000 -max_total_time=10 -verbosity=0 -print_final_stats=1";
        let task = Task::new(&format!("cargo +nightly fuzz run {target}")).with_word(found);
        task.with_words(&format!("{seeds} -- {limits}")).run()?;
    }
    Ok(())
}

fn ensure_cargo_fuzz(tools: &mut Tools) -> Result<()> {
    tools.ensure_present(&[CXX])?;
    ensure_nightly(tools)?;
    if !Task::new("cargo fuzz --version").works() {
        tools.add("cargo-fuzz", &Task::new("cargo install cargo-fuzz --locked"))?;
    }
    Ok(())
}

pub(crate) fn ensure_nightly(tools: &mut Tools) -> Result<()> {
    if !Task::new("cargo +nightly --version").works() {
        tools.add("nightly Rust", &Task::new("rustup toolchain install nightly --profile minimal"))?;
    }
    Ok(())
}
