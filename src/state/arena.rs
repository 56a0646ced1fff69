//! Bytes of many keys and values in few large pieces of memory.
//!
//! Invariant: what was stored does not move until the arena is cleared, and a piece is never grown: growing would
//! copy all of it, and hold it twice meanwhile.

/// Pieces begin small and double up to this. What is longer gets a piece of its own.
const PIECE_BYTES_MAX: usize = 1 << 20;
const PIECE_BYTES_MIN: usize = 4 << 10;

#[derive(Default)]
pub(super) struct Arena {
    pieces: Vec<Vec<u8>>,
}

/// Where bytes lie.
#[derive(Clone, Copy)]
pub(super) struct Span {
    piece: u32,
    start: u32,
    length: u32,
}

impl Span {
    pub fn length(self) -> usize {
        self.length as usize
    }
}

impl Arena {
    /// Stores both, one behind the other.
    pub fn store(&mut self, first: &[u8], second: &[u8]) -> Span {
        let length = first.len() + second.len();
        let piece = self.with_room(length);
        let bytes = &mut self.pieces[piece];
        let start = bytes.len() as u32;
        bytes.extend_from_slice(first);
        bytes.extend_from_slice(second);
        Span { piece: piece as u32, start, length: length as u32 }
    }

    /// Stores the first `kept` bytes of what lies at `span` again, and `second` behind them.
    pub fn store_behind(&mut self, span: Span, kept: usize, second: &[u8]) -> Span {
        let length = kept + second.len();
        let piece = self.with_room(length);
        let start = self.pieces[piece].len() as u32;
        let (from, to) = (span.piece as usize, span.start as usize);
        if from == piece {
            self.pieces[piece].extend_from_within(to..to + kept);
        } else if let Ok([from, into]) = self.pieces.get_disjoint_mut([from, piece]) {
            into.extend_from_slice(&from[to..to + kept]);
        }
        self.pieces[piece].extend_from_slice(second);
        Span { piece: piece as u32, start, length: length as u32 }
    }

    pub fn bytes(&self, span: Span) -> &[u8] {
        &self.pieces[span.piece as usize][span.start as usize..][..span.length as usize]
    }

    pub fn bytes_mut(&mut self, span: Span) -> &mut [u8] {
        &mut self.pieces[span.piece as usize][span.start as usize..][..span.length as usize]
    }

    /// Forgets everything, and keeps the largest of the ordinary pieces.
    pub fn clear(&mut self) {
        self.pieces.retain(|piece| piece.capacity() <= PIECE_BYTES_MAX);
        self.pieces.sort_by_key(|piece| std::cmp::Reverse(piece.capacity()));
        self.pieces.truncate(1);
        self.pieces.iter_mut().for_each(Vec::clear);
    }

    #[cfg(test)]
    pub fn reserved(&self) -> usize {
        self.pieces.iter().map(Vec::capacity).sum()
    }

    /// A piece that takes `length` bytes more without growing.
    fn with_room(&mut self, length: usize) -> usize {
        let has_room = |piece: &Vec<u8>| piece.capacity() - piece.len() >= length;
        if !self.pieces.last().is_some_and(has_room) {
            let before = self.pieces.last().map_or(0, Vec::capacity);
            let usual = (2 * before).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
            self.pieces.push(Vec::with_capacity(usual.max(length)));
        }
        self.pieces.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_stays_where_it_is() {
        let mut arena = Arena::default();
        let sizes = [0, 1, 5_000, 70, 3 << 20, 40];
        let spans: Vec<Span> =
            sizes.iter().map(|&size| arena.store(b"key", &vec![size as u8; size])).collect();
        let behind: Vec<Span> = spans.iter().map(|&span| arena.store_behind(span, 3, b"other")).collect();
        for ((&size, &span), &behind) in sizes.iter().zip(&spans).zip(&behind) {
            assert_eq!(&arena.bytes(span)[..3], b"key");
            assert!(arena.bytes(span)[3..].iter().all(|&byte| byte == size as u8), "{size}");
            assert_eq!(arena.bytes(span).len(), 3 + size);
            assert_eq!(arena.bytes(behind), b"keyother");
        }
    }

    #[test]
    fn little_is_kept_once_it_is_cleared() {
        let mut arena = Arena::default();
        for _ in 0..100 {
            arena.store(&[1; 100_000], &[]);
        }
        arena.store(&[1; 5 << 20], &[]);
        arena.clear();
        assert!(arena.reserved() <= PIECE_BYTES_MAX, "{} bytes", arena.reserved());
        let span = arena.store(b"a", b"b");
        assert_eq!(arena.bytes(span), b"ab");
    }
}
