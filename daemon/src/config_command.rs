//! `sendense config`: the effective configuration.

use std::process::ExitCode;

use sendense::Result;

use crate::config::{self, Config};
use crate::terminal;

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    /// Print what each key means and its default instead, as a commented file
    #[arg(long)]
    explain: bool,
}

/// Runs the command.
///
/// # Errors
/// When standard output fails.
pub(crate) fn run(args: &ConfigArgs, config: &Config) -> Result<ExitCode> {
    let text = if args.explain {
        config::explain()
    } else {
        config.to_toml()
    };
    terminal::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
