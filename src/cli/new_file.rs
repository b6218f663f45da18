//! A file that has its name only once it is whole.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// What is written is beside the file under its name and this, until it is whole.
const SUFFIX: &str = ".surveylab-gateway-partial";

/// What to do with a file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Keep,
    Replace,
}

impl Existing {
    pub fn from_flag(force: bool) -> Self {
        if force { Self::Replace } else { Self::Keep }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is there already; --force replaces it")]
    Exists(String),
    #[error("{0} is not the name of a file")]
    NoFile(String),
    #[error("{0} is being written by another command, or {0}{SUFFIX} is in the way")]
    Busy(String),
    #[error("{path} can't be written: {source}")]
    Write { path: String, source: io::Error },
}

impl Error {
    /// Does only another path or permission help?
    pub fn is_of_the_path(&self) -> bool {
        match self {
            Self::Exists(_) | Self::NoFile(_) => true,
            Self::Busy(_) => false,
            Self::Write { source, .. } => matches!(
                source.kind(),
                ErrorKind::NotFound
                    | ErrorKind::NotADirectory
                    | ErrorKind::PermissionDenied
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::InvalidFilename
            ),
        }
    }
}

/// The file while it is written; dropped before it was published, it leaves nothing.
pub struct NewFile {
    target: PathBuf,
    partial: PathBuf,
    existing: Existing,
    /// Locked, so that of two commands for one file the second is told, and what a killed one left is known as such.
    file: File,
}

impl NewFile {
    /// Begins an empty file, readable by its owner alone.
    pub fn create(target: &Path, existing: Existing) -> Result<Self, Error> {
        let name = || target.display().to_string();
        match fs::metadata(target) {
            Ok(metadata) if !metadata.is_file() => return Err(Error::NoFile(name())),
            Ok(_) if existing == Existing::Keep => return Err(Error::Exists(name())),
            _ if target.file_name().is_none() => return Err(Error::NoFile(name())),
            _ => {}
        }
        let partial = Self::partial(target);
        let failed = |source| Error::Write { path: name(), source };
        let file = match create_new(&partial) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Locked until the new one is: else two commands could each take the other's for one that was left.
                let left = File::open(&partial).map_err(failed)?;
                if !lock(&left).map_err(failed)? || !is_at(&left, &partial) {
                    return Err(Error::Busy(name()));
                }
                match fs::remove_file(&partial) {
                    // Another command had just begun it, and gave it up to this one.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    other => other.map_err(failed)?,
                }
                create_new(&partial).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        // From here on dropping it removes the file.
        let new = Self {
            target: target.into(),
            partial,
            existing,
            file,
        };
        match lock(&new.file) {
            Ok(true) => Ok(new),
            Ok(false) => {
                // Another command took it for one that was left, and removes it.
                Err(Error::Busy(name()))
            }
            Err(source) => Err(failed(source)),
        }
    }

    /// Where a file for `target` is while it is written.
    pub fn partial(target: &Path) -> PathBuf {
        let mut partial = OsString::from(target);
        partial.push(SUFFIX);
        partial.into()
    }

    /// Where it is now.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes it durable, and gives it its name.
    pub fn publish(self) -> Result<(), Error> {
        let failed = |source| Error::Write {
            path: self.target.display().to_string(),
            source,
        };
        self.file.sync_all().map_err(failed)?;
        match self.existing {
            Existing::Replace => fs::rename(&self.partial, &self.target).map_err(failed)?,
            // A link, unlike a renaming, never takes the place of a file that has come meanwhile.
            Existing::Keep => match fs::hard_link(&self.partial, &self.target) {
                Ok(()) => {}
                Err(_) if self.target.exists() => return Err(Error::Exists(self.target.display().to_string())),
                // Not every file system has links.
                Err(_) => fs::rename(&self.partial, &self.target).map_err(failed)?,
            },
        }
        sync_directory(&self.target).map_err(failed)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.partial) {
            // What stays, the next command for the same file removes.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Whether the lock could be had.
fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Is it this file that has this name, and not a later one?
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(one), Ok(other)) => id(one) == id(other),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Makes a new name durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if cfg!(unix) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}
