//! Changes of a callers' file that leave its comments and its order as they are.

use std::fmt::Write as _;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, Value, value};

use super::{Error, TokenHash, read};

/// A caller that is to be added, as a command has it: not validated yet.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    pub name: String,
    pub names: Vec<String>,
    pub collectors: Vec<String>,
    pub methods: Vec<String>,
    pub is_operator: bool,
    pub share: Option<String>,
}

impl Draft {
    /// The caller's `[[caller]]`, or what is wrong with it.
    pub fn block(&self, token: &TokenHash) -> Result<String, Error> {
        let mut block = format!("[[caller]]\nname = {}\n", Value::from(&self.name));
        let mut line = |key: &str, value: Value| {
            // To a string, which takes everything.
            let _infallible = writeln!(block, "{key} = {value}");
        };
        line("tokens", Value::from_iter([token.to_string()]));
        for (key, list) in [
            ("names", &self.names),
            ("collectors", &self.collectors),
            ("methods", &self.methods),
        ] {
            if !list.is_empty() {
                line(key, Value::from_iter(list));
            }
        }
        if self.is_operator {
            line("operator", true.into());
        }
        if let Some(share) = &self.share {
            line("share", share.into());
        }
        read(&block)?;
        Ok(block)
    }
}

/// A file's text with one more caller at its end. The text may be empty or hold comments alone, but not be wrong.
pub fn add(text: &str, draft: &Draft, token: &TokenHash) -> Result<String, Error> {
    let block = draft.block(token)?;
    let has_callers = text
        .parse::<DocumentMut>()
        .map_or(true, |document| !document.is_empty());
    if has_callers && read(text)?.iter().any(|caller| caller.name == draft.name) {
        return Err(Error::Taken(draft.name.clone()));
    }
    let longer = match text.trim_end() {
        "" => block,
        text => format!("{text}\n\n{block}"),
    };
    read(&longer)?;
    Ok(longer)
}

/// A file's text with one more token of one of its callers.
pub fn rotate(text: &str, name: &str, token: &TokenHash) -> Result<String, Error> {
    read(text)?;
    // It was read just now.
    let mut document: DocumentMut = text.parse().map_err(|_| Error::Unknown)?;
    let callers = document.get_mut("caller").and_then(Item::as_array_of_tables_mut);
    let is_it = |caller: &&mut Table| caller.get("name").and_then(Item::as_str) == Some(name);
    let caller = callers.and_then(|callers: &mut ArrayOfTables| callers.iter_mut().find(is_it));
    let caller = caller.ok_or(Error::Unknown)?;
    let tokens = caller
        .entry("tokens")
        .or_insert_with(|| value(Value::from_iter::<[&str; 0]>([])));
    tokens.as_array_mut().ok_or(Error::Unknown)?.push(token.to_string());
    let changed = document.to_string();
    read(&changed)?;
    Ok(changed)
}
