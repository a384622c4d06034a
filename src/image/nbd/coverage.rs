//! Which bytes of a request have arrived.
//!
//! Chunks of a structured reply may come in any order, and must cover the
//! request exactly once. Servers send them in order, so that the list nearly
//! always has one element.

use std::ops::Range;

/// A chunk list in greater disorder than this is no honest server's.
const MAX_PIECES: usize = 1024;

/// Disjoint, sorted, not adjacent ranges of a request.
#[derive(Debug, Default)]
pub(crate) struct Coverage(Vec<Range<u32>>);

impl Coverage {
    /// Adds a range that is not empty. False if a byte of it was there before,
    /// or if there are too many pieces.
    #[must_use]
    pub(crate) fn add(&mut self, new: Range<u32>) -> bool {
        let at = self.0.partition_point(|r| r.end <= new.start);
        if new.is_empty() || self.0.get(at).is_some_and(|r| r.start < new.end) {
            return false;
        }
        let joins_next = self.0.get(at).is_some_and(|r| r.start == new.end);
        let before = at
            .checked_sub(1)
            .filter(|&b| self.0.get(b).is_some_and(|r| r.end == new.start));
        match (before, joins_next) {
            (Some(before), true) => {
                let next = self.0.remove(at);
                if let Some(r) = self.0.get_mut(before) {
                    r.end = next.end;
                }
            }
            (Some(before), false) => {
                if let Some(r) = self.0.get_mut(before) {
                    r.end = new.end;
                }
            }
            (None, true) => {
                if let Some(r) = self.0.get_mut(at) {
                    r.start = new.start;
                }
            }
            (None, false) => self.0.insert(at, new),
        }
        self.0.len() <= MAX_PIECES
    }

    /// Whether bytes `0..len` are all there.
    pub(crate) fn is_complete(&self, len: u32) -> bool {
        self.0.first().is_some_and(|r| *r == (0..len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_order_covers_once() {
        // All orders of four pieces end in one; each piece twice is refused.
        let pieces = [0..10, 10..11, 11..40, 40..64];
        for order in 0..256_usize {
            let order: Vec<usize> = (0..4_usize).map(|i| (order >> (2 * i)) & 3).collect();
            let mut seen = [false; 4];
            let mut coverage = Coverage::default();
            for &i in &order {
                assert_eq!(coverage.add(pieces[i].clone()), !seen[i], "{order:?}");
                seen[i] = true;
            }
            assert_eq!(coverage.is_complete(64), seen == [true; 4], "{order:?}");
        }
    }

    #[test]
    fn overlap_and_emptiness_are_refused() {
        let mut coverage = Coverage::default();
        assert!(coverage.add(10..20));
        for bad in [0..11, 19..30, 12..13, 0..100, 5..5] {
            assert!(!coverage.add(bad.clone()), "{bad:?}");
        }
        assert!(coverage.add(0..10) && coverage.add(20..30) && coverage.is_complete(30));
        assert!(!coverage.is_complete(31) && !coverage.is_complete(29));
    }

    #[test]
    fn pieces_are_bounded() {
        let mut coverage = Coverage::default();
        assert!(
            (0..5000_u32)
                .map(|i| 2 * i..2 * i + 1)
                .any(|r| !coverage.add(r))
        );
    }
}
