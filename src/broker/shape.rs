//! The shapes of requests, to look at before they are decoded: the codec reserves memory for as many elements
//! as an array's length promises, and a frame of twenty bytes may promise two thousand million.
//!
//! A shape is a line of fields: `1 2 4 8` bytes, `s` a string, `b` bytes, `[…]` an array of structures, `<…>`
//! one of plain values; `+3` after a field: since version 3, `-2`: up to version 2.
//! From <https://kafka.apache.org/protocol>; only requests that hold arrays need one.
//!
//! Invariant: a frame that passes holds every element that it promises, and no more than [`ELEMENTS_MAX`].

use kafka_protocol::messages::ApiKey;

const ELEMENTS_MAX: usize = 100_000;

const SHAPES: &[(ApiKey, &str)] = &[
    (ApiKey::Produce, "s 2 4 [s [4 b]]"),
    (ApiKey::Fetch, "4 4 4 4 1 4+7 4+7 [s [4 4+9 8 8+5 4]] [s <4>]+7 s+11"),
    (ApiKey::ListOffsets, "4 1+2 [s [4 4+4 8]]"),
    (ApiKey::Metadata, "[8+10 8+10 s] 1+4 1+8 1+8"),
    (ApiKey::OffsetCommit, "s 4 s s+7 8-4 [s [4 8 4+6 s]]"),
    (ApiKey::OffsetFetch, "s [s <4>] 1+7"),
    (ApiKey::JoinGroup, "s 4 4+1 s s+5 s [s b]"),
    (ApiKey::LeaveGroup, "s s-2 [s s]+3"),
    (ApiKey::SyncGroup, "s 4 s s+3 [s b]"),
    (ApiKey::DescribeGroups, "<s> 1+3"),
    (ApiKey::ListGroups, "<s>+4"),
    (ApiKey::CreateTopics, "[s 4 2 [4 <4>] [s s]] 4 1"),
    (ApiKey::DeleteTopics, "<s> 4"),
    (ApiKey::DeleteRecords, "[s [4 8]] 4"),
    (ApiKey::AddPartitionsToTxn, "s 8 2 [s <4>]"),
    (ApiKey::TxnOffsetCommit, "s s 8 2 4+3 s+3 s+3 [s [4 8 4+2 s]]"),
    (ApiKey::DescribeConfigs, "[1 s <s>] 1 1+3"),
    (ApiKey::AlterConfigs, "[1 s [s s]] 1"),
    (ApiKey::IncrementalAlterConfigs, "[1 s [s 1 s]] 1"),
    (ApiKey::CreatePartitions, "[s 4 [<4>]] 4 1"),
    (ApiKey::DeleteGroups, "<s>"),
];

/// Whether a request's body holds what its arrays promise.
pub fn holds(key: ApiKey, version: i16, body: &[u8]) -> bool {
    let Some((_, shape)) = SHAPES.iter().find(|(shaped, _)| *shaped == key) else { return true };
    let flexible = key.request_header_version(version) >= 2;
    Walk { rest: body, version, flexible, elements: 0 }.structure(shape).is_some()
}

/// A field of a shape: its kind and, of an array, what is inside.
struct Field<'a> {
    kind: u8,
    inside: &'a str,
    versions: std::ops::RangeInclusive<i16>,
}

fn fields(shape: &str) -> impl Iterator<Item = Field<'_>> {
    let mut rest = shape;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let kind = *rest.as_bytes().first()?;
        let mut inside = "";
        let mut length = 1;
        if matches!(kind, b'[' | b'<') {
            let mut depth = 0;
            let closes = |byte: u8| {
                depth += i32::from(matches!(byte, b'[' | b'<')) - i32::from(matches!(byte, b']' | b'>'));
                depth == 0
            };
            let end = rest.bytes().position(closes)?;
            inside = &rest[1..end];
            length = end + 1;
        }
        rest = &rest[length..];
        let mut versions = 0..=i16::MAX;
        if let Some(after) = rest.strip_prefix(['+', '-']) {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            let version = after[..digits].parse().ok()?;
            versions = if rest.starts_with('+') { version..=i16::MAX } else { 0..=version };
            rest = &after[digits..];
        }
        Some(Field { kind, inside, versions })
    })
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    /// Lengths are varints, one more than they mean, and structures end in tagged fields.
    flexible: bool,
    elements: usize,
}

