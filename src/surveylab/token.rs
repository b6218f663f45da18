//! SurveyLab's API token, which may change while the gateway runs.
//!
//! The token before the current one is kept, as answers may still repeat it and must be cleaned of it. One rotation later it is
//! wiped from memory, once the last request with it has its answer. What can't be wiped are the copies of others: the URL and the
//! written bytes of a request, which reqwest and hyper free as they are, and the environment, which the system keeps for as long
//! as the process lives.

use std::{
    fmt,
    path::PathBuf,
    str,
    sync::{Arc, Mutex, PoisonError},
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use super::request::percent_encoded;
use crate::{
    reload::{self, Contents, Reloaded},
    token::{self, NOT_A_TOKEN},
};

/// Bytes that a token from a file has at least in the request line, so that a longer one can come after it.
const ROOM: usize = 256;

/// One token, ready to be sent.
pub(super) struct Token {
    plain: SecretString,
    /// `apiToken=…&`, percent-encoded.
    query_begin: SecretString,
    /// The one before it: answers may still repeat it.
    before: Option<SecretString>,
    version: u64,
}

impl Token {
    fn new(plain: SecretString, before: Option<SecretString>, version: u64) -> Self {
        let parts = || {
            ["apiToken="]
                .into_iter()
                .chain(percent_encoded(plain.expose_secret()))
                .chain(["&"])
        };
        // Without room to grow into there is no piece of it left behind elsewhere.
        let mut query_begin = String::with_capacity(parts().map(str::len).sum());
        query_begin.extend(parts());
        Self {
            query_begin: query_begin.into(),
            plain,
            before,
            version,
        }
    }

    pub(super) fn plain(&self) -> &str {
        self.plain.expose_secret()
    }

    pub(super) fn before(&self) -> Option<&str> {
        self.before.as_ref().map(|before| before.expose_secret())
    }

    pub(super) fn query_begin(&self) -> &str {
        self.query_begin.expose_secret()
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

/// The token as of now. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Tokens {
    current: Reloaded<Token>,
    room: usize,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

impl From<SecretString> for Tokens {
    /// A token that never changes.
    fn from(token: SecretString) -> Self {
        let token = Token::new(token, None, 0);
        Self {
            room: token.query_begin().len(),
            current: Reloaded::fixed(token),
        }
    }
}

/// What was read last, to make the next of.
#[derive(Default)]
struct Last {
    token: Option<SecretString>,
    before: Option<SecretString>,
    version: u64,
    room: usize,
}

impl Tokens {
    /// The token that a file holds, read again when the file changes ([`watch`](Self::watch)).
    pub fn open(path: PathBuf) -> Result<Self, reload::Error> {
        let last = Arc::new(Mutex::new(Last::default()));
        let parse = {
            let last = last.clone();
            move |contents: &Contents| {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                last.next(contents)
            }
        };
        let current = Reloaded::open("SurveyLab's API token", vec![path], parse)?;
        let room = last.lock().unwrap_or_else(PoisonError::into_inner).room;
        Ok(Self { current, room })
    }

    /// Until `stop`, follows the file. One that can't be read, or holds no token, is told to the log and changes nothing.
    pub async fn watch(self, stop: CancellationToken) {
        self.current.watch(stop).await;
    }

    pub(super) fn current(&self) -> Arc<Token> {
        self.current.current()
    }

    /// So many bytes of the request line are kept free for `apiToken=…&`, whatever token comes. What was encoded before a
    /// rotation is sent after it, and must not be too long then.
    pub(super) fn room(&self) -> usize {
        self.room
    }
}

impl Last {
    fn next(&mut self, contents: &Contents) -> Result<Token, String> {
        let text = contents.first().map(|content| content.as_slice()).unwrap_or_default();
        let plain = str::from_utf8(text).ok().and_then(token::of);
        let plain = plain.ok_or_else(|| NOT_A_TOKEN.to_string())?;
        let is_same = |known: &SecretString| known.expose_secret() == plain.expose_secret();
        if !self.token.as_ref().is_some_and(is_same) {
            let token = Token::new(plain.clone(), None, 0);
            let needed = token.query_begin().len();
            if self.token.is_none() {
                self.room = needed.max(ROOM);
            } else if needed > self.room {
                return Err(
                    "it needs more room in a request than was kept free at the start: restart to use it".into(),
                );
            }
            self.before = self.token.replace(plain.clone());
            self.version += 1;
        }
        Ok(Token::new(plain, self.before.clone(), self.version))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::zeroize::Zeroizing;

    use super::*;

    fn next(last: &mut Last, text: &str) -> Result<Token, String> {
        last.next(&vec![Zeroizing::new(text.as_bytes().to_vec())])
    }

    #[test]
    fn a_new_token_has_a_new_version_and_knows_the_one_before() {
        let mut last = Last::default();
        let first = next(&mut last, "s3cret/one\n").unwrap();
        assert_eq!((first.plain(), first.before()), ("s3cret/one", None));
        assert_eq!(first.query_begin(), "apiToken=s3cret%2Fone&");
        let same = next(&mut last, " s3cret/one").unwrap();
        assert_eq!((same.version(), same.before()), (first.version(), None));
        let second = next(&mut last, "two").unwrap();
        assert_eq!((second.plain(), second.before()), ("two", Some("s3cret/one")));
        assert_ne!(second.version(), first.version());
    }

    #[test]
    fn what_is_no_token_changes_nothing_and_is_not_shown() {
        let mut last = Last::default();
        let first = next(&mut last, "one").unwrap();
        for wrong in [
            "",
            "\n",
            "s3cret one",
            "s3cret\nsecond",
            "s3crét",
            &"s3cret".repeat(200),
        ] {
            let error = next(&mut last, wrong).err().unwrap();
            assert!(!error.contains("s3cr"), "{error}");
        }
        assert_eq!(next(&mut last, "one").unwrap().version(), first.version());
    }

    #[test]
    fn a_token_that_needs_more_room_than_is_kept_free_is_refused() {
        let around = "apiToken=&".len();
        let mut last = Last::default();
        next(&mut last, "short").unwrap();
        assert_eq!(last.room, ROOM);
        assert!(next(&mut last, &"x".repeat(ROOM - around)).is_ok());
        let error = next(&mut last, &"x".repeat(ROOM - around + 1)).err().unwrap();
        assert!(error.contains("restart"), "{error}");
        // One that begins long keeps its own room.
        let mut last = Last::default();
        next(&mut last, &"/".repeat(300)).unwrap();
        assert_eq!(last.room, 900 + around);
    }
}
