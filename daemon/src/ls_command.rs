//! `sendense ls`: lists folders of backups as `ls` does.
//!
//! Owners are numbers: the guest's users are not this host's.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use sendense::Result;
use sendense::filesystem::{Attr, FileType, Time};
use sendense::tree::{Detail, Tree};

use crate::browse;
use crate::terminal::{self, output_failed};

/// Arguments of `ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// Type, mode, links, owner, group, size and time of each entry
    #[arg(short = 'l')]
    long: bool,
    /// Entries whose names begin with a dot, too
    #[arg(short = 'a')]
    all: bool,
    /// Folders inside folders, too
    #[arg(short = 'R')]
    recursive: bool,
    /// What to list: <vm>/<backup|latest>/disk<N>/…; all VMs if nothing is given
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
}

/// Runs the command; a path that fails does not keep the others back.
///
/// # Errors
/// When standard output fails.
pub(crate) fn run(args: &LsArgs, tree: &Tree) -> Result<ExitCode> {
    let mut listing = Listing {
        tree,
        args,
        raw: !terminal::is_terminal(),
        zone: TimeZone::system(),
        now: Timestamp::now().as_second(),
        headers: args.recursive || args.paths.len() > 1,
        first: true,
        failed: false,
    };
    let root = [OsString::new()];
    let paths = if args.paths.is_empty() {
        &root
    } else {
        args.paths.as_slice()
    };
    let mut folders = Vec::new();
    let mut files = Vec::new();
    for path in paths {
        let found = browse::normalise(path).and_then(|p| Ok((browse::find(tree, &p)?, p)));
        match found {
            Ok((node, path)) if node.attr.kind == FileType::Directory => {
                folders.push((node.attr.ino, path));
            }
            Ok((node, _)) => {
                files.push((
                    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec(),
                    node.attr,
                ));
            }
            Err(e) => listing.fail(&terminal::about(path.display(), e)),
        }
    }
    if !files.is_empty() {
        listing.print(&files)?;
        listing.first = false;
    }
    for (ino, path) in folders {
        listing.folder(ino, path)?;
    }
    Ok(if listing.failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

struct Listing<'a> {
    tree: &'a Tree,
    args: &'a LsArgs,
    raw: bool,
    zone: TimeZone,
    now: i64,
    headers: bool,
    first: bool,
    failed: bool,
}

impl Listing<'_> {
    fn fail(&mut self, sentence: &str) {
        terminal::complain(sentence);
        self.failed = true;
    }

    /// Lists a folder, and with `-R` those inside it. Not recursive, because the
    /// guest decides how deep its folders are; each folder once, because a
    /// damaged one may contain itself.
    fn folder(&mut self, ino: u64, path: Vec<u8>) -> Result<()> {
        let mut seen = HashSet::new();
        let mut pending = vec![(ino, path)];
        while let Some((ino, path)) = pending.pop() {
            if !seen.insert(ino) {
                self.fail(&format!(
                    "{}: this folder was listed before; its file system is damaged",
                    terminal::escape(&path)
                ));
                continue;
            }
            let entries = self.entries(ino, &path);
            if self.headers {
                self.header(&path)?;
            }
            self.first = false;
            self.print(&entries)?;
            if self.args.recursive {
                for (name, attr) in entries.iter().rev() {
                    if attr.kind == FileType::Directory && name != b"." && name != b".." {
                        let inside = if path.is_empty() {
                            name.clone()
                        } else {
                            [path.as_slice(), name].join(&b'/')
                        };
                        pending.push((attr.ino, inside));
                    }
                }
            }
        }
        Ok(())
    }

    fn header(&self, path: &[u8]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let gap = if self.first { "" } else { "\n" };
        let mut line = gap.as_bytes().to_vec();
        line.extend(self.shown(if path.is_empty() { b"." } else { path }));
        line.extend(b":\n");
        out.write_all(&line).map_err(output_failed)
    }

    /// The entries of a folder, by name; those that can be read.
    fn entries(&mut self, ino: u64, path: &[u8]) -> Vec<(Vec<u8>, Attr)> {
        let mut names: Vec<(Vec<u8>, u64)> = Vec::new();
        let all = self.args.all;
        let read = self.tree.read_dir(ino, 0, Detail::Names, &mut |entry| {
            if all || !entry.name.starts_with(b".") {
                names.push((entry.name.to_vec(), entry.ino));
            }
            ControlFlow::Continue(())
        });
        if let Err(e) = read {
            self.fail(&format!("{}: {e}", terminal::escape(path)));
        }
        names.sort();
        if all {
            let parent = self.tree.parent(ino).unwrap_or(ino);
            names.splice(0..0, [(b".".to_vec(), ino), (b"..".to_vec(), parent)]);
        }
        let mut entries = Vec::with_capacity(names.len());
        for (name, ino) in names {
            match self.tree.node(ino) {
                Ok(node) => entries.push((name, node.attr)),
                Err(e) => {
                    let path = [path, &name].join(&b'/');
                    self.fail(&format!("{}: {e}", terminal::escape(&path)));
                }
            }
        }
        entries
    }

    fn print(&mut self, entries: &[(Vec<u8>, Attr)]) -> Result<()> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if !self.args.long {
            for (name, _) in entries {
                let mut line = self.shown(name);
                line.push(b'\n');
                out.write_all(&line).map_err(output_failed)?;
            }
            return out.flush().map_err(output_failed);
        }
        let rows: Vec<[String; 5]> = entries.iter().map(|(_, attr)| columns(attr)).collect();
        let width = |column: usize| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(String::len)
                .max()
                .unwrap_or(0)
        };
        let (links, owner, group, size) = (width(1), width(2), width(3), width(4));
        let mut failures = Vec::new();
        for ((name, attr), [mode, l, o, g, s]) in entries.iter().zip(&rows) {
            let time = show_time(attr.mtime, self.now, &self.zone);
            let start = format!("{mode} {l:>links$} {o:<owner$} {g:<group$} {s:>size$} {time} ");
            let mut line = start.into_bytes();
            line.extend(self.shown(name));
            if attr.kind == FileType::Symlink {
                match self.tree.read_link(attr.ino) {
                    Ok(target) => {
                        line.extend(b" -> ");
                        line.extend(self.shown(&target));
                    }
                    Err(e) => failures.push(format!("{}: {e}", terminal::escape(name))),
                }
            }
            line.push(b'\n');
            out.write_all(&line).map_err(output_failed)?;
        }
        out.flush().map_err(output_failed)?;
        drop(out);
        failures.iter().for_each(|sentence| self.fail(sentence));
        Ok(())
    }

    /// A name as standard output may have it.
    fn shown(&self, name: &[u8]) -> Vec<u8> {
        if self.raw {
            name.to_vec()
        } else {
            terminal::escape(name).into_bytes()
        }
    }
}

