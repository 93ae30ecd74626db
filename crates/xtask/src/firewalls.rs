//! Real ufw, firewalld and fail2ban for tests, in a root directory of their own.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::task::Task;
use crate::tools::Tools;

/// Unpacks them, unless an earlier run has.
///
/// # Errors
///
/// When the system's packages are not Debian's, or they are unavailable.
pub(crate) fn unpack(tools: &mut Tools) -> Result<()> {
    let directory = tools.target_directory().join("tools/firewalls");
    if directory.join("root").exists() {
        return Ok(());
    }
    ensure!(Tools::refresh_debian()?, "only Debian's packages are known here");
    fs::create_dir_all(&directory)?;
    let script = directory.join("unpack.sh");
    fs::write(&script, include_str!("firewalls/unpack.sh"))?;
    let text = |path: &std::path::Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
    let unpack = Task::new("sh").with_word(&text(&script)?).with_word(&text(&directory)?);
    tools.add(&format!("ufw, firewalld and fail2ban (unpacked into {})", directory.display()), &unpack)
}
