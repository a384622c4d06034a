//! Downloads: a file as it is, or files and folders as an archive.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jiff::Timestamp;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use sendense::catalog::{Action, AuditRecord, Mount, Outcome, Role};
use tokio::sync::mpsc;

use super::files::enter;
use super::size::{measure, within};
use crate::api::App;
use crate::api::answer::{Answer, ErrorBody, Failure, ReadRefusals};
use crate::api::caller::Caller;
use crate::api::downloads::{Download, Ended, Hangup, Ticket};
use crate::api::request::{Parameters, Segment};
use crate::api::stream::{ArchiveBody, FileBody, Word};
use crate::api::work::with_tree;
use crate::archive::{self, Format};
use crate::files::beneath::Beneath;
use crate::files::conditions::{self, Range};
use crate::files::content;
use crate::files::error::FilesError;
use crate::files::name::GuestPath;

/// Pieces of an archive that wait for the client.
const PIECES: usize = 2;
/// Bytes of paths that are recorded: what the record holds, with room for the rest.
const RECORDED: usize = 3500;
/// The most paths in one archive.
const PATHS: usize = 1000;

/// A place for a download, and its record.
///
/// # Errors
/// 503 if too many run.
fn begin(
    app: &Arc<App>,
    caller: &Caller,
    mount: &Mount,
    hangup: Hangup,
    what: What,
) -> Answer<Ticket> {
    let mut record = caller.record_on(what.action, mount);
    record.path = paths_on_record(&what.paths).into_iter().next();
    let download = Download {
        download_id: String::new(),
        mount_id: mount.id.clone(),
        vm_name: mount.vm_name.clone(),
        username: caller.name().to_owned(),
        paths: what.paths,
        format: what.format.into(),
        bytes_sent: 0,
        total_bytes: what.total,
        started_at: Timestamp::now().to_string(),
    };
    let kept = app.uses.keep(&mount.id);
    let noted = Arc::clone(app);
    let ended = move |end: &Ended| noted.recorder.note(last_record(record, end));
    app.downloads
        .begin(
            download,
            caller.holder(),
            kept,
            hangup,
            app.config.download_timeout,
            ended,
        )
        .ok_or_else(|| {
            Failure::later(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "{} downloads run already, as many as may; try again when one has ended",
                    app.downloads.most()
                ),
                10,
            )
        })
}

/// What was taken, for the record: one path as it is, several as JSON lists that fit into
/// a record each.
pub(super) fn paths_on_record(paths: &[String]) -> Vec<String> {
    if let [only] = paths {
        return vec![only.clone()];
    }
    let mut lists: Vec<Vec<&str>> = Vec::new();
    let mut length = usize::MAX;
    for path in paths {
        // Escapes may double it.
        let longer = path.len().saturating_mul(2).saturating_add(3);
        length = length.saturating_add(longer);
        match lists.last_mut() {
            Some(list) if length <= RECORDED => list.push(path),
            _ => {
                lists.push(vec![path]);
                length = longer;
            }
        }
    }
    let text = |list: &Vec<&str>| serde_json::to_string(list).unwrap_or_default();
    lists.iter().map(text).collect()
}

/// What is downloaded.
struct What {
    action: Action,
    paths: Vec<String>,
    format: &'static str,
    total: Option<u64>,
}

/// The record of a download that has ended.
fn last_record(mut record: AuditRecord, end: &Ended) -> AuditRecord {
    record.at = Timestamp::now();
    record.bytes = Some(end.bytes);
    record.outcome = match end.outcome {
        "complete" => Outcome::Ok,
        "failed" => Outcome::Failed,
        _ => Outcome::Cancelled,
    };
    record.detail = Some(match &end.detail {
        Some(detail) => format!("{}: {detail}", end.outcome),
        None => end.outcome.to_owned(),
    });
    record
}

