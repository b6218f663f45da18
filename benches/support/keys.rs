//! Keys that look random, as those made of UUIDs do, and can be made again from a seed and their number.

use std::sync::atomic::{AtomicU64, Ordering};

use surveylab_gateway::{invitation::Key, proto::AddRespondentRequest};

pub const COLLECTOR_ID: &str = "8379821739721";

/// Draws keys, each fresh one once.
pub struct Keys {
    seed: u64,
    next: AtomicU64,
    count: u64,
    again: bool,
}

impl Keys {
    pub const fn fresh(seed: u64, count: u64) -> Self {
        Self {
            seed,
            next: AtomicU64::new(0),
            count,
            again: false,
        }
    }

    pub const fn duplicates(seed: u64, count: u64) -> Self {
        Self {
            again: true,
            ..Self::fresh(seed, count)
        }
    }

    /// Its `crk`. Fresh ones come to an end.
    pub fn draw(&self) -> Option<String> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.again {
            return Some(crk(self.seed, split_mix(self.seed, number) % self.count));
        }
        (number < self.count).then(|| crk(self.seed, number))
    }
}

pub fn key(crk: String) -> Key {
    Key::new(COLLECTOR_ID, crk)
}

pub fn request(crk: String) -> AddRespondentRequest {
    AddRespondentRequest {
        collector_id: COLLECTOR_ID.into(),
        email: format!("{crk}@example.com"),
        crk,
        first_name: "Jan".into(),
        last_name: "Kowalski".into(),
        language: "pl".into(),
        ..AddRespondentRequest::default()
    }
}

/// The key of a number. Ledgers are kept from run to run, so this must never change: no generator of another crate.
pub fn crk(seed: u64, number: u64) -> String {
    let [high, low] = [2 * number, 2 * number + 1].map(|number| split_mix(seed, number));
    format!("{high:016x}{low:016x}")
}

/// The n-th output of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
fn split_mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
