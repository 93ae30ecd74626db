//! Users and groups of services, as listed in `/etc/passwd` and `/etc/group`.
//!
//! getpwnam(3) would look elsewhere as well, and load the modules for that into the process.

use nix::unistd::{Uid, User};

/// The user of an engine that executes nothing.
pub(crate) const ENGINE: &str = "knockd-engine";

/// Returns the ID of a user (passwd(5)).
pub(crate) fn user(name: &str) -> Option<u32> {
    number("/etc/passwd", name)
}

/// Returns the ID of a group (group(5)).
pub(crate) fn group(name: &str) -> Option<u32> {
    number("/etc/group", name)
}

/// Returns the name of any user, from other databases as well, which may take long.
pub(crate) fn name_of(user: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(user)).ok().flatten().map(|user| user.name)
}

fn number(file: &str, name: &str) -> Option<u32> {
    let known = std::fs::read_to_string(file).ok()?;
    fields(&known, name)?.next()?.parse().ok()
}

/// Returns the fields after the name and the password.
fn fields<'a>(known: &'a str, name: &str) -> Option<impl Iterator<Item = &'a str>> {
    let rest = known.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(rest.split(':').skip(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_whole_name() {
        let known = "root:x:0:0:root:/root:/bin/bash\nknockd2:x:9:9::/:\nknockd:x:107:112::/:/bin/false\n";
        let found = |name| fields(known, name).map(|fields| fields.take(2).collect::<Vec<_>>());
        assert_eq!(found("knockd"), Some(vec!["107", "112"]));
        assert_eq!(found("root"), Some(vec!["0", "0"]));
        assert_eq!(found("knock"), None);
    }

    #[test]
    fn the_numbers_are_those_that_the_system_says() {
        assert_eq!(user("root"), Some(0));
        assert_eq!(group("root"), Some(0));
        let nobody = nix::unistd::User::from_name("nobody").unwrap();
        assert_eq!(user("nobody"), nobody.map(|user| user.uid.as_raw()));
        assert_eq!(user("no such user"), None);
    }
}
