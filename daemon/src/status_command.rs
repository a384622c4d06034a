//! `sendense status`: what the running daemon does.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use sendense::{Error, Result};

use crate::config::{Config, show_size};
use crate::control::{ApiState, Client, Resources, Status};
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
    let mut lines = vec![
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
    lines.push(format!("api    {}", api_line(&status.api)));
    lines.extend(resource_lines(&status.resources));
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
        // One that is being attached has no times yet.
        let ago = |then| {
            if disk.since == 0 {
                "-".to_owned()
            } else {
                ago(now, then)
            }
        };
        rows.push([
            terminal::harmless(&disk.path),
            terminal::harmless(&disk.state),
            ago(disk.since),
            ago(disk.last_used),
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

fn api_line(api: &ApiState) -> String {
    let what = match (&*api.state, api.pid) {
        ("running", Some(pid)) => format!("running (process {pid}), listens on {}", api.listen),
        ("failed", _) => format!(
            "failed: {}",
            terminal::harmless(api.error.as_deref().unwrap_or_default())
        ),
        (state, _) => terminal::harmless(state),
    };
    match api.restarts {
        0 => what,
        restarts => format!("{what}, {restarts} restarts"),
    }
}

fn resource_lines(resources: &Resources) -> Vec<String> {
    let mut lines = Vec::new();
    let memory = resources
        .memory_available
        .map(|bytes| format!("{} of memory", show_size(bytes)));
    let descriptors = match (resources.descriptors_used, resources.descriptors_limit) {
        (Some(used), Some(limit)) => Some(format!(
            "{} of {limit} descriptors",
            limit.saturating_sub(used)
        )),
        _ => None,
    };
    let left: Vec<String> = memory.into_iter().chain(descriptors).collect();
    if !left.is_empty() {
        lines.push(format!("left   {}", left.join(", ")));
    }
    for space in &resources.spaces {
        let path = terminal::harmless(&space.path);
        let figures = match (space.free, space.total) {
            (Some(free), Some(total)) => {
                format!("{} of {} free", show_size(free), show_size(total))
            }
            _ => "free space unknown".into(),
        };
        let trouble = match (&space.error, space.age) {
            (None, _) => String::new(),
            (Some(error), None) => format!(" ({})", terminal::harmless(error)),
            (Some(error), Some(age)) => {
                format!(" {age}s ago ({})", terminal::harmless(error))
            }
        };
        lines.push(format!("space  {path}: {figures}{trouble}"));
    }
    lines
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
    use crate::control::{AttachedDisk, CacheFigures, SlotFigures, Space, Totals};

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
            api: ApiState {
                state: "running".into(),
                pid: Some(43),
                listen: "127.0.0.1:8082".into(),
                ..ApiState::default()
            },
            resources: Resources {
                memory_available: Some(2 << 30),
                descriptors_used: Some(24),
                descriptors_limit: Some(1024),
                spaces: vec![
                    Space {
                        path: "/var/lib/x".into(),
                        free: Some(1 << 30),
                        total: Some(4 << 30),
                        age: Some(1),
                        ..Space::default()
                    },
                    Space {
                        path: "/mnt/nas".into(),
                        error: Some("no answer for 9 s".into()),
                        ..Space::default()
                    },
                ],
            },
        };
        let page = show(&status, 1_100);
        for wanted in [
            "sendense 0.1.0 (process 42), up 18m 20s, 10.0 MiB of memory",
            "slots  1 of 8 used\n",
            "75 % of 4 look-ups found",
            "2 attached, 1 evicted",
            "web\\u{1b}[2J/20250101-000000/disk0  attached  1m 40s  10s",
            "4711",
            "api    running (process 43), listens on 127.0.0.1:8082\n",
            "left   2.0 GiB of memory, 1000 of 1024 descriptors\n",
            "space  /var/lib/x: 1.0 GiB of 4.0 GiB free\n",
            "space  /mnt/nas: free space unknown (no answer for 9 s)\n",
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
