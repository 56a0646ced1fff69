//! Numbers of groups whose keys are integers that lie close together: a table in which the key itself is the place.
//!
//! ```text
//! place = window's number « bits │ (first column - least) « its shift │ (second column - least)
//! ```
//! A hash table of so many groups is in no near cache; this one takes 4 bytes a place, and nothing is compared. Within a
//! window places are in the order of the keys.
//!
//! Invariant: there are at most [`PLACES_PER_GROUP_MAX`] places a group; or, at first, when most groups are yet to come,
//! [`PLACES_PER_ROW_MAX`] a row, and [`PLACES_MIN`] at most.

use std::ops::RangeInclusive;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{cast, max, min};
use arrow::datatypes::{DataType, Int64Type, UInt64Type};
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::record::Micros;

/// As much memory a group as the hash table takes, more or less.
const PLACES_PER_GROUP_MAX: usize = 16;
const PLACES_PER_ROW_MAX: usize = 256;
const PLACES_MIN: usize = 1 << 17;
const NO_GROUP: u32 = u32::MAX;

#[derive(Default)]
pub(super) struct Dense {
    /// Of the key columns but the window's end.
    frames: Vec<Frame>,
    /// How many bits of a place are those of the frames.
    bits: u32,
    windows: HashMap<Micros, u32, FixedState>,
    groups: Vec<u32>,
    /// The place of each row of the batch at hand.
    places: Vec<u32>,
}

/// The values that a column may have: 2^`bits` of them from `first` on.
#[derive(Clone, Copy, PartialEq)]
struct Frame {
    first: i64,
    bits: u32,
    /// Where in a place its bits begin.
    shift: u32,
}

impl Frame {
    fn holds(&self, values: &RangeInclusive<i64>) -> bool {
        let distance = |value: i64| value.wrapping_sub(self.first) as u64 >> self.bits;
        self.first <= *values.start() && distance(*values.end()) == 0
    }

    fn place(&self, value: i64) -> u32 {
        (value.wrapping_sub(self.first) as u32) << self.shift
    }

    fn value(&self, place: u32) -> i64 {
        let above = (place >> self.shift) & ((1 << self.bits) - 1);
        self.first.wrapping_add(above.into())
    }

    /// The frame of all these and `values`, of which some lie outside; with room on the side where these do.
    fn grown(&self, values: &RangeInclusive<i64>) -> Option<Self> {
        let last = self.first.checked_add((1 << self.bits) - 1)?;
        let (least, most) = (self.first.min(*values.start()), last.max(*values.end()));
        let bits = bits_of(least, most)?;
        let is_below = least < self.first;
        let first = if is_below { most.checked_sub((1 << bits) - 1).unwrap_or(least) } else { least };
        Some(Self { first, bits, ..*self })
    }
}

/// How many bits tell so many values apart.
fn bits_of(least: i64, most: i64) -> Option<u32> {
    let bits = u64::BITS - most.checked_sub(least)?.leading_zeros();
    (bits < u32::BITS).then_some(bits)
}

impl Dense {
    /// Finds the rows' places; false if they can't all have one. `groups`: how many have been numbered.
    pub(super) fn place(&mut self, columns: &[ArrayRef], groups: usize) -> bool {
        let Some(integers) = columns[1..].iter().map(integers).collect::<Option<Vec<Int64Array>>>() else {
            return false;
        };
        let ends = columns[0].as_primitive::<Int64Type>().values();
        if ends.is_empty() {
            self.places.clear();
            return true;
        }
        if self.take_in(&integers, ends, groups).is_none() {
            return false;
        }
        self.places.clear();
        let mut last = (ends[0], self.windows[&ends[0]] << self.bits);
        self.places.extend(ends.iter().map(|&end| {
            if end != last.0 {
                last = (end, self.windows[&end] << self.bits);
            }
            last.1
        }));
        for (column, frame) in integers.iter().zip(&self.frames) {
            for (place, &value) in self.places.iter_mut().zip(column.values()) {
                *place |= frame.place(value);
            }
        }
        true
    }