/// Records that a download begins, each path of it.
///
/// # Errors
/// 503 if it cannot be recorded.
async fn record(
    app: &App,
    caller: &Caller,
    mount: &Mount,
    what: Action,
    paths: &[String],
) -> Answer<()> {
    for path in paths_on_record(paths) {
        let record = AuditRecord {
            path: Some(path),
            detail: Some("begun".into()),
            ..caller.record_on(what, mount)
        };
        app.recorder.write(record).await?;
    }
    Ok(())
}

/// The bytes of a file, or of a part of it.
#[utoipa::path(get, path = "/api/v1/restore/{mount_id}/download", tag = "Downloads",
    params(
        ("mount_id" = String, Path, description = "The mount"),
        ("path" = String, Query, min_length = 1, description = "The file"),
        ("Range" = Option<String>, Header, description = "One range of bytes"),
        ("If-Range" = Option<String>, Header, description = "The range only if the file is still this one (ETag or time)"),
        ("If-None-Match" = Option<String>, Header, description = "304 if the file is still this one"),
    ),
    responses(
        (status = 200, description = "The file; Content-Type by its name", content((Vec<u8> = "*/*")), headers(
            ("Content-Disposition" = String, description = "The file's name (RFC 6266)"),
            ("ETag" = String, description = "Names the file as it is, for If-Range and If-None-Match"),
            ("Last-Modified" = String, description = "Not there where HTTP has no such date"),
            ("Accept-Ranges" = String, description = "bytes"))),
        (status = 206, description = "The range", content((Vec<u8> = "*/*")), headers(
            ("Content-Range" = String, description = "Which bytes of how many"),
            ("ETag" = String, description = "As with 200"))),
        (status = 304, description = "The client has it already"),
        (status = 412, body = ErrorBody, description = "The file is another one than If-Match or If-Unmodified-Since says"),
        (status = 413, body = ErrorBody, description = "Larger than max_file_size"),
        (status = 416, body = ErrorBody, description = "The file has no such range", headers(
            ("Content-Range" = String, description = "How many bytes it has"))),
        ReadRefusals))]
pub(crate) async fn file(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    Extension(hangup): Extension<Hangup>,
    method: Method,
    headers: HeaderMap,
    parameters: Parameters,
) -> Answer<Response> {
    caller.must_be(Role::Operator)?;
    parameters
        .bytes("path")?
        .filter(|path| !path.is_empty())
        .ok_or_else(|| Failure::bad_request("the parameter `path` is missing"))?;
    let path = GuestPath::parse(parameters.bytes("path")?.unwrap_or_default())?;
    let (asked, who, wanted) = (Arc::clone(&app), caller.clone(), path.clone());
    let (mount, content) = with_tree(move || {
        let (mount, root) = enter(&asked, &who, &id)?;
        Ok((mount, content::open_file(&root, &wanted)?))
    })
    .await?;
    if let Some(most) = app.config.max_file_size
        && content.size > most
    {
        return Err(Failure::too_large(format!(
            "{} has {} bytes, and at most {most} may be downloaded at once (max_file_size)",
            path.display(),
            content.size
        )));
    }
    let mut response = Response::new(Body::empty());
    let head = response.headers_mut();
    set(head, header::ETAG, &content.etag);
    if let Some(modified) = content.last_modified() {
        set(head, header::LAST_MODIFIED, &modified);
    }
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (matched, unmodified) = (text(header::IF_MATCH), text(header::IF_UNMODIFIED_SINCE));
    if conditions::is_another(matched, unmodified, content.state()) {
        return Err(Failure::new(
            StatusCode::PRECONDITION_FAILED,
            "the file is another one than If-Match or If-Unmodified-Since says",
        ));
    }
    let (none_match, since) = (text(header::IF_NONE_MATCH), text(header::IF_MODIFIED_SINCE));
    if conditions::not_modified(none_match, since, content.state()) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let (range, condition) = (text(header::RANGE), text(header::IF_RANGE));
    let (start, end) = match conditions::range(range, condition, content.state(), content.size) {
        Range::Whole => (0, content.size),
        Range::Part { first, last } => {
            let value = format!("bytes {first}-{last}/{}", content.size);
            set(response.headers_mut(), header::CONTENT_RANGE, &value);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            (first, last.saturating_add(1))
        }
        Range::Unsatisfiable => return Err(Failure::no_such_range(content.size)),
    };
    let (head, name) = (response.headers_mut(), path.name().unwrap_or_default());
    set(head, header::CONTENT_TYPE, content::content_type(name));
    set(
        head,
        header::CONTENT_DISPOSITION,
        &content::disposition(name),
    );
    let length = HeaderValue::from(end.saturating_sub(start));
    head.insert(header::CONTENT_LENGTH, length);
    if method == Method::HEAD {
        return Ok(response);
    }
    let what = What {
        action: Action::Download,
        paths: vec![path.display()],
        format: "file",
        total: Some(end.saturating_sub(start)),
    };
    let (action, taken) = (what.action, what.paths.clone());
    let ticket = begin(&app, &caller, &mount, hangup, what)?;
    record(&app, &caller, &mount, action, &taken).await?;
    let body = FileBody::new(content.file, start, end, ticket);
    let body = body.begin().await;
    let body = body.map_err(|e| FilesError::new(path.display(), e))?;
    *response.body_mut() = Body::new(body);
    Ok(response)
}

