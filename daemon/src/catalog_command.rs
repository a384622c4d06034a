//! `sendense catalog …`: the administrator's hand on the catalog. The library
//! does the work; here are the words around it.

use crate::config::Config;
use crate::gate;
use crate::terminal::{table, wall_clock};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use sendense::catalog::{
    BackupSummary, Catalog, NewImage, Removed, RepositoryKind, ScanEvent, ScanOptions, ScanSummary,
};
use sendense::{Error, Result};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which backups there are.
#[derive(Debug, Args)]
pub(crate) struct CatalogArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find the images of a repository by the layout
    /// REPOSITORY/CONTEXT/disk-N/backup-VM-diskN-YYYYMMDD-HHMMSS.qcow2.
    Scan {
        /// The repository; recorded as one by this.
        repository: PathBuf,
        /// Its kind: local, nfs, cifs or immutable; found out where not said.
        #[arg(long)]
        kind: Option<RepositoryKind>,
        /// Believe that all images are gone where not one is found.
        #[arg(long)]
        all_gone: bool,
        /// Name the files that are not of the layout.
        #[arg(short, long)]
        verbose: bool,
    },
    /// Record one image in any other place.
    Add {
        /// The image, inside a repository.
        image: PathBuf,
        /// Name of the VM.
        #[arg(long, value_name = "NAME")]
        vm: String,
        /// Which of its disks, from 0.
        #[arg(long, value_name = "N")]
        disk: u32,
        /// The backup that it belongs to [default: backup-VM-SECONDS].
        #[arg(long, value_name = "ID")]
        backup: Option<String>,
        /// When it was taken, RFC 3339 [default: when the image was last written].
        #[arg(long, value_name = "TIME")]
        time: Option<jiff::Timestamp>,
        /// The VM's context, where several have its name.
        #[arg(long, value_name = "ID")]
        context: Option<String>,
        /// Format of the image: qcow2 or raw. Never guessed.
        #[arg(long, default_value = "qcow2")]
        format: String,
    },
    /// The directories that may hold images.
    Repository {
        #[command(subcommand)]
        command: RepositoryCommand,
    },
    /// List the backups, oldest first.
    List {
        /// Of this VM only.
        #[arg(long, value_name = "NAME")]
        vm: Option<String>,
        /// As JSON, in the API's shape.
        #[arg(long)]
        json: bool,
    },
    /// Remove rows from the catalog; images are never touched.
    Remove {
        #[command(flatten)]
        what: What,
    },
    /// Merge a JSON document, in the API's shapes, into the catalog.
    Import {
        /// The document; `-` is the standard input.
        file: PathBuf,
    },
    /// Write the catalog as a JSON document.
    Export {
        /// Where to; the standard output where not said.
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// This backup.
    backup_id: Option<String>,
    /// This VM, with all its backups.
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    /// All whose images are gone.
    #[arg(long)]
    gone: bool,
}

#[derive(Debug, Subcommand)]
enum RepositoryCommand {
    /// Record a directory as a repository.
    Add {
        /// The directory.
        path: PathBuf,
        /// local, nfs, cifs or immutable; found out where not said.
        #[arg(long)]
        kind: Option<RepositoryKind>,
    },
    /// List the repositories.
    List,
    /// Remove a repository's row; the directory is not touched.
    Remove {
        /// The directory.
        path: PathBuf,
    },
}

