//! The page, its API, `/metrics`, `/healthz` and `/readyz`, on a small runtime in a thread of its own.
//!
//! Invariant: whatever happens here, the topology runs on: a port that is taken is a warning of `run`.
//! Invariant: handlers only read memory; the brokers are asked by other threads.
//! Invariant: what one client can take is bounded: bytes and seconds of a request, seconds and number of connections.

use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, oneshot};

use super::guard::{Guard, Peer, guard};
use super::{Metrics, Result, ServeError, Watched, api, assets};

/// The lag is looked up this often,
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// and this often while somebody looks at the page.
const WATCHED_LAG_INTERVAL: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(500);
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What clients can take.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    pub connections_max: usize,
    /// The first line and the headers of a request; a longer one is refused.
    pub request_bytes_max: usize,
    /// A client that has not sent them by then is let go.
    pub request_patience: Duration,
    /// A connection serves requests for this long; then its last answer is sent, and it ends.
    pub connection_age_max: Duration,
    pub last_answer_patience: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            request_bytes_max: 16 << 10,
            request_patience: Duration::from_secs(5),
            connection_age_max: Duration::from_secs(60),
            last_answer_patience: Duration::from_secs(10),
        }
    }
}

/// After a connection could not be accepted, as without a free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Closed when the server is dropped; that ends the thread that looks lags up, once it is done waiting for
    /// the brokers.
    _watching: Sender<()>,
}

impl Server {
    /// Listens at `host:port`; port 0 takes any.
    pub fn start(listen: &str, watched: Arc<Watched>) -> Result<Server> {
        Self::start_within(listen, watched, ClientLimits::default())
    }

    pub(super) fn start_within(listen: &str, watched: Arc<Watched>, limits: ClientLimits) -> Result<Server> {
        let failed = |source| ServeError::Listen { listen: listen.to_string(), source };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Http)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(ServeError::Http)?
        };
        let metrics = Arc::new(Metrics::new(watched));
        let router = router(listen, Arc::clone(&metrics));
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(&listener, &router, limits) => {}
                    _ = stopped => {}
                }
            });
            // Who still waits for brokers is not waited for.
            runtime.shutdown_background();
        };
        let thread =
            std::thread::Builder::new().name("http".into()).spawn(serve).map_err(ServeError::Http)?;
        let (watching, closed) = channel();
        let watch = move || {
            loop {
                metrics.refresh_lag();
                let looked = Instant::now();
                let due = || match metrics.is_page_open() {
                    true => WATCHED_LAG_INTERVAL,
                    false => LAG_INTERVAL,
                };
                while looked.elapsed() < due() {
                    match closed.recv_timeout(TICK) {
                        Err(RecvTimeoutError::Timeout) => {}
                        Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            }
        };
        std::thread::Builder::new().name("lag".into()).spawn(watch).map_err(ServeError::Http)?;
        Ok(Server { address, stop: Some(stop), thread: Some(thread), _watching: watching })
    }

    /// For `run`: where nothing can be served, that is said, and the run goes on.
    pub fn start_or_warn(listen: &str, watched: Arc<Watched>) -> Option<Server> {
        match Self::start(listen, watched) {
            Ok(server) => {
                tracing::info!("metrics at http://{0}/metrics, the page at http://{0}/", server.address);
                Some(server)
            }
            Err(error) => {
                tracing::warn!("the page, metrics and health are not served: {error}");
                None
            }
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Nobody listens any more where serving has failed before.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers for ever.
async fn serve(listener: &tokio::net::TcpListener, router: &Router, limits: ClientLimits) {
    let free = Arc::new(Semaphore::new(limits.connections_max));
    loop {
        // Never closed, so there is always a permit to come.
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let router = router.clone().layer(Extension(Peer(peer)));
                tokio::spawn(async move {
                    connection(stream, router, limits).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!("an HTTP connection was not accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers the requests of one client. How it ends is the client's business.
async fn connection(stream: tokio::net::TcpStream, router: Router, limits: ClientLimits) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request_patience)
        .max_buf_size(limits.request_bytes_max);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(limits.connection_age_max) => connection.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(limits.last_answer_patience, connection).await;
}

fn router(listen: &str, metrics: Arc<Metrics>) -> Router {
    let guarded = axum::middleware::from_fn_with_state(Arc::new(Guard::new(listen)), guard);
    Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .merge(assets::routes())
        .merge(api::routes())
        .fallback(|| async { (StatusCode::NOT_FOUND, "There is nothing here; the page is at /.\n") })
        .layer(guarded)
        .with_state(metrics)
}

async fn render(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], metrics.render())
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> (StatusCode, String) {
    match metrics.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_string()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