fn set(head: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        head.insert(name, value);
    }
}

/// The formats of archives.
const FORMATS: &[(&str, Format)] = &[
    ("zip", Format::Zip),
    ("tar.gz", Format::TarGz),
    ("tar.zst", Format::TarZst),
];

/// The paths of a request: one folder, or several of anything.
pub(super) fn paths(parameters: &Parameters) -> Answer<Vec<GuestPath>> {
    let given: Vec<&[u8]> = parameters.all("path").collect();
    if given.len() > PATHS {
        return Err(Failure::bad_request(format!(
            "more than {PATHS} paths; take the folder that holds them"
        )));
    }
    if given.is_empty() {
        return Ok(vec![GuestPath::root()]);
    }
    Ok(given
        .into_iter()
        .map(GuestPath::parse)
        .collect::<Result<_, _>>()?)
}

/// Files and folders as one archive, written while it is sent. What cannot be read is
/// listed in the archive; an error in the middle breaks the connection.
#[utoipa::path(get, path = "/api/v1/restore/{mount_id}/download-directory", tag = "Downloads",
    params(
        ("mount_id" = String, Path, description = "The mount"),
        ("path" = Option<Vec<String>>, Query, description = "The folder; given several times: files and folders"),
        ("format" = inline(Option<Format>), Query, description = "The kind of archive; zip if nobody says"),
    ),
    responses(
        (status = 200, description = "The archive", content((Vec<u8> = "application/zip"), (Vec<u8> = "application/gzip"), (Vec<u8> = "application/zstd")), headers(
            ("Content-Disposition" = String, description = "The archive's name (RFC 6266)"))),
        (status = 413, body = ErrorBody, description = "Larger than max_archive_size"),
        (status = 505, body = ErrorBody, description = "Asked by HTTP/1.0, whose clients cannot tell a whole archive from a part"),
        ReadRefusals))]
