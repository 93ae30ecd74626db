//! `knockd guard`: closing the ports of doors without a daemon.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use knockd_core::config::{Firewall, Parsed};
use nix::errno::Errno;

use crate::args::GuardArgs;
use crate::firewall;
use crate::system::config_file::ConfigFile;

/// Loads, prints or removes the rules.
///
/// # Errors
/// When the configuration is unusable or has no firewall, or the kernel refuses.
pub fn run(arguments: &GuardArgs) -> anyhow::Result<()> {
    if arguments.remove {
        return firewall::remove().map_err(|error| explain(error).context("cannot open the ports"));
    }
    let Parsed { config, .. } = ConfigFile::read(&arguments.config, Path::new(""))?.parse()?;
    if config.options.firewall == Firewall::None {
        bail!("{}: `Firewall = nftables` is missing in `[options]`", arguments.config.display());
    }
    if arguments.check {
        return write!(anstream::stdout(), "{}", firewall::text(&config)).context("cannot print");
    }
    firewall::guard(&config).map_err(|error| explain(error).context("cannot close the ports"))
}

fn explain(error: Errno) -> anyhow::Error {
    match error {
        Errno::EPERM => anyhow!("permission denied; run this as root, and while knockd is not running"),
        error => anyhow!("{}", error.desc()),
    }
}
