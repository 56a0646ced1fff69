//! What a seed decides: in the log in memory, in simulations and in tests.
//!
//! Invariant: the numbers of a seed never change, so that a seed that found something finds it again.

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Dice(u64);

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of many that a seed has, each independent of the others.
    pub fn stream(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        dice.next();
        dice
    }

    /// The number that is drawn as the `nth` of a seed, from 1.
    pub fn nth(seed: u64, nth: u64) -> u64 {
        Self(seed.wrapping_add(nth.wrapping_sub(1).wrapping_mul(STEP))).next()
    }

    #[expect(clippy::should_implement_trait, reason = "it never ends, and gives no options")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// True with this probability. Draws only where there is one, so that unused faults change nothing.
    pub fn falls(&mut self, probability: f64) -> bool {
        probability > 0.0 && ((self.next() >> 11) as f64 / (1_u64 << 53) as f64) < probability
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_numbers_of_its_publication() {
        let mut dice = Dice::new(1_234_567);
        let drawn = [(); 3].map(|()| dice.next());
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        assert_eq!([1, 2, 3].map(|nth| Dice::nth(1_234_567, nth)), drawn);
    }
}
