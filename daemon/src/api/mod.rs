//! `sendense api`: the HTTP side.

use std::process::ExitCode;
use std::time::Duration;

use sendense::Result;

use crate::config::Config;
use crate::sidecar::Bond;
use crate::signals::Shutdown;

/// Runs until a signal comes.
///
/// # Errors
/// What keeps it from running.
pub(crate) fn run(config: &Config) -> Result<ExitCode> {
    let bond = Bond::inherited()?;
    let shutdown = Shutdown::install()?;
    bond.renew()?;
    tracing::info!(listen = %config.listen, "no HTTP side in this build; waiting for the end");
    while shutdown.wait_for(Duration::from_secs(60)).is_none() {}
    Ok(ExitCode::SUCCESS)
}
