//! An invitation as SurveyLab's query string.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

use super::Request;
use crate::invitation::{Invitation, Violation};

/// Everything but RFC 3986's unreserved characters (section 2.3). That takes `&`, `=`, `+`, `#` and `%` out of every
/// value, so no value can end its own parameter, begin another, or be decoded twice.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The whole request line stays below this: what common web servers accept (Apache's `LimitRequestLine` is 8 190,
/// nginx's `large_client_header_buffers` 8 192).
pub(super) const MAX_REQUEST_LINE: usize = 8_000;

pub(super) fn percent_encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

/// Encodes an invitation. `around` is the length of the request line without the query's own part: method, path,
/// token, version. The line's end is not counted.
pub(super) fn encode(invitation: Invitation, around: usize) -> Result<Request, Violation> {
    let mut query = String::with_capacity(256);
    let mut largest = ("", 0);
    for (field, parameter, value) in parameters(&invitation) {
        if value.is_empty() {
            continue;
        }
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(parameter);
        query.push('=');
        let begin = query.len();
        query.extend(percent_encoded(value));
        let encoded = query.len() - begin;
        if encoded > largest.1 {
            largest = (field, encoded);
        }
    }
    if around.saturating_add(query.len()) < MAX_REQUEST_LINE {
        return Ok(Request { invitation, query });
    }
    Err(Violation::new(
        largest.0,
        format!(
            "is the largest field of a request that is too long: percent-encoded, the request line must stay under \
             {MAX_REQUEST_LINE} bytes"
        ),
    ))
}

/// Every parameter: its field in the contract, SurveyLab's name for it (on SurveyLab's page, whose misprint `cld` for
/// `cId` is not copied), its value.
fn parameters(invitation: &Invitation) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
    let key = [
        ("collector_id", "cId", invitation.key.collector_id()),
        ("crk", "crk", invitation.key.crk()),
    ];
    let [collector_id, crk] = key;
    let [email, optional @ ..] = invitation.respondent.fields();
    let respondent = |(field, value): (&'static str, _)| {
        let parameter = match field {
            "first_name" => "firstName",
            "last_name" => "lastName",
            same => same,
        };
        (field, parameter, value)
    };
    [collector_id, respondent(email), crk]
        .into_iter()
        .chain(optional.into_iter().map(respondent))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::invitation::{Key, Respondent};

    fn invitation(key: Key, respondent: Respondent) -> Invitation {
        Invitation::new(key, respondent)
    }

    fn full() -> Invitation {
        let respondent = Respondent {
            email: "jan+1@example.com".into(),
            referrer: "https://x.example/?a=1&b=2#c".into(),
            language: "pl".into(),
            phone: "+48 600 700 800".into(),
            first_name: "Jan".into(),
            last_name: "Żółć".into(),
            custom: ["1", "2", "3", "4", "5", "6", "7", "8~-._"].map(String::from),
        };
        invitation(Key::new("8379821739721", "T 1"), respondent)
    }

    #[test]
    fn all_parameters_have_surveylabs_names_and_order() {
        assert_eq!(
            encode(full(), 0).unwrap().query,
            "cId=8379821739721&email=jan%2B1%40example.com&crk=T%201\
             &referrer=https%3A%2F%2Fx.example%2F%3Fa%3D1%26b%3D2%23c&language=pl&phone=%2B48%20600%20700%20800\
             &firstName=Jan&lastName=%C5%BB%C3%B3%C5%82%C4%87\
             &custom1=1&custom2=2&custom3=3&custom4=4&custom5=5&custom6=6&custom7=7&custom8=8~-._"
        );
    }

    #[test]
    fn empty_optional_fields_are_absent() {
        let respondent = Respondent {
            email: "a@b.example".into(),
            ..Respondent::default()
        };
        let request = encode(invitation(Key::new("c", "k"), respondent), 0).unwrap();
        assert_eq!(request.query, "cId=c&email=a%40b.example&crk=k");
        assert_eq!(format!("{request:?}"), "Request(c/k)");
    }

    #[test]
    fn a_line_of_the_limit_is_too_long_and_one_byte_less_is_not() {
        let query = encode(full(), 0).unwrap().query.len();
        assert!(encode(full(), MAX_REQUEST_LINE - query - 1).is_ok());
        let violation = encode(full(), MAX_REQUEST_LINE - query).unwrap_err();
        assert_eq!(violation.field, "referrer");
        assert!(violation.description.contains("8000"));
        assert!(encode(full(), usize::MAX).is_err());
    }

    #[test]
    fn the_largest_field_is_the_largest_when_encoded() {
        let mut long = full();
        long.respondent.referrer = "a".repeat(2_048);
        long.respondent.first_name = "ł".repeat(1_000);
        long.respondent.custom[6] = "b".repeat(2_048);
        let violation = encode(long, 0).unwrap_err();
        assert_eq!(violation.field, "first_name");
        assert!(!violation.description.contains('ł'));
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[&=?#%+;/ \\t\\n\\r\\x00\"'<>a-z0-9]{0,40}",
            Just("x&apiToken=evil&cId=other".to_owned()),
            Just("%26crk%3D".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn what_arrives_is_what_was_put_in(
            collector_id in "[A-Za-z0-9_-]{1,64}",
            crk in text(),
            fields in proptest::collection::vec(text(), 14),
        ) {
            let mut values = fields.into_iter();
            let mut next = || values.next().unwrap();
            let respondent = Respondent {
                email: next(),
                referrer: next(),
                language: next(),
                phone: next(),
                first_name: next(),
                last_name: next(),
                custom: std::array::from_fn(|_| next()),
            };
            let given = invitation(Key::new(collector_id, crk), respondent);
            let wanted: Vec<(String, String)> = parameters(&given)
                .filter(|(_, _, value)| !value.is_empty())
                .map(|(_, parameter, value)| (parameter.to_owned(), value.to_owned()))
                .collect();
            if let Ok(request) = encode(given, 0) {
                let unreserved_or_syntax = |b: u8| b.is_ascii_alphanumeric() || b"-._~%=&".contains(&b);
                prop_assert!(request.query.bytes().all(unreserved_or_syntax));
                let arrived: Vec<(String, String)> =
                    form_urlencoded::parse(request.query.as_bytes()).into_owned().collect();
                prop_assert_eq!(arrived, wanted);
            }
        }
    }
}
