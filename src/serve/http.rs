//! `/metrics`, `/healthz` and `/readyz`, on a small runtime in a thread of its own.
//!
//! Invariant: whatever happens here, the topology runs on: a port that is taken is a warning of `run`.
//! Invariant: handlers only read memory; the brokers are asked by another thread.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::oneshot;

use super::{Metrics, Result, ServeError, Watched};

/// The lag is looked up this often.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

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
        let router = router(Arc::clone(&metrics));
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    served = axum::serve(listener, router) => {
                        if let Err(error) = served {
                            tracing::warn!("metrics are no longer served: {error}");
                        }
                    }
                    _ = stopped => {}
                }
            });
        };
        let thread =
            std::thread::Builder::new().name("http".into()).spawn(serve).map_err(ServeError::Http)?;
        let (watching, closed) = channel();
        let watch = move || {
            loop {
                metrics.refresh_lag();
                match closed.recv_timeout(LAG_INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
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
                tracing::info!("metrics at http://{}/metrics", server.address);
                Some(server)
            }
            Err(error) => {
                tracing::warn!("metrics and health are not served: {error}");
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

fn router(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
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
