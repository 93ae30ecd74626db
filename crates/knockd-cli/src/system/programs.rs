//! Which program a door's command starts with, and whether it exists.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Words that the shell itself knows (POSIX.1-2024, sections 2.4, 2.9.1.4 and 2.15), so no program has to exist.
const OF_THE_SHELL: [&str; 33] = [
    ":", ".", "!", "[", "{", "alias", "break", "case", "cd", "command", "continue", "echo", "eval", "exec",
    "exit", "export", "false", "for", "if", "kill", "printf", "pwd", "read", "return", "set", "shift",
    "test", "trap", "true", "umask", "until", "wait", "while",
];

/// Where the shell looks by default under service managers.
const SYSTEM: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Returns the program of a command if it is missing or not executable.
///
/// Only a plain first word is checked, and after `sudo` the next one; anything that the shell has to expand is not.
pub fn missing(command: &str) -> Option<&str> {
    let mut words = command.split_whitespace().skip_while(|word| is_assignment(word));
    let program = words.next().filter(|word| is_plain(word))?;
    if !is_there(program) {
        return Some(program);
    }
    let runs_another = Path::new(program).file_name().is_some_and(|name| name == "sudo");
    let other = words.next().filter(|word| runs_another && is_plain(word) && !word.starts_with('-'))?;
    (!is_there(other)).then_some(other)
}

fn is_there(program: &str) -> bool {
    let can_run = |path: &Path| {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return can_run(Path::new(program));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    OF_THE_SHELL.contains(&program)
        || env::split_paths(&path)
            .chain(SYSTEM.map(PathBuf::from))
            .any(|directory| can_run(&directory.join(program)))
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

/// Says whether the shell takes the word literally.
fn is_plain(word: &str) -> bool {
    word.chars().all(|c| c.is_alphanumeric() || "/._-+:[".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_named() {
        for (command, expected) in [
            ("/usr/sbin/no-such-program -I", Some("/usr/sbin/no-such-program")),
            ("no-such-program", Some("no-such-program")),
            ("LANG=C A=1 no-such-program x", Some("no-such-program")),
            ("/etc/passwd is no program", Some("/etc/passwd")),
            ("/bin is none", Some("/bin")),
            ("sh -c 'no-such-program'", None),
            ("/bin/sh -c true", None),
            ("echo no-such-program", None),
            ("[ -e /no/such/file ] && x", None),
            ("$PROGRAM", None),
            ("(no-such-program)", None),
            ("'no such program'", None),
            ("if true; then x; fi", None),
        ] {
            assert_eq!(missing(command), expected, "{command}");
        }
    }
}
