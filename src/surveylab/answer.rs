//! What SurveyLab's answer means: decided once, here.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::{Answer, redact::Secrets};

/// As much of a body as is read.
pub(super) const MAX_BODY: usize = 64 * 1024;
const MAX_NOTIFICATION_CHARS: usize = 200;
/// Far above what the limiter makes of it, far below where adding it to a time overflows.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// An answer's head.
pub(super) struct Head<'a> {
    pub http_status: u16,
    pub retry_after: Option<&'a [u8]>,
}

/// What became of reading an answer's body.
#[derive(Debug)]
pub(super) enum Body {
    Complete(Vec<u8>),
    /// Longer than `MAX_BODY`.
    TooLong,
    /// The connection or the time ended before the body did.
    Broken {
        cause: String,
    },
}

/// The answer, where the status alone decides; `None` where the body does.
pub(super) fn by_status(head: &Head<'_>, now: SystemTime) -> Option<Answer> {
    let http_status = head.http_status;
    let retry_after = || head.retry_after.and_then(|value| retry_after(value, now));
    Some(match http_status {
        200..=299 => return None,
        400 => Answer::BadRequest,
        401 => Answer::Unauthorized,
        403 => Answer::Forbidden,
        404 => Answer::NotFound,
        429 => Answer::RateLimited {
            retry_after: retry_after(),
        },
        500 => Answer::InternalError,
        503 => Answer::Unavailable {
            retry_after: retry_after(),
        },
        300..=499 => Answer::UnexpectedStatus { http_status },
        // Other 5xx: a proxy in between may have passed the request on (502, 504). 101, and what is no HTTP status at
        // all: nobody knows what such a server does.
        _ => in_doubt(
            http_status,
            "the status does not tell whether the request was carried out".into(),
        ),
    })
}

/// The answer that a body under a 2xx gives.
pub(super) fn by_body(http_status: u16, body: Body, secrets: &Secrets<'_>) -> Answer {
    let bytes = match body {
        Body::Complete(bytes) => bytes,
        Body::TooLong => return in_doubt(http_status, format!("the body is longer than {MAX_BODY} bytes")),
        Body::Broken { cause } => return in_doubt(http_status, cause),
    };
    let Some(reply) = read(&bytes) else {
        return in_doubt(
            http_status,
            "the body is not a JSON object with a boolean status".into(),
        );
    };
    let notification = match reply.notification {
        Value::Null => String::new(),
        Value::String(text) if text.is_empty() => text,
        other => words(other, secrets),
    };
    if reply.status {
        Answer::Added { notification }
    } else {
        Answer::ActionFailed {
            http_status,
            notification,
        }
    }
}

/// A notification as text, fit to be repeated. JSON in place of text is cleaned before it is written out: writing escapes
/// what secrets are told by.
fn words(notification: Value, secrets: &Secrets<'_>) -> String {
    let text = match notification {
        Value::String(text) => text,
        structured => cleaned(structured, secrets).to_string(),
    };
    secrets.clean(&text, MAX_NOTIFICATION_CHARS)
}

fn cleaned(value: Value, secrets: &Secrets<'_>) -> Value {
    let clean = |text: &str| secrets.clean(text, MAX_NOTIFICATION_CHARS);
    match value {
        Value::String(text) => clean(&text).into(),
        Value::Array(items) => items.into_iter().map(|item| cleaned(item, secrets)).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, field)| (clean(&name), cleaned(field, secrets)))
            .collect(),
        other => other,
    }
}

fn in_doubt(http_status: u16, cause: String) -> Answer {
    Answer::InDoubt {
        http_status: Some(http_status),
        cause,
    }
}

/// A field that comes twice is refused by the derived code, so a body that contradicts itself is unreadable.
#[derive(Deserialize)]
struct Reply {
    status: bool,
    #[serde(default)]
    notification: Value,
}

fn read(bytes: &[u8]) -> Option<Reply> {
    // Only `status` decides: a notification in another charset is no reason for doubt.
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    // The derived code would take an array of the fields' values, too.
    if !text.starts_with('{') {
        return None;
    }
    if let Ok(reply) = serde_json::from_str(text) {
        return Some(reply);
    }
    // In what is JSON as it stands, such a quote is a letter like any other, and so no end of a name.
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => None,
        Err(_) => serde_json::from_str(&text.replace(is_typographic_quote, "\"")).ok(),
    }
}

/// SurveyLab's page prints its example bodies with these („status” in Polish, “status” in English).
fn is_typographic_quote(c: char) -> bool {
    matches!(c, '„' | '”' | '“' | '‟' | '«' | '»' | '″' | '＂')
}

/// RFC 9110, 10.2.3: seconds, or a date. What is neither, or a date that has passed, says nothing: then the limiter's
/// own backoff holds, which grows, while a server with a wrong clock would let everyone through at once.
fn retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let value = str::from_utf8(value).ok()?.trim();
    let after = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // All digits, so it can only fail for being too large.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(value).ok()?;
        date.duration_since(now).ok()?
    };
    Some(after.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests;
