//! The object store that checkpoints are copied to: it fails now and then, and a process may crash while it asks.
//!
//! Invariant: objects are durable once they are put, and shared by all machines.

use std::fmt;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::process::Process;

#[derive(Debug)]
pub struct Objects {
    inner: Arc<InMemory>,
    process: Weak<Process>,
}

impl Objects {
    pub fn new(inner: &Arc<InMemory>, process: &Arc<Process>) -> Self {
        Self { inner: Arc::clone(inner), process: Arc::downgrade(process) }
    }

    fn edge(&self, what: &str) -> Result<()> {
        let lives = self.process.upgrade().is_some_and(|process| process.asks_objects(what));
        let source = || Box::new(std::io::Error::other("the object store does not answer"));
        if lives {
            Ok(())
        } else {
            Err(object_store::Error::Generic { store: "simulated", source: source() })
        }
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

#[async_trait]
impl ObjectStore for Objects {
    async fn put_opts(&self, to: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.edge("puts an object")?;
        let put = self.inner.put_opts(to, payload, options).await;
        self.edge("has put an object")?;
        put
    }
    async fn put_multipart_opts(
        &self,
        to: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(to, options).await
    }
    async fn get_opts(&self, from: &Path, options: GetOptions) -> Result<GetResult> {
        self.edge("gets an object")?;
        self.inner.get_opts(from, options).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.edge("deletes an object") {
            Ok(()) => self.inner.delete_stream(paths),
            Err(error) => Box::pin(futures::stream::once(async { Err(error) })),
        }
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.edge("lists objects") {
            Ok(()) => self.inner.list(prefix),
            Err(error) => Box::pin(futures::stream::once(async { Err(error) })),
        }
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
