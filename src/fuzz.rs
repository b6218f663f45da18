//! All that reads outside input, as targets for a fuzzer: any bytes go in, and what must hold for any bytes is asserted.
//! For `fuzz/` and for tests alone; `tests` runs the same targets over the corpora and over random inputs.
//!
//! What a module keeps to itself has its target in that module's own `fuzz.rs`.

use std::time::Duration;

pub use crate::{
    cli::fuzz::{setting, settings},
    grpc::fuzz::{grpc_timeout, messages, page_token},
    sandbox::fuzz::{fault, query},
    surveylab::fuzz::{answer, redact},
};
use crate::{grpc, invitation::validate, limiter, proto::AddRespondentRequest, surveylab};

/// A target: panics where something does not hold.
pub type Target = fn(&[u8]);

/// Every target with its name, which is that of its corpus and of its file in `fuzz/fuzz_targets`.
pub const TARGETS: [(&str, Target); 11] = [
    ("answer", answer),
    ("fault", fault),
    ("grpc_timeout", grpc_timeout),
    ("messages", messages),
    ("page_token", page_token),
    ("query", query),
    ("redact", redact),
    ("request", request),
    ("retry_after", retry_after),
    ("setting", setting),
    ("settings", settings),
];

/// A Retry-After header: whatever it asks for, the pause is within a second and an hour.
pub fn retry_after(data: &[u8]) {
    const BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
    let asked = surveylab::fuzz::retry_after(data);
    let pause = limiter::fuzz::pause(asked);
    if let Some(asked) = asked {
        assert_eq!(pause, asked.max(BOUNDS.0).min(BOUNDS.1));
    } else {
        assert!(!pause.is_zero() && pause <= BOUNDS.1, "{pause:?}");
    }
}

/// An AddRespondentRequest off the wire: bad input is named field by field; what is accepted becomes one line below 8 000
/// bytes, from which SurveyLab reads every value byte for byte, and nothing else.
pub fn request(data: &[u8]) {
    let Some((message, invitation)) = grpc::fuzz::add_request(data) else {
        return;
    };
    let fields = fields(&message);
    let violations = validate(&invitation.key, &invitation.respondent);
    for violation in &violations {
        assert!(fields.iter().any(|field| field.name == violation.field));
        let text = &violation.description;
        assert!(
            text.is_ascii() && !text.contains("s3cret"),
            "it may hold the value: {text}"
        );
    }
    for field in &fields {
        let found = violations
            .iter()
            .filter(|violation| violation.field == field.name)
            .count();
        match is_right(field) {
            Some(is_right) => assert_eq!(found, usize::from(!is_right), "{}", field.name),
            None => assert!(found <= 1, "{}", field.name),
        }
    }
    if !violations.is_empty() {
        return;
    }

    let mut wanted = vec![("apiToken".to_owned(), surveylab::fuzz::URL_TOKEN.to_owned())];
    let given = fields.iter().filter(|field| !field.value.is_empty());
    wanted.extend(given.map(|field| (field.parameter.to_owned(), field.value.to_owned())));
    let length = "GET /api.php? HTTP/1.1".len()
        + wanted
            .iter()
            .map(|(name, value)| name.len() + 1 + encoded_len(value))
            .sum::<usize>()
        + (wanted.len() - 1);
    match surveylab::fuzz::url(invitation) {
        Ok(url) => {
            let (base, query) = url.as_str().split_once('?').unwrap_or_default();
            assert_eq!(base, surveylab::fuzz::URL_BASE);
            assert!(
                query
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._~%=&".contains(&b))
            );
            assert_eq!(form_pairs(query), wanted);
            let line = format!("GET {}?{query} HTTP/1.1", url.path());
            assert_eq!(line.len(), length);
            assert!(length < 8_000);
        }
        Err(violation) => {
            assert!(length >= 8_000, "{length} bytes");
            let largest = fields.iter().map(|field| encoded_len(field.value)).max();
            let named = fields.iter().find(|field| field.name == violation.field);
            assert_eq!(named.map(|field| encoded_len(field.value)), largest);
        }
    }
}

