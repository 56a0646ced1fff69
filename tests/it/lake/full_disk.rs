//! A disk that fills up while a version is written.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use headwater::lake::{Lake, LakeError, WriteLimits};
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};

use super::fixtures::{TABLE, by_origin_and_day, publish, read, rows, sorted, spec};

/// An object store that is full after so many bytes of file parts.
#[derive(Debug)]
struct Full {
    inner: InMemory,
    left: Arc<AtomicU64>,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full")
    }
}

type StoreResult<T> = object_store::Result<T>;

#[async_trait]
impl ObjectStore for Full {
    async fn put_opts(
        &self,
        location: &object_store::path::Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        location: &object_store::path::Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(FullUpload { inner, left: Arc::clone(&self.left) }))
    }
    async fn get_opts(
        &self,
        location: &object_store::path::Path,
        options: GetOptions,
    ) -> StoreResult<GetResult> {
        self.inner.get_opts(location, options).await
    }
    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<object_store::path::Path>>,
    ) -> BoxStream<'static, StoreResult<object_store::path::Path>> {
        self.inner.delete_stream(locations)
    }
    fn list(&self, prefix: Option<&object_store::path::Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(
        &self,
        prefix: Option<&object_store::path::Path>,
    ) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(
        &self,
        from: &object_store::path::Path,
        to: &object_store::path::Path,
        options: CopyOptions,
    ) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FullUpload {
    inner: Box<dyn MultipartUpload>,
    left: Arc<AtomicU64>,
}

#[async_trait]
impl MultipartUpload for FullUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let bytes = data.content_length() as u64;
        let taken =
            self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(bytes));
        if taken.is_ok() {
            return self.inner.put_part(data);
        }
        let source = Box::new(io::Error::from(io::ErrorKind::StorageFull));
        Box::pin(async move { Err(object_store::Error::Generic { store: "Full", source }) })
    }
    async fn complete(&mut self) -> StoreResult<PutResult> {
        self.inner.complete().await
    }
    async fn abort(&mut self) -> StoreResult<()> {
        self.inner.abort().await
    }
}

#[test]
fn lake_full_disk_is_named_with_the_file_and_leaves_nothing_visible() {
    let left = Arc::new(AtomicU64::new(u64::MAX));
    let lake = Lake::over(Arc::new(Full { inner: InMemory::new(), left: Arc::clone(&left) }), "disk");
    let manifest = publish(&lake, spec(by_origin_and_day()), 40, 10, 1);
    left.store(manifest.bytes / 2, Ordering::SeqCst);
    let named = |error: &LakeError| matches!(error, LakeError::Full { path } if path.starts_with("disk/gold/hourly_delay/v00000"));

    // Full when the last files are completed.
    let version = lake.begin(spec(by_origin_and_day())).unwrap();
    let mut writer = version.writer(0).unwrap();
    writer.write(&rows(0..40)).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(named(&error), "{error}");
    version.abandon().unwrap();

    // Full in the midst of writing: the rows of that batch are lost, so the writer must not finish.
    left.store(0, Ordering::SeqCst);
    let pressed = lake.clone().with_limits(WriteLimits { open_files: 1, buffered_bytes: 0 });
    let version = pressed.begin(spec(by_origin_and_day())).unwrap();
    let mut writer = version.writer(0).unwrap();
    let error = writer.write(&rows(0..40)).unwrap_err();
    assert!(named(&error), "{error}");
    left.store(u64::MAX, Ordering::SeqCst);
    assert!(matches!(writer.write(&rows(0..40)), Err(LakeError::Failed { task: 0, .. })));
    assert!(matches!(writer.finish(), Err(LakeError::Failed { .. })));
    version.abandon().unwrap();

    assert_eq!(lake.unpublished(TABLE).unwrap(), []);
    assert_eq!(lake.current(TABLE).unwrap(), Some(manifest.clone()));
    assert_eq!(sorted(&read(&lake, &manifest)), sorted(&[rows(0..40)]));
}
