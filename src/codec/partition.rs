//! Where a key's records go: Kafka's default partitioner, so that Java clients place the same key alike.

/// MurmurHash2 as Kafka's Java client has it (`org.apache.kafka.common.utils.Utils.murmur2`).
pub fn murmur2(bytes: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const MULTIPLIER: u32 = 0x5bd1_e995;

    let mut hash = SEED ^ bytes.len() as u32;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    if !tail.is_empty() {
        for (position, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * position);
        }
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^= hash >> 15;
    hash as i32
}

/// The partition of a key among `partitions`, which must be positive.
pub fn partition_for_key(key: &[u8], partitions: i32) -> i32 {
    assert!(partitions > 0, "a topic has at least one partition");
    (murmur2(key) & i32::MAX) % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_kafkas_own_test_vectors() {
        let vectors: [(&[u8], i32); 6] = [
            (b"21", -973932308),
            (b"foobar", -790332482),
            (b"a-little-bit-long-string", -985981536),
            (b"a-little-bit-longer-string", -1486304829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            (b"abc", 479470107),
        ];
        for (bytes, hash) in vectors {
            assert_eq!(murmur2(bytes), hash);
            // The sign bit is cleared, not the absolute value taken.
            assert_eq!(partition_for_key(bytes, 7), (hash & 0x7fff_ffff) % 7);
        }
    }
}