pub(crate) async fn directory(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    Extension(hangup): Extension<Hangup>,
    (method, version): (Method, Version),
    parameters: Parameters,
) -> Answer<Response> {
    caller.must_be(Role::Operator)?;
    if version < Version::HTTP_11 {
        // The end of the connection would be the end of the archive, however it came.
        return Err(Failure::new(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "an archive needs HTTP/1.1; a proxy must speak it too (nginx: proxy_http_version 1.1)",
        ));
    }
    let format = parameters.word("format", FORMATS)?.unwrap_or(Format::Zip);
    let paths = paths(&parameters)?;
    let (asked, who, wanted) = (Arc::clone(&app), caller.clone(), paths.clone());
    let (mount, root) = with_tree(move || {
        let (mount, root) = enter(&asked, &who, &id)?;
        for path in &wanted {
            look(&root, path, wanted.len() == 1)?;
        }
        Ok((mount, root))
    })
    .await?;
    // Until the ticket keeps it.
    let _kept = app.uses.keep(&mount.id);
    let total = match app.config.max_archive_size {
        None => None,
        Some(most) => Some(within(measure(&app, &root, &paths).await?, most)?),
    };
    let stem = match paths.as_slice() {
        [only] => only.name().map(<[u8]>::to_vec),
        _ => None,
    };
    let mut name = stem
        .unwrap_or_else(|| format!("{}-disk{}", mount.backup_id, mount.disk_index).into_bytes());
    name.extend_from_slice(b".");
    name.extend_from_slice(format.extension().as_bytes());
    let disposition = content::disposition(&name);
    let kind = HeaderValue::from_static(format.content_type());
    let head = [
        (header::CONTENT_TYPE, kind),
        (
            header::CONTENT_DISPOSITION,
            HeaderValue::try_from(disposition).map_err(Failure::internal)?,
        ),
        (header::ACCEPT_RANGES, HeaderValue::from_static("none")),
    ];
    if method == Method::HEAD {
        return Ok((head, Body::empty()).into_response());
    }
    let what = What {
        action: Action::Archive,
        paths: paths.iter().map(GuestPath::display).collect(),
        format: format.extension(),
        total,
    };
    let (action, taken) = (what.action, what.paths.clone());
    let ticket = begin(&app, &caller, &mount, hangup, what)?;
    record(&app, &caller, &mount, action, &taken).await?;
    let body = write_archive(&app, root, &paths, format, ticket)?;
    Ok((head, Body::new(body)).into_response())
}

/// That a path is there, and is a folder if it must be.
pub(super) fn look(root: &Beneath, path: &GuestPath, must_be_folder: bool) -> Answer<()> {
    let failed = |e| FilesError::new(path.display(), e);
    let place = root.open(&path.relative(), OFlag::O_PATH).map_err(failed)?;
    let stat = fstat(&place).map_err(|e| failed(e.into()))?;
    if must_be_folder && stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
        return Err(Failure::bad_request(format!(
            "{}: is not a folder; download it as a file",
            path.display()
        )));
    }
    Ok(())
}

pub(super) fn names(paths: &[GuestPath]) -> Vec<Vec<Vec<u8>>> {
    let names = |path: &GuestPath| path.names().map(<[u8]>::to_vec).collect();
    paths.iter().map(names).collect()
}

/// Starts the thread that writes an archive.
fn write_archive(
    app: &Arc<App>,
    root: Beneath,
    paths: &[GuestPath],
    format: Format,
    ticket: Ticket,
) -> Answer<ArchiveBody> {
    let (sender, pieces) = mpsc::channel(PIECES);
    let job = archive::Job {
        root,
        paths: names(paths),
        format,
        limit: app.config.max_archive_size,
    };
    let app = Arc::clone(app);
    // Set by the body's end, whatever that is: the thread then ends within a block.
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    std::thread::Builder::new()
        .name("archive".into())
        .spawn(move || {
            let mut output = Pieces(sender);
            let last = match archive::write(&job, &app.pool, &mut output, &ended) {
                Ok(summary) => Word::Complete(missing(&summary)),
                Err(error) => Word::Failed(error.to_string()),
            };
            let _ = output.0.blocking_send(last);
        })
        .map_err(Failure::internal)?;
    Ok(ArchiveBody::new(pieces, ticket, over))
}

/// What of an archive could not be read.
fn missing(summary: &archive::Summary) -> Option<String> {
    let count = summary.left_out;
    (count > 0).then(|| format!("{count} could not be read; the archive lists them"))
}

/// Gives pieces to the connection, and waits while it takes none.
struct Pieces(mpsc::Sender<Word>);

impl archive::Output for Pieces {
    fn put(&mut self, piece: Bytes) -> io::Result<()> {
        self.0
            .blocking_send(Word::Piece(piece))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
