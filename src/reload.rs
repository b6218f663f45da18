//! Files that are read again when they change, so that a rotation needs no restart.

use std::{
    fs, io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use secrecy::zeroize::Zeroizing;
use sha2::{Digest as _, Sha256};
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

/// So often the files are looked at: by their contents, as times and links tell less where secrets are mounted.
pub const EVERY: Duration = Duration::from_secs(2);
/// After so long what has changed is looked at again. It is used once two looks find the same: the half of a file may be right
/// by itself, and mean something else.
const SETTLED: Duration = Duration::from_millis(200);

/// The contents of the files, in the order of their paths. Wiped when dropped, as they may be secrets.
pub type Contents = Vec<Zeroizing<Vec<u8>>>;

/// What was made of some files, and what is made of them again when they change. Cheap to clone: all clones are one.
pub struct Reloaded<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    current: RwLock<Arc<T>>,
    /// None of what never changes.
    source: Option<Source<T>>,
}

type Parse<T> = Box<dyn Fn(&Contents) -> Result<T, String> + Send + Sync>;

struct Source<T> {
    /// What it is, for the log.
    what: &'static str,
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    seen: Mutex<Seen>,
}

/// What was found at a look: the contents' hash, or `None` where a file could not be read.
type Found = Option<[u8; 32]>;

struct Seen {
    /// What is used, or was found to be of no use.
    taken: Found,
    /// By the last look.
    last: Found,
}

impl<T> Clone for Reloaded<T> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

/// Why there is nothing to begin with. Holds neither a path, as people paste secrets where paths belong, nor contents.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the file can't be read: {0}")]
    Read(#[from] io::Error),
    /// In the words of what parses it.
    #[error("{0}")]
    Parse(String),
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// What never changes.
    pub fn fixed(value: T) -> Self {
        Self::new(value, None)
    }

    /// Reads the files for the first time. `parse` says what is wrong with their contents, and never with a secret in it.
    pub fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        parse: impl Fn(&Contents) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let contents = read(&paths)?;
        let value = parse(&contents).map_err(Error::Parse)?;
        let source = Source {
            what,
            paths,
            parse: Box::new(parse),
            seen: Mutex::new(Seen::of(hash(&contents))),
        };
        Ok(Self::new(value, Some(source)))
    }

    fn new(value: T, source: Option<Source<T>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                current: RwLock::new(Arc::new(value)),
                source,
            }),
        }
    }

    /// What was made of the files last.
    pub fn current(&self) -> Arc<T> {
        self.shared
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Until `stop`, looks at the files. What can't be read or parsed is told to the log, once, and what was there before
    /// stays: also between the two halves of a change of two files.
    pub async fn watch(self, stop: CancellationToken) {
        if self.shared.source.is_none() {
            return;
        }
        let work = async {
            let mut wait = EVERY;
            loop {
                sleep(wait).await;
                let reloaded = self.clone();
                // A file system may hang; then this waits, and nothing else does. Where no thread can be had it panics, and the
                // next look may have one.
                let look = catch_unwind(AssertUnwindSafe(|| spawn_blocking(move || reloaded.look())));
                wait = match look {
                    Ok(look) => look.await.unwrap_or(EVERY),
                    Err(_) => EVERY,
                };
            }
        };
        let _stopped = stop.run_until_cancelled(work).await;
    }

    /// Returns when to look again.
    fn look(&self) -> Duration {
        let Some(source) = &self.shared.source else {
            return EVERY;
        };
        let contents = read(&source.paths);
        let found = contents.as_ref().ok().map(hash);
        let mut seen = source.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = mem::replace(&mut seen.last, found);
        if found == seen.taken {
            return EVERY;
        }
        if found != before {
            return SETTLED;
        }
        seen.taken = found;
        let parsed = contents.map_err(Error::Read);
        match parsed.and_then(|contents| (source.parse)(&contents).map_err(Error::Parse)) {
            Ok(value) => {
                *self.shared.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                tracing::info!(what = source.what, "reloaded after a change");
            }
            Err(error) => {
                tracing::error!(what = source.what, cause = %error, "the changed file can't be used: the previous contents stay in effect");
            }
        }
        EVERY
    }
}

impl Seen {
    fn of(contents: [u8; 32]) -> Self {
        Self {
            taken: Some(contents),
            last: Some(contents),
        }
    }
}

fn read(paths: &[PathBuf]) -> io::Result<Contents> {
    paths.iter().map(|path| fs::read(path).map(Zeroizing::new)).collect()
}

fn hash(contents: &Contents) -> [u8; 32] {
    let mut hash = Sha256::new();
    for content in contents {
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(content.as_slice());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &Contents) -> Result<u32, String> {
        let text = std::str::from_utf8(&contents[0]).map_err(|error| error.to_string())?;
        text.trim().parse().map_err(|_| "not a number".to_string())
    }

    #[test]
    fn what_changes_is_read_again_and_what_is_wrong_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        fs::write(&path, "1").unwrap();
        let reloaded = Reloaded::open("a number", vec![path.clone()], number).unwrap();
        assert_eq!(*reloaded.current(), 1);
        let look = || {
            assert_eq!(reloaded.look(), SETTLED);
            assert_eq!(reloaded.look(), EVERY);
            *reloaded.current()
        };
        fs::write(&path, "2").unwrap();
        assert_eq!(look(), 2);
        fs::write(&path, "many").unwrap();
        assert_eq!(look(), 2);
        fs::remove_file(&path).unwrap();
        assert_eq!(look(), 2);
        // What was there before comes back, too.
        fs::write(&path, "2").unwrap();
        assert_eq!(look(), 2);
        fs::write(&path, "3").unwrap();
        assert_eq!(look(), 3);
    }

    #[test]
    fn half_of_a_change_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        fs::write(&path, "1").unwrap();
        let reloaded = Reloaded::open("a number", vec![path.clone()], number).unwrap();
        for half in ["2", "23", ""] {
            fs::write(&path, half).unwrap();
            assert_eq!(reloaded.look(), SETTLED);
            assert_eq!(*reloaded.current(), 1);
        }
        fs::write(&path, "1").unwrap();
        assert_eq!(reloaded.look(), EVERY);
        assert_eq!(*reloaded.current(), 1);
    }

    #[test]
    fn what_is_wrong_at_first_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        assert!(matches!(
            Reloaded::open("a number", vec![path.clone()], number),
            Err(Error::Read(_))
        ));
        fs::write(&path, "many").unwrap();
        let error = Reloaded::open("a number", vec![path], number).err().unwrap();
        assert_eq!(error.to_string(), "not a number");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_seen_without_being_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        fs::write(&path, "1").unwrap();
        let reloaded = Reloaded::open("a number", vec![path.clone()], number).unwrap();
        let stop = CancellationToken::new();
        let watching = tokio::spawn(reloaded.clone().watch(stop.clone()));
        fs::write(&path, "2").unwrap();
        while *reloaded.current() != 2 {
            tokio::time::sleep(EVERY).await;
        }
        stop.cancel();
        watching.await.unwrap();
    }
}
