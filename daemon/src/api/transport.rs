//! Connections: accepted, limited, encrypted where there is a certificate, and
//! dropped when the client stalls.
//!
//! The idea: each connection is one task with one place among [`CONNECTIONS`]
//! ([`super::places`]); it has a time limit for the handshake, one for the head of each
//! request, and one for every write that does not go on. What has no answer by the end is
//! given [`LAST_ANSWERS`].

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use sendense::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower::ServiceExt;

use super::downloads::{Hangup, HungUp};
use super::places::{Place, Places};

/// Connections at once; one more closes the one that waits longest for its client.
const CONNECTIONS: usize = 512;
/// How long a client may take for the handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long it may take for the head of a request, the pause before it included.
const HEAD: Duration = Duration::from_secs(30);
/// The longest head of a request, in bytes; hyper may read as much again before it says so.
const HEAD_BYTES: usize = 64 << 10;
/// The most header fields.
const HEADERS: usize = 100;
/// How long answers under way may take at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How long a connection that makes room may take to send what it has.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// Reads the certificate and its key.
///
/// # Errors
/// `Invalid`, naming the file and what is wrong with it.
pub(super) fn tls(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let refuse = |file: &Path, why: String| Error::Invalid(format!("{}: {why}", file.display()));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| refuse(certificate, format!("no certificate (PEM): {e}")))?;
    if chain.is_empty() {
        return Err(refuse(certificate, "it holds no certificate (PEM)".into()));
    }
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| refuse(key, format!("no private key (PEM): {e}")))?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| refuse(key, format!("does not go with the certificate: {e}")))?;
    Ok(Arc::new(config))
}

/// How connections are served.
pub(super) struct Transport {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// A write that does not go on for so long ends the connection.
    pub(super) stall: Duration,
}

impl Transport {
    /// Serves until `end` becomes true.
    pub(super) async fn serve(self, router: Router, mut end: watch::Receiver<bool>) {
        let places = Places::new(CONNECTIONS);
        let acceptor = self.tls.map(TlsAcceptor::from);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = end.wait_for(|end| *end) => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("accepting a connection: {e}");
                    // No descriptors left, say: it would fail at once again.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let place = tokio::select! {
                place = places.take() => place,
                _ = end.wait_for(|end| *end) => break,
            };
            // Answers are written whole: nothing is gained by waiting for more.
            let _ = stream.set_nodelay(true);
            let socket = stream.as_fd().try_clone_to_owned();
            let (router, acceptor, end) = (router.clone(), acceptor.clone(), end.clone());
            let stall = self.stall;
            tokio::spawn(async move {
                let served = match acceptor {
                    None => converse(stream, address, router, stall, place, end).await,
                    Some(acceptor) => {
                        let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
                        let shaken = tokio::select! {
                            shaken = handshake => shaken,
                            () = place.must_go() => return,
                        };
                        match shaken {
                            Ok(Ok(stream)) => {
                                converse(stream, address, router, stall, place, end).await
                            }
                            Ok(Err(e)) => Err(e.into()),
                            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
                        }
                    }
                };
                if let Err(e) = served {
                    tracing::debug!(%address, "connection: {e}");
                    // Who is hung up on is to know it at once, and not after the megabytes
                    // that the kernel still has for them.
                    if let (Ok(socket), true) = (&socket, is_our_doing(e.as_ref())) {
                        let at_once = libc::linger {
                            l_onoff: 1,
                            l_linger: 0,
                        };
                        let _ = setsockopt(socket, sockopt::Linger, &at_once);
                    }
                }
            });
        }
        drop(self.listener);
        let _ = tokio::time::timeout(LAST_ANSWERS, places.all(CONNECTIONS)).await;
    }
}

type Served = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Whether a connection was ended by us, and by no fault.
fn is_our_doing(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<HungUp>())
}

async fn converse<S>(
    stream: S,
    address: SocketAddr,
    router: Router,
    stall: Duration,
    place: Place,
    mut end: watch::Receiver<bool>,
) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    // Reading has its limits above: a download must not end because the client has
    // nothing to say.
    stream.set_write_timeout(Some(stall));
    let hangup = Hangup::default();
    let given = hangup.clone();
    let seat = place.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(ConnectInfo(address));
        request.extensions_mut().insert(given.next());
        request.extensions_mut().insert(seat.clone());
        let answering = seat.answering();
        let answer = router.clone().oneshot(request);
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| answering.during(body)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = pin!(connection);
    let makes_room = tokio::select! {
        served = connection.as_mut() => return Ok(served?),
        () = hangup.wanted() => return Err(HungUp("ended").into()),
        () = place.must_go() => true,
        _ = end.wait_for(|end| *end) => false,
    };
    if makes_room && !place.has_answered() {
        return Ok(());
    }
    connection.as_mut().graceful_shutdown();
    if makes_room {
        let ended = tokio::time::timeout(LAST_BYTES, connection).await;
        return Ok(ended.unwrap_or(Ok(()))?);
    }
    Ok(connection.await?)
}
