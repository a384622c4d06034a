//! Logs: one line each on standard error, chosen by the key `log`.

use std::io::IsTerminal;

use sendense::{Error, Result};
use tracing_subscriber::EnvFilter;

/// The filter that `text` stands for.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(crate) fn filter(text: &str) -> std::result::Result<EnvFilter, String> {
    // The FUSE library warns of what is no fault, for example that the tree was
    // unmounted before it could do so itself.
    EnvFilter::builder()
        .parse(format!("fuser=error,{text}"))
        .map_err(|e| format!("{text:?} is not a log filter: {e}"))
}

/// Starts logging with the filter `text`; colours only on a terminal.
///
/// # Errors
/// `Invalid` for a bad filter, or when logging was started before.
pub(crate) fn start(text: &str) -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(filter(text).map_err(Error::Invalid)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|e| Error::Invalid(format!("logging: {e}")))
}
