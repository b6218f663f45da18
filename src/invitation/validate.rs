//! What SurveyLab can be given. Rules without another source are the gateway's own; the crk's length is SurveyLab's.

use email_address::{EmailAddress, Options};

use super::{Key, Respondent};

const MAX_COLLECTOR_ID: usize = 64;
const MAX_CRK_CHARS: usize = 64;
/// RFC 5321, 4.5.3.1: a path has at most 256 octets, two of them the angle brackets. The local part's 64 are the
/// parser's to check.
const MAX_EMAIL_BYTES: usize = 254;
const MAX_TEXT_CHARS: usize = 2_048;

/// One thing that is wrong with one field. Never holds the field's value: it ends up in logs of callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's name in the contract.
    pub field: &'static str,
    pub description: String,
}

impl Violation {
    pub fn new(field: &'static str, description: impl Into<String>) -> Self {
        Self {
            field,
            description: description.into(),
        }
    }
}

/// All that is wrong with a key and its respondent's data, at most one violation a field.
pub fn validate(key: &Key, respondent: &Respondent) -> Vec<Violation> {
    let mut violations = violations_of_key(key);
    for (field, value) in respondent.fields() {
        let wrong = match field {
            "email" => email(value),
            _ if value.is_empty() => None,
            "language" => language(value),
            "phone" | "first_name" | "last_name" => text(value, |c| c.is_control()),
            _ => text(value, |c| c.is_control() && c != '\t' && c != '\n'),
        };
        violations.extend(wrong.map(|description| Violation::new(field, description)));
    }
    violations
}

/// All that is wrong with a key alone.
pub fn violations_of_key(key: &Key) -> Vec<Violation> {
    let collector_id = collector_id(key.collector_id()).map(|wrong| Violation::new("collector_id", wrong));
    let crk = crk(key.crk()).map(|wrong| Violation::new("crk", wrong));
    collector_id.into_iter().chain(crk).collect()
}

/// What is wrong with a collector's id, if anything.
pub fn collector_id(id: &str) -> Option<String> {
    if id.is_empty() {
        return Some("is required".into());
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (id.len() > MAX_COLLECTOR_ID || !id.bytes().all(allowed))
        .then(|| format!("must be 1 to {MAX_COLLECTOR_ID} characters of A-Z, a-z, 0-9, _ and -"))
}

fn crk(crk: &str) -> Option<String> {
    if crk.is_empty() {
        Some("is required".into())
    } else if crk.chars().count() > MAX_CRK_CHARS {
        Some(format!("must be at most {MAX_CRK_CHARS} characters"))
    } else if crk.chars().any(char::is_control) {
        Some("must not contain control characters".into())
    } else if crk.trim() != crk {
        Some("must not begin or end with white space".into())
    } else {
        None
    }
}

fn email(email: &str) -> Option<String> {
    if email.is_empty() {
        return Some("is required".into());
    }
    if email.len() > MAX_EMAIL_BYTES {
        return Some(format!("must be at most {MAX_EMAIL_BYTES} bytes"));
    }
    if email.chars().any(char::is_control) {
        return Some("must not contain control characters".into());
    }
    match EmailAddress::parse_with_options(email, Options::default().without_display_text()) {
        // The parser reads ` <a@b>` as an address with an empty name.
        Ok(address) if address.email() != email => Some("must be a bare e-mail address".into()),
        Ok(_) => None,
        Err(error) => Some(format!("is not an e-mail address: {error}")),
    }
}

fn language(language: &str) -> Option<String> {
    let mut subtags = language.split('-');
    let primary = subtags.next().unwrap_or_default();
    let primary_ok = matches!(primary.len(), 2 | 3) && primary.bytes().all(|b| b.is_ascii_alphabetic());
    // RFC 5646, 2.1: subtags have one to eight letters or digits.
    let subtags_ok = subtags.all(|tag| matches!(tag.len(), 1..=8) && tag.bytes().all(|b| b.is_ascii_alphanumeric()));
    (!primary_ok || !subtags_ok || language.len() > 35)
        .then(|| "must be an ISO language code with optional subtags, such as en, pl or pt-BR".into())
}

fn text(value: &str, forbidden: impl Fn(char) -> bool) -> Option<String> {
    if value.chars().count() > MAX_TEXT_CHARS {
        Some(format!("must be at most {MAX_TEXT_CHARS} characters"))
    } else if value.chars().any(forbidden) {
        Some("must not contain control characters".into())
    } else {
        None
    }
}
