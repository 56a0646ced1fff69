//! What the kernel says of another process, and what a folder takes of the disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Result;

const BLOCK_BYTES: u64 = 512;

/// Memory that is resident now.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = resident.and_then(|resident| resident.trim().strip_suffix(" kB"));
    Ok(kibibytes.ok_or("a process's status has no VmRSS")?.trim().parse::<u64>()? * 1024)
}

pub fn open_files(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// What all files below a folder take. Files that go away meanwhile don't count.
pub fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        _ => entry.metadata().map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES),
    };
    entries.flatten().map(of).sum()
}
