//! Reads what tests/shim/power.c wrote.

use std::collections::HashMap;

use super::disk::Files;

/// An open file, of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    process: usize,
    number: u32,
}

/// A call of fsync or fdatasync, of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SyncId {
    process: usize,
    number: u64,
}

/// What a process did, in the order in which it did it.
#[derive(Clone, Debug)]
pub enum Event {
    /// A process began. None before it does anything any more.
    Start,
    /// The name is empty for the directory itself.
    Open {
        handle: Handle,
        name: String,
        created: bool,
    },
    Write {
        handle: Handle,
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        handle: Handle,
        length: usize,
    },
    SyncBegin {
        sync: SyncId,
    },
    /// It returned, without an error.
    SyncEnd {
        handle: Handle,
        sync: SyncId,
    },
    Unlink {
        name: String,
    },
    /// The power failed, and this is what the disk kept. Not of the trace, but between two.
    PowerLost(Files),
    /// To be sent on a TCP connection.
    Send {
        data: Vec<u8>,
    },
}

const RECORD: usize = 24;

pub fn parse(bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut rest = bytes;
    let mut process = 0;
    while !rest.is_empty() {
        let (record, behind) = rest.split_at(RECORD);
        let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().unwrap());
        let (kind, number, value) = (word(0), word(4), long(8));
        let (data, behind) = behind.split_at(usize::try_from(long(16)).unwrap());
        rest = behind;
        let handle = Handle { process, number };
        let sync = SyncId { process, number: value };
        let place = usize::try_from(value).unwrap();
        let name = || String::from_utf8(data.to_vec()).unwrap();
        events.push(match kind {
            1 => {
                process += 1;
                Event::Start
            }
            2 => Event::Open {
                handle,
                name: name(),
                created: value == 1,
            },
            3 => Event::Write {
                handle,
                offset: place,
                data: data.to_vec(),
            },
            4 => Event::Truncate { handle, length: place },
            5 => Event::SyncBegin { sync },
            6 => Event::SyncEnd { handle, sync },
            7 => Event::Unlink { name: name() },
            8 => Event::Send { data: data.to_vec() },
            _ => panic!("no such record: {kind}"),
        });
    }
    events
}

/// Where keys went out and answers came back, by crk; and which writes were made durable when.
pub struct Story<'a> {
    pub events: &'a [Event],
    /// The requests to SurveyLab that hold a key.
    pub requests: HashMap<String, Vec<usize>>,
    /// The first answer to a caller that holds a key.
    pub answers: HashMap<String, usize>,
}

impl<'a> Story<'a> {
    /// Requests to SurveyLab are HTTP/1.1, and answers to callers HTTP/2.
    pub fn tell(events: &'a [Event]) -> Self {
        let mut requests: HashMap<String, Vec<usize>> = HashMap::new();
        let mut answers = HashMap::new();
        for (at, event) in events.iter().enumerate() {
            let Event::Send { data } = event else { continue };
            for crk in crks(data) {
                if data.starts_with(b"GET ") {
                    requests.entry(crk).or_default().push(at);
                } else {
                    answers.entry(crk).or_insert(at);
                }
            }
        }
        Self {
            events,
            requests,
            answers,
        }
    }

    /// When each write was durable: the end of the first sync of its file that began after it. None for what was not.
    pub fn durable(&self) -> HashMap<usize, usize> {
        let mut open: HashMap<Handle, &str> = HashMap::new();
        let mut unsynced: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut begun: HashMap<SyncId, usize> = HashMap::new();
        let mut durable = HashMap::new();
        for (at, event) in self.events.iter().enumerate() {
            match event {
                Event::Open { handle, name, .. } => {
                    open.insert(*handle, name);
                }
                Event::Write { handle, .. } => unsynced.entry(open[handle]).or_default().push(at),
                Event::SyncBegin { sync } => {
                    begun.insert(*sync, at);
                }
                Event::SyncEnd { handle, sync } => {
                    let covered = unsynced.entry(open[handle]).or_default();
                    covered.retain(|write| {
                        let is_covered = *write < begun[sync];
                        if is_covered {
                            durable.insert(*write, at);
                        }
                        !is_covered
                    });
                }
                Event::Unlink { name } => {
                    unsynced.remove(name.as_str());
                }
                Event::PowerLost(_) => unsynced.clear(),
                Event::Start | Event::Truncate { .. } | Event::Send { .. } => {}
            }
        }
        durable
    }
}

/// All keys of the load begin so, and have the same length.
pub const MARK: &str = "key-";
pub const CRK_LENGTH: usize = "key-p-A0000".len();

/// The crks in bytes, with the places behind them.
pub fn crks_in(bytes: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    let marks = bytes.windows(CRK_LENGTH).enumerate();
    marks.filter_map(move |(at, window)| {
        let digits = &window[CRK_LENGTH - 4..];
        let is_crk = window.starts_with(MARK.as_bytes()) && digits.iter().all(u8::is_ascii_digit);
        is_crk.then(|| (String::from_utf8_lossy(window).into_owned(), &bytes[at + CRK_LENGTH..]))
    })
}

pub fn crks(bytes: &[u8]) -> impl Iterator<Item = String> {
    crks_in(bytes).map(|(crk, _)| crk)
}
