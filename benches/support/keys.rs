//! Whom a load adds.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use surveylab_gateway::proto::{AddRespondentRequest, Outcome};

/// Draws keys, each fresh one once.
pub struct Keys {
    seed: u64,
    next: AtomicU64,
    count: u64,
    again: bool,
}

impl Keys {
    pub fn fresh(seed: u64, count: u64) -> Self {
        Self {
            seed,
            next: AtomicU64::new(0),
            count,
            again: false,
        }
    }

    pub fn duplicates(seed: u64, count: u64) -> Self {
        Self {
            again: true,
            ..Self::fresh(seed, count)
        }
    }

    pub fn outcome(&self) -> Outcome {
        match self.again {
            true => Outcome::Duplicate,
            false => Outcome::Added,
        }
    }

    pub fn draw(&self) -> Option<AddRespondentRequest> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.again {
            let any = SmallRng::seed_from_u64(self.seed ^ number).random_range(0..self.count);
            return Some(request(self.seed, any));
        }
        (number < self.count).then(|| request(self.seed, number))
    }
}

/// The respondent of a number: its key looks random, as a UUID does.
pub fn request(seed: u64, number: u64) -> AddRespondentRequest {
    let crk = crk(seed, number);
    AddRespondentRequest {
        collector_id: "8379821739721".into(),
        email: format!("{crk}@example.com"),
        crk,
        first_name: "Jan".into(),
        last_name: "Kowalski".into(),
        language: "pl".into(),
        ..AddRespondentRequest::default()
    }
}

/// The key of a number.
pub fn crk(seed: u64, number: u64) -> String {
    let mut random = SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
    format!("{:032x}", random.random::<u128>())
}
