//! Where a list's bytes come from.

use std::{
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use super::{Error, Format};

/// A list.
pub enum Source {
    /// One that is no regular file, such as a pipe, is read as a stream.
    File(PathBuf),
    /// A stream that was written to a file.
    Spooled(File),
    /// Can be read once.
    Stream(Box<dyn Read + Send>),
}

/// Tells a file that was changed from one that was not, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub length: u64,
    /// `None` where the file system keeps none.
    pub modified: Option<SystemTime>,
}

/// A source that was opened. The file stays the one that was opened, also when another one gets its name.
pub(super) struct Input {
    kind: Kind,
    format: Option<Format>,
}

enum Kind {
    File(Arc<Mutex<File>>),
    Stream(Option<Box<dyn Read + Send>>),
}

impl Input {
    pub fn open(source: Source) -> Result<Self, Error> {
        let (kind, format) = match source {
            Source::File(path) => {
                let failed = |source| Error::Open {
                    path: path.display().to_string(),
                    source,
                };
                let file = File::open(&path).map_err(failed)?;
                let metadata = file.metadata().map_err(failed)?;
                let kind = if metadata.is_file() {
                    Kind::File(Arc::new(Mutex::new(file)))
                } else {
                    Kind::Stream(Some(Box::new(file)))
                };
                (kind, format_of(&path))
            }
            Source::Spooled(file) => (Kind::File(Arc::new(Mutex::new(file))), None),
            Source::Stream(stream) => (Kind::Stream(Some(stream)), None),
        };
        Ok(Self { kind, format })
    }

    /// What the file's name says.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Begins a reading.
    pub fn read(&mut self) -> Result<Box<dyn Read + Send>, Error> {
        match &mut self.kind {
            Kind::File(file) => Ok(Box::new(FromStart {
                file: Arc::clone(file),
                offset: 0,
            })),
            Kind::Stream(stream) => stream.take().ok_or(Error::Once),
        }
    }

    pub fn fingerprint(&self) -> io::Result<Option<Fingerprint>> {
        let Kind::File(file) = &self.kind else {
            return Ok(None);
        };
        let file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = file.metadata()?;
        Ok(Some(Fingerprint {
            length: metadata.len(),
            modified: metadata.modified().ok(),
        }))
    }
}

fn format_of(path: &Path) -> Option<Format> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "csv" | "tsv" | "txt" => Some(Format::Csv),
        "ndjson" | "jsonl" | "json" => Some(Format::Ndjson),
        _ => None,
    }
}

/// A reading with a place of its own, so that two readings do not move each other's.
struct FromStart {
    file: Arc<Mutex<File>>,
    offset: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read(buffer)?;
        self.offset += read as u64;
        Ok(read)
    }
}
