//! `sendense audit`: what was done by whom, the newest last, as a log reads.

use crate::config::Config;
use crate::terminal;
use clap::Args;
use jiff::Timestamp;
use sendense::catalog::{Action, AuditFilter, AuditRecord, Catalog};
use sendense::{Error, Result};

/// Which records; all that is given has to fit.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Of this user; commands on this host are those of local:NAME.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Of this kind, such as login, login_failed, mount, download, archive.
    #[arg(long)]
    action: Option<Action>,
    /// About this VM.
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    /// About this backup.
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// About this mount.
    #[arg(long, value_name = "ID")]
    mount: Option<String>,
    /// Not before this time: RFC 3339, or how long ago, such as 2h or 7d.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// The newest N of them.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command on the configuration's catalog.
///
/// # Errors
/// What the catalog says; the output cannot be written.
pub(crate) fn run(args: &AuditArgs, config: &Config) -> Result<()> {
    let path = &config.catalog_path();
    // Whoever only looks needs no right to write.
    let catalog =
        Catalog::open(path).or_else(|error| Catalog::open_read_only(path).map_err(|_| error))?;
    let mut records = catalog.audit(&AuditFilter {
        user: args.user.clone(),
        action: args.action,
        vm_name: args.vm.clone(),
        backup_id: args.backup.clone(),
        mount_id: args.mount.clone(),
        since: args.since,
        until: args.until,
        before_id: None,
        limit: args.limit,
    })?;
    records.reverse();
    let text = if args.json {
        as_json(&records)?
    } else {
        as_table(&records)
    };
    terminal::print(&text)
}

/// A time, or how long ago one was.
fn time(text: &str) -> std::result::Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    humantime::parse_duration(text)
        .ok()
        .and_then(|ago| Timestamp::now().checked_sub(ago).ok())
        .ok_or_else(|| {
            "must be RFC 3339, such as 2025-10-08T18:00:00Z, or how long ago, such as 2h".into()
        })
}

fn as_json(records: &[AuditRecord]) -> Result<String> {
    #[derive(serde::Serialize)]
    struct Answer<'a> {
        records: &'a [AuditRecord],
        count: usize,
    }
    let answer = Answer {
        records,
        count: records.len(),
    };
    let text = serde_json::to_string_pretty(&answer)
        .map_err(|e| Error::Catalog(format!("the records as JSON: {e}")))?;
    Ok(text + "\n")
}

fn as_table(records: &[AuditRecord]) -> String {
    let head = ["TIME", "USER", "FROM", "ACTION", "OUTCOME", "BYTES", "WHAT"];
    let mut rows = vec![head.map(str::to_owned)];
    for record in records {
        let bytes = record.bytes.map(|bytes| bytes.to_string());
        let or_none = |text: &str| match text {
            "" => "-".to_owned(),
            text => terminal::harmless(text),
        };
        rows.push([
            terminal::wall_clock(&record.at.to_string()),
            or_none(&record.user),
            or_none(&record.address),
            record.action.to_string(),
            record.outcome.to_string(),
            bytes.unwrap_or_else(|| "-".into()),
            or_none(&what(record)),
        ]);
    }
    terminal::table(&rows)
}

/// `vm/backup/disk0: /path (detail)`, as far as it is known.
fn what(record: &AuditRecord) -> String {
    let disk = record.disk_index.map(|index| format!("disk{index}"));
    let place: Vec<&str> = [&record.vm_name, &record.backup_id, &disk]
        .into_iter()
        .filter_map(|part| part.as_deref())
        .collect();
    let mut text = place.join("/");
    for (before, part, after) in [(": ", &record.path, ""), (" (", &record.detail, ")")] {
        match part {
            Some(part) if text.is_empty() => text.push_str(part),
            Some(part) => text.extend([before, part, after]),
            None => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_harmless_line() {
        let mut record = AuditRecord::now(Action::Download, "anna", "192.0.2.1");
        record.at = "2025-10-08T10:00:00.042Z".parse().unwrap();
        record.vm_name = Some("vm".into());
        record.backup_id = Some("b-1".into());
        record.disk_index = Some(0);
        record.path = Some("/a\nb\x1b[2J\u{202e}".into());
        record.bytes = Some(12);
        record.detail = Some("range".into());
        let text = as_table(&[record.clone()]);
        assert_eq!(text.lines().count(), 2, "{text}");
        let line = text.lines().last().unwrap();
        assert!(
            line.ends_with("vm/b-1/disk0: /a\\nb\\u{1b}[2J\\u{202e} (range)"),
            "{line}"
        );
        assert!(
            line.contains("anna  192.0.2.1  download  ok       12"),
            "{line}"
        );
        let bare = AuditRecord {
            detail: Some("removed bert".into()),
            ..AuditRecord::now(Action::UserRemoved, "local:root", "")
        };
        let text = as_table(&[bare]);
        assert!(
            text.contains("local:root  -     user_removed  ok       -      removed bert"),
            "{text}"
        );
    }

    #[test]
    fn a_time_is_one_or_how_long_ago() {
        assert_eq!(
            time("2025-10-08T12:00:00+02:00").unwrap().as_second(),
            1_759_917_600
        );
        let ago = Timestamp::now().as_second() - time("2h").unwrap().as_second();
        assert!((7199..7202).contains(&ago));
        for wrong in ["", "yesterday", "2x", "99999999999y"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
