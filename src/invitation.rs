//! The domain: what an invitation is, how two are told apart, and how one can fail. No I/O.

mod failure;
mod respondent;
mod validate;

pub use failure::{Failure, Reason, Sent};
pub use respondent::{Fingerprint, Invitation, Key, Respondent};
pub use validate::{Violation, collector_id, validate, violations_of_key};

#[cfg(test)]
mod tests;
