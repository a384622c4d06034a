//! `sendense status`: what the running daemon does.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use sendense::{Error, Result};

use crate::config::{Config, show_size};
use crate::control::{Client, Status};
use crate::terminal;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// That no daemon runs, or does not answer.
pub(crate) fn run(args: &StatusArgs, config: &Config) -> Result<ExitCode> {
    let status = Client::new(config).status()?;
    let text = if args.json {
        let json = serde_json::to_string_pretty(&status)
            .map_err(|e| Error::Invalid(format!("the status cannot be written as JSON: {e}")))?;
        json + "\n"
    } else {
        show(&status, jiff::Timestamp::now().as_second())
    };
    terminal::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The status as a page for people; `now` in seconds since 1970.
fn show(status: &Status, now: i64) -> String {
    let mut out = String::new();
    let Status {
        slots,
        cache,
        totals,
        ..
    } = status;
    let lookups = cache.hits.saturating_add(cache.misses);
    let found = match cache.hits.saturating_mul(100).checked_div(lookups) {
        Some(percent) => format!(", {percent} % of {lookups} look-ups found"),
        None => String::new(),
    };
    let held = if slots.held > 0 {
        format!(", {} held by mounts", slots.held)
    } else {
        String::new()
    };
    let lines = [
        format!(
            "sendense {} (process {}), up {}, {} of memory",
            status.version,
            status.pid,
            ago(now, status.started_at),
            show_size(status.rss)
        ),
        format!("tree   {}", terminal::harmless(&status.mountpoint)),
        format!("slots  {} of {} used{held}", slots.used, slots.total),
        format!(
            "cache  {} of {} in {} blocks{found}",
            show_size(cache.bytes),
            show_size(cache.capacity),
            cache.blocks
        ),
        format!(
            "so far {} attached, {} evicted, {} read in {} reads, {} errors",
            totals.attaches,
            totals.evictions,
            show_size(totals.bytes),
            totals.reads,
            totals.errors
        ),
    ];
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
    if status.attached.is_empty() {
        out.push_str("\nNo disk is attached.\n");
        return out;
    }
    let head = [
        "DISK",
        "STATE",
        "SINCE",
        "LAST USED",
        "USES",
        "READ",
        "REQUESTS",
        "QEMU-NBD",
        "RESTARTS",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for disk in &status.attached {
        rows.push([
            terminal::harmless(&disk.path),
            terminal::harmless(&disk.state),
            ago(now, disk.since),
            ago(now, disk.last_used),
            disk.uses.to_string(),
            show_size(disk.bytes_read),
            disk.nbd_requests.to_string(),
            disk.qemu_nbd_pid.to_string(),
            disk.restarts.to_string(),
        ]);
    }
    out.push('\n');
    out.push_str(&table(&rows));
    out
}

/// Rows with their columns under each other.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    rows.iter().fold(String::new(), |mut out, row| {
        let line = row
            .iter()
            .zip(widths)
            .fold(String::new(), |mut line, (cell, width)| {
                let _ = write!(line, "{cell:width$}  ");
                line
            });
        let _ = writeln!(out, "{}", line.trim_end());
        out
    })
}

/// How long before `now` it was, in its two largest units.
fn ago(now: i64, then: i64) -> String {
    let seconds = u64::try_from(now.saturating_sub(then)).unwrap_or(0);
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{AttachedDisk, CacheFigures, SlotFigures, Totals};

    #[test]
    fn the_page_says_what_the_figures_say() {
        let disk = AttachedDisk {
            path: "web\x1b[2J/20250101-000000/disk0".into(),
            state: "attached".into(),
            since: 1_000,
            last_used: 1_090,
            uses: 17,
            bytes_read: 3 << 20,
            nbd_requests: 5,
            qemu_nbd_pid: 4711,
            ..AttachedDisk::default()
        };
        let status = Status {
            version: "0.1.0".into(),
            pid: 42,
            mountpoint: "/srv/x".into(),
            slots: SlotFigures {
                total: 8,
                used: 1,
                held: 0,
            },
            attached: vec![disk],
            cache: CacheFigures {
                capacity: 64 << 20,
                bytes: 1 << 20,
                blocks: 256,
                hits: 3,
                misses: 1,
            },
            totals: Totals {
                attaches: 2,
                evictions: 1,
                ..Totals::default()
            },
            rss: 10 << 20,
            started_at: 0,
        };
        let page = show(&status, 1_100);
        for wanted in [
            "sendense 0.1.0 (process 42), up 18m 20s, 10.0 MiB of memory",
            "slots  1 of 8 used\n",
            "75 % of 4 look-ups found",
            "2 attached, 1 evicted",
            "web\\u{1b}[2J/20250101-000000/disk0  attached  1m 40s  10s",
            "4711",
        ] {
            assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
        }
        let idle = Status {
            attached: Vec::new(),
            ..status
        };
        assert!(show(&idle, 1_100).contains("No disk is attached"));
    }
}
