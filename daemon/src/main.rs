//! `sendense`: every backup of every virtual machine as a folder.
//!
//! This file knows the commands and nothing else: it reads the command line and
//! the configuration, hands over to one module per command, and turns whatever
//! comes back into one sentence and an exit code (0: done; 1: failed, or failed
//! in part; 2: wrong usage; 130: interrupted).

mod api;
mod archive;
mod attachments;
mod audit_command;
mod auth;
mod browse;
mod cat_command;
mod catalog_command;
mod config;
mod config_command;
mod control;
mod copy;
mod cp_command;
mod destination;
mod doctor;
mod files;
mod gate;
mod handler;
mod leases;
mod logging;
mod ls_command;
mod process;
mod progress;
mod release_command;
mod restorable;
mod serve;
mod sidecar;
mod signals;
mod status_command;
mod terminal;
mod user_command;
mod watch;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sendense::{Error, Result};

use crate::config::{Config, Origin, Overrides, Sources};
use crate::serve::Backups;

/// Every backup of every virtual machine as a folder.
#[derive(Debug, Parser)]
#[command(name = "sendense", version, about, disable_help_subcommand = true)]
struct CommandLine {
    /// Configuration file [default: /etc/sendense/sendense.toml if it exists]
    #[arg(
        long,
        global = true,
        env = "SENDENSE_CONFIG",
        value_name = "FILE",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount the tree of backups and attach disks as they are used
    Serve,
    /// The HTTP side, which serve starts by itself unless told not to
    Api,
    /// What the running daemon does: attached disks, cache, reads
    Status(status_command::StatusArgs),
    /// Detach a disk of the running daemon now
    Release(release_command::ReleaseArgs),
    /// What this host lacks, and the command that mends it
    Doctor(doctor::DoctorArgs),
    /// List folders of a backup, without a mount
    Ls(ls_command::LsArgs),
    /// Print files of a backup, without a mount
    Cat(cat_command::CatArgs),
    /// Copy files and folders out of a backup, without a mount
    Cp(cp_command::CpArgs),
    /// Which backups there are: scan, add, list, remove, import, export
    Catalog(catalog_command::CatalogArgs),
    /// Who may use the HTTP side, and with which VMs
    User(user_command::UserArgs),
    /// What was done by whom
    Audit(audit_command::AuditArgs),
    /// The effective configuration, and where each value came from
    Config(config_command::ConfigArgs),
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        terminal::complain(&format!(
            "internal error at {place}: {}",
            panic_message(panic)
        ));
    }));
    let line = CommandLine::parse();
    match run(line) {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(Error::Io { what, source })
            if what == terminal::STDOUT && source.kind() == ErrorKind::BrokenPipe =>
        {
            ExitCode::from(141)
        }
        Err(error) => {
            terminal::complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn panic_message(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

fn run(line: CommandLine) -> Result<ExitCode> {
    let config = match Config::load(&Sources::of_process(line.config, line.overrides)) {
        Err(error) if matches!(line.command, Command::Api) => {
            terminal::complain(&error.to_string());
            return Ok(ExitCode::from(api::EX_CONFIG));
        }
        config => config?,
    };
    // A daemon tells what it does; a command speaks only when something is wrong.
    let quiet = config.origin("log") == &Origin::Default
        && !matches!(line.command, Command::Serve | Command::Api);
    logging::start(if quiet { "warn" } else { &config.log })?;
    match line.command {
        Command::Serve => serve::run(&config).map(|()| ExitCode::SUCCESS),
        Command::Api => api::run(&config),
        Command::Status(args) => status_command::run(&args, &config),
        Command::Release(args) => release_command::run(&args, &config),
        Command::Doctor(args) => doctor::run(&args, &config),
        Command::Ls(args) => ls_command::run(&args, &Backups::read(&config)?.tree),
        Command::Cat(args) => cat_command::run(&args, &Backups::read(&config)?.tree),
        Command::Cp(args) => cp_command::run(&args, &Backups::read(&config)?.tree),
        Command::Catalog(args) => catalog_command::run(&args, &config).map(|()| ExitCode::SUCCESS),
        Command::User(args) => user_command::run(&args, &config).map(|()| ExitCode::SUCCESS),
        Command::Audit(args) => audit_command::run(&args, &config).map(|()| ExitCode::SUCCESS),
        Command::Config(args) => config_command::run(&args, &config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn flags_are_taken_before_and_after_the_command() {
        for line in [
            ["sendense", "--slots", "3", "status"],
            ["sendense", "status", "--slots", "3"],
        ] {
            let line = CommandLine::try_parse_from(line).unwrap();
            let sources = Sources {
                flags: line.overrides,
                ..Sources::default()
            };
            assert_eq!(Config::load(&sources).unwrap().slots, 3);
        }
    }
}
