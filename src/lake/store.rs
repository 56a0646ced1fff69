//! The object store that a lake lies in. Callers are synchronous threads, so every call here blocks until it is
//! done.
//!
//! Invariant: an object is either whole or absent; `create` never replaces one.
//! Invariant: on a local disk, what `create` and `sync` have returned for survives a loss of power.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutPayload};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::error::{LakeError, Result, io_kind};
use crate::objects::{Location, ObjectError, Objects};

/// What a sequential read asks for at a time.
const READ_AHEAD_BYTES: u64 = 64 << 10;

#[derive(Clone)]
pub(super) struct Store {
    objects: Objects,
}

impl Store {
    /// Opens a folder, created if missing, or a bucket, which must be there.
    pub fn open(location: &Location) -> Result<Store> {
        let opened = Objects::open(location).and_then(|objects| objects.check().map(|()| objects));
        match opened {
            Ok(objects) => Ok(Store { objects }),
            Err(ObjectError::Url { url, detail }) => Err(LakeError::Url { url, detail }),
            Err(error) => Err(LakeError::store("open", &location.url, &error)),
        }
    }

    /// Over any object store; `name` is what messages and queries call it.
    pub fn over(store: Arc<dyn ObjectStore>, name: &str) -> Store {
        Store { objects: Objects::over(store, name) }
    }

    /// What a path within the lake is appended to, in messages and queries.
    pub fn name(&self) -> &str {
        self.objects.name()
    }

    /// The object's full name, for messages.
    pub fn full(&self, path: &str) -> String {
        format!("{}/{path}", self.name())
    }

    fn location(&self, path: &str) -> Result<Path> {
        Path::parse(path).map_err(|error| LakeError::store("name", &self.full(path), &error))
    }

    /// Creates an object in one step; false if there is one already.
    pub fn create(&self, path: &str, content: &[u8]) -> Result<bool> {
        let location = self.location(path)?;
        if let Some(root) = self.objects.folder() {
            return create_durably(root, path, content)
                .map_err(|error| LakeError::store("create", &self.full(path), &error));
        }
        self.objects
            .create(&location, PutPayload::from(content.to_vec()))
            .map_err(|error| LakeError::store("create", &self.full(path), &error))
    }

    /// The object's content; `None` if there is no such object.
    pub fn get(&self, path: &str) -> Result<Option<Bytes>> {
        let location = self.location(path)?;
        let get = async { self.objects.store().get(&location).await?.bytes().await };
        match self.objects.wait(get) {
            Ok(content) => Ok(Some(content)),
            Err(ObjectError::NotFound(_)) => Ok(None),
            Err(error) => Err(LakeError::store("read", &self.full(path), &error)),
        }
    }

    /// The names directly under a folder: (folders, objects).
    pub fn names(&self, folder: &str) -> Result<(Vec<String>, Vec<String>)> {
        let location = self.location(folder)?;
        let listed = self
            .objects
            .wait(self.objects.store().list_with_delimiter(Some(&location)))
            .map_err(|error| LakeError::store("list", &self.full(folder), &error))?;
        let last = |path: &Path| path.filename().unwrap_or_default().to_owned();
        let objects = listed.objects.iter().map(|object| last(&object.location)).collect();
        Ok((listed.common_prefixes.iter().map(last).collect(), objects))
    }

    /// Deletes everything under a folder; the object `last` goes last.
    pub fn delete_all(&self, folder: &str, last: &str) -> Result<()> {
        let location = self.location(folder)?;
        let last = self.location(last)?;
        let failed = |error| LakeError::store("delete", &self.full(folder), &error);
        let store = self.objects.store();
        let delete = async {
            let found: Vec<_> = store.list(Some(&location)).try_collect().await?;
            for object in found.iter().filter(|object| object.location != last) {
                store.delete(&object.location).await?;
            }
            store.delete(&last).await
        };
        self.objects.wait(delete).map_err(failed)
    }

    pub fn delete(&self, path: &str) -> Result<()> {
        let location = self.location(path)?;
        self.objects
            .wait(self.objects.store().delete(&location))
            .map_err(|error| LakeError::store("delete", &self.full(path), &error))
    }

    /// Starts an object that appears whole when [`Upload::complete`] returns, or never.
    pub fn upload(&self, path: &str) -> Result<Upload> {
        let location = self.location(path)?;
        let begin = self.objects.store().put_multipart_opts(&location, PutMultipartOptions::default());
        let upload =
            self.objects.wait(begin).map_err(|error| LakeError::store("create", &self.full(path), &error))?;
        Ok(Upload { objects: self.objects.clone(), upload, buffer: Vec::new(), bytes: 0, complete: false })
    }

