//! Object stores: a folder of this machine or a bucket of S3, opened by URL in this one place. What lies there,
//! and under which names, is for the rooms below to say.
//!
//! Callers are synchronous threads: [`Objects::wait`] drives a store's future to its end. A folder needs no
//! runtime for that; S3 brings one of its own.
//!
//! Invariant: an object is created whole or not at all, and `create` never replaces one.
//! Invariant: no wait is without end: requests time out, are tried again with growing pauses, and then fail.
//! Architecture invariant: credentials come from the config and nowhere else.

mod error;
mod location;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

pub use error::{ObjectError, Result, messages_of};
pub use location::Location;

use crate::config::S3;
use error::{explain, plain};
use location::Parsed;

/// S3 takes no part of an upload that is smaller, except the last.
const PART_BYTES_REMOTE: usize = 5 << 20;
const PART_BYTES_LOCAL: usize = 1 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One request, with its whole body: a part of an upload over a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// From a request's first attempt on; a store that is restarted is back by then.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const RETRIES_MAX: usize = 10;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long the first look at a store may take: someone waits for the command to start.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// What can be done without is asked for this long only,
const HURRY: Duration = Duration::from_secs(5);
/// … and not again for so long once that was in vain.
const HURRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// An open object store. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// The folder of a store on a local disk.
    folder: Option<PathBuf>,
    name: String,
    remote: Option<Arc<Remote>>,
    patience: Option<Patience>,
    hurried: bool,
}

/// What only a bucket has.
struct Remote {
    /// For messages: bucket and endpoint.
    place: String,
    bucket: String,
    runtime: Runtime,
    /// When something that can be done without was last asked for in vain.
    away: Mutex<Option<Instant>>,
}

/// How long somebody who waits for a store is still willing to. Shared between who waits and who decides.
#[derive(Clone)]
pub struct Patience(Arc<watch::Sender<Limits>>);

#[derive(Clone, Copy, Default)]
struct Limits {
    /// Nothing is waited for after this.
    until: Option<Instant>,
    /// No single request is waited for longer than this.
    each: Option<Duration>,
}

impl Limits {
    fn deadline(self, began: Instant) -> Option<Instant> {
        self.until.into_iter().chain(self.each.map(|each| began + each)).min()
    }
}

