//! `cargo xtask`: tasks for developers and CI.
//!
//! `checks` runs the steps of `cargo xtask test`, some of them in the `machine`; each is a `task`, and the `tally`
//! counts its tests. `client` compiles `knock` for other systems. `tools` finds and installs the programs that all of this needs.

mod bench;
mod checks;
mod client;
mod conformance;
mod demo;
mod firewall;
mod firewalls;
mod machine;
mod public_api;
mod tally;
mod task;
mod tools;

use std::process::ExitCode;

use clap::Parser;

/// Tasks for developing knockd
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Arguments {
    /// Open and close a port by knocking, between two hosts made of namespaces, and explain each step
    ///
    /// Needs Linux and Rust, and runs as root, or as a plain user where the kernel allows user namespaces. It changes
    /// nothing on this machine, except that, as root, it installs iproute2 if it is missing, and
    /// iptables if knockd's own firewall does not work here.
    Demo,
    /// Run every check that must pass; the last line is `N passed, N failed, N skipped`
    ///
    /// Needs root. It stops at the first failing check and shows the command that repeats it. Missing tools are
    /// installed with the system's package manager and rustup; nothing is removed, and no service is enabled or
    /// started. What cannot run on this machine is skipped and counted; with CI=true, a skip counts as a failure if the
    /// missing tool could be installed.
    Test {
        /// Run only the expensive tests, such as floods and kills, at full size and one at a time, and print their
        /// figures
        ///
        /// It needs two idle processors, and takes an hour or so. Without this option, the same tests run at about a
        /// hundredth of their size.
        #[arg(long)]
        long: bool,
    },
    /// Benchmark knockd against the C program and write docs/benchmarks.md and its plots
    ///
    /// Needs root, and two idle processors for meaningful figures. Fails if a figure misses its target by more than a
    /// fifth. Where the machine cannot keep a packet rate, the highest rate it can keep is used instead and named in
    /// the results.
    Bench {
        /// Measure less, in about three minutes, and write nothing
        #[arg(long)]
        quick: bool,
    },
    /// Compare the public interface of knockd-core with crates/knockd-core/public-api.txt
    ///
    /// Needs a nightly toolchain and cargo-public-api, and installs both if they are missing.
    PublicApi {
        /// Rewrite the file instead
        #[arg(long)]
        write: bool,
    },
    /// Compare knockd with the C program rule by rule, and print a table: same, differs on purpose, not yet
    Conformance {
        /// Only rewrite the tables of docs/conformance.md from the rules
        #[arg(long)]
        write_page: bool,
    },
}

fn main() -> ExitCode {
    match Arguments::parse() {
        Arguments::Demo => match demo::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                anstream::eprintln!("\nThe demo failed: {error:#}");
                ExitCode::FAILURE
            }
        },
        Arguments::PublicApi { write } => match public_api::run(write) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                anstream::eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        },
        Arguments::Test { long } => checks::run(long),
        Arguments::Bench { quick } => bench::run(quick),
        Arguments::Conformance { write_page } => conformance::run(write_page),
    }
}
