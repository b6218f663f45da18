//! A response key made of a row's own data, for lists that have none.

use sha2::{Digest as _, Sha256};

use super::{Error, Field};
use crate::{hex::hex, proto::AddRespondentRequest};

/// Makes the crk of some fields. The same data give the same crk, for ever: with another one, what was sent would not
/// be known again, and would be sent a second time. A change needs another prefix and a flag to choose it.
///
/// It is `d1-` and the first 32 hexadecimal digits of SHA-256 over: the collector_id, then for each chosen field, in the
/// contract's order, its name in the contract and its value, each of these preceded by its length in bytes as a
/// big-endian 64-bit number. Values are those that are sent, but for the e-mail address, whose letters A to Z are made
/// small: addresses that differ in case alone belong to one person. Where such a row comes again in other case, it has
/// the same key and other data, and is refused instead of sent a second time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Derivation {
    /// In the contract's order, each once.
    fields: Vec<Field>,
}

impl Derivation {
    /// `None` if nothing is chosen.
    pub fn new(chosen: &[Field]) -> Result<Option<Self>, Error> {
        // Every key has the collector in it: alone it would give all rows the same one.
        let wrong = |field: &&Field| matches!(field, Field::Crk | Field::CollectorId);
        if let Some(field) = chosen.iter().find(wrong) {
            return Err(Error::Underivable(*field));
        }
        let mut fields = chosen.to_vec();
        fields.sort_unstable();
        fields.dedup();
        Ok(Some(Self { fields }).filter(|derivation| !derivation.fields.is_empty()))
    }

    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The crk of a row whose other fields are set; `None` if it has nothing in any of the chosen ones.
    pub fn crk(&self, request: &AddRespondentRequest) -> Option<String> {
        if self.fields.iter().all(|field| field.get(request).is_empty()) {
            return None;
        }
        let mut hash = Sha256::new();
        update(&mut hash, &request.collector_id);
        for field in &self.fields {
            update(&mut hash, field.name());
            match field {
                // Of ASCII alone: what small letters other scripts have changes with Unicode's versions.
                Field::Email => update(&mut hash, &request.email.to_ascii_lowercase()),
                field => update(&mut hash, field.get(request)),
            }
        }
        Some(format!("d1-{}", hex(&hash.finalize()[..16])))
    }
}

fn update(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_be_bytes());
    hash.update(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(collector_id: &str, email: &str, custom1: &str) -> AddRespondentRequest {
        AddRespondentRequest {
            collector_id: collector_id.into(),
            email: email.into(),
            custom1: custom1.into(),
            first_name: "Łukasz".into(),
            ..Default::default()
        }
    }

    fn crk(fields: &[Field], request: &AddRespondentRequest) -> Option<String> {
        Derivation::new(fields).unwrap().unwrap().crk(request)
    }

    /// The values are of Python's hashlib, from what the documentation above says.
    #[test]
    fn keys_are_those_of_the_documentation() {
        let row = request("8379821739721", "Anna@Example.com", "zamówienie 7");
        assert_eq!(
            crk(&[Field::Email], &row).unwrap(),
            "d1-7cdbcf481c29874e88cd84477072951b"
        );
        assert_eq!(
            crk(&[Field::Email, Field::Custom1], &row).unwrap(),
            "d1-ba28acf02635f03cfe21f7818d325984"
        );
        assert_eq!(
            crk(&[Field::FirstName], &row).unwrap(),
            "d1-9874b1a3aea6faaec6ce216bdad075f6"
        );
        assert_eq!(
            crk(&[Field::Email], &request("c", "ŻÓŁW@x.pl", "")).unwrap(),
            "d1-bb2e2827ccb126291703d83ebd3718ec"
        );
    }

    #[test]
    fn the_order_of_choice_and_the_case_of_the_address_make_no_difference() {
        let fields = [Field::Email, Field::Custom1];
        let wanted = crk(&fields, &request("c", "anna@example.com", "1"));
        let backwards = [Field::Custom1, Field::Email, Field::Custom1];
        assert_eq!(crk(&backwards, &request("c", "ANNA@example.COM", "1")), wanted);
        for other in [
            request("d", "anna@example.com", "1"),
            request("c", "anna@example.org", "1"),
            request("c", "anna@example.com", ""),
        ] {
            assert_ne!(crk(&fields, &other), wanted);
        }
        // The case of any other field does.
        assert_ne!(
            crk(&[Field::Custom1], &request("c", "", "a")),
            crk(&[Field::Custom1], &request("c", "", "A"))
        );
    }

    #[test]
    fn a_value_in_another_field_gives_another_key() {
        let fields = [Field::FirstName, Field::LastName];
        let first = AddRespondentRequest {
            first_name: "Anna".into(),
            ..Default::default()
        };
        let last = AddRespondentRequest {
            last_name: "Anna".into(),
            ..Default::default()
        };
        assert_ne!(crk(&fields, &first), crk(&fields, &last));
    }

    #[test]
    fn of_nothing_there_is_no_key() {
        assert_eq!(crk(&[Field::Email, Field::Custom1], &request("c", "", "")), None);
        assert!(crk(&[Field::Email, Field::Custom1], &request("c", "", "1")).is_some());
        assert_eq!(Derivation::new(&[]).unwrap(), None);
        for field in [Field::Crk, Field::CollectorId] {
            assert!(
                matches!(Derivation::new(&[Field::Email, field]), Err(Error::Underivable(wrong)) if wrong == field)
            );
        }
    }
}
