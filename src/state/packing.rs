//! Changes as bytes: the content of a redo journal and of a checkpoint copy.
//!
//! A change is its kind (0 deletes, 1 puts), the key's length, for a put the value's length, and then their
//! bytes; lengths are LEB128. Changes follow each other without padding.
//! Invariant: unpacking never panics, whatever the bytes are: a disk may have damaged them.

use super::Change;

const DELETE: u8 = 0;
const PUT: u8 = 1;

pub(super) fn pack((key, value): Change<'_>, into: &mut Vec<u8>) {
    into.push(if value.is_some() { PUT } else { DELETE });
    pack_length(key.len(), into);
    if let Some(value) = value {
        pack_length(value.len(), into);
    }
    into.extend_from_slice(key);
    into.extend_from_slice(value.unwrap_or_default());
}

/// All changes in `bytes`; `None` if they are not exactly a row of packed changes.
pub(super) fn unpack(mut bytes: &[u8]) -> Option<Vec<Change<'_>>> {
    let mut changes = Vec::new();
    while let Some(kind) = take(&mut bytes, 1) {
        let key_length = unpack_length(&mut bytes)?;
        let change = match kind[0] {
            DELETE => (take(&mut bytes, key_length)?, None),
            PUT => {
                let value_length = unpack_length(&mut bytes)?;
                (take(&mut bytes, key_length)?, Some(take(&mut bytes, value_length)?))
            }
            _ => return None,
        };
        changes.push(change);
    }
    Some(changes)
}

/// Appends a length, as LEB128.
pub fn pack_length(length: usize, into: &mut Vec<u8>) {
    let mut rest = length;
    while rest >= 0x80 {
        into.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    into.push(rest as u8);
}

/// Takes a length off the front; `None` if there is none, or none that fits.
pub fn unpack_length(bytes: &mut &[u8]) -> Option<usize> {
    let mut length = 0_u64;
    for shift in (0..63).step_by(7) {
        let byte = take(bytes, 1)?[0];
        length |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return usize::try_from(length).ok();
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    if bytes.len() < count {
        return None;
    }
    let (head, tail) = bytes.split_at(count);
    *bytes = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packing_round_trips(changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
            let mut packed = Vec::new();
            for (key, value) in &changes {
                pack((key, value.as_deref()), &mut packed);
            }
            let expected: Vec<Change<'_>> = changes.iter().map(|(key, value)| (&key[..], value.as_deref())).collect();
            prop_assert_eq!(unpack(&packed), Some(expected));
        }

        #[test]
        fn unpacking_survives_any_bytes(bytes: Vec<u8>) {
            let _ = unpack(&bytes);
        }
    }

    #[test]
    fn a_cut_off_change_is_refused() {
        let mut packed = Vec::new();
        pack((b"key", Some(&[7; 300])), &mut packed);
        for length in 1..packed.len() {
            assert_eq!(unpack(&packed[..length]), None, "{length} bytes");
        }
    }
}
