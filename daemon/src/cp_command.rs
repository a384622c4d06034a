//! `sendense cp`: copies out of backups.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use sendense::filesystem::FileType;
use sendense::tree::{Detail, Tree};
use sendense::{Error, Result};

use crate::browse;
use crate::copy::{Copy, Options};
use crate::destination::{Folder, Name};
use crate::progress::{Progress, Total};
use crate::signals;

/// Arguments of `cp`.
///
/// Modes, times to the nanosecond, hard links, symbolic links, holes, extended
/// attributes and ACLs are always kept; owners, set-id bits and device files if
/// run as root.
#[derive(Debug, clap::Args)]
pub(crate) struct CpArgs {
    /// Copy folders with all that is in them
    #[arg(short = 'r', short_aliases = ['R'], visible_short_alias = 'a', long)]
    recursive: bool,
    /// Replace files that are there
    #[arg(short, long)]
    force: bool,
    /// Fail where the destination refuses an attribute, instead of warning once
    #[arg(long)]
    strict: bool,
    /// Show progress even if standard error is not a terminal
    #[arg(long)]
    progress: bool,
    /// What to copy (<vm>/<backup|latest>/disk<N>/…), then where to
    #[arg(required = true, num_args = 2.., value_names = ["SRC", "DEST"])]
    paths: Vec<OsString>,
}

/// Runs the command; what fails does not keep the rest back.
///
/// # Errors
/// When the destination cannot be used at all, or after Ctrl-C.
pub(crate) fn run(args: &CpArgs, tree: &Tree) -> Result<ExitCode> {
    let Some((dest, sources)) = args.paths.split_last() else {
        return Err(Error::Invalid("cp: nothing to copy".into()));
    };
    let dest = Path::new(dest);
    let (base, name) = place(dest, sources.len())?;
    let folder = Folder::open(&base).map_err(|e| Error::io(base.display().to_string(), e))?;
    let interrupted = signals::interruption()?;
    let options = Options {
        recursive: args.recursive,
        force: args.force,
        strict: args.strict,
        root: nix::unistd::geteuid().is_root(),
    };
    let total = Total::default();
    let shown = args.progress || std::io::stderr().is_terminal();
    let progress = Progress::new(std::io::stderr().is_terminal(), args.progress, &total);
    let over = AtomicBool::new(false);
    let failures = std::thread::scope(|scope| {
        if shown {
            let (total, over) = (&total, &over);
            scope.spawn(move || count(tree, sources, args.recursive, total, over));
        }
        let mut copy = Copy::new(tree, options, &folder, progress, &interrupted);
        for source in sources {
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
            if let Err(error) = one(&mut copy, tree, source, name.as_ref()) {
                copy.fail(source.as_bytes(), error);
            }
        }
        let failures = copy.finish();
        over.store(true, Ordering::Relaxed);
        failures
    });
    if interrupted.load(Ordering::Relaxed) {
        crate::terminal::complain("cp: interrupted; what was complete is kept");
        return Ok(ExitCode::from(130));
    }
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn one(copy: &mut Copy<'_>, tree: &Tree, source: &OsString, name: Option<&Name>) -> Result<()> {
    let path = browse::normalise(source)?;
    let node = browse::find(tree, &path)?;
    let name = match (name, path.rsplit(|b| *b == b'/').next()) {
        (Some(name), _) => name.clone(),
        (None, Some(last)) if !last.is_empty() => Name::new(last)?,
        _ => {
            return Err(Error::Invalid(
                "the tree of all backups has no name; copy to a folder that does not exist yet"
                    .into(),
            ));
        }
    };
    copy.copy(&path, &node, &name);
    Ok(())
}

/// The folder to copy into, and the name to give: none if it is the source's.
fn place(dest: &Path, sources: usize) -> Result<(PathBuf, Option<Name>)> {
    if dest.is_dir() {
        return Ok((dest.to_owned(), None));
    }
    let shown = dest.display();
    if sources > 1 {
        return Err(Error::Invalid(format!(
            "{shown}: must be a folder, to copy several into"
        )));
    }
    let Some(name) = dest.file_name() else {
        return Err(Error::Invalid(format!("{shown}: there is no such folder")));
    };
    let parent = match dest.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((parent.to_owned(), Some(Name::new(name.as_bytes())?)))
}

/// Counts what there is to copy; what cannot be read is the copy's to tell.
fn count(tree: &Tree, sources: &[OsString], recursive: bool, total: &Total, over: &AtomicBool) {
    let mut pending = Vec::new();
    for source in sources {
        let found = browse::normalise(source).and_then(|path| browse::find(tree, &path));
        if let Ok(node) = found {
            pending.push(node.attr.ino);
        }
    }
    let mut seen = HashSet::new();
    while let Some(ino) = pending.pop() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let Ok(node) = tree.node(ino) else { continue };
        match node.attr.kind {
            FileType::Directory if recursive && seen.insert(ino) => {
                let _ = tree.read_dir(ino, 0, Detail::Names, &mut |entry| {
                    pending.push(entry.ino);
                    ControlFlow::Continue(())
                });
            }
            FileType::Directory => {}
            kind => {
                total.files.fetch_add(1, Ordering::Relaxed);
                if kind == FileType::Regular {
                    total.bytes.fetch_add(node.attr.size, Ordering::Relaxed);
                }
            }
        }
    }
    total.complete.store(true, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_a_folder_or_a_new_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(place(dir.path(), 3).unwrap(), (dir.path().to_owned(), None));
        let new = dir.path().join("new");
        let wanted = (dir.path().to_owned(), Some(Name::new(b"new").unwrap()));
        assert_eq!(place(&new, 1).unwrap(), wanted);
        assert!(
            place(&new, 2)
                .unwrap_err()
                .to_string()
                .contains("must be a folder")
        );
        let (parent, _) = place(Path::new("not-there-at-all"), 1).unwrap();
        assert_eq!(parent, Path::new("."));
    }
}