/// Runs a `catalog` command on the configuration's catalog.
///
/// # Errors
/// What the library says; a repository that overlaps the mountpoint; the output
/// cannot be written. A reader that has gone away (`… | head`) is no error.
pub(crate) fn run(args: &CatalogArgs, config: &Config) -> Result<()> {
    let catalog_path = &config.catalog_path();
    let repositories = &config.repositories;
    let apart = |path: &Path| gate::repositories_overlap(&config.mountpoint, [path]);
    let mut out = io::stdout().lock();
    let read_only = matches!(
        args.command,
        Command::List { .. }
            | Command::Export { .. }
            | Command::Repository {
                command: RepositoryCommand::List
            }
    );
    // Whoever only looks needs no right to write.
    let catalog = match Catalog::open(catalog_path) {
        Err(error) if read_only => Catalog::open_read_only(catalog_path).map_err(|_| error),
        opened => opened,
    }?;
    match &args.command {
        Command::Scan {
            repository,
            kind,
            all_gone,
            verbose,
        } => {
            let options = ScanOptions {
                kind: *kind,
                all_gone: *all_gone,
                ..ScanOptions::default()
            };
            apart(repository)?;
            let summary = scan(&catalog, repository, &options, *verbose)?;
            say(&mut out, &describe_scan(&summary, *verbose))
        }
        Command::Add {
            image,
            vm,
            disk,
            backup,
            time,
            context,
            format,
        } => {
            let new = NewImage {
                vm: vm.clone(),
                disk_index: *disk,
                image: image.clone(),
                backup: backup.clone(),
                time: time.map(|time| time.as_second()),
                context: context.clone(),
                format: format.clone(),
            };
            let backup = catalog.add_image(&new, repositories)?;
            say(
                &mut out,
                &format!("recorded as {}/{}/disk{disk}\n", plain(vm), plain(&backup)),
            )
        }
        Command::Repository { command } => {
            if let RepositoryCommand::Add { path, .. } = command {
                apart(path)?;
            }
            repository(&catalog, command, repositories, &mut out)
        }
        Command::List { vm, json } => {
            let backups = catalog.backup_summaries(vm.as_deref(), None)?;
            let text = if *json {
                as_json(&backups)?
            } else {
                as_table(&backups)
            };
            say(&mut out, &text)
        }
        Command::Remove { what } => {
            let removed = match (&what.backup_id, &what.vm) {
                (Some(id), _) => catalog.remove_backup(id)?,
                (None, Some(vm)) => catalog.remove_vm(vm)?,
                (None, None) => catalog.remove_gone()?,
            };
            say(&mut out, &describe_removed(&removed))
        }
        Command::Import { file } => {
            let summary = if file.as_os_str() == "-" {
                catalog.import(io::stdin().lock(), &apart)?
            } else {
                let name = file.display().to_string();
                let document = std::fs::File::open(file).map_err(|e| Error::io(name, e))?;
                catalog.import(document, &apart)?
            };
            say(
                &mut out,
                &format!(
                    "imported {} repositories, {} VM contexts, {} VM disks, {} backups, {} backup \
                     disks\n",
                    summary.repositories,
                    summary.vm_contexts,
                    summary.vm_disks,
                    summary.backups,
                    summary.backup_disks
                ),
            )
        }
        Command::Export { file: None } => {
            let mut text = Vec::new();
            catalog.export(&mut text)?;
            say(&mut out, &String::from_utf8_lossy(&text))
        }
        Command::Export { file: Some(file) } => export(&catalog, file),
    }
}