impl Walk<'_> {
    fn skip(&mut self, length: usize) -> Option<()> {
        self.rest = self.rest.get(length..)?;
        Some(())
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (number, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*number)
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let [byte] = self.number::<1>()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(value).ok();
            }
        }
        None
    }

    /// A length; 0 for null.
    fn length(&mut self, short: bool) -> Option<usize> {
        if self.flexible {
            return Some(self.varint()?.saturating_sub(1));
        }
        let length = match short {
            true => i32::from(i16::from_be_bytes(self.number()?)),
            false => i32::from_be_bytes(self.number()?),
        };
        Some(usize::try_from(length).unwrap_or(0))
    }

    fn structure(&mut self, shape: &str) -> Option<()> {
        self.values(shape)?;
        if self.flexible {
            for _ in 0..self.varint()? {
                self.varint()?;
                let length = self.varint()?;
                self.skip(length)?;
            }
        }
        Some(())
    }

    fn values(&mut self, shape: &str) -> Option<()> {
        for field in fields(shape) {
            if !field.versions.contains(&self.version) {
                continue;
            }
            match field.kind {
                b'1'..=b'8' => self.skip(usize::from(field.kind - b'0'))?,
                b's' | b'b' => {
                    let length = self.length(field.kind == b's')?;
                    self.skip(length)?;
                }
                _ => {
                    let count = self.length(false)?;
                    self.elements += count;
                    if self.elements > ELEMENTS_MAX {
                        return None;
                    }
                    for _ in 0..count {
                        if field.kind == b'[' {
                            self.structure(field.inside)?
                        } else {
                            self.values(field.inside)?
                        }
                    }
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kafka_protocol::messages::*;
    use kafka_protocol::protocol::Decodable;
    use proptest::prelude::*;

    use super::*;

    /// What the codec makes of a body: how many bytes it leaves.
    fn left(key: ApiKey, version: i16, mut body: Bytes) -> Option<usize> {
        macro_rules! decode {
            ($($name:ident $request:ident),*) => {
                match key {
                    $(ApiKey::$name => $request::decode(&mut body, version).map(drop),)*
                    _ => return None,
                }
            };
        }
        let decoded = decode!(
            Produce ProduceRequest, Fetch FetchRequest, ListOffsets ListOffsetsRequest,
            Metadata MetadataRequest, OffsetCommit OffsetCommitRequest, OffsetFetch OffsetFetchRequest,
            JoinGroup JoinGroupRequest, LeaveGroup LeaveGroupRequest, SyncGroup SyncGroupRequest,
            DescribeGroups DescribeGroupsRequest, ListGroups ListGroupsRequest,
            CreateTopics CreateTopicsRequest, DeleteTopics DeleteTopicsRequest,
            DeleteRecords DeleteRecordsRequest, AddPartitionsToTxn AddPartitionsToTxnRequest,
            TxnOffsetCommit TxnOffsetCommitRequest, DescribeConfigs DescribeConfigsRequest,
            AlterConfigs AlterConfigsRequest, IncrementalAlterConfigs IncrementalAlterConfigsRequest,
            CreatePartitions CreatePartitionsRequest, DeleteGroups DeleteGroupsRequest,
            FindCoordinator FindCoordinatorRequest, Heartbeat HeartbeatRequest,
            InitProducerId InitProducerIdRequest, AddOffsetsToTxn AddOffsetsToTxnRequest,
            EndTxn EndTxnRequest, ApiVersions ApiVersionsRequest, DescribeCluster DescribeClusterRequest
        );
        decoded.ok().map(|()| body.len())
    }

    /// Writes a request of a shape, its counts and lengths drawn from `choices`.
    fn write(
        out: &mut Vec<u8>,
        shape: &str,
        version: i16,
        flexible: bool,
        structure: bool,
        choices: &mut impl Iterator<Item = u8>,
    ) {
        let length = |out: &mut Vec<u8>, length: u8, short: bool| match (flexible, short) {
            (true, _) => out.push(length + 1),
            (false, true) => out.extend((i16::from(length)).to_be_bytes()),
            (false, false) => out.extend((i32::from(length)).to_be_bytes()),
        };
        for field in fields(shape).filter(|field| field.versions.contains(&version)) {
            match field.kind {
                b'1'..=b'8' => out.extend(std::iter::repeat_n(0, usize::from(field.kind - b'0'))),
                b's' | b'b' => {
                    let count = choices.next().unwrap_or(0) % 4;
                    length(out, count, field.kind == b's');
                    out.extend(std::iter::repeat_n(b'a', usize::from(count)));
                }
                kind => {
                    let count = choices.next().unwrap_or(0) % 4;
                    length(out, count, false);
                    for _ in 0..count {
                        write(out, field.inside, version, flexible, kind == b'[', choices);
                    }
                }
            }
        }
        if flexible && structure {
            out.push(0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// The codec reads what is written by the shapes to its last byte, so the shapes are the codec's.
        #[test]
        fn the_shapes_are_those_of_the_codec(choices in proptest::collection::vec(any::<u8>(), 64)) {
            for (key, lowest, highest) in super::super::dispatch::SERVED {
                let Some((_, shape)) = SHAPES.iter().find(|(shaped, _)| shaped == key) else { continue };
                for version in *lowest..=*highest {
                    let flexible = key.request_header_version(version) >= 2;
                    let mut body = Vec::new();
                    write(&mut body, shape, version, flexible, true, &mut choices.iter().copied());
                    prop_assert!(holds(*key, version, &body), "{key:?} {version}");
                    for cut in 0..body.len() {
                        prop_assert!(!holds(*key, version, &body[..cut]), "{key:?} {version} cut at {cut}");
                    }
                    prop_assert_eq!(left(*key, version, Bytes::from(body)), Some(0), "{:?} {}", key, version);
                }
            }
        }

        #[test]
        fn nonsense_is_refused_or_read_but_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (key, lowest, highest) in super::super::dispatch::SERVED {
                for version in *lowest..=*highest {
                    if holds(*key, version, &body) {
                        let _ = left(*key, version, Bytes::from(body.clone()));
                    }
                }
            }
        }
    }
}