/// Mode, links, owner, group, size (or device number).
fn columns(attr: &Attr) -> [String; 5] {
    let size = match attr.kind {
        FileType::CharDevice | FileType::BlockDevice => format!(
            "{}, {}",
            nix::sys::stat::major(attr.rdev),
            nix::sys::stat::minor(attr.rdev)
        ),
        _ => attr.size.to_string(),
    };
    [
        show_mode(attr.kind, attr.mode),
        attr.nlink.to_string(),
        attr.uid.to_string(),
        attr.gid.to_string(),
        size,
    ]
}

/// `drwxr-xr-x`, as `ls -l` writes it.
pub(crate) fn show_mode(kind: FileType, mode: u16) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::CharDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Socket => 's',
    });
    for (shift, special, set, unset) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// `Nov 20 12:34` within the last six months, else `Nov 20  2024`.
fn show_time(time: Time, now: i64, zone: &TimeZone) -> String {
    const HALF_YEAR: i64 = 31_556_952 / 2;
    match Timestamp::from_second(time.seconds) {
        Ok(timestamp) => {
            let recent = (now.saturating_sub(HALF_YEAR)..=now).contains(&time.seconds);
            let format = if recent { "%b %e %H:%M" } else { "%b %e  %Y" };
            timestamp
                .to_zoned(zone.clone())
                .strftime(format)
                .to_string()
        }
        // Beyond the year 9999.
        Err(_) => format!("{:>12}", format!("@{}", time.seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    #[test]
    fn modes_and_times_are_those_of_coreutils() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"").unwrap();
        let now = Timestamp::now().as_second();
        for (mode, seconds) in [
            (0o644, 0),
            (0o4755, now - 60),
            (0o4644, now - 200 * 86_400),
            (0o2711, now + 86_400),
            (0o1777, -86_400 * 365 * 60),
            (0o1770, 4_102_444_800),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let set = Command::new("touch")
                .arg(format!("-d@{seconds}"))
                .arg(&path)
                .status();
            assert!(set.unwrap().success());
            let ls = Command::new("ls")
                .env("LC_ALL", "C")
                .arg("-l")
                .arg(&path)
                .output()
                .unwrap();
            let ls = String::from_utf8(ls.stdout).unwrap();
            let mode = show_mode(FileType::Regular, u16::try_from(mode).unwrap());
            assert!(ls.starts_with(&mode), "{ls} is not {mode}");
            let time = Time {
                seconds,
                nanoseconds: 0,
            };
            let time = show_time(time, now, &TimeZone::system());
            assert!(ls.contains(&format!(" {time} ")), "{ls} has not {time}");
        }
        assert_eq!(
            show_time(
                Time {
                    seconds: i64::MAX,
                    nanoseconds: 0
                },
                0,
                &TimeZone::UTC
            )
            .len(),
            20
        );
    }
}