impl Patience {
    #[expect(clippy::new_without_default, reason = "a default would hide that each wait needs its own")]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Limits::default())))
    }

    /// From now on no longer than this in all.
    pub fn at_most(&self, rest: Duration) {
        let until = Instant::now() + rest;
        self.0.send_modify(|limits| {
            limits.until = Some(limits.until.map_or(until, |sooner| sooner.min(until)))
        });
    }

    /// From now on no longer than this for any one request: as long as there is progress, patience lasts.
    pub fn each_at_most(&self, limit: Duration) {
        self.0.send_modify(|limits| limits.each = Some(limit));
    }

    fn is_over(&self) -> bool {
        self.0.borrow().until.is_some_and(|until| until <= Instant::now())
    }

    /// Returns when a request that begins now is not waited for any longer.
    async fn over(&self) {
        let began = Instant::now();
        let mut limits = self.0.subscribe();
        loop {
            let deadline = limits.borrow_and_update().deadline(began);
            let changed = match deadline {
                None => limits.changed().await,
                Some(deadline) => tokio::select! {
                    changed = limits.changed() => changed,
                    () = tokio::time::sleep_until(deadline.into()) => return,
                },
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

impl Objects {
    /// Opens a folder, created if missing, or a bucket; of that nothing is asked yet: see [`Objects::check`].
    pub fn open(location: &Location) -> Result<Self> {
        let url = location.url.as_str();
        let refuse = |detail: String| ObjectError::Url { url: url.to_owned(), detail };
        match location::parse(url).map_err(refuse)? {
            Parsed::Folder(folder) => {
                std::fs::create_dir_all(&folder)?;
                let root = std::fs::canonicalize(&folder)?;
                let name =
                    root.to_str().ok_or_else(|| refuse("the path is not UTF-8".to_owned()))?.to_owned();
                let store =
                    LocalFileSystem::new_with_prefix(&root).map_err(plain)?.with_automatic_cleanup(true);
                Ok(Self { folder: Some(root), ..Self::over(Arc::new(store), &name) })
            }
            Parsed::Bucket { bucket, prefix } => {
                let store = bucket_of(&location.s3, &bucket).map_err(refuse)?;
                let prefix = ObjectPath::parse(&prefix).map_err(|error| refuse(error.to_string()))?;
                let runtime = Builder::new_multi_thread()
                    .worker_threads(1)
                    .thread_name("object-store")
                    .enable_all()
                    .build()?;
                let endpoint = location.s3.endpoint.as_deref().unwrap_or("AWS");
                let place = format!("{} at {endpoint}", url.trim_end_matches('/'));
                let remote = Remote { place, bucket, runtime, away: Mutex::new(None) };
                let store: Arc<dyn ObjectStore> = match prefix.as_ref().is_empty() {
                    true => Arc::new(store),
                    false => Arc::new(PrefixStore::new(store, prefix)),
                };
                Ok(Self { remote: Some(Arc::new(remote)), ..Self::over(store, url) })
            }
        }
    }

    /// Over any store whose futures need no particular runtime; `name` is what messages call it.
    pub fn over(store: Arc<dyn ObjectStore>, name: &str) -> Self {
        let name = name.trim_end_matches('/').to_owned();
        Self { store, folder: None, name, remote: None, patience: None, hurried: false }
    }

    /// The same store for someone whose patience may end.
    pub fn with_patience(&self, patience: &Patience) -> Self {
        Self { patience: Some(patience.clone()), ..self.clone() }
    }

    /// The same store for what can be done without: a bucket that does not answer soon is not waited for, and
    /// not even asked again for a while.
    pub fn hurried(&self) -> Self {
        Self { hurried: true, ..self.clone() }
    }

    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }
    /// The folder, where the store is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
    /// The folder's path or the bucket's URL, without a slash at its end.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// What is gathered of an upload before it is handed over.
    pub fn part_bytes(&self) -> usize {
        if self.remote.is_some() { PART_BYTES_REMOTE } else { PART_BYTES_LOCAL }
    }

    /// Asks the bucket for something, so that a wrong URL or key shows before work begins.
    pub fn check(&self) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let asked = async { self.store.list_with_delimiter(None).await.map(drop) };
        remote.wait(asked, CHECK_TIMEOUT)
    }

    /// Drives a future of the store to its end.
    pub fn wait<T>(&self, future: impl Future<Output = Result<T, object_store::Error>>) -> Result<T> {
        if self.patience.as_ref().is_some_and(Patience::is_over) {
            return Err(self.given_up());
        }
        let Some(remote) = &self.remote else { return block_on(future).map_err(plain) };
        if self.hurried {
            return remote.wait_in_a_hurry(future);
        }
        let over = async {
            match &self.patience {
                Some(patience) => patience.over().await,
                None => std::future::pending().await,
            }
        };
        let done = remote.runtime.block_on(async {
            tokio::select! { biased; done = future => Some(done), () = over => None }
        });
        match done {
            Some(done) => done.map_err(|error| remote.explain(error)),
            None => Err(self.given_up()),
        }
    }

    /// Creates an object in one step; false if there is another one already, or was a moment ago.
    pub fn create(&self, path: &ObjectPath, content: PutPayload) -> Result<bool> {
        let put = self.store.put_opts(path, content.clone(), PutMode::Create.into());
        match self.wait(put) {
            Ok(_) => Ok(true),
            // An answer that was lost: what is there may be what was sent.
            Err(ObjectError::AlreadyExists(_)) if self.remote.is_some() => {
                match self.wait(async { self.store.get(path).await?.bytes().await }) {
                    Ok(there) => Ok(content.iter().map(|part| part.len()).sum::<usize>() == there.len()
                        && content.iter().flatten().eq(there.iter())),
                    // Who created it has deleted it since.
                    Err(ObjectError::NotFound(_)) => Ok(false),
                    Err(error) => Err(error),
                }
            }
            Err(ObjectError::AlreadyExists(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn given_up(&self) -> ObjectError {
        let detail = "it was not waited for any longer".to_owned();
        ObjectError::Unreachable { place: self.name.clone(), detail }
    }
}

impl Remote {
    fn explain(&self, error: object_store::Error) -> ObjectError {
        explain(error, &self.place, &self.bucket)
    }

    fn wait<T>(
        &self,
        future: impl Future<Output = Result<T, object_store::Error>>,
        limit: Duration,
    ) -> Result<T> {
        match self.runtime.block_on(async { tokio::time::timeout(limit, future).await }) {
            Ok(done) => done.map_err(|error| self.explain(error)),
            Err(_) => Err(ObjectError::Unreachable {
                place: self.place.clone(),
                detail: format!("no answer within {} s", limit.as_secs()),
            }),
        }
    }

    fn wait_in_a_hurry<T>(&self, future: impl Future<Output = Result<T, object_store::Error>>) -> Result<T> {
        let away = || self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away().is_some_and(|at| at.elapsed() < HURRY_AGAIN_AFTER) {
            let detail = "it did not answer a moment ago".to_owned();
            return Err(ObjectError::Unreachable { place: self.place.clone(), detail });
        }
        let done = self.wait(future, HURRY);
        *away() = matches!(done, Err(ObjectError::Unreachable { .. })).then(Instant::now);
        done
    }
}

fn bucket_of(s3: &S3, bucket: &str) -> Result<object_store::aws::AmazonS3, String> {
    let (Some(key), Some(secret)) = (&s3.access_key_id, &s3.secret_access_key) else {
        return Err(
            "S3 needs credentials: set s3.access_key_id and s3.secret_access_key in the config, for example to \
             ${S3_KEY} and ${S3_SECRET}"
                .to_owned(),
        );
    };
    let plain_http = s3.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    if let Some(endpoint) = s3.endpoint.as_ref().filter(|endpoint| !endpoint.contains("://")) {
        return Err(format!("s3.endpoint is '{endpoint}': begin it with https:// or http://"));
    }
    let client = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
        .with_allow_http(plain_http);
    let backoff = BackoffConfig { init_backoff: BACKOFF_FIRST, max_backoff: BACKOFF_MAX, base: 2.0 };
    let retry = RetryConfig { backoff, max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&s3.region)
        .with_access_key_id(key)
        .with_secret_access_key(secret.reveal())
        .with_virtual_hosted_style_request(!s3.path_style)
        .with_client_options(client)
        .with_retry(retry);
    if let Some(token) = &s3.session_token {
        builder = builder.with_token(token.reveal());
    }
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    builder.build().map_err(|error| error.to_string())
}
