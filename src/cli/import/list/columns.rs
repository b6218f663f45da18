//! From a header to what each column gives.

use super::{
    Error, Field, Mapping, Options,
    error::{Column, columns as listed},
};
use crate::cli::field::forgiving;

/// What the columns of a CSV list give.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// The header's cells, up to the last that has a name or gives something.
    names: Vec<String>,
    /// One for each name; `None` is an ignored column.
    fields: Vec<Option<Field>>,
}

impl Columns {
    /// Reads the header as the flags have it, else by what its words plainly mean.
    pub fn new<'a>(header: impl Iterator<Item = &'a str>, map: &[Mapping]) -> Result<Self, Error> {
        let names: Vec<String> = header.map(str::to_string).collect();
        let mut columns = Self {
            fields: vec![None; names.len()],
            names,
        };
        let mut is_mapped = vec![false; columns.names.len()];
        for mapping in map {
            let index = columns.find(&mapping.column)?;
            if is_mapped[index] {
                let column = columns.column(index).to_string();
                return Err(Error::MappedTwice { column });
            }
            is_mapped[index] = true;
            columns.fields[index] = mapping.field;
        }
        // Spreadsheets write a row as wide as the sheet was ever used.
        let is_used = |(name, field): &(&String, &Option<Field>)| !name.is_empty() || field.is_some();
        let used = columns.names.iter().zip(&columns.fields);
        let width = used.enumerate().rfind(|(_, column)| is_used(column));
        let width = width.map_or(0, |(index, _)| index + 1);
        columns.names.truncate(width);
        columns.fields.truncate(width);
        let named = columns.fields.clone();
        for (index, name) in columns.names.iter().enumerate() {
            // What a flag says comes before what a word may mean.
            if !is_mapped[index] {
                columns.fields[index] = Field::from_header(name).filter(|field| !named.contains(&Some(*field)));
            }
        }
        for field in Field::ALL {
            if columns.giving(field).nth(1).is_some() {
                let columns = listed(columns.giving(field).map(|index| columns.numbered(index)));
                return Err(Error::AmbiguousField { field, columns });
            }
        }
        Ok(columns)
    }

    /// Whether the columns and the flags say all that a row has to have.
    pub fn check(&self, options: &Options) -> Result<(), Error> {
        let columns = || listed((0..self.width()).map(|index| self.numbered(index)));
        if !self.has(Field::Email) {
            return Err(Error::NoEmail { columns: columns() });
        }
        let crk = self.giving(Field::Crk).next();
        match crk {
            None if options.derive_crk.is_empty() => return Err(Error::NoCrk { columns: columns() }),
            Some(index) if !options.derive_crk.is_empty() => {
                let column = self.column(index).to_string();
                let number = index + 1;
                return Err(Error::CrkTwice { column, number });
            }
            _ => {}
        }
        if let Some(field) = options.derive_crk.iter().find(|field| !self.has(**field)) {
            return Err(Error::DeriveFromNothing(*field));
        }
        if options.collector.is_none() && !self.has(Field::CollectorId) {
            return Err(Error::NoCollector);
        }
        Ok(())
    }

    pub fn width(&self) -> usize {
        self.names.len()
    }

    /// What each column gives, from the first.
    pub fn fields(&self) -> &[Option<Field>] {
        &self.fields
    }

    /// How many columns give something.
    pub fn known(&self) -> usize {
        self.fields.iter().flatten().count()
    }

    pub fn has(&self, field: Field) -> bool {
        self.fields.contains(&Some(field))
    }

    /// The columns with their numbers, names and what they give.
    pub fn iter(&self) -> impl Iterator<Item = (Column<'_>, Option<Field>)> {
        (0..self.width()).map(|index| (self.column(index), self.fields[index]))
    }

    fn giving(&self, field: Field) -> impl Iterator<Item = usize> {
        let indices = 0..self.width();
        indices.filter(move |index| self.fields[*index] == Some(field))
    }

    fn numbered(&self, index: usize) -> (usize, &str) {
        (index + 1, &self.names[index])
    }

    fn column(&self, index: usize) -> Column<'_> {
        Column(index + 1, &self.names[index])
    }

    /// The column of a name: the very name, else one that is the same by letters and digits, else `#` and its number.
    fn find(&self, name: &str) -> Result<usize, Error> {
        let same: [&dyn Fn(&str) -> bool; 2] = [&|other| other == name, &|other| {
            !forgiving(name).is_empty() && forgiving(other) == forgiving(name)
        }];
        for is_same in same {
            let found: Vec<_> = (0..self.width()).filter(|index| is_same(&self.names[*index])).collect();
            match found[..] {
                [] => {}
                [index] => return Ok(index),
                _ => {
                    return Err(Error::AmbiguousColumn {
                        name: name.into(),
                        columns: listed(found.into_iter().map(|index| self.numbered(index))),
                    });
                }
            }
            // Not to be taken for a column that is called 3.
            let number = name.strip_prefix('#').and_then(|number| number.parse::<usize>().ok());
            if let Some(index) = number
                .and_then(|number| number.checked_sub(1))
                .filter(|index| *index < self.width())
            {
                return Ok(index);
            }
        }
        Err(Error::NoColumn {
            name: name.into(),
            columns: listed((0..self.width()).map(|index| self.numbered(index))),
        })
    }
}