    /// Makes room for rows of these windows and keys, unless that is too much.
    fn take_in(&mut self, columns: &[Int64Array], ends: &[Micros], groups: usize) -> Option<()> {
        let ranges: Vec<RangeInclusive<i64>> =
            columns.iter().map(|column| Some(min(column)?..=max(column)?)).collect::<Option<_>>()?;
        let mut frames = match self.frames.is_empty() {
            true => ranges
                .iter()
                .map(|values| {
                    let bits = bits_of(*values.start(), *values.end())?;
                    Some(Frame { first: *values.start(), bits, shift: 0 })
                })
                .collect::<Option<Vec<_>>>()?,
            false => self.frames.clone(),
        };
        let mut bits = 0;
        for (frame, values) in frames.iter_mut().zip(&ranges).rev() {
            if !frame.holds(values) {
                *frame = frame.grown(values)?;
            }
            frame.shift = bits;
            bits += frame.bits;
        }
        let at_first = (groups + ends.len()).saturating_mul(PLACES_PER_ROW_MAX).min(PLACES_MIN);
        let most = at_first.max(groups.saturating_mul(PLACES_PER_GROUP_MAX)).min(1 << 31);
        let fit = |windows: usize| bits < u32::BITS && windows <= most >> bits;
        let mut last = None;
        for &end in ends {
            if last.replace(end) != Some(end) {
                let next = self.windows.len() as u32;
                self.windows.entry(end).or_insert(next);
                if !fit(self.windows.len()) {
                    return None;
                }
            }
        }
        if frames != self.frames {
            self.move_to(frames, bits);
        }
        self.groups.resize(self.windows.len() << bits, NO_GROUP);
        Some(())
    }

    fn move_to(&mut self, frames: Vec<Frame>, bits: u32) {
        let mut moved = vec![NO_GROUP; self.windows.len() << bits];
        for (place, &group) in self.groups.iter().enumerate().filter(|(_, group)| **group != NO_GROUP) {
            let window = place as u64 >> self.bits << bits;
            let within = self.frames.iter().zip(&frames).map(|(old, new)| new.place(old.value(place as u32)));
            moved[window as usize | within.fold(0, |all, one| all | one) as usize] = group;
        }
        self.groups = moved;
        self.frames = frames;
        self.bits = bits;
    }

    /// Sets `groups` to the group of each row that has been placed; `added` gets the rows of new groups, which have
    /// the numbers from `next` on.
    pub(super) fn number(&mut self, mut next: u32, groups: &mut Vec<u32>, added: &mut Vec<u32>) {
        groups.extend(self.places.iter().enumerate().map(|(row, &place)| {
            let group = &mut self.groups[place as usize];
            if *group == NO_GROUP {
                *group = next;
                next += 1;
                added.push(row as u32);
            }
            *group
        }));
    }

    /// All groups in the order of their keys.
    pub(super) fn sorted(&self) -> Vec<u32> {
        let mut windows: Vec<(Micros, u32)> =
            self.windows.iter().map(|(&end, &number)| (end, number)).collect();
        windows.sort_unstable();
        let places = |number: u32| &self.groups[(number as usize) << self.bits..][..1 << self.bits];
        let groups = windows.into_iter().flat_map(|(_, number)| places(number));
        groups.copied().filter(|&group| group != NO_GROUP).collect()
    }

    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.bits = 0;
        self.windows.clear();
        self.groups.clear();
    }
}

/// The column's values, if they are integers and none is null, or numbers in the same order.
fn integers(column: &ArrayRef) -> Option<Int64Array> {
    if column.null_count() > 0 {
        return None;
    }
    let data_type = column.data_type();
    match data_type {
        DataType::UInt64 => Some(column.as_primitive::<UInt64Type>().unary(|value| (value ^ 1 << 63) as i64)),
        DataType::Int64 | DataType::Timestamp(..) => {
            let data = column.to_data();
            let values = ScalarBuffer::new(data.buffers()[0].clone(), data.offset(), data.len());
            Some(Int64Array::new(values, None))
        }
        _ if data_type.is_integer() => {
            let column = cast(column, &DataType::Int64).ok()?;
            Some(column.as_primitive::<Int64Type>().clone())
        }
        _ => None,
    }
}
