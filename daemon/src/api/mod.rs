//! `sendense api`: the HTTP side, a process of its own.
//!
//! The idea: it is a client like any other. It reads files through the mounted tree,
//! asks the daemon over its control socket, and keeps users and records in the catalog.
//! Everything that needs a right is opened first, then the rights are given up
//! ([`confine`]), and only then does it listen to anybody.
//!
//! - [`transport`] and [`places`]: connections; [`confine`]: what the process may;
//! - [`caller`]: who asks; [`request`] and [`answer`]: what goes in and out;
//! - [`routes`]: one file a subject; [`document`]: what describes them;
//! - [`work`]: what may wait, and how much of it at once;
//! - [`uses`] and [`downloads`]: what keeps a mount alive; [`record`]: the audit.

mod answer;
mod caller;
mod confine;
mod document;
mod downloads;
mod places;
mod record;
mod request;
mod routes;
mod stream;
mod transport;
mod uses;
mod work;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sendense::catalog::Catalog;
use sendense::{Error, Result, sys};
use tokio::sync::{Semaphore, watch};

use self::downloads::{Download, Downloads, Holder};
use self::record::Recorder;
use self::transport::Transport;
use self::uses::Uses;
use self::work::with_catalog;
use crate::archive;
use crate::auth::attempts::Attempts;
use crate::auth::password::Hasher;
use crate::auth::token::TokenKey;
use crate::config::Config;
use crate::control::Client;
use crate::process;
use crate::sidecar::Bond;
use crate::signals::Shutdown;

/// The exit code of sysexits.h for "the configuration is wrong": trying again is no use.
pub(crate) const EX_CONFIG: u8 = 78;
/// Connections to the catalog: as many requests read it at once.
const CATALOG_READERS: usize = 8;
/// Threads for what is limited by itself: health, folders that are counted.
const MORE_THREADS: usize = 16;
/// Passwords that are looked at at once: each takes 19 MiB and a core.
const HASHES: usize = 2;
/// How long a log-in waits for its turn.
const HASH_PATIENCE: Duration = Duration::from_secs(10);
/// How often the daemon is told which mounts are in use.
const TELL: Duration = Duration::from_secs(1);

/// What all requests share.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) daemon: Client,
    pub(crate) key: TokenKey,
    pub(crate) hasher: Hasher,
    pub(crate) attempts: Attempts,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) uses: Arc<Uses>,
    pub(crate) downloads: Arc<Downloads>,
    pub(crate) pool: archive::Pool,
    /// Places for folders to be counted.
    pub(crate) counting: Arc<Semaphore>,
    pub(crate) started: Instant,
    pub(crate) requests: routes::metrics::Requests,
    pub(crate) looks: routes::health::Looks,
    pub(crate) process: process::Watched,
}

/// Serves until a signal comes.
///
/// # Errors
/// What keeps it from serving.
pub(crate) fn run(config: &Config) -> Result<ExitCode> {
    match serve(config) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // What is wrong will be wrong again.
        Err(error @ Error::Invalid(_)) => {
            crate::terminal::complain(&error.to_string());
            Ok(ExitCode::from(EX_CONFIG))
        }
        Err(error) => Err(error),
    }
}

