use std::{fmt, sync::Arc};

use sha2::{Digest, Sha256};

use crate::hex::hex;

/// The idempotency key: SurveyLab's collector and the response key. The same crk in another collector is another
/// invitation. Ordered by collector, then crk, both bytewise: the order of every listing.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    collector_id: Arc<str>,
    crk: Arc<str>,
}

impl Key {
    pub fn new(collector_id: impl Into<Arc<str>>, crk: impl Into<Arc<str>>) -> Self {
        Self {
            collector_id: collector_id.into(),
            crk: crk.into(),
        }
    }

    pub fn collector_id(&self) -> &str {
        &self.collector_id
    }

    pub fn crk(&self) -> &str {
        &self.crk
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.collector_id, self.crk)
    }
}

/// Everything that is sent to SurveyLab about a person. An empty optional field is not sent.
///
/// `Debug` prints no value: these are personal data.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Respondent {
    pub email: String,
    pub referrer: String,
    pub language: String,
    pub phone: String,
    pub first_name: String,
    pub last_name: String,
    pub custom: [String; 8],
}

impl Respondent {
    /// Every field with its name in the contract, in the contract's order.
    pub fn fields(&self) -> [(&'static str, &str); 14] {
        let [c1, c2, c3, c4, c5, c6, c7, c8] = &self.custom;
        [
            ("email", &self.email),
            ("referrer", &self.referrer),
            ("language", &self.language),
            ("phone", &self.phone),
            ("first_name", &self.first_name),
            ("last_name", &self.last_name),
            ("custom1", c1),
            ("custom2", c2),
            ("custom3", c3),
            ("custom4", c4),
            ("custom5", c5),
            ("custom6", c6),
            ("custom7", c7),
            ("custom8", c8),
        ]
    }
}

impl fmt::Debug for Respondent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Respondent(redacted)")
    }
}

/// Tells a repeated call from a key used again with other data: SHA-256 over all data fields, each preceded by its
/// length in bytes, so that no two different sets of fields give the same input.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    pub fn of(respondent: &Respondent) -> Self {
        let mut hash = Sha256::new();
        for (_, value) in respondent.fields() {
            hash.update((value.len() as u64).to_be_bytes());
            hash.update(value.as_bytes());
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", hex(&self.0[..4]))
    }
}

/// A respondent to be added under a key.
#[derive(Clone, Debug)]
pub struct Invitation {
    pub key: Key,
    pub respondent: Respondent,
    pub fingerprint: Fingerprint,
}

impl Invitation {
    /// Takes the data as they are; `validate` says what SurveyLab can't be given.
    pub fn new(key: Key, respondent: Respondent) -> Self {
        let fingerprint = Fingerprint::of(&respondent);
        Self {
            key,
            respondent,
            fingerprint,
        }
    }
}
