//! Targets of [`crate::fuzz`]: SurveyLab's answers, its words, and the URL of a request.

use std::{
    fmt,
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use reqwest::Url;
use secrecy::SecretString;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

use super::{
    Answer, SurveyLab as _,
    answer::{Body, Head, by_body, by_status},
    http::{HttpConfig, HttpSurveyLab},
    redact::Secrets,
};
use crate::{
    clock::Clock,
    fuzz::lines,
    invitation::{Invitation, Respondent, Violation},
};

const TOKEN: &str = "s3cret-T0ken/4711";
const EMAIL: &str = "Jan.Kowalski+1@example.com";
/// Sun, 06 Nov 1994 08:49:37 GMT: RFC 9110's own example.
const NOW: Duration = Duration::from_secs(784_111_777);
const REDACTED: &str = "[redacted]";

fn now() -> SystemTime {
    UNIX_EPOCH + NOW
}

/// A status, a Retry-After and a body, one below the other: what they come to is what the table of statuses and another
/// reading of the JSON say, and the words that are kept are fit to be repeated.
pub fn answer(data: &[u8]) {
    let Some(([status, retry_after], body)) = lines(data) else {
        return;
    };
    let Ok(http_status) = status.parse() else { return };
    let head = Head {
        http_status,
        retry_after: Some(retry_after.as_bytes()),
    };
    let answer = by_status(&head, now()).unwrap_or_else(|| {
        let respondent = Respondent {
            email: EMAIL.into(),
            ..Respondent::default()
        };
        by_body(
            http_status,
            Body::Complete(body.to_vec()),
            &Secrets::of(TOKEN, &respondent),
        )
    });
    let wanted = match http_status {
        200..=299 => match status_in(body) {
            Some(true) => "added",
            Some(false) => "action_failed",
            None => "in_doubt",
        },
        400 => "bad_request",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        429 => "rate_limited",
        500 => "internal_error",
        503 => "unavailable",
        300..=499 => "unexpected_status",
        _ => "in_doubt",
    };
    assert_eq!(answer.name(), wanted);
    match &answer {
        Answer::Added { notification } | Answer::ActionFailed { notification, .. } => {
            is_fit_to_repeat(notification, &[TOKEN, EMAIL]);
        }
        Answer::InDoubt { http_status: kept, .. } => assert_eq!(*kept, Some(http_status)),
        Answer::UnexpectedStatus { http_status: kept } => assert_eq!(*kept, http_status),
        _ => {}
    }
}

/// The `status` of a body, by the rules for bodies, entry by entry instead of by derived code: an object with one boolean
/// `status` and at most one `notification`. Typographic quotes count only in what is no JSON as it is.
fn status_in(body: &[u8]) -> Option<bool> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_matches(|c: char| c == '\u{feff}' || c.is_whitespace());
    let text = if serde_json::from_str::<IgnoredAny>(text).is_ok() {
        text.to_owned()
    } else {
        let quotes = ['„', '”', '“', '‟', '«', '»', '″', '＂'];
        text.split(quotes).collect::<Vec<_>>().join("\"")
    };
    let Entries {
        statuses,
        notifications,
    } = serde_json::from_str(&text).ok()?;
    match statuses[..] {
        [Value::Bool(status)] if notifications <= 1 => Some(status),
        _ => None,
    }
}

