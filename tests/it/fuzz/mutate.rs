//! How inputs are broken: bits, bytes, numbers, ends, parts doubled, left out or taken from another input, and words
//! that mean something to the reader.

use rand::RngExt;
use rand::rngs::SmallRng;

/// No input grows beyond this.
const LENGTH_MAX: usize = 64 << 10;
const NUMBERS: [i64; 12] = [
    i32::MAX as i64,
    i32::MIN as i64,
    -1,
    1_000_000,
    0x1_0000,
    0,
    1,
    255,
    i64::MAX,
    i64::MIN,
    1 << 40,
    u32::MAX as i64,
];
const DIGITS: [&str; 14] = [
    "0",
    "-0",
    "1",
    "-1",
    "1e400",
    "1e-400",
    "0.1",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "99999999999999999999999999999999999999",
    "4294967296",
    "1e999999999999999999999",
];

/// Breaks an input in one to five places. `other` is one to take parts of.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], words: &[&str], random: &mut SmallRng) {
    for _ in 0..random.random_range(1..6) {
        once(bytes, other, words, random);
        bytes.truncate(LENGTH_MAX);
    }
}

fn once(bytes: &mut Vec<u8>, other: &[u8], words: &[&str], random: &mut SmallRng) {
    let at = random.random_range(0..=bytes.len());
    let part = |random: &mut SmallRng, of: &[u8], most: usize| {
        let from = random.random_range(0..=of.len());
        let length = random.random_range(0..=most.min(of.len() - from));
        of[from..from + length].to_vec()
    };
    match random.random_range(0..14) {
        0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
        2 if at < bytes.len() => {
            bytes[at] = [0, 0x7f, 0x80, 0xff, random.random()][random.random_range(0..5)]
        }
        3 => bytes.truncate(at),
        4 => bytes.extend((0..random.random_range(0..40)).map(|_| random.random::<u8>())),
        // A number of any width and order, in place or put in.
        5 | 6 => {
            let number = NUMBERS[random.random_range(0..NUMBERS.len())];
            let width = [1, 2, 4, 8][random.random_range(0..4)];
            let big = number.to_be_bytes();
            let mut number = big[8 - width..].to_vec();
            if random.random_bool(0.5) {
                number.reverse();
            }
            let end = if random.random_bool(0.7) { (at + width).min(bytes.len()) } else { at };
            bytes.splice(at..end, number);
        }
        7 => {
            let part = part(random, other, 200);
            bytes.splice(at..at, part);
        }
        8 => {
            let end = (at + random.random_range(0..60)).min(bytes.len());
            bytes.drain(at..end);
        }
        // The same again, perhaps many times.
        9 => {
            let part = part(random, bytes, 40);
            let times = [1, 1, 2, 10, 300, 3_000][random.random_range(0..6)];
            let times = times.min(LENGTH_MAX / part.len().max(1));
            bytes.splice(at..at, part.repeat(times));
        }
        10 => {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[other.len().min(at)..]);
        }
        // A number that is written out.
        11 => {
            let text = DIGITS[random.random_range(0..DIGITS.len())];
            let is_number = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
            let from =
                bytes[at..].iter().position(|byte| byte.is_ascii_digit()).map_or(at, |found| at + found);
            let end = from + bytes[from..].iter().take_while(|byte| is_number(byte)).count();
            bytes.splice(from..end, text.bytes());
        }
        _ if !words.is_empty() => {
            let word = words[random.random_range(0..words.len())];
            let times = [1, 1, 1, 1, 2, 50, 2_000][random.random_range(0..7)];
            let word = word.repeat(times.min(LENGTH_MAX / word.len().max(1)));
            bytes.splice(at..at, word.into_bytes());
        }
        _ => {}
    }
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn bytes_of(line: &str) -> Vec<u8> {
    (0..line.len() / 2).map(|at| u8::from_str_radix(&line[at * 2..at * 2 + 2], 16).unwrap()).collect()
}
