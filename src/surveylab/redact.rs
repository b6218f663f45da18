//! SurveyLab's words and errors' texts, made fit for callers, ledgers and logs.

use crate::invitation::Respondent;

use super::request::percent_encoded;

const REDACTED: &str = "[redacted]";
/// Shorter values are no secret by themselves, and would blot out every other word; but a name in another script may have
/// two characters.
const MIN_SECRET_CHARS: usize = 3;
/// Only so much is looked at: enough for any sentence, and it bounds the work on a hostile text.
const MAX_READ_CHARS: usize = 4_096;

/// What must not be repeated: the API token and the respondent's personal data, as they are, percent-encoded, and as in JSON and HTML.
pub(super) struct Secrets<'a> {
    tokens: [Option<&'a str>; 3],
    respondent: &'a Respondent,
}

impl<'a> Secrets<'a> {
    pub fn of(token: &'a str, respondent: &'a Respondent) -> Self {
        Self {
            tokens: [Some(token), None, None],
            respondent,
        }
    }

    /// The same, around a rotation: the token before, and the one after.
    pub fn and(self, before: Option<&'a str>, after: Option<&'a str>) -> Self {
        let [token, ..] = self.tokens;
        Self {
            tokens: [token, before, after],
            ..self
        }
    }

    fn raw(&self) -> impl Iterator<Item = &'a str> {
        let personal = self.respondent.fields().into_iter();
        let personal = personal.filter(|(field, _)| *field != "language");
        personal
            .map(|(_, value)| value)
            .chain(self.tokens.into_iter().flatten())
    }

    /// All that is to be found, folded, without control characters.
    fn values(&self) -> Vec<Vec<char>> {
        let mut values: Vec<Vec<char>> = self
            .raw()
            .flat_map(|value| {
                let encoded: String = percent_encoded(value).collect();
                let form = encoded.replace("%20", "+");
                let json = json_escaped(value);
                let php = php_escaped(&json);
                let html = html_escaped(value).into_iter();
                [value.to_owned(), encoded, form, json, php].into_iter().chain(html)
            })
            .map(|value| {
                let mut chars = Vec::with_capacity(value.len());
                let shown = value.chars().filter(|c| !c.is_control());
                shown.for_each(|c| fold(c, |folded| chars.push(folded)));
                chars
            })
            .filter(|value: &Vec<char>| {
                let least = if value.iter().all(char::is_ascii) {
                    MIN_SECRET_CHARS
                } else {
                    2
                };
                value.len() >= least
            })
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Whether nothing in the text can be a secret, found out in a fraction of the time: this is on the way of every
    /// answer, and nearly all have the same few words. False says nothing.
    fn is_plain(&self, text: &str) -> bool {
        // Without these no value can stand there in another form than its own.
        let is_encoded = |byte: u8| matches!(byte, b'%' | b'+' | b'\\' | b'&');
        let is_simple = |byte: u8| byte.is_ascii() && !byte.is_ascii_control() && !is_encoded(byte);
        text.len() <= MAX_READ_CHARS && text.bytes().all(is_simple) && !self.raw().any(|value| may_occur(value, text))
    }

    /// The text without control characters and secrets, of at most `max_chars` characters. Letter case makes no
    /// difference: an address is the same in capitals, and so are the digits of a percent-encoding.
    pub fn clean(&self, text: &str, max_chars: usize) -> String {
        if text.len() <= max_chars && self.is_plain(text) {
            return text.to_owned();
        }
        let values = self.values();
        let mut chars = text.chars().filter(|c| !c.is_control());
        let text: Vec<char> = chars.by_ref().take(MAX_READ_CHARS).collect();
        let cut = chars.next().is_some();
        // One character may fold to several; `owner` leads back to the one it came from.
        let mut folded = Vec::with_capacity(text.len());
        let mut owner = Vec::with_capacity(text.len());
        for (at, c) in text.iter().enumerate() {
            fold(*c, |c| {
                folded.push(c);
                owner.push(at);
            });
        }

        let mut secret = vec![false; text.len()];
        let mut covered = 0;
        for begin in 0..folded.len() {
            let rest = &folded[begin..];
            let end = values.iter().filter_map(|value| matches(value, rest, cut)).max();
            covered = covered.max(end.map_or(0, |length| begin + length));
            // Overlapping values hide every character that belongs to any of them.
            if begin < covered {
                secret[owner[begin]] = true;
            }
        }

        let mut clean = String::new();
        let mut length = 0;
        let mut utf8 = [0; 4];
        for (at, c) in text.iter().enumerate() {
            let piece = match (secret[at], at > 0 && secret[at - 1]) {
                (true, true) => continue,
                (true, false) => REDACTED,
                (false, _) => c.encode_utf8(&mut utf8),
            };
            length += piece.chars().count();
            if length > max_chars {
                break;
            }
            clean.push_str(piece);
        }
        clean
    }
}

