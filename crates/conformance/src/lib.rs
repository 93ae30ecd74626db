//! One suite, two programs: the same tests check the behaviour of knockd 0.8 on the C program and on ours.
//!
//! A test is a [`Rule`]: a sentence for people who migrate, and a function that shows it. The function gets a
//! [`Session`], which is a server and a client with one program under test, [`Subject::Ours`] or [`Subject::Theirs`],
//! and observes it only from outside. [`suite::run`] runs every rule once for each program:
//!
//! - A [`Rule::same`] must pass for both.
//! - A [`Rule::differs`], a deliberate difference, says what each program does with [`Session::pick`], and must pass
//!   for both. So a difference that disappears fails.
//! - A [`Rule::not_yet`] must pass for the C program and fail for ours. Once it passes, the suite fails until the
//!   mark is removed.
//!
//! The sentences become the tables of `docs/conformance.md`; the suite fails if the page does not match them.
//!
//! The C program is `/usr/sbin/knockd`, the one that `cargo xtask` has unpacked, or the path in the environment
//! variable `KNOCKD_THEIRS`, provided that it is version 0.8; without it the rules run only against ours. `KNOCKD_OURS`
//! replaces the workspace's own binary.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "tests are made of it"
)]

pub mod hits;
pub mod page;
mod rule;
mod session;
mod subject;
pub mod suite;

pub use rule::{Rule, Topic, Verdict};
pub use session::{CONFIG, Ended, LOG, SOON, Session, is_of_test};
pub use subject::Subject;
