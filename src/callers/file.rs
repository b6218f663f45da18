//! The callers' file: TOML, read as strictly as it is written rarely.
//!
//! Read by hand rather than by serde, whose first error ends it and may repeat a value: a token in the wrong place.

use std::{borrow::Cow, collections::HashMap};

use toml_edit::{Document, Item, Table, Value};

use super::{Error, Methods, Share, TokenHash, Wrong, token};
use crate::invitation::collector_id;
use crate::method::Method;

const KEYS: [&str; 7] = ["name", "tokens", "names", "collectors", "methods", "operator", "share"];
const MAX_NAME: usize = 64;
/// RFC 1035 has 255 for a DNS name; SPIFFE IDs, 2 048.
const MAX_SUBJECT_NAME: usize = 2_048;

/// One `[[caller]]`, each value of it valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub tokens: Vec<TokenHash>,
    /// Names of client certificates (SAN): DNS names in lower case, or URIs.
    pub names: Vec<String>,
    /// `None`: all of them.
    pub collectors: Option<Vec<String>>,
    pub methods: Methods,
    pub share: Option<Share>,
}

/// Reads a file's text. Fails with all that is wrong with it.
pub fn read(text: &str) -> Result<Vec<Entry>, Error> {
    let document = Document::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let what = format!("it is not TOML: {}", error.message());
        Error::Wrong(vec![Wrong {
            line: line_of(text, at),
            what,
        }])
    })?;
    let mut reader = Reader {
        text,
        wrong: Vec::new(),
    };
    let entries = reader.callers(document.as_table());
    let Reader { mut wrong, .. } = reader;
    if wrong.is_empty() {
        return Ok(entries);
    }
    wrong.sort_by_key(|wrong| wrong.line);
    Err(Error::Wrong(wrong))
}

/// A certificate's name as it is compared: DNS names know no case (RFC 4343), URIs are what they are.
pub(super) fn normalized(name: &str) -> Cow<'_, str> {
    let is_upper = name.bytes().any(|byte| byte.is_ascii_uppercase());
    if is_upper && !name.contains("://") {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    }
}

/// What is wrong with a caller's name.
fn name_error(name: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        Some(format!(
            "name must be 1 to {MAX_NAME} characters of A-Z, a-z, 0-9, '.', '_' and '-'"
        ))
    } else if name.starts_with(token::PREFIX) {
        // It would be in every log line.
        Some("name must not be a token".into())
    } else {
        None
    }
}

fn subject_name_error(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > MAX_SUBJECT_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some("must be a DNS name or a URI")
    } else if name.contains('*') {
        Some("must not have a '*': a certificate for many names says nothing of who has it")
    } else {
        None
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// A value and its line.
struct At<T> {
    line: usize,
    value: T,
}

struct Reader<'a> {
    text: &'a str,
    wrong: Vec<Wrong>,
}

/// Where what must be unique was seen first.
#[derive(Default)]
struct Seen {
    callers: HashMap<String, usize>,
    tokens: HashMap<TokenHash, usize>,
    names: HashMap<String, usize>,
    shares: u32,
}

