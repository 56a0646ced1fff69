//! What a seed decides.

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        dice.next();
        dice
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `below` − 1.
    pub fn under(&mut self, below: u64) -> u64 {
        self.next() % below.max(1)
    }

    pub fn among<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.under(choices.len() as u64) as usize]
    }

    /// Once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.under(times) == 0
    }
}
