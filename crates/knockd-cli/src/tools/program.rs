//! The program with the commands that do not belong in the daemon's address space.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, anyhow};

/// Where it is, from the directory of this program: beside it, or where packages install it.
const PLACES: [&str; 2] = ["knockd-tools", "../libexec/knockd-tools"];

/// Becomes `knockd-tools` with the arguments of this program; returns only if that fails, and says why.
pub fn become_tools() -> anyhow::Error {
    let own = match std::env::current_exe()
        .context("cannot find the directory of this program; is /proc mounted?")
    {
        Ok(own) => own,
        Err(error) => return error,
    };
    let places = PLACES.map(|place| own.with_file_name(place));
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    // A link to this program under that name would run itself for ever.
    for place in places.iter().filter(|place| place.canonicalize().ok().as_ref() != Some(&own)) {
        let error = Command::new(place).arg0(&name).args(&arguments).exec();
        if error.kind() != io::ErrorKind::NotFound {
            return anyhow!(error).context(format!("cannot run {}", place.display()));
        }
    }
    let [beside, _] = &places;
    anyhow!("this command needs {}, which is missing; install it there", beside.display())
}
