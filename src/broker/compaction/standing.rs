//! Where the compaction of a partition stands, over restarts: a file in the partition's folder, as Kafka keeps a
//! `cleaner-offset-checkpoint`.
//!
//! Invariant: the file is written once what it says is on the disk; and one that is missing or damaged says "at the
//! beginning", which costs a pass over everything and nothing else.

use std::io;
use std::path::Path;

use super::super::disk::{Disk, is_there, read_all};

const NAME: &str = "compacted-to";

/// Keys below this offset have been compacted among themselves.
pub fn read(disk: &dyn Disk, folder: &Path) -> io::Result<i64> {
    let path = folder.join(NAME);
    if !is_there(disk, &path)? {
        return Ok(0);
    }
    let bytes = read_all(&*disk.open(&path)?)?;
    Ok(decode(&bytes).unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "it does not say where compaction stands, which begins anew");
        0
    }))
}

fn decode(bytes: &[u8]) -> Option<i64> {
    let (offset, checksum) = std::str::from_utf8(bytes).ok()?.trim_end().split_once(' ')?;
    let whole = u32::from_str_radix(checksum, 16).ok()? == crc32c::crc32c(offset.as_bytes());
    offset.parse().ok().filter(|offset| whole && *offset >= 0)
}

pub fn write(disk: &dyn Disk, folder: &Path, offset: i64) -> io::Result<()> {
    let offset = offset.to_string();
    let line = format!("{offset} {:08x}\n", crc32c::crc32c(offset.as_bytes()));
    let temporary = folder.join(format!("{NAME}.new"));
    let file = disk.create(&temporary)?;
    file.write_all_at(line.as_bytes(), 0)?;
    file.sync()?;
    disk.rename(&temporary, &folder.join(NAME))?;
    disk.sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::disk::SharedDisk;
    use super::super::super::simulated_disk::{ROOT, SimulatedDisk};
    use super::*;

    #[test]
    fn what_is_torn_or_damaged_says_at_the_beginning() {
        let disk: SharedDisk = Arc::new(SimulatedDisk::default());
        let folder = Path::new(ROOT);
        assert_eq!(read(&*disk, folder).unwrap(), 0);
        write(&*disk, folder, 12_345).unwrap();
        assert_eq!(read(&*disk, folder).unwrap(), 12_345);
        let path = folder.join(NAME);
        let whole = read_all(&*disk.open(&path).unwrap()).unwrap();
        for at in 0..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            disk.create(&path).unwrap().write_all_at(&damaged, 0).unwrap();
            assert_eq!(read(&*disk, folder).unwrap(), 0, "byte {at}");
            disk.create(&path).unwrap().write_all_at(&whole[..at], 0).unwrap();
            assert_eq!(read(&*disk, folder).unwrap(), 0, "cut at {at}");
        }
    }
}
