//! `sendense cat`: files of backups to standard output.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use sendense::filesystem::FileType;
use sendense::tree::Tree;
use sendense::{Error, Result};

use crate::browse::{self, Stream};
use crate::terminal::{self, output_failed};

/// Arguments of `cat`.
#[derive(Debug, clap::Args)]
pub(crate) struct CatArgs {
    /// Files to print: <vm>/<backup|latest>/disk<N>/…
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

/// Runs the command; a file that fails does not keep the others back.
///
/// # Errors
/// When standard output fails.
pub(crate) fn run(args: &CatArgs, tree: &Tree) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    // Nothing to clean up: Ctrl-C simply ends the process.
    let never = AtomicBool::new(false);
    for path in &args.paths {
        match print(tree, path, &never) {
            Ok(()) => {}
            Err(e) if terminal::is_about_output(&e) => return Err(e),
            Err(e) => {
                terminal::complain(&terminal::about(path.display(), e));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn print(tree: &Tree, path: &std::ffi::OsStr, interrupted: &AtomicBool) -> Result<()> {
    let node = browse::find(tree, &browse::normalise(path)?)?;
    match node.attr.kind {
        FileType::Regular => {}
        FileType::Directory => return Err(Error::Invalid("is a directory".into())),
        FileType::Symlink => {
            let target = tree.read_link(node.attr.ino)?;
            return Err(Error::Invalid(format!(
                "is a symbolic link to {}; name the file itself",
                terminal::escape(&target)
            )));
        }
        _ => {
            return Err(Error::Invalid(
                "is a special file, which has no content".into(),
            ));
        }
    }
    let whole = std::iter::once(Ok(0..node.attr.size));
    let mut stream = Stream::new(tree, node.attr.ino, whole, interrupted);
    let mut out = std::io::stdout().lock();
    while let Some((_, data)) = stream.next()? {
        out.write_all(&data).map_err(output_failed)?;
    }
    out.flush().map_err(output_failed)
}