/// Can a value, folded, stand in a text of ASCII without control characters?
fn may_occur(value: &str, text: &str) -> bool {
    // Each run of letters and digits would stand there too, but for case.
    let runs = value.split(|c: char| !c.is_ascii_alphanumeric());
    let longest = runs.max_by_key(|run| run.len()).unwrap_or_default().as_bytes();
    if longest.is_empty() {
        return !value.is_empty();
    }
    let mut places = text.as_bytes().windows(longest.len());
    places.any(|place| place.eq_ignore_ascii_case(longest))
}

/// As within a JSON string: an answer may repeat a request as JSON, or be JSON where text was expected.
fn json_escaped(value: &str) -> String {
    let quoted = serde_json::Value::from(value).to_string();
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.unwrap_or_default().into()
}

/// As PHP's `json_encode` writes it by default: slashes escaped, and everything beyond ASCII.
fn php_escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '/' => escaped.push_str("\\/"),
            c if c.is_ascii() => escaped.push(c),
            c => escaped.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}"))),
        }
    }
    escaped
}

/// As in HTML: with PHP's `htmlspecialchars` by its default, and by its older ones, which leave the apostrophe or name it
/// otherwise.
fn html_escaped(value: &str) -> [String; 4] {
    let escaped = value
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;");
    let [php, short, named] = ["&#039;", "&#39;", "&apos;"].map(|apostrophe| escaped.replace('\'', apostrophe));
    [escaped, php, short, named]
}

/// How much of `rest` belongs to the value at its beginning. Where the text was cut, so may be the value.
fn matches(value: &[char], rest: &[char], cut: bool) -> Option<usize> {
    let length = value.len().min(rest.len());
    let whole = length == value.len() || (cut && length >= MIN_SECRET_CHARS);
    (whole && value[..length] == rest[..length]).then_some(length)
}

