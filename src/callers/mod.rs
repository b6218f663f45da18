//! Who may call, and what they may do: the callers' file, and the credentials that it knows.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use subtle::ConditionallySelectable as _;

use crate::{
    method::Method,
    reload::{self, Reloaded},
};

mod edit;
mod file;
mod rights;
mod token;

pub use edit::{Draft, add, rotate};
pub use file::{Entry, read};
pub use rights::{Methods, Share};
pub use token::{Token, TokenHash};

#[cfg(test)]
mod tests;

/// Why a callers' file can't be used. Holds no value that may be a secret in the wrong place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it is not UTF-8")]
    NotText,
    /// All that is wrong, in the order of the lines.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Wrong(Vec<Wrong>),
    #[error("the caller '{0}' is there already; --rotate gives it a further token")]
    Taken(String),
    /// Without the name: it may be a token in the wrong place.
    #[error("there is no caller with this name")]
    Unknown,
}

/// One thing that is wrong in a callers' file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Counted from 1.
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// A caller's number: small, and the same for its name for as long as the process runs, whatever becomes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerId(pub u32);

/// One caller and its rights.
#[derive(Debug)]
pub struct Caller {
    pub id: CallerId,
    pub name: String,
    /// Its part of the rate while others want it, too.
    pub share: Option<Share>,
    /// The sum of all callers' shares, 0 to 1.
    pub all_shares: f64,
    methods: Methods,
    /// Sorted. `None`: all of them.
    collectors: Option<Vec<String>>,
}

impl Caller {
    pub fn may_call(&self, method: Method) -> bool {
        self.methods.contains(method)
    }

    /// May it use this collector? No collector at all (`""`) means all of them.
    pub fn may_use(&self, collector: &str) -> bool {
        let Some(allowed) = &self.collectors else { return true };
        allowed.binary_search_by(|allowed| (**allowed).cmp(collector)).is_ok()
    }
}

/// What one call brought along to say who makes it. Holds no token, only its hash.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub token: Presented,
    /// The names of a client certificate that was verified; `None` without one.
    pub names: Option<Arc<[String]>>,
}

/// The token that a call brought.
#[derive(Clone, Copy, Debug)]
pub enum Presented {
    Nothing,
    /// Something that can't be a token, or more than one.
    Unreadable,
    Token(TokenHash),
}

/// Why credentials are not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There are none.
    Missing,
    /// The token is nobody's.
    Token,
    /// The certificate is nobody's.
    Certificate,
    /// Token and certificate, or two names of the certificate, are of different callers.
    Mismatch,
}

impl Failure {
    pub const ALL: [Self; 4] = [Self::Missing, Self::Token, Self::Certificate, Self::Mismatch];

    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::Mismatch => "mismatch",
        }
    }
}

/// All callers that are known, as one state of the file has them.
#[derive(Debug)]
pub struct Callers {
    callers: Vec<Arc<Caller>>,
    /// With the place of their caller.
    tokens: Vec<(TokenHash, u32)>,
    names: HashMap<String, u32>,
}

/// The numbers that names have got.
#[derive(Default)]
struct Ids(Mutex<HashMap<String, CallerId>>);

impl Ids {
    fn of(&self, name: &str) -> CallerId {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = CallerId(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        *ids.entry(name.into()).or_insert(next)
    }
}

impl Callers {
    /// Reads a callers' file, and again whenever it changes.
    pub fn open(path: PathBuf) -> Result<Reloaded<Self>, reload::Error> {
        let ids = Ids::default();
        Reloaded::open("the callers' file", vec![path], move |contents| {
            let bytes = contents.first().map_or(&[][..], |content| content.as_slice());
            let entries = text(bytes).and_then(read).map_err(|error| error.to_string())?;
            Ok(Self::new(entries, &ids))
        })
    }

    /// What a file with this text says.
    #[cfg(test)]
    pub fn of(text: &str) -> Result<Self, Error> {
        Ok(Self::new(read(text)?, &Ids::default()))
    }

    fn new(entries: Vec<Entry>, ids: &Ids) -> Self {
        let mut callers = Self {
            callers: Vec::new(),
            tokens: Vec::new(),
            names: HashMap::new(),
        };
        let all_shares = entries
            .iter()
            .filter_map(|entry| entry.share)
            .map(Share::fraction)
            .sum();
        for (place, entry) in (0..).zip(entries) {
            callers.tokens.extend(entry.tokens.iter().map(|hash| (*hash, place)));
            callers.names.extend(entry.names.into_iter().map(|name| (name, place)));
            let mut collectors = entry.collectors;
            if let Some(collectors) = &mut collectors {
                collectors.sort_unstable();
            }
            callers.callers.push(Arc::new(Caller {
                id: ids.of(&entry.name),
                name: entry.name,
                share: entry.share,
                all_shares,
                methods: entry.methods,
                collectors,
            }));
        }
        callers
    }

    /// Whose credentials these are. If there are a token and a certificate, both must be of one caller: a token that is
    /// wrong never falls back to the certificate.
    pub fn authenticate(&self, credentials: &Credentials) -> Result<&Arc<Caller>, Failure> {
        match (&credentials.token, &credentials.names) {
            (Presented::Nothing, None) => Err(Failure::Missing),
            (Presented::Nothing, Some(names)) => self.by_names(names),
            (Presented::Unreadable, _) => Err(Failure::Token),
            (Presented::Token(hash), names) => {
                let caller = self.by_token(hash).ok_or(Failure::Token)?;
                match names.as_ref().map(|names| self.by_names(names)) {
                    None => Ok(caller),
                    Some(Ok(other)) if other.id == caller.id => Ok(caller),
                    Some(_) => Err(Failure::Mismatch),
                }
            }
        }
    }

    /// Looks at all hashes, in a time that tells neither whether one of them fits nor how much of it.
    fn by_token(&self, token: &TokenHash) -> Option<&Arc<Caller>> {
        let mut found = u32::MAX;
        for (hash, place) in &self.tokens {
            found.conditional_assign(place, hash.matches(token));
        }
        self.callers.get(usize::try_from(found).ok()?)
    }

    fn by_names(&self, names: &[String]) -> Result<&Arc<Caller>, Failure> {
        let mut found = None;
        for name in names {
            let Some(place) = self.names.get(&*file::normalized(name)).copied() else {
                continue;
            };
            if found.is_some_and(|found| found != place) {
                return Err(Failure::Mismatch);
            }
            found = Some(place);
        }
        found
            .and_then(|place| self.callers.get(usize::try_from(place).ok()?))
            .ok_or(Failure::Certificate)
    }
}

/// A file's content as text.
pub fn text(content: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(content).map_err(|_| Error::NotText)
}