/// Writes beside the file first, so that there is never half a document.
fn export(catalog: &Catalog, file: &Path) -> Result<()> {
    let fail = |e: io::Error| Error::io(file.display().to_string(), e);
    let mut beside = file.as_os_str().to_owned();
    beside.push(".partial");
    let beside = PathBuf::from(beside);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(fail)
        .and_then(|to| {
            let mut to = io::BufWriter::new(to);
            catalog.export(&mut to)?;
            to.into_inner()
                .map_err(|e| fail(e.into_error()))?
                .sync_all()
                .map_err(fail)
        })
        .and_then(|()| std::fs::rename(&beside, file).map_err(fail));
    if written.is_err() {
        // The error that matters is the one above.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn repository(
    catalog: &Catalog,
    command: &RepositoryCommand,
    configured: &[PathBuf],
    out: &mut dyn Write,
) -> Result<()> {
    match command {
        RepositoryCommand::Add { path, kind } => {
            let found = catalog.add_repository(path, *kind)?;
            let path = plain(&found.path.display().to_string());
            say(out, &format!("recorded {path} ({})\n", found.kind.name()))
        }
        RepositoryCommand::List => {
            let recorded = catalog.repositories()?;
            let mut rows = vec![["ID", "KIND", "FROM", "PATH"].map(str::to_owned)];
            for found in &recorded {
                rows.push([
                    found.id.to_string(),
                    found.kind.name().to_owned(),
                    "catalog".to_owned(),
                    plain(&found.path.display().to_string()),
                ]);
            }
            for path in configured {
                let real = path.canonicalize().unwrap_or_else(|_| path.clone());
                if !recorded.iter().any(|found| found.path == real) {
                    let path = plain(&path.display().to_string());
                    rows.push(["-".into(), "-".into(), "configuration".into(), path]);
                }
            }
            say(out, &table(&rows))
        }
        RepositoryCommand::Remove { path } => {
            catalog.remove_repository(path)?;
            let path = plain(&path.display().to_string());
            say(
                out,
                &format!("removed {path} from the catalog; the directory is untouched\n"),
            )
        }
    }
}

/// Scans with a spinner (which shows itself on a terminal only) and messages on
/// the standard error.
fn scan(
    catalog: &Catalog,
    repository: &Path,
    options: &ScanOptions,
    verbose: bool,
) -> Result<ScanSummary> {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    let name = |path: &Path| plain(&path.display().to_string());
    let summary = catalog.scan(repository, options, &mut |event| {
        let message = match event {
            ScanEvent::Found(count) => {
                if count % 64 == 0 {
                    spinner.set_message(format!("{count} images found"));
                }
                return;
            }
            ScanEvent::Examined { done, of } => {
                spinner.set_message(format!("{done} of {of} images read"));
                return;
            }
            ScanEvent::Unknown(_) if !verbose => return,
            ScanEvent::Unknown(path) => format!("{}: not of the layout; left out", name(path)),
            ScanEvent::Outside { path, target } => format!(
                "{}: is a link out of the repository, to {}; not followed",
                name(path),
                name(target)
            ),
            ScanEvent::Unreadable { path, reason } => {
                format!(
                    "{}: {}; what is known of it stays",
                    name(path),
                    plain(reason)
                )
            }
            ScanEvent::Failed { path, reason } => {
                format!("{}: {}", name(path), plain(reason))
            }
        };
        // Nobody reads the standard error: the summary still counts.
        spinner.suspend(|| {
            let _ = writeln!(io::stderr(), "{message}");
        });
    });
    spinner.finish_and_clear();
    summary
}

fn describe_scan(summary: &ScanSummary, verbose: bool) -> String {
    let mut text = format!(
        "{} images found: {} new, {} unchanged, {} changed, {} back again; {} gone, {} failed\n",
        summary.found,
        summary.new,
        summary.unchanged,
        summary.changed,
        summary.returned,
        summary.gone,
        summary.failed
    );
    let hint = if verbose { "" } else { " (-v names them)" };
    for (count, what) in [
        (
            summary.in_progress,
            "being written; scan again when they are complete",
        ),
        (summary.unknown, &*format!("other files left out{hint}")),
        (summary.outside, "links out of the repository not followed"),
        (summary.unreadable, "folders or files could not be read"),
    ] {
        if count > 0 {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{count} {what}");
        }
    }
    text
}

fn describe_removed(removed: &Removed) -> String {
    let mut text = format!(
        "removed from the catalog: {} VM contexts, {} backups, {} disks; no image was touched, and \
         a scan finds again what is there\n",
        removed.vm_contexts, removed.backups, removed.disks
    );
    if removed.orphans > 0 {
        let _ = writeln!(
            text,
            "{} incremental backups that build on them stay, and can be read as long as the images \
             are there",
            removed.orphans
        );
    }
    text
}

fn as_json(backups: &[BackupSummary]) -> Result<String> {
    #[derive(serde::Serialize)]
    struct Answer<'a> {
        backups: &'a [BackupSummary],
        total_count: usize,
    }
    let answer = Answer {
        backups,
        total_count: backups.len(),
    };
    let text = serde_json::to_string_pretty(&answer)
        .map_err(|e| Error::Catalog(format!("the list as JSON: {e}")))?;
    Ok(text + "\n")
}

