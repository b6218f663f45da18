//! Keys that look random, as those made of UUIDs do, and can be made again from their number.

use std::sync::atomic::{AtomicU64, Ordering};

use surveylab_gateway::invitation::Key;

pub const COLLECTOR_ID: &str = "8379821739721";

/// No ledger is grown to so many.
static NEXT_FRESH: AtomicU64 = AtomicU64::new(1 << 40);
static NEXT_DRAW: AtomicU64 = AtomicU64::new(0);

/// Ledgers are kept from run to run, so this must never change: no generator of another crate.
pub fn crk(number: u64) -> u128 {
    (u128::from(mixed(2 * number)) << 64) | u128::from(mixed(2 * number + 1))
}

pub fn key(number: u64) -> Key {
    Key::new(COLLECTOR_ID, format!("{:032x}", crk(number)))
}

/// One that no ledger holds.
pub fn fresh() -> Key {
    key(NEXT_FRESH.fetch_add(1, Ordering::Relaxed))
}

/// Any of the first so many.
pub fn any_of(count: u64) -> Key {
    key(mixed(NEXT_DRAW.fetch_add(1, Ordering::Relaxed)) % count)
}

/// SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