fn serve(config: &Config) -> Result<()> {
    sys::return_large_blocks();
    process::raise_open_files()?;
    let tls = match &config.tls {
        Some((certificate, key)) => Some(transport::tls(certificate, key)?),
        None => None,
    };
    let listener = listen(config)?;
    let key = TokenKey::load(&config.state_dir)?;
    let catalog = Arc::new(Catalog::open_ahead(
        &config.catalog_path(),
        CATALOG_READERS,
    )?);
    let watched = process::Watched::open()?;
    if catalog.users()?.is_empty() {
        tracing::warn!(
            "nobody can log in yet; make the first user: sendense user add admin --role admin"
        );
    }
    let bond = Bond::inherited()?;
    confine::confine(config)?;
    bond.renew()?;
    // Threads that are started from here on are confined as well.
    let shutdown = Shutdown::install()?;
    let app = Arc::new(App {
        daemon: Client::new(config),
        key,
        hasher: Hasher::new(HASHES, HASH_PATIENCE),
        attempts: Attempts::new(),
        recorder: Arc::new(Recorder::start(
            Arc::clone(&catalog),
            config.audit_retention,
        )?),
        uses: Arc::new(Uses::default()),
        downloads: Downloads::new(config.max_downloads),
        counting: Arc::new(Semaphore::new(routes::size::COUNTS)),
        pool: archive::Pool::new().map_err(|e| Error::io("threads for archives", e))?,
        started: Instant::now(),
        requests: routes::metrics::Requests::default(),
        looks: routes::health::Looks::default(),
        process: watched,
        catalog,
        config: config.clone(),
    });
    // A download reads two pieces at a time, and a few more where there are few.
    let threads = work::PLACES
        .saturating_add(MORE_THREADS)
        .saturating_add(config.max_downloads.saturating_mul(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(threads)
        .build()
        .map_err(|e| Error::io("the runtime of the HTTP side", e))?;
    let (ended, end) = watch::channel(false);
    let waiting = std::thread::Builder::new()
        .name("end".into())
        .spawn(move || {
            while shutdown.wait_for(Duration::from_secs(3600)).is_none() {}
            let _ = ended.send(true);
        })
        .map_err(|e| Error::io("the thread that waits for the end", e))?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)
            .map_err(|e| Error::io("the listening socket", e))?;
        tracing::info!(
            address = %config.listen,
            tls = tls.is_some(),
            "the HTTP side listens"
        );
        let telling = tokio::spawn(tell(Arc::clone(&app), end.clone()));
        let transport = Transport {
            listener,
            tls,
            stall: config.stall_timeout,
        };
        transport.serve(routes::router(&app), end).await;
        let _ = telling.await;
        Ok::<(), Error>(())
    })?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    let _ = waiting.join();
    app.recorder.finish();
    Ok(())
}

/// The socket, bound while that may need rights.
fn listen(config: &Config) -> Result<std::net::TcpListener> {
    let refuse = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AddrInUse => Error::io(
            format!(
                "{}: another program listens there; choose another address with `listen`",
                config.listen
            ),
            e,
        ),
        // It may come up later, as after a boot.
        std::io::ErrorKind::AddrNotAvailable => Error::io(
            format!("listen: {} is not an address of this host", config.listen),
            e,
        ),
        _ => Error::io(format!("listening at {}", config.listen), e),
    };
    let listener = std::net::TcpListener::bind(config.listen).map_err(refuse)?;
    listener.set_nonblocking(true).map_err(refuse)?;
    Ok(listener)
}

/// Whether a download's user may still take it, and its mount is there. What cannot be
/// found out stays as it is.
fn may_go_on(app: &App, holder: &Holder, what: &Download) -> bool {
    let session = app.catalog.session(holder.user, holder.generation, "");
    let granted = session.map_or(true, |session| {
        session.is_some_and(|session| session.vms.cover(&what.vm_name))
    });
    let mount = app.catalog.mount(&what.mount_id);
    granted && mount.map_or(true, |mount| mount.is_some_and(|mount| mount.is_live()))
}

/// Tells the daemon which mounts are in use, and ends downloads that have lost their
/// mount or their right, until the end.
async fn tell(app: Arc<App>, mut end: watch::Receiver<bool>) {
    loop {
        let last = tokio::select! {
            () = tokio::time::sleep(TELL) => false,
            _ = end.wait_for(|end| *end) => true,
        };
        let used = app.uses.take();
        if !used.is_empty() {
            let app = Arc::clone(&app);
            // A daemon that is being restarted is told the next time.
            let _ = tokio::task::spawn_blocking(move || {
                if app.daemon.touch(&used).is_err() {
                    app.uses.give_back(used);
                }
            })
            .await;
        }
        if last {
            return;
        }
        if app.downloads.count() > 0 {
            let app = Arc::clone(&app);
            let _ = with_catalog(move || {
                app.downloads
                    .retain(|holder, what| may_go_on(&app, holder, what));
                Ok(())
            })
            .await;
        }
    }
}
