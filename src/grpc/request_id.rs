//! `x-request-id`: by which a caller's logs, the gateway's and a trace are brought together.

use hyper::{HeaderMap, header::HeaderValue};

pub const HEADER: &str = "x-request-id";

/// Longer ones are not worth their place in every line.
const LONGEST: usize = 128;

/// The caller's own, if it is fit for a log line; else its trace's id; else a new one.
pub fn of(headers: &HeaderMap, trace_id: Option<&str>) -> HeaderValue {
    let given = headers.get(HEADER).filter(|id| is_fit(id.as_bytes()));
    let mut id = given
        .cloned()
        .unwrap_or_else(|| match trace_id.map(HeaderValue::from_str) {
            Some(Ok(id)) => id,
            _ => made(rand::random()),
        });
    // Not secret, but it never comes again: so HPACK gives it no place in its table (RFC 7541, section 7.1.3).
    id.set_sensitive(true);
    id
}

/// As text, for lines and spans.
pub fn text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

fn is_fit(id: &[u8]) -> bool {
    // No e-mail address: it goes into lines and spans.
    (1..=LONGEST).contains(&id.len()) && id.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'@')
}

fn made(random: u128) -> HeaderValue {
    // Digits are always fit for a header.
    HeaderValue::try_from(format!("{random:032x}")).unwrap_or_else(|_| HeaderValue::from_static("none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_characters_are_taken_and_not_too_many() {
        for fit in ["a", "0af7-65/+=~!", &"x".repeat(128)] {
            assert!(is_fit(fit.as_bytes()), "{fit}");
        }
        for unfit in ["", "a b", "a\tb", "ż", "a\n", &"x".repeat(129)] {
            assert!(!is_fit(unfit.as_bytes()), "{unfit}");
        }
    }
}
