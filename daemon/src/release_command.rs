//! `sendense release`: detaches a disk of the running daemon now.

use std::process::ExitCode;

use sendense::Result;

use crate::config::Config;
use crate::control::Client;
use crate::terminal;

/// Arguments of `release`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReleaseArgs {
    /// The disk: <vm>/<backup|latest>/disk<N>
    #[arg(value_name = "DISK")]
    disk: String,
}

/// Runs the command.
///
/// # Errors
/// What the daemon says, or that there is none.
pub(crate) fn run(args: &ReleaseArgs, config: &Config) -> Result<ExitCode> {
    let message = Client::new(config).release(args.disk.trim_matches('/'))?;
    terminal::print(&format!("{}\n", terminal::harmless(&message)))?;
    Ok(ExitCode::SUCCESS)
}
