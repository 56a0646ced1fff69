//! The file layer under the broker: everything that it keeps goes through these few operations, so that tests can
//! put a disk under it that fills up, fails, or loses its power (`simulated_disk.rs`).
//!
//! Invariant: what a file holds is on the disk after [`DiskFile::sync`]; that the file is there at all, or no longer,
//! is on the disk after [`Disk::sync_folder`] of its folder. Nothing else is counted on.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

pub type SharedDisk = Arc<dyn Disk>;
pub type SharedFile = Arc<dyn DiskFile>;

/// An open file. It stays readable when its name is removed.
pub trait DiskFile: Send + Sync {
    fn bytes(&self) -> io::Result<u64>;
    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// May write a part and fail.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// After a failure nobody knows what is on the disk, and trying again may say `Ok` without writing anything:
    /// what had not been synced before must be written again first.
    fn sync(&self) -> io::Result<()>;
}

/// Names and folders.
pub trait Disk: Send + Sync {
    /// Creates the file, or empties it.
    fn create(&self, path: &Path) -> io::Result<SharedFile>;
    fn open(&self, path: &Path) -> io::Result<SharedFile>;
    /// The names in a folder, sorted.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;
    fn create_folders(&self, folder: &Path) -> io::Result<()>;
    /// Replaces what `to` names, as one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn remove_folder(&self, folder: &Path) -> io::Result<()>;
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Another one than last time: the machine's power was gone in between, and with it what was not synced.
    /// Empty where the machine does not say.
    fn boot(&self) -> String;
}

/// The machine's own.
pub struct RealDisk;

impl DiskFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, into, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, at)
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<SharedFile> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<SharedFile> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_folders(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(folder)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn boot(&self) -> String {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    }
}

/// Each segment is an open file, and each connection: takes as many as the system lets this process have.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls take a pointer to a structure that lives until they return.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Whether a path names something; a folder that cannot be listed is an error.
pub fn is_there(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(false);
    };
    Ok(disk.names(folder)?.iter().any(|held| held == name))
}

/// All of a file.
pub fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.bytes()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
