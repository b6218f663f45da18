//! A row as a JSON object.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Field, Mapping, error::shown};
use crate::proto::AddRespondentRequest;

/// Reads one line into `request`, and tells all that is wrong with it. The names are protobuf's in JSON, or the
/// contract's own; `map` adds others.
pub(super) fn read(line: &str, map: &[Mapping], request: &mut AddRespondentRequest) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut json = serde_json::Deserializer::from_str(line);
    let object = Object {
        map,
        request,
        seen: Vec::new(),
        wrong: &mut wrong,
    };
    let read = object.deserialize(&mut json).and_then(|()| json.end());
    match read {
        Ok(()) => wrong,
        // These tell what was found, which may be a person's data.
        Err(error) if error.is_data() => vec!["is not a JSON object".into()],
        Err(error) => {
            let column = error.column();
            vec![format!(
                "is not valid JSON (at its byte {column}); each line has to be one whole object"
            )]
        }
    }
}

struct Object<'a> {
    map: &'a [Mapping],
    request: &'a mut AddRespondentRequest,
    seen: Vec<Field>,
    wrong: &'a mut Vec<String>,
}

impl Object<'_> {
    fn take(&mut self, name: &str, value: Text) {
        let mapped = self.map.iter().find(|mapping| mapping.column == name);
        let field = match mapped {
            Some(Mapping { field: None, .. }) => return,
            Some(Mapping { field, .. }) => *field,
            None => Field::from_json(name),
        };
        let Some(field) = field else {
            self.wrong.push(match name {
                "resend_in_doubt" | "resendInDoubt" | "validate_only" | "validateOnly" => {
                    format!("{name} is set by flags, not by rows")
                }
                _ => format!("{} is not a field", shown(name)),
            });
            return;
        };
        if self.seen.contains(&field) {
            self.wrong.push(format!("{field} is given twice"));
            return;
        }
        self.seen.push(field);
        match value.0 {
            Some(text) => *field.get_mut(self.request) = text,
            None => self.wrong.push(format!("{field} must be a string")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value()?;
            self.take(&name, value);
        }
        Ok(())
    }
}

/// A string, or `None` for any other value.
struct Text(Option<String>);

impl<'de> serde::Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text(Some(text.into())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Text, A::Error> {
        while values.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Text, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(line: &str) -> Vec<String> {
        read(line, &[], &mut AddRespondentRequest::default())
    }

    #[test]
    fn names_are_protobufs_and_the_contracts() {
        let mut wanted = AddRespondentRequest::default();
        for field in Field::ALL {
            *field.get_mut(&mut wanted) = format!("\"{field}\" ł");
        }
        for names in ["collector_id first_name last_name", "collectorId firstName lastName"] {
            let mut names = names.split(' ');
            let pairs = Field::ALL.map(|field| {
                let name = match field {
                    Field::CollectorId | Field::FirstName | Field::LastName => names.next().unwrap(),
                    field => field.name(),
                };
                format!(r#""{name}": "\"{field}\" \u0142""#)
            });
            let mut request = AddRespondentRequest::default();
            let line = format!("  {{{}}} \r\n", pairs.join(", "));
            assert_eq!(read(&line, &[], &mut request), [""; 0]);
            assert_eq!(request, wanted);
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_and_no_value() {
        for (line, reasons) in [
            (
                r#"{"email": 7, "crk": null}"#,
                &["email must be a string", "crk must be a string"][..],
            ),
            (
                r#"{"email": ["x"], "crk": {"x": 1}}"#,
                &["email must be a string", "crk must be a string"],
            ),
            (
                r#"{"email": true, "crk": -1.5}"#,
                &["email must be a string", "crk must be a string"],
            ),
            (r#"{"email": "x", "email": "x"}"#, &["email is given twice"]),
            (
                r#"{"first_name": "x", "firstName": "y"}"#,
                &["first_name is given twice"],
            ),
            (r#"{"E-mail": "x"}"#, &["E-mail is not a field"]),
            (r#"{"x@example.com": "x"}"#, &["a name with an @ is not a field"]),
            (
                r#"{"resendInDoubt": true}"#,
                &["resendInDoubt is set by flags, not by rows"],
            ),
            (
                r#"{"validate_only": "x"}"#,
                &["validate_only is set by flags, not by rows"],
            ),
            (r#"["x"]"#, &["is not a JSON object"]),
            (r#""x""#, &["is not a JSON object"]),
            ("null", &["is not a JSON object"]),
        ] {
            assert_eq!(wrong(line), reasons, "{line}");
        }
        for line in [
            r#"{"email": "x""#,
            r#"{"email": "x",}"#,
            r#"{"email": "x"} {"email": "x"}"#,
            r#"{"email": "\ud800"}"#,
            r#"{email: "x"}"#,
            &format!(r#"{{"email": {}}}"#, "[".repeat(100_000)),
        ] {
            let reasons = wrong(line);
            assert!(
                matches!(&reasons[..], [one] if one.starts_with("is not valid JSON (at its byte ")),
                "{reasons:?}"
            );
        }
    }

    #[test]
    fn other_names_are_mapped() {
        let map = ["Imię=first_name", "note=", "crk=custom1"].map(|mapping| mapping.parse().unwrap());
        let mut request = AddRespondentRequest::default();
        let line = r#"{"Imię": "Ola", "note": [1], "note": 2, "crk": "k"}"#;
        assert_eq!(read(line, &map, &mut request), [""; 0]);
        assert_eq!(
            (&*request.first_name, &*request.custom1, &*request.crk),
            ("Ola", "k", "")
        );
        let twice = read(r#"{"Imię": "Ola", "first_name": "Ala"}"#, &map, &mut request);
        assert_eq!(twice, ["first_name is given twice"]);
    }
}
