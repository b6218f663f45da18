//! How many rows came to what.

use std::collections::BTreeMap;

use super::results::Outcome;
use crate::cli::Exit;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub added: u64,
    pub duplicate: u64,
    pub failed: u64,
    pub in_doubt: u64,
    /// Of what failed or is in doubt.
    reasons: BTreeMap<(Outcome, String), u64>,
}

impl Tally {
    pub fn count(&mut self, outcome: Outcome, reason: &str) {
        *match outcome {
            Outcome::Added => &mut self.added,
            Outcome::Duplicate => &mut self.duplicate,
            Outcome::Failed => &mut self.failed,
            Outcome::InDoubt => &mut self.in_doubt,
        } += 1;
        if !matches!(outcome, Outcome::Added | Outcome::Duplicate) {
            // Looked up by what is borrowed it would need a type of its own; failures are few.
            *self.reasons.entry((outcome, reason.to_string())).or_default() += 1;
        }
    }

    pub fn all(&self) -> u64 {
        self.added + self.duplicate + self.failed + self.in_doubt
    }

    /// The reasons of one outcome, the most frequent first.
    pub fn reasons(&self, outcome: Outcome) -> Vec<(&str, u64)> {
        let of_it = self.reasons.iter().filter(|((is, _), _)| *is == outcome);
        let mut reasons: Vec<_> = of_it.map(|((_, reason), count)| (reason.as_str(), *count)).collect();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), *reason));
        reasons
    }

    /// How a run ends that has a result for every row.
    pub fn exit(&self) -> Exit {
        if self.in_doubt > 0 {
            Exit::InDoubt
        } else if self.failed > 0 {
            Exit::Refused
        } else {
            Exit::Ok
        }
    }
}