struct Entries {
    statuses: Vec<Value>,
    notifications: usize,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries, M::Error> {
        let mut entries = Entries {
            statuses: Vec::new(),
            notifications: 0,
        };
        while let Some(name) = map.next_key::<String>()? {
            match &*name {
                "status" => entries.statuses.push(map.next_value()?),
                "notification" => {
                    map.next_value::<Value>()?;
                    entries.notifications += 1;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(entries)
    }
}

/// A Retry-After, as a 429 and a 503 tell it: seconds as they are, a date as the time until it, at most a day.
pub fn retry_after(value: &[u8]) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let after = told(value);
    let text = str::from_utf8(value).unwrap_or_default().trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let seconds = text.bytes().fold(0_u64, |sum, b| {
            sum.saturating_mul(10).saturating_add(u64::from(b - b'0'))
        });
        assert_eq!(after, Some(Duration::from_secs(seconds).min(DAY)));
    }
    if let Some(after) = after {
        assert!(after <= DAY && after.subsec_nanos() == 0, "{after:?}");
        // The moment it names, as a date: it means the same, and where it was one of that form, it is the same but for
        // the day of the week.
        let date = httpdate::fmt_http_date(now() + after);
        assert_eq!(told(date.as_bytes()), Some(after));
        if text.len() == date.len() && text.ends_with(" GMT") && after < DAY {
            assert_eq!(text[3..], date[3..]);
        }
    }
    after
}

/// The same of both.
fn told(retry_after: &[u8]) -> Option<Duration> {
    let of = |http_status| {
        let head = Head {
            http_status,
            retry_after: Some(retry_after),
        };
        match by_status(&head, now()) {
            Some(Answer::RateLimited { retry_after } | Answer::Unavailable { retry_after }) => Some(retry_after),
            _ => None,
        }
    };
    assert!(of(429).is_some());
    assert_eq!(of(429), of(503));
    of(429).flatten()
}

/// A token, an e-mail address and a name, one below the other, then a text in which `{t%}` and the like stand for one of
/// them in one of the forms in which a server may repeat it: no form of any comes through.
pub fn redact(data: &[u8]) {
    let Some(([token, email, name], text)) = lines(data) else {
        return;
    };
    let mut text = String::from_utf8_lossy(text).into_owned();
    let mut secrets = Vec::new();
    for (letter, secret) in [('t', token), ('e', email), ('n', name)] {
        for (form, shown) in forms(secret) {
            text = text.replace(&format!("{{{letter}{form}}}"), &shown);
            secrets.push(shown);
        }
    }
    let respondent = Respondent {
        email: email.into(),
        first_name: name.into(),
        ..Respondent::default()
    };
    let clean = Secrets::of(token, &respondent).clean(&text, 200);
    is_fit_to_repeat(&clean, &secrets.iter().map(String::as_str).collect::<Vec<_>>());

    let plain: String = text.chars().filter(|c| !c.is_control()).collect();
    if !clean.contains(REDACTED) {
        assert!(plain.starts_with(&clean), "nothing else is changed");
        let whole = plain.chars().count().min(200);
        // It ends early where a placeholder would not have fitted.
        assert!((whole.saturating_sub(REDACTED.len() - 1)..=whole).contains(&clean.chars().count()));
    }
}

/// A value as servers repeat it.
fn forms(value: &str) -> [(char, String); 7] {
    let percent: String = value
        .bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            other => format!("%{other:02x}"),
        })
        .collect();
    let json = Value::from(value).to_string();
    let json = json[1..json.len() - 1].to_owned();
    let php: String = json
        .encode_utf16()
        .map(|unit| match u8::try_from(unit) {
            Ok(b'/') => r"\/".to_owned(),
            Ok(ascii) if ascii.is_ascii() => char::from(ascii).to_string(),
            _ => format!("\\u{unit:04X}"),
        })
        .collect();
    [
        ('=', value.to_owned()),
        ('U', value.to_uppercase()),
        ('L', value.to_lowercase()),
        ('+', percent.replace("%20", "+")),
        ('%', percent),
        ('j', json),
        ('p', php),
    ]
}

/// What callers, ledgers and logs are given: short, on one line, and without any secret in whatever letter case.
fn is_fit_to_repeat(words: &str, secrets: &[&str]) {
    assert!(words.chars().count() <= 200);
    assert!(!words.contains(char::is_control));
    for secret in secrets {
        let secret: String = secret.chars().filter(|c| !c.is_control()).collect();
        // What is shorter is no secret by itself.
        if secret.chars().count() < 3 {
            continue;
        }
        for piece in words.split(REDACTED) {
            assert!(!piece.to_uppercase().contains(&secret.to_uppercase()));
            assert!(!piece.to_lowercase().contains(&secret.to_lowercase()));
        }
    }
}

/// The URL of the request for an invitation, or why there is none. Its token is [`URL_TOKEN`].
pub fn url(invitation: Invitation) -> Result<Url, Violation> {
    static SURVEYLAB: LazyLock<Option<HttpSurveyLab>> = LazyLock::new(|| {
        HttpSurveyLab::new(HttpConfig {
            url: URL_BASE.parse().ok()?,
            token: SecretString::from(URL_TOKEN).into(),
            upstream_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            max_in_flight: 1,
            idle_timeout: Duration::from_secs(4),
            clock: Clock::system(),
        })
        .ok()
    });
    // The settings above always make a client.
    let surveylab = SURVEYLAB.as_ref().expect("a client");
    let request = surveylab.encode(invitation)?;
    Ok(surveylab.url_of(&request, &surveylab.tokens.current()))
}

/// Where [`url`] leads, without its query.
pub const URL_BASE: &str = "http://surveylab.example/api.php";
/// A token that is not the same once it is percent-encoded.
pub const URL_TOKEN: &str = "t&k=n+%41";
