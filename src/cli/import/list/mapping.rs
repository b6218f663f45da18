//! Which column of a list gives which field.

use std::str::FromStr;

use super::Field;

/// `COLUMN=FIELD`: this column gives this field; with an empty FIELD it is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The column's name in the list, or `#3` for the third.
    pub column: String,
    pub field: Option<Field>,
}

impl FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A column's name may have a = in it, a field's has none.
        let (column, field) = text.rsplit_once('=').ok_or("expected COLUMN=FIELD")?;
        let column = column.trim().to_string();
        if column.is_empty() {
            return Err("expected COLUMN=FIELD".into());
        }
        let field = match field.trim() {
            "" => None,
            field => Some(field.parse().map_err(|error| format!("FIELD: {error}"))?),
        };
        Ok(Self { column, field })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_split_at_its_last_equals_sign() {
        let mapping = |column: &str, field| Mapping {
            column: column.into(),
            field,
        };
        assert_eq!("Imię=first_name".parse(), Ok(mapping("Imię", Some(Field::FirstName))));
        assert_eq!("a=b = firstName".parse(), Ok(mapping("a=b", Some(Field::FirstName))));
        assert_eq!("#3=custom1".parse(), Ok(mapping("#3", Some(Field::Custom1))));
        assert_eq!("Notes=".parse(), Ok(mapping("Notes", None)));
        assert!("email".parse::<Mapping>().is_err());
        assert!(" =email".parse::<Mapping>().is_err());
        let wrong = "Imię=imie".parse::<Mapping>().unwrap_err();
        assert!(
            wrong.contains("first_name") && wrong.contains("custom1 to custom8"),
            "{wrong}"
        );
    }
}
