//! What a checkpoint copy consists of: one manifest object that names its chunk objects.
//!
//! A copy is a base, which holds every key, and the changes of the checkpoints since: its parts, in that order.
//! The file is JSON: the manifest and the XXH3 checksum of its text, so that a damaged one is never believed.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

/// Deltas that a manifest may list before a new base is written, however small they are.
const PARTS_MAX: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
    pub topology: String,
    pub task: String,
    pub offset: i64,
    pub fingerprint: String,
    pub parts: Vec<Part>,
}

/// What one checkpoint added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub offset: i64,
    pub chunks: Vec<Chunk>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chunk {
    /// The object's name within the task's folder.
    pub object: String,
    pub bytes: u64,
    pub changes: u64,
    /// XXH3 of the object, 16 hexadecimal digits.
    pub checksum: String,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    checksum: String,
    manifest: Box<RawValue>,
}

impl Manifest {
    /// 2: groups of closed windows lie many in a value.
    const VERSION: u32 = 2;

    pub fn new(topology: &str, task: &str, offset: i64, fingerprint: &str, parts: Vec<Part>) -> Self {
        Self {
            version: Self::VERSION,
            topology: topology.to_string(),
            task: task.to_string(),
            offset,
            fingerprint: fingerprint.to_string(),
            parts,
        }
    }

    /// The manifest as it is stored, and its checksum, which is the copy's identity: it covers that of every chunk.
    pub fn encode(&self) -> serde_json::Result<(Vec<u8>, String)> {
        let manifest = serde_json::value::to_raw_value(self)?;
        let identity = checksum(manifest.get().as_bytes());
        Ok((serde_json::to_vec(&Envelope { checksum: identity.clone(), manifest })?, identity))
    }

    pub fn identity(&self) -> serde_json::Result<String> {
        Ok(self.encode()?.1)
    }

    /// The format that a manifest says it is of, where that is another one than this program reads.
    pub fn other_format(bytes: &[u8]) -> Option<(u32, u32)> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let envelope: Envelope = serde_json::from_slice(bytes).ok()?;
        let whole = checksum(envelope.manifest.get().as_bytes()) == envelope.checksum;
        let Version { version } = serde_json::from_str(envelope.manifest.get()).ok()?;
        (whole && version != Self::VERSION).then_some((version, Self::VERSION))
    }

    /// The error says what is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if checksum(envelope.manifest.get().as_bytes()) != envelope.checksum {
            return Err("its checksum does not match".to_string());
        }
        let manifest: Self =
            serde_json::from_str(envelope.manifest.get()).map_err(|error| error.to_string())?;
        if manifest.version != Self::VERSION {
            return Err(format!(
                "its format is version {}, and this program reads {}",
                manifest.version,
                Self::VERSION
            ));
        }
        Ok(manifest)
    }

    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.parts.iter().flat_map(|part| &part.chunks)
    }

    /// Whether the deltas have outgrown the base, so that the next copy is a new base.
    pub fn wants_base(&self) -> bool {
        let bytes = |part: &Part| part.chunks.iter().map(|chunk| chunk.bytes).sum::<u64>();
        let base = self.parts.first().map_or(0, bytes);
        let deltas: u64 = self.parts.iter().skip(1).map(bytes).sum();
        deltas > base || self.parts.len() >= PARTS_MAX
    }
}

pub(super) fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_damaged_byte_is_noticed() {
        let chunk = Chunk { object: "a.chunk".into(), bytes: 7, changes: 1, checksum: checksum(b"a") };
        let parts = vec![Part { offset: 5, chunks: vec![chunk] }];
        let manifest = Manifest::new("flights", "exchange-0", 5, "f1", parts);
        let encoded = manifest.encode().unwrap().0;
        assert_eq!(Manifest::decode(&encoded), Ok(manifest));
        for position in 0..encoded.len() {
            let mut damaged = encoded.clone();
            damaged[position] ^= 1;
            assert!(Manifest::decode(&damaged).is_err(), "byte {position}");
        }
        assert!(Manifest::decode(&encoded[..encoded.len() - 1]).is_err());
    }
}