/// One field of the message, in the order of SurveyLab's parameters.
struct Field<'a> {
    /// In the contract.
    name: &'static str,
    /// At SurveyLab.
    parameter: &'static str,
    value: &'a str,
}

fn fields(message: &AddRespondentRequest) -> [Field<'_>; 16] {
    [
        ("collector_id", "cId", &message.collector_id),
        ("email", "email", &message.email),
        ("crk", "crk", &message.crk),
        ("referrer", "referrer", &message.referrer),
        ("language", "language", &message.language),
        ("phone", "phone", &message.phone),
        ("first_name", "firstName", &message.first_name),
        ("last_name", "lastName", &message.last_name),
        ("custom1", "custom1", &message.custom1),
        ("custom2", "custom2", &message.custom2),
        ("custom3", "custom3", &message.custom3),
        ("custom4", "custom4", &message.custom4),
        ("custom5", "custom5", &message.custom5),
        ("custom6", "custom6", &message.custom6),
        ("custom7", "custom7", &message.custom7),
        ("custom8", "custom8", &message.custom8),
    ]
    .map(|(name, parameter, value)| Field { name, parameter, value })
}

/// The rules of input once more; `None` where they leave it to a parser of its own: an e-mail address within its bounds.
fn is_right(field: &Field<'_>) -> Option<bool> {
    let text = field.value;
    let chars = text.chars().count();
    let is_plain = |also: &[char]| text.chars().all(|c| !c.is_control() || also.contains(&c));
    match field.name {
        "collector_id" => {
            let is_word = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            Some((1..=64).contains(&chars) && is_word)
        }
        "crk" => {
            let ends_in_space = text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace);
            Some((1..=64).contains(&chars) && is_plain(&[]) && !ends_in_space)
        }
        "email" => {
            let local = text.rfind('@').unwrap_or_default();
            let may_be = (1..=64).contains(&local) && (3..=254).contains(&text.len()) && is_plain(&[]);
            (!may_be).then_some(false)
        }
        "language" => {
            let is_letters = |tag: &str| tag.chars().all(|c| c.is_ascii_alphabetic());
            let is_subtag = |tag: &str| !tag.is_empty() && tag.len() <= 8;
            let is_ascii_word = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            let (primary, rest) = text
                .split_once('-')
                .map_or((text, None), |(first, rest)| (first, Some(rest)));
            let rest_is_right = rest.is_none_or(|rest| rest.split('-').all(is_subtag));
            let is_tag = matches!(primary.len(), 2 | 3) && is_letters(primary) && rest_is_right && is_ascii_word;
            Some(text.is_empty() || (is_tag && text.len() <= 35))
        }
        "phone" | "first_name" | "last_name" => Some(chars <= 2_048 && is_plain(&[])),
        _ => Some(chars <= 2_048 && is_plain(&['\t', '\n'])),
    }
}

fn encoded_len(value: &str) -> usize {
    let is_unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    value.bytes().map(|b| if is_unreserved(b) { 1 } else { 3 }).sum()
}

/// The parameters of a query string by the URL standard's rules for `application/x-www-form-urlencoded`, read without the
/// crate that the sandbox reads them with.
pub(crate) fn form_pairs(query: &str) -> Vec<(String, String)> {
    let decoded = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, others @ ..] = rest {
            rest = others;
            let digit = |at: usize| others.get(at).and_then(|b| char::from(*b).to_digit(16));
            bytes.push(match (first, digit(0), digit(1)) {
                (b'%', Some(high), Some(low)) => {
                    rest = &others[2..];
                    (high * 16 + low) as u8
                }
                (b'+', ..) => b' ',
                (other, ..) => *other,
            });
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

/// The first `N` lines as texts, and the rest; `None` where there are not so many.
pub(crate) fn lines<const N: usize>(data: &[u8]) -> Option<([&str; N], &[u8])> {
    let mut lines = [""; N];
    let mut rest = data;
    for line in &mut lines {
        let end = rest.iter().position(|b| *b == b'\n')?;
        *line = str::from_utf8(&rest[..end]).ok()?;
        rest = &rest[end + 1..];
    }
    Some((lines, rest))
}

#[cfg(test)]
mod tests;
