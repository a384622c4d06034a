//! `sendense doctor`: what this host lacks, and the command that mends it.
//!
//! Each check looks at one thing, changes nothing, and ends in a [`Finding`].

mod checks;

use std::fmt::Write;
use std::process::ExitCode;

use sendense::{Error, Result};
use serde::Serialize;

use crate::config::Config;
use crate::terminal;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// It works, and could be faster.
    Hint,
    /// It works, but not as one would wish.
    Warn,
    /// The daemon cannot do its work.
    Fail,
}

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) check: String,
    /// How it is.
    pub(crate) level: Level,
    /// What was found, as a sentence.
    pub(crate) detail: String,
    /// The command that mends it, or what to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mend: Option<String>,
}

impl Finding {
    fn new(check: &str, level: Level, detail: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            level,
            detail: detail.into(),
            mend: None,
        }
    }

    fn ok(check: &str, detail: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, detail)
    }

    fn warn(check: &str, detail: impl Into<String>) -> Self {
        Self::new(check, Level::Warn, detail)
    }

    fn fail(check: &str, detail: impl Into<String>) -> Self {
        Self::new(check, Level::Fail, detail)
    }

    fn mend(self, command: impl Into<String>) -> Self {
        Self {
            mend: Some(command.into()),
            ..self
        }
    }
}

/// Runs the command; fails if a check does.
///
/// # Errors
/// When standard output fails.
pub(crate) fn run(args: &DoctorArgs, config: &Config) -> Result<ExitCode> {
    let findings = checks::all(config);
    let text = if args.json {
        let json = serde_json::to_string_pretty(&findings)
            .map_err(|e| Error::Invalid(format!("the findings cannot be written as JSON: {e}")))?;
        json + "\n"
    } else {
        show(&findings)
    };
    terminal::print(&text)?;
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn show(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|f| f.check.chars().count())
        .max()
        .unwrap_or(0);
    findings.iter().fold(String::new(), |mut out, finding| {
        let level = match finding.level {
            Level::Ok => "ok  ",
            Level::Hint => "hint",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        let detail = terminal::harmless(&finding.detail);
        let _ = writeln!(out, "{level}  {:width$}  {detail}", finding.check);
        if let Some(mend) = &finding.mend {
            let _ = writeln!(out, "      {:width$}  -> {}", "", terminal::harmless(mend));
        }
        out
    })
}