/// Passes on the same for all letters that are one letter to Unicode's mappings of case, whichever way they lead: ẞ, ß and
/// SS; Σ, σ and ς; ſ and s.
fn fold(c: char, mut to: impl FnMut(char)) {
    if c.is_ascii() {
        // What the mappings below come to, without their tables.
        return to(c.to_ascii_lowercase());
    }
    c.to_lowercase()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .for_each(to);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn respondent() -> Respondent {
        Respondent {
            email: "Jan.Kowalski@example.com".into(),
            phone: "+48 600".into(),
            first_name: "Jo".into(),
            last_name: "Żółć".into(),
            referrer: "line one\nline two".into(),
            language: "polish".into(),
            custom: std::array::from_fn(|i| {
                let values = ["ann", "O'Hara & \"Sons\""];
                values.get(i).copied().unwrap_or_default().into()
            }),
        }
    }

    fn clean(text: &str) -> String {
        Secrets::of("s3cret/token", &respondent()).clean(text, 500)
    }

    #[test]
    fn every_form_of_a_secret_is_redacted() {
        for (text, wanted) in [
            ("Action processed correctly", "Action processed correctly"),
            ("for JAN.kowalski@EXAMPLE.com!", "for [redacted]!"),
            ("jan.kowalski%40example.com", "[redacted]"),
            ("call +48 600", "call [redacted]"),
            ("%2b48%20600 %2B48+600", "[redacted] [redacted]"),
            ("ŻÓŁĆ, %C5%BB%C3%B3%C5%82%C4%87", "[redacted], [redacted]"),
            ("apiToken=s3cret/token&x", "apiToken=[redacted]&x"),
            ("apiToken=s3cret%2ftoken", "apiToken=[redacted]"),
            ("line one\r\nline two", "[redacted]"),
            (r"line one\nline two", "[redacted]"),
            (
                r"\u017b\u00f3\u0142\u0107 \u017B\u00F3\u0142\u0107",
                "[redacted] [redacted]",
            ),
            (r"s3cret\/token", "[redacted]"),
            ("for O'Hara &amp; &quot;Sons&quot;", "for [redacted]"),
            ("for O&#039;Hara &amp; &quot;Sons&quot;!", "for [redacted]!"),
            ("for O&#39;hara &AMP; &quot;Sons&quot;!", "for [redacted]!"),
            ("Jo speaks polish", "Jo speaks polish"),
            ("a\u{0}b\tc\u{85}d", "abcd"),
            ("s3cret\u{0}/token", "[redacted]"),
        ] {
            assert_eq!(clean(text), wanted, "{text}");
        }
    }

    #[test]
    fn letters_whose_capitals_are_no_round_trip_are_redacted_too() {
        for (name, shown) in [
            ("Strauß", "STRAUSS"),
            ("STRAUSS", "strauß"),
            ("Strauß", "STRAUẞ"),
            ("Νίκος", "ΝΊΚΟΣ"),
            ("Νίκος", "νίκοσ"),
            ("Işıl", "IŞIL"),
            ("ŉaß", "ʼNASS"),
        ] {
            let respondent = Respondent {
                first_name: name.into(),
                ..Respondent::default()
            };
            let cleaned = Secrets::of("s3cret/token", &respondent).clean(&format!("<{shown}>"), 500);
            assert_eq!(cleaned, "<[redacted]>", "{name} as {shown}");
        }
    }

    #[test]
    fn all_tokens_around_a_rotation_are_redacted() {
        let respondent = Respondent::default();
        let secrets = Secrets::of("token-2", &respondent).and(Some("token-1"), Some("token/3"));
        assert_eq!(
            secrets.clean("token-1, TOKEN-2, token%2f3, token-4", 500),
            "[redacted], [redacted], [redacted], token-4"
        );
    }

    #[test]
    fn overlapping_secrets_leave_nothing_behind() {
        let mut respondent = respondent();
        respondent.custom[1] = "nnabel".into();
        let secrets = Secrets::of("bela-token", &respondent);
        assert_eq!(secrets.clean("<annabela-token>", 500), "<[redacted]>");
    }

    #[test]
    fn the_length_is_limited_after_redaction_and_no_placeholder_is_halved() {
        assert_eq!(clean(&"ł".repeat(900)).chars().count(), 500);
        let text = format!("{}s3cret/token", "x".repeat(495));
        assert_eq!(clean(&text), "x".repeat(495));
    }

    #[test]
    fn a_secret_cut_where_reading_stops_is_redacted() {
        let address = respondent().email;
        let mut text = address.repeat(MAX_READ_CHARS / address.len() + 2);
        text.push_str("tail");
        assert_eq!(clean(&text), REDACTED);
    }

    proptest! {
        #[test]
        fn what_is_plain_is_left_as_it_is(
            text in "[ -~]{0,60}",
            secret in "[a-zA-Z0-9@.+ /łŁİſKß\t-]{0,6}",
        ) {
            let respondent = Respondent { first_name: secret, ..Respondent::default() };
            let secrets = Secrets::of("token-of-the-account", &respondent);
            // Longer than what the short way takes, and cut to the same.
            let long = secrets.clean(&format!("{text}{}", "\u{1}".repeat(500)), 500);
            prop_assert_eq!(secrets.clean(&text, 500), long);
        }

        #[test]
        fn no_secret_survives(
            before in any::<String>(),
            after in any::<String>(),
            secret in "[a-zA-Z0-9@.+ /łŁİß-]{3,40}",
        ) {
            let respondent = Respondent { email: secret.clone(), ..Respondent::default() };
            let secrets = Secrets::of("token-of-the-account", &respondent);
            for shown in [secret.clone(), secret.to_uppercase(), percent_encoded(&secret).collect()] {
                let cleaned = secrets.clean(&format!("{before}{shown}{after}"), 500);
                for kept in cleaned.split(REDACTED) {
                    prop_assert!(!kept.to_lowercase().contains(&shown.to_lowercase()));
                }
                prop_assert!(cleaned.chars().count() <= 500);
                prop_assert!(!cleaned.chars().any(char::is_control));
            }
        }
    }
}