impl Reader<'_> {
    fn callers(&mut self, root: &Table) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.only_known(root, &["caller"]);
        match root.get("caller") {
            None => self.say(1, "there is no caller in it: each has a [[caller]] of its own"),
            Some(Item::ArrayOfTables(tables)) => {
                let mut seen = Seen::default();
                for table in tables {
                    entries.extend(self.caller(table, &mut seen));
                }
            }
            Some(_) => {
                let line = self.line(root, "caller");
                self.say(line, "each caller must be a [[caller]]");
            }
        }
        entries
    }

    /// `None` if something is wrong, which is then in `self.wrong`.
    fn caller(&mut self, table: &Table, seen: &mut Seen) -> Option<Entry> {
        let line = self.line_at(table.span());
        let wrong_before = self.wrong.len();
        self.only_known(table, &KEYS);
        let name = self.name(table, line, seen);
        let tokens = self.tokens(table, seen);
        let names = self.names(table, seen);
        if !table.contains_key("tokens") && !table.contains_key("names") {
            self.say(
                line,
                "the caller has no credential: give it tokens, or names of its certificate",
            );
        }
        let collectors = self.list(table, "collectors", |id| match collector_id(id) {
            Some(wrong) => Err(wrong),
            None => Ok(id.to_string()),
        });
        let methods = self.methods(table);
        let share = self.share(table, seen);
        (self.wrong.len() == wrong_before).then(|| Entry {
            name: name.unwrap_or_default(),
            tokens,
            names,
            collectors: collectors.map(values),
            methods,
            share,
        })
    }

    fn name(&mut self, table: &Table, line: usize, seen: &mut Seen) -> Option<String> {
        let Some(name) = self.string(table, "name") else {
            if !table.contains_key("name") {
                self.say(line, "the caller has no name");
            }
            return None;
        };
        if let Some(wrong) = name_error(&name.value) {
            self.say(name.line, wrong);
            return None;
        }
        self.once(&mut seen.callers, &name, "this name");
        Some(name.value)
    }

    fn tokens(&mut self, table: &Table, seen: &mut Seen) -> Vec<TokenHash> {
        let tokens = self.list(table, "tokens", |text| {
            TokenHash::parse(text).ok_or_else(|| {
                if text.starts_with(token::PREFIX) {
                    "must be a token's hash, not the token itself".into()
                } else {
                    "must be sha256: and 64 hexadecimal digits".into()
                }
            })
        });
        let tokens = tokens.unwrap_or_default();
        for token in &tokens {
            self.once(&mut seen.tokens, token, "this token's hash");
        }
        values(tokens)
    }

    fn names(&mut self, table: &Table, seen: &mut Seen) -> Vec<String> {
        let names = self.list(table, "names", |name| match subject_name_error(name) {
            Some(wrong) => Err(wrong.into()),
            None => Ok(normalized(name).into_owned()),
        });
        let names = names.unwrap_or_default();
        for name in &names {
            self.once(&mut seen.names, name, "this certificate's name");
        }
        values(names)
    }

    fn methods(&mut self, table: &Table) -> Methods {
        let is_operator = self.boolean(table, "operator").unwrap_or_default();
        let methods = self.list(table, "methods", |name| match Method::named(name) {
            None => {
                let names = Method::ALL.map(Method::name).join(", ");
                Err(format!("must be of the contract: {names}"))
            }
            Some(method) if method.is_for_operators() && !is_operator => {
                Err(format!("{name} is an operator's right: it needs operator = true"))
            }
            Some(method) => Ok(method),
        });
        let methods = methods.map_or_else(Methods::of_callers, |methods| values(methods).into_iter().collect());
        if is_operator {
            methods.and(Methods::of_operators())
        } else {
            methods
        }
    }

    fn share(&mut self, table: &Table, seen: &mut Seen) -> Option<Share> {
        let text = self.string(table, "share")?;
        let Some(share) = Share::parse(&text.value) else {
            self.say(
                text.line,
                "share must be a text such as \"20%\" or \"12.5%\", more than 0% and at most 100%",
            );
            return None;
        };
        let before = seen.shares;
        seen.shares += share.hundredths_of_a_percent();
        if before <= Share::WHOLE && seen.shares > Share::WHOLE {
            self.say(text.line, "with this share all shares together are more than 100%");
        }
        Some(share)
    }

    /// Says so if the same was there before.
    fn once<T: Clone + Eq + std::hash::Hash>(&mut self, seen: &mut HashMap<T, usize>, value: &At<T>, what: &str) {
        if let Some(first) = seen.get(&value.value) {
            self.say(value.line, format!("{what} is in line {first} already"));
        } else {
            seen.insert(value.value.clone(), value.line);
        }
    }

    fn only_known(&mut self, table: &Table, known: &[&str]) {
        for (key, _) in table {
            if !known.contains(&key) {
                let line = self.line(table, key);
                // What is short enough for a typing error, and no token.
                let is_shown = key.len() <= 24 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                let shown = if is_shown { format!(" '{key}'") } else { String::new() };
                self.say(line, format!("unknown key{shown}: known are {}", known.join(", ")));
            }
        }
    }

    fn string(&mut self, table: &Table, key: &str) -> Option<At<String>> {
        let item = table.get(key)?;
        let line = self.line_at(item.span());
        match item.as_str() {
            Some(value) => Some(At {
                line,
                value: value.into(),
            }),
            None => {
                self.say(line, format!("{key} must be a text in quotes"));
                None
            }
        }
    }

    fn boolean(&mut self, table: &Table, key: &str) -> Option<bool> {
        let item = table.get(key)?;
        if item.as_bool().is_none() {
            let line = self.line_at(item.span());
            self.say(line, format!("{key} must be true or false"));
        }
        item.as_bool()
    }

    /// A list of texts that must not be empty: whether that would mean all or nothing, nobody remembers. `None` if there is
    /// none; without what is wrong.
    fn list<T>(&mut self, table: &Table, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<Vec<At<T>>> {
        let item = table.get(key)?;
        let line = self.line_at(item.span());
        let Some(array) = item.as_array() else {
            self.say(line, format!("{key} must be a list: [\"…\", \"…\"]"));
            return None;
        };
        if array.is_empty() {
            self.say(line, format!("{key} must not be empty; without it the default holds"));
        }
        let mut list = Vec::new();
        for value in array {
            let line = self.line_at(value.span());
            match value {
                Value::String(text) => match parse(text.value()) {
                    Ok(value) => list.push(At { line, value }),
                    Err(wrong) => self.say(line, format!("{key}: {wrong}")),
                },
                _ => self.say(line, format!("{key}: must be a text in quotes")),
            }
        }
        Some(list)
    }

    fn line(&self, table: &Table, key: &str) -> usize {
        self.line_at(table.key(key).and_then(toml_edit::Key::span))
    }

    fn line_at(&self, span: Option<std::ops::Range<usize>>) -> usize {
        line_of(self.text, span.map_or(0, |span| span.start))
    }

    fn say(&mut self, line: usize, what: impl Into<String>) {
        self.wrong.push(Wrong {
            line,
            what: what.into(),
        });
    }
}

fn values<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}
