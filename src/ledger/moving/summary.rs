//! What a whole ledger comes to, so that two of them can be compared by a line.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::{
    hex::hex,
    ledger::{Record, State},
};

/// Keys by their states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    pub pending: u64,
    pub added: u64,
    pub failed: u64,
    pub in_doubt: u64,
}

impl Keys {
    pub fn total(&self) -> u64 {
        self.pending + self.added + self.failed + self.in_doubt
    }

    /// Counts one more.
    pub fn count(&mut self, state: State) {
        let count = match state {
            State::Pending => &mut self.pending,
            State::Added => &mut self.added,
            State::Failed => &mut self.failed,
            State::InDoubt => &mut self.in_doubt,
        };
        *count += 1;
    }
}

/// Records on their way into a [`Summary`]. They come in the order of keys.
#[derive(Clone, Default)]
pub struct Summing {
    keys: Keys,
    hash: Sha256,
}

impl Summing {
    /// Takes all that a record holds. What can have several lengths comes behind its length, so that no two different lists of
    /// records are hashed the same.
    pub fn add(&mut self, record: &Record) {
        let Record {
            key,
            fingerprint,
            state,
            attempts,
            created_at,
            updated_at,
            // It is `updated_at`, or nothing, by the state.
            added_at: _,
            last_error,
            notification,
        } = record;
        self.keys.count(*state);
        self.text(key.collector_id());
        self.text(key.crk());
        self.hash.update(fingerprint.0);
        self.hash.update([*state as u8]);
        self.hash.update(attempts.to_be_bytes());
        self.hash.update(created_at.0.to_be_bytes());
        self.hash.update(updated_at.0.to_be_bytes());
        // No reason has the number 0, and no HTTP status either.
        self.hash.update([last_error.map_or(0, |error| error.reason.code())]);
        let http_status = last_error.and_then(|error| error.http_status).unwrap_or(0);
        self.hash.update(http_status.to_be_bytes());
        self.hash.update([u8::from(notification.is_some())]);
        self.text(notification.as_deref().unwrap_or_default());
    }

    fn text(&mut self, text: &str) {
        self.hash.update((text.len() as u64).to_be_bytes());
        self.hash.update(text);
    }

    pub fn end(self) -> Summary {
        Summary {
            keys: self.keys,
            digest: self.hash.finalize().into(),
        }
    }
}

/// All records of a ledger: how many there are of each state, and SHA-256 over everything that they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub keys: Keys,
    digest: [u8; 32],
}

impl Summary {
    /// The digest as `sha256sum` writes one.
    pub fn digest(&self) -> impl fmt::Display {
        hex(&self.digest)
    }
}
