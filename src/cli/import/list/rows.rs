//! From records to what can be sent.

use std::sync::Arc;

use super::{Derivation, Error, Field, Layout, Options, Records, Syntax, ndjson};
use crate::{grpc::convert, invitation, proto::AddRespondentRequest};

/// One row of a list.
pub struct Row {
    /// The line in which it begins, from 1, the header counted.
    pub line: u64,
    /// As given or made; empty if it is not known.
    pub crk: String,
    /// What can be sent, or why it can't. That names fields and never a value.
    pub content: Result<AddRespondentRequest, String>,
}

/// The rows of a list, in its order. An error ends them.
pub struct Rows {
    records: Records,
    layout: Arc<Layout>,
    options: Arc<Options>,
    derivation: Option<Derivation>,
    is_at_end: bool,
}

impl Iterator for Rows {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_at_end {
            return None;
        }
        let advanced = self.records.advance();
        self.is_at_end = !matches!(advanced, Ok(true));
        match advanced {
            Ok(true) => Some(Ok(self.row())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl Rows {
    pub(super) fn new(
        records: Records,
        layout: Arc<Layout>,
        options: Arc<Options>,
        derivation: Option<Derivation>,
    ) -> Self {
        Self {
            records,
            layout,
            options,
            derivation,
            is_at_end: false,
        }
    }

    /// Lines that were skipped so far: blank ones, and rows whose cells are all empty.
    pub fn empty(&self) -> u64 {
        self.records.empty()
    }

    /// How many of the file's bytes were read so far.
    pub fn bytes(&self) -> u64 {
        self.records.text().bytes()
    }

    fn row(&self) -> Row {
        let mut request = AddRespondentRequest::default();
        let mut wrong = match &self.layout.syntax {
            Syntax::Ndjson => ndjson::read(self.records.raw(), &self.options.map, &mut request),
            Syntax::Csv { columns, .. } => {
                let wrong = read_cells(&self.records, columns.fields(), &mut request);
                if wrong.is_some() {
                    // What is in which column is not sure.
                    request = AddRespondentRequest::default();
                }
                wrong.into_iter().collect()
            }
        };
        if wrong.is_empty() {
            wrong = self.complete(&mut request);
        }
        Row {
            line: self.records.line(),
            crk: request.crk.clone(),
            content: if wrong.is_empty() {
                Ok(request)
            } else {
                Err(wrong.join("; "))
            },
        }
    }

    /// Adds what is not in the list itself, and tells all that is wrong.
    fn complete(&self, request: &mut AddRespondentRequest) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(collector) = &self.options.collector {
            if request.collector_id.is_empty() {
                request.collector_id.clone_from(collector);
            } else if request.collector_id != *collector {
                wrong.push("collector_id is not that of --collector".into());
            }
        }
        if let Some(derivation) = &self.derivation {
            if !request.crk.is_empty() {
                wrong.push("crk is given, and --derive-crk as well".into());
            } else if let Some(crk) = derivation.crk(request) {
                request.crk = crk;
            } else {
                wrong.push("crk can't be made: the fields of --derive-crk are empty".into());
            }
        }
        // The very steps that the gateway takes.
        let invitation = convert::invitation(request.clone());
        let violations = invitation::validate(&invitation.key, &invitation.respondent);
        // Of an empty crk it is said above why it is.
        let is_told = |field| field == "crk" && self.derivation.is_some() && request.crk.is_empty();
        let violations = violations.into_iter().filter(|violation| !is_told(violation.field));
        wrong.extend(violations.map(|violation| format!("{} {}", violation.field, violation.description)));
        wrong
    }
}

fn read_cells(records: &Records, fields: &[Option<Field>], request: &mut AddRespondentRequest) -> Option<String> {
    if records.has_stray_quote() {
        return Some(
            "text follows right behind a closing quote: is there a quote too many, or one that is not doubled?".into(),
        );
    }
    let (mut count, mut used) = (0, 0);
    for cell in records.cells() {
        if let Some(Some(field)) = fields.get(count) {
            *field.get_mut(request) = with_lf(cell);
        }
        count += 1;
        if !cell.is_empty() {
            used = count;
        }
    }
    // Spreadsheets write a row as wide as the sheet was ever used.
    let count = if count > fields.len() {
        used.max(fields.len())
    } else {
        count
    };
    (count != fields.len()).then(|| format!("has {count} cells, where the header has {}", fields.len()))
}

/// The gateway takes LF as the end of a line within a text, and no CR, which is how some programs write it.
fn with_lf(cell: &str) -> String {
    if cell.contains('\r') {
        cell.replace("\r\n", "\n").replace('\r', "\n")
    } else {
        cell.into()
    }
}
