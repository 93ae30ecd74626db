//! One suite, two programs: what knockd 0.8 does is checked on the C program and on ours by the same tests.
//!
//! A test is a [`Rule`]: a sentence for people who migrate, and a function that shows it. The function gets a [`Session`],
//! which is a server and a client of their own with one program under test, [`Subject::Ours`] or [`Subject::Theirs`], and
//! looks at it only from outside. [`suite::run`] runs every rule once for each program:
//!
//! - A rule that is [`Rule::same`] must pass for both.
//! - A rule that [`Rule::differs`] on purpose says what each program does with [`Session::pick`], and must pass for both. So
//!   a difference that disappears fails.
//! - A rule that is [`Rule::not_yet`] must pass for the C program and fail for ours. When it begins to pass, the suite
//!   fails until the mark is removed.
//!
//! The sentences become the tables of `docs/conformance.md`; the suite fails when the page is not what they make of it.
//!
//! The C program is `/usr/sbin/knockd`, or what the environment variable `KNOCKD_THEIRS` names, provided that it is
//! version 0.8; without it the rules run against ours only. `KNOCKD_OURS` names another binary in place of the
//! workspace's own.
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
