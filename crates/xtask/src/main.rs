//! `cargo xtask`: what developers and CI type.

mod bench;
mod checks;
mod conformance;
mod demo;
mod firewall;
mod machine;
mod tools;

use std::process::ExitCode;

use clap::Parser;

/// Shows and checks knockd
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Arguments {
    /// Knocks open and closes a port between two hosts made of namespaces, and tells what happens
    ///
    /// It needs Linux and Rust; as root, or as a plain user where the kernel allows user namespaces. Nothing is changed on
    /// this machine, except that root gets a missing firewall program or iproute2 installed.
    Demo,
    /// Runs every check that must pass, and ends with the line `N passed, N failed`
    ///
    /// It needs root. It stops at the first check that fails and shows the command that repeats it. Missing tools are
    /// installed through the system's package manager and rustup where that is possible, and named where it is not.
    Test,
    /// Measures our knockd beside the C program, prints the table, and writes docs/benchmarks.md with its plots
    ///
    /// It needs root and two processors that have nothing else to do. A figure that misses its target by more than a fifth makes it
    /// fail.
    Bench {
        /// Measure less, in less than two minutes, and write nothing
        #[arg(long)]
        quick: bool,
    },
    /// Compares our knockd with the C program, rule by rule, and prints a table: same, differs on purpose, not yet
    Conformance {
        /// Write the tables of docs/conformance.md anew from the rules, and compare nothing
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
        Arguments::Test => checks::run(),
        Arguments::Bench { quick } => bench::run(quick),
        Arguments::Conformance { write_page } => conformance::run(write_page),
    }
}
