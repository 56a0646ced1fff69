//! The object store that a lake lies in: the only file that names `object_store`. Callers are synchronous
//! threads, so every call here blocks until it is done.
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
use futures::executor::block_on;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload,
};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::error::{LakeError, Result, io_kind};

/// What is buffered of an upload before it is handed to the store.
const UPLOAD_PART_BYTES: usize = 1 << 20;
/// What a sequential read asks for at a time.
const READ_AHEAD_BYTES: u64 = 64 << 10;

#[derive(Clone)]
pub(super) struct Store {
    objects: Arc<dyn ObjectStore>,
    /// The folder of a lake on a local disk.
    root: Option<PathBuf>,
    /// For messages and queries: what a path within the lake is appended to.
    name: String,
}

impl Store {
    /// Opens a folder, created if missing, by its path or `file://` URL.
    pub fn open(url: &str) -> Result<Store> {
        let refuse = |detail: String| LakeError::Url { url: url.to_owned(), detail };
        let folder = local_folder(url).map_err(refuse)?;
        fs::create_dir_all(&folder).map_err(|error| LakeError::store("create", &folder, &error))?;
        let root = fs::canonicalize(&folder).map_err(|error| LakeError::store("open", &folder, &error))?;
        let objects = LocalFileSystem::new_with_prefix(&root)
            .map_err(|error| LakeError::store("open", &folder, &error))?
            .with_automatic_cleanup(true);
        let name = root.to_str().ok_or_else(|| refuse("the path is not UTF-8".to_owned()))?.to_owned();
        Ok(Store { objects: Arc::new(objects), root: Some(root), name })
    }

    /// Over any object store; `name` is what messages and queries call it.
    pub fn over(objects: Arc<dyn ObjectStore>, name: &str) -> Store {
        Store { objects, root: None, name: name.trim_end_matches('/').to_owned() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object's full name, for messages.
    pub fn full(&self, path: &str) -> String {
        format!("{}/{path}", self.name)
    }

    fn location(&self, path: &str) -> Result<Path> {
        Path::parse(path).map_err(|error| LakeError::store("name", &self.full(path), &error))
    }

    /// Creates an object in one step; false if there is one already.
    pub fn create(&self, path: &str, content: &[u8]) -> Result<bool> {
        let location = self.location(path)?;
        if let Some(root) = &self.root {
            return create_durably(root, path, content)
                .map_err(|error| LakeError::store("create", &self.full(path), &error));
        }
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match block_on(self.objects.put_opts(&location, PutPayload::from(content.to_vec()), options)) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(LakeError::store("create", &self.full(path), &error)),
        }
    }

    /// The object's content; `None` if there is no such object.
    pub fn get(&self, path: &str) -> Result<Option<Bytes>> {
        let location = self.location(path)?;
        let content = block_on(async { self.objects.get(&location).await?.bytes().await });
        match content {
            Ok(content) => Ok(Some(content)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(LakeError::store("read", &self.full(path), &error)),
        }
    }

    /// The names directly under a folder: (folders, objects).
    pub fn names(&self, folder: &str) -> Result<(Vec<String>, Vec<String>)> {
        let location = self.location(folder)?;
        let listed = block_on(self.objects.list_with_delimiter(Some(&location)))
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
        block_on(async {
            let found: Vec<_> = self.objects.list(Some(&location)).try_collect().await?;
            for object in found.iter().filter(|object| object.location != last) {
                self.objects.delete(&object.location).await?;
            }
            self.objects.delete(&last).await
        })
        .map_err(failed)
    }

    pub fn delete(&self, path: &str) -> Result<()> {
        let location = self.location(path)?;
        block_on(self.objects.delete(&location))
            .map_err(|error| LakeError::store("delete", &self.full(path), &error))
    }

    /// Starts an object that appears whole when [`Upload::complete`] returns, or never.
    pub fn upload(&self, path: &str) -> Result<Upload> {
        let location = self.location(path)?;
        let upload = block_on(self.objects.put_multipart_opts(&location, PutMultipartOptions::default()))
            .map_err(|error| LakeError::store("create", &self.full(path), &error))?;
        Ok(Upload { upload, buffer: Vec::new(), bytes: 0 })
    }

    /// Waits until these objects and the folders above them are on the disk. A remote store is durable by itself.
    pub fn sync<'a>(&self, paths: impl Iterator<Item = &'a str>) -> Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
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
        let head = block_on(self.objects.head(&location))
            .map_err(|error| LakeError::store("read", &self.full(path), &error))?;
        Ok(Object { objects: Arc::clone(&self.objects), location, bytes: head.size })
    }
}

/// The folder that a path or a `file://` URL names.
fn local_folder(url: &str) -> Result<String, String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.is_empty() { Err("it is empty".to_owned()) } else { Ok(url.to_owned()) };
    };
    if scheme != "file" {
        return Err(format!("{scheme}:// is not supported yet"));
    }
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err("a file:// URL has three slashes and an absolute path".to_owned());
    }
    percent_decode(path).ok_or_else(|| "its %-escapes are not UTF-8".to_owned())
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => std::str::from_utf8(&[*high, *low])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).ok()
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
    upload: Box<dyn MultipartUpload>,
    buffer: Vec<u8>,
    bytes: u64,
}

impl Upload {
    fn send(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.buffer);
        block_on(self.upload.put_part(PutPayload::from(part))).map_err(|error| {
            let kind = io_kind(&error).unwrap_or(io::ErrorKind::Other);
            io::Error::new(kind, error)
        })
    }

    /// Makes the object appear; returns its size in bytes.
    pub fn complete(mut self) -> io::Result<u64> {
        if !self.buffer.is_empty() {
            self.send()?;
        }
        block_on(self.upload.complete()).map_err(|error| {
            let kind = io_kind(&error).unwrap_or(io::ErrorKind::Other);
            io::Error::new(kind, error)
        })?;
        Ok(self.bytes)
    }
}

impl Write for Upload {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        self.bytes += data.len() as u64;
        if self.buffer.len() >= UPLOAD_PART_BYTES {
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
    objects: Arc<dyn ObjectStore>,
    location: Path,
    bytes: u64,
}

impl Object {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn range(&self, start: u64, length: u64) -> Result<Bytes, object_store::Error> {
        let end = start.saturating_add(length).min(self.bytes);
        if start >= end {
            return Ok(Bytes::new());
        }
        block_on(self.objects.get_range(&self.location, start..end))
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
