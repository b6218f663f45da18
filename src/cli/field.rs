//! The fields of a respondent.

use std::{fmt, str::FromStr};

use crate::proto::AddRespondentRequest;

/// What can be said of a respondent, in the contract's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    CollectorId,
    Email,
    Crk,
    Referrer,
    Language,
    Phone,
    FirstName,
    LastName,
    Custom1,
    Custom2,
    Custom3,
    Custom4,
    Custom5,
    Custom6,
    Custom7,
    Custom8,
}

impl Field {
    pub const ALL: [Self; 16] = [
        Self::CollectorId,
        Self::Email,
        Self::Crk,
        Self::Referrer,
        Self::Language,
        Self::Phone,
        Self::FirstName,
        Self::LastName,
        Self::Custom1,
        Self::Custom2,
        Self::Custom3,
        Self::Custom4,
        Self::Custom5,
        Self::Custom6,
        Self::Custom7,
        Self::Custom8,
    ];

    pub const CUSTOM: [Self; 8] = [
        Self::Custom1,
        Self::Custom2,
        Self::Custom3,
        Self::Custom4,
        Self::Custom5,
        Self::Custom6,
        Self::Custom7,
        Self::Custom8,
    ];

    /// Its name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::CollectorId => "collector_id",
            Self::Email => "email",
            Self::Crk => "crk",
            Self::Referrer => "referrer",
            Self::Language => "language",
            Self::Phone => "phone",
            Self::FirstName => "first_name",
            Self::LastName => "last_name",
            Self::Custom1 => "custom1",
            Self::Custom2 => "custom2",
            Self::Custom3 => "custom3",
            Self::Custom4 => "custom4",
            Self::Custom5 => "custom5",
            Self::Custom6 => "custom6",
            Self::Custom7 => "custom7",
            Self::Custom8 => "custom8",
        }
    }

    /// The field of this name in JSON: protobuf's mapping takes the contract's own names as well.
    pub fn from_json(name: &str) -> Option<Self> {
        match name {
            "collectorId" => Some(Self::CollectorId),
            "firstName" => Some(Self::FirstName),
            "lastName" => Some(Self::LastName),
            name => Self::ALL.into_iter().find(|field| field.name() == name),
        }
    }

    /// The field that a header plainly means, whatever its case and separators.
    pub fn from_header(name: &str) -> Option<Self> {
        let name = forgiving(name);
        match name.as_str() {
            "emailaddress" | "mail" => Some(Self::Email),
            "responsekey" => Some(Self::Crk),
            "collector" | "cid" => Some(Self::CollectorId),
            "lang" => Some(Self::Language),
            "phonenumber" | "tel" | "telephone" => Some(Self::Phone),
            name => Self::ALL.into_iter().find(|field| forgiving(field.name()) == name),
        }
    }

    pub fn get(self, request: &AddRespondentRequest) -> &str {
        match self {
            Self::CollectorId => &request.collector_id,
            Self::Email => &request.email,
            Self::Crk => &request.crk,
            Self::Referrer => &request.referrer,
            Self::Language => &request.language,
            Self::Phone => &request.phone,
            Self::FirstName => &request.first_name,
            Self::LastName => &request.last_name,
            Self::Custom1 => &request.custom1,
            Self::Custom2 => &request.custom2,
            Self::Custom3 => &request.custom3,
            Self::Custom4 => &request.custom4,
            Self::Custom5 => &request.custom5,
            Self::Custom6 => &request.custom6,
            Self::Custom7 => &request.custom7,
            Self::Custom8 => &request.custom8,
        }
    }

    pub fn get_mut(self, request: &mut AddRespondentRequest) -> &mut String {
        match self {
            Self::CollectorId => &mut request.collector_id,
            Self::Email => &mut request.email,
            Self::Crk => &mut request.crk,
            Self::Referrer => &mut request.referrer,
            Self::Language => &mut request.language,
            Self::Phone => &mut request.phone,
            Self::FirstName => &mut request.first_name,
            Self::LastName => &mut request.last_name,
            Self::Custom1 => &mut request.custom1,
            Self::Custom2 => &mut request.custom2,
            Self::Custom3 => &mut request.custom3,
            Self::Custom4 => &mut request.custom4,
            Self::Custom5 => &mut request.custom5,
            Self::Custom6 => &mut request.custom6,
            Self::Custom7 => &mut request.custom7,
            Self::Custom8 => &mut request.custom8,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a field's name can be, for whoever wrote another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected one of collector_id, email, crk, referrer, language, phone, first_name, last_name, custom1 to custom8"
)]
pub struct NoField;

impl FromStr for Field {
    type Err = NoField;

    /// The contract's name, in any case and with any separators.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = forgiving(text);
        let field = Self::ALL.into_iter().find(|field| forgiving(field.name()) == text);
        field.ok_or(NoField)
    }
}

/// How names are compared: their letters and digits alone, in lower case.
pub fn forgiving(name: &str) -> String {
    let parts = name.chars().filter(|c| c.is_alphanumeric());
    parts.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_the_one_of_its_name_and_place_in_the_contract() {
        let mut request = AddRespondentRequest::default();
        for field in Field::ALL {
            *field.get_mut(&mut request) = field.name().into();
        }
        for field in Field::ALL {
            assert_eq!(field.get(&request), field.name());
            assert_eq!(field.to_string().parse(), Ok(field));
            assert_eq!(Field::from_json(field.name()), Some(field));
        }
        // Debug prints the message's fields in the contract's order, each with its own name as value here.
        let debug = format!("{request:?}");
        let places = Field::ALL.map(|field| debug.find(&format!("{0}: \"{0}\"", field.name())));
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{debug}");
    }

    #[test]
    fn headers_mean_fields_whatever_their_case_and_separators() {
        for (header, field) in [
            ("email", Field::Email),
            ("E-mail", Field::Email),
            ("E-Mail Address", Field::Email),
            ("MAIL", Field::Email),
            ("first_name", Field::FirstName),
            ("firstName", Field::FirstName),
            ("First Name", Field::FirstName),
            ("FIRST-NAME", Field::FirstName),
            ("last\nname", Field::LastName),
            ("Custom 1", Field::Custom1),
            ("CUSTOM_8", Field::Custom8),
            ("Response Key", Field::Crk),
            ("Collector ID", Field::CollectorId),
            ("cId", Field::CollectorId),
            ("Phone number", Field::Phone),
            ("Tel.", Field::Phone),
            ("Lang", Field::Language),
        ] {
            assert_eq!(Field::from_header(header), Some(field), "{header}");
        }
        for header in [
            "",
            "e",
            "name",
            "custom",
            "custom9",
            "custom 10",
            "Imię",
            "resend_in_doubt",
        ] {
            assert_eq!(Field::from_header(header), None, "{header}");
        }
    }

    #[test]
    fn names_are_compared_by_letters_and_digits_of_any_script() {
        assert_eq!(forgiving("  IMIĘ (klienta) 2"), "imięklienta2");
        assert_eq!(forgiving("Imię_Klienta-2"), "imięklienta2");
    }
}