    /// Waits until these objects and the folders above them are on the disk. A remote store is durable by itself.
    pub fn sync<'a>(&self, paths: impl Iterator<Item = &'a str>) -> Result<()> {
        let Some(root) = self.objects.folder() else { return Ok(()) };
        let flush = |path: &PathBuf| {
            File::open(path)
                .and_then(|file| file.sync_all())
                .map_err(|error| LakeError::store("flush to disk", &path.to_string_lossy(), &error))
        };
        let mut folders = BTreeSet::new();
        for path in paths {
            let file = root.join(path);
            flush(&file)?;
            folders.extend(folders_above(root, &file).map(PathBuf::from));
        }
        folders.iter().try_for_each(flush)
    }

    /// Random access to an object, for the Parquet reader.
    pub fn object(&self, path: &str) -> Result<Object> {
        let location = self.location(path)?;
        let head = self
            .objects
            .wait(self.objects.store().head(&location))
            .map_err(|error| LakeError::store("read", &self.full(path), &error))?;
        Ok(Object { objects: self.objects.clone(), location, bytes: head.size })
    }
}

/// Creates a file that is whole and on the disk before it has its name. `LocalFileSystem` links a staged file
/// too, but without flushing it first: after a loss of power an empty manifest could stand.
fn create_durably(root: &std::path::Path, path: &str, content: &[u8]) -> io::Result<bool> {
    let file = root.join(path);
    let folder = file.parent().ok_or_else(|| io::Error::other("the path has no folder"))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut attempt = 1;
    let (staged, mut output) = loop {
        // Names that end in `#<digits>` are what `LocalFileSystem` itself stages under, and never lists.
        let staged = folder.join(format!("{name}#{attempt}"));
        match OpenOptions::new().write(true).create_new(true).open(&staged) {
            Ok(output) => break (staged, output),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(folder)?,
            Err(error) => return Err(error),
        }
    };
    let linked = output
        .write_all(content)
        .and_then(|()| output.sync_all())
        .and_then(|()| fs::hard_link(&staged, &file))
        .and_then(|()| folders_above(root, &file).try_for_each(|folder| File::open(folder)?.sync_all()));
    let removed = fs::remove_file(&staged);
    match linked {
        Ok(()) => removed.map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// The folders between a file and the lake's root, and the root.
fn folders_above<'a>(
    root: &'a std::path::Path,
    file: &'a std::path::Path,
) -> impl Iterator<Item = &'a std::path::Path> {
    file.ancestors().skip(1).take_while(move |folder| folder.starts_with(root))
}

/// An object on its way into the store. Dropped before it is complete, it leaves nothing.
pub(super) struct Upload {
    objects: Objects,
    upload: Box<dyn MultipartUpload>,
    buffer: Vec<u8>,
    bytes: u64,
    complete: bool,
}

impl Upload {
    fn send(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.buffer);
        self.objects.wait(self.upload.put_part(PutPayload::from(part))).map_err(io_error)
    }

    /// Makes the object appear; returns its size in bytes.
    pub fn complete(mut self) -> io::Result<u64> {
        if !self.buffer.is_empty() {
            self.send()?;
        }
        self.objects.wait(self.upload.complete()).map_err(io_error)?;
        self.complete = true;
        Ok(self.bytes)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // A bucket keeps the parts, and charges for them, until it is told.
        if !self.complete
            && self.objects.folder().is_none()
            && let Err(error) = self.objects.wait(self.upload.abort())
        {
            tracing::warn!("parts of an unfinished upload remain in {}: {error}", self.objects.name());
        }
    }
}

fn io_error(error: ObjectError) -> io::Error {
    io::Error::new(io_kind(&error).unwrap_or(io::ErrorKind::Other), error)
}

impl Write for Upload {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        self.bytes += data.len() as u64;
        if self.buffer.len() >= self.objects.part_bytes() {
            self.send()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An object that is read in ranges.
#[derive(Clone)]
pub(super) struct Object {
    objects: Objects,
    location: Path,
    bytes: u64,
}

impl Object {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn range(&self, start: u64, length: u64) -> Result<Bytes, ObjectError> {
        let end = start.saturating_add(length).min(self.bytes);
        if start >= end {
            return Ok(Bytes::new());
        }
        self.objects.wait(self.objects.store().get_range(&self.location, start..end))
    }
}

impl Length for Object {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Object {
    type T = Sequential;

    fn get_read(&self, start: u64) -> Result<Sequential, ParquetError> {
        Ok(Sequential { object: self.clone(), position: start, chunk: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes =
            self.range(start, length as u64).map_err(|error| ParquetError::External(Box::new(error)))?;
        if bytes.len() != length {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} reach past the file's end")));
        }
        Ok(bytes)
    }
}

/// An object read from a position on.
pub(super) struct Sequential {
    object: Object,
    position: u64,
    chunk: Bytes,
}

impl Read for Sequential {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            self.chunk = self.object.range(self.position, READ_AHEAD_BYTES).map_err(io::Error::other)?;
            self.position += self.chunk.len() as u64;
        }
        let length = into.len().min(self.chunk.len());
        self.chunk.split_to(length).copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}