fn as_table(backups: &[BackupSummary]) -> String {
    let head = ["VM", "BACKUP", "TYPE", "STATUS", "DISKS", "SIZE", "TAKEN"];
    let mut rows = vec![head.map(str::to_owned)];
    for backup in backups {
        let status = match backup.missing_disks {
            0 => backup.status.clone(),
            gone if gone == backup.disk_count => "gone".to_owned(),
            gone => format!("{} ({gone} gone)", backup.status),
        };
        let size = backup.total_size_gb.map(|size| format!("{size:.1} GB"));
        rows.push([
            plain(&backup.vm_name),
            plain(&backup.backup_id),
            backup.backup_type.clone(),
            status,
            backup.disk_count.to_string(),
            size.unwrap_or_else(|| "-".to_owned()),
            wall_clock(&backup.created_at),
        ]);
    }
    table(&rows)
}

/// A name from outside without control characters, which could command the
/// terminal.
fn plain(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

fn say(out: &mut dyn Write, text: &str) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("standard output", e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CommandLine;
    use crate::config::Sources;
    use clap::Parser;

    #[test]
    fn what_overlaps_the_mountpoint_is_not_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["outer/gate/backups", "other", "run"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        let document = at("document.json");
        std::fs::write(
            &document,
            format!(
                r#"{{"repositories": [{{"path": "{}"}}]}}"#,
                at("outer").display()
            ),
        )
        .unwrap();
        let run = |words: &[&str]| {
            let options = [
                ("--mountpoint", at("outer/gate/backups")),
                ("--state-dir", at("state")),
                ("--runtime-dir", at("run")),
            ];
            let options = options
                .into_iter()
                .flat_map(|(flag, path)| [flag.into(), path.into_os_string()]);
            let line = ["sendense", "catalog"].into_iter().chain(words.to_vec());
            let line = line.map(std::ffi::OsString::from).chain(options);
            let line = CommandLine::try_parse_from(line).unwrap();
            let sources = Sources {
                flags: line.overrides,
                ..Sources::default()
            };
            let config = Config::load(&sources).unwrap();
            let crate::Command::Catalog(args) = line.command else {
                panic!("another command");
            };
            let outcome = super::run(&args, &config);
            let catalog = Catalog::open(&config.catalog_path()).unwrap();
            (outcome, config, catalog)
        };
        let path = |name: &str| at(name).to_str().unwrap().to_owned();
        for words in [
            ["repository", "add", &path("outer")].as_slice(),
            &["repository", "add", &path("outer/gate/backups")],
            &["scan", &path("outer/gate")],
            &["scan", &path("other/../outer")],
            &["import", document.to_str().unwrap()],
        ] {
            let (outcome, config, catalog) = run(words);
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("overlap"), "{words:?}: {error}");
            assert_eq!(catalog.repositories().unwrap(), [], "{words:?}");
            gate::recorded_overlap(&config, &catalog).unwrap();
        }
        let (outcome, config, catalog) = run(&["scan", &path("other"), "--all-gone"]);
        outcome.unwrap();
        gate::recorded_overlap(&config, &catalog).unwrap();
        // One that is there all the same keeps the daemon from serving.
        catalog.add_repository(&at("outer"), None).unwrap();
        let error = gate::recorded_overlap(&config, &catalog).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("catalog repository remove /"), "{error}");
    }
}
