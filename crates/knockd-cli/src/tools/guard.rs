//! `knockd guard`: closing the ports of doors without a daemon.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use knockd_core::config::{Firewall, Parsed};

use crate::args::GuardArgs;
use crate::firewall;
use crate::system::config_file::ConfigFile;

/// Loads, prints or removes the rules.
///
/// # Errors
/// When the configuration is unusable or has no firewall, or the kernel refuses.
pub fn run(arguments: &GuardArgs) -> anyhow::Result<()> {
    if arguments.remove {
        return firewall::remove().context("cannot open the ports");
    }
    let Parsed { config, .. } = ConfigFile::read(&arguments.config, Path::new(""))?.parse()?;
    if config.options.firewall == Firewall::None {
        bail!("{}: `Firewall = nftables` is missing in `[options]`", arguments.config.display());
    }
    if arguments.check {
        return write!(anstream::stdout(), "{}", firewall::text(&config)).context("cannot print");
    }
    firewall::guard(&config).context("cannot close the ports")
}
