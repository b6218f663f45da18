//! A disk as it might be after a loss of power: what was synced is there, of the rest anything.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use rand::{RngExt as _, rngs::StdRng};

use super::trace::{Event, Handle, SyncId};

/// What a disk writes whole or, at worst, from its beginning up to some byte.
const SECTOR: usize = 512;

/// The files of a directory.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A disk with all that was done to it, synced or not.
#[derive(Default)]
pub struct Disk {
    files: Vec<File>,
    /// What programs see.
    names: BTreeMap<String, usize>,
    /// What a loss of power leaves.
    durable_names: BTreeMap<String, usize>,
    /// Changes of names since the directory was synced.
    renamed: Vec<(usize, Naming)>,
    open: HashMap<Handle, Target>,
    syncs: HashMap<SyncId, usize>,
    /// Events so far.
    now: usize,
}

#[derive(Clone, Copy)]
enum Target {
    File(usize),
    Directory,
}

enum Naming {
    Created(String, usize),
    Unlinked(String),
}

/// A file, whatever its name.
#[derive(Default)]
struct File {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Since its last sync.
    changes: Vec<(usize, Change)>,
    was_synced: bool,
}

enum Change {
    Write { offset: usize, data: Vec<u8> },
    Truncate(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write { offset, data } => put(bytes, *offset, data),
            Change::Truncate(length) => bytes.resize(*length, 0),
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

impl Disk {
    pub fn apply(&mut self, event: &Event) {
        self.now += 1;
        match event {
            Event::Start => self.open.clear(),
            Event::Open { handle, name, created } => self.opened(*handle, name, *created),
            Event::Write { handle, offset, data } => self.change(
                *handle,
                Change::Write {
                    offset: *offset,
                    data: data.clone(),
                },
            ),
            Event::Truncate { handle, length } => self.change(*handle, Change::Truncate(*length)),
            Event::SyncBegin { sync } => {
                self.syncs.insert(*sync, self.now);
            }
            Event::SyncEnd { handle, sync } => self.synced(self.open[handle], self.syncs[sync]),
            Event::Unlink { name } => {
                self.names.remove(name);
                self.renamed.push((self.now, Naming::Unlinked(name.clone())));
            }
            Event::PowerLost(files) => *self = Self::holding(files),
            Event::Send { .. } => {}
        }
    }

    fn holding(files: &Files) -> Self {
        let mut disk = Self::default();
        for (name, bytes) in files {
            disk.names.insert(name.clone(), disk.files.len());
            disk.files.push(File {
                seen: bytes.clone(),
                durable: bytes.clone(),
                ..File::default()
            });
        }
        disk.durable_names.clone_from(&disk.names);
        disk
    }

    fn opened(&mut self, handle: Handle, name: &str, created: bool) {
        let target = if name.is_empty() {
            Target::Directory
        } else if created {
            let file = self.files.len();
            self.files.push(File::default());
            self.names.insert(name.into(), file);
            self.renamed.push((self.now, Naming::Created(name.into(), file)));
            Target::File(file)
        } else {
            Target::File(self.names[name])
        };
        self.open.insert(handle, target);
    }

    fn change(&mut self, handle: Handle, change: Change) {
        let Target::File(file) = self.open[&handle] else {
            panic!("a directory was written to");
        };
        let file = &mut self.files[file];
        change.apply(&mut file.seen);
        file.changes.push((self.now, change));
    }

    fn synced(&mut self, target: Target, begun: usize) {
        match target {
            Target::File(file) => {
                let file = &mut self.files[file];
                let covered = file.changes.iter().take_while(|(at, _)| *at < begun).count();
                for (_, change) in file.changes.drain(..covered) {
                    change.apply(&mut file.durable);
                }
                file.was_synced = true;
            }
            Target::Directory => {
                let covered = self.renamed.iter().take_while(|(at, _)| *at < begun).count();
                for (_, naming) in self.renamed.drain(..covered) {
                    naming.apply(&mut self.durable_names);
                }
            }
        }
    }

    /// What programs see.
    pub fn files(&self) -> Files {
        let seen = |(name, file): (&String, &usize)| (name.clone(), self.files[*file].seen.clone());
        self.names.iter().map(seen).collect()
    }

    /// What may be left if the power fails now.
    pub fn after_loss_of_power(&self, random: &mut StdRng) -> Files {
        // From "nothing that was not synced" to "all of it", as both ends matter.
        let kept = [0.0, 1.0, random.random(), random.random()][random.random_range(0..4)];
        // POSIX promises a name only once its directory is synced. ext4 and its like keep it once the file is.
        let sync_keeps_name = random.random();
        let mut names = self.durable_names.clone();
        for (_, naming) in &self.renamed {
            let is_kept = matches!(naming, Naming::Created(_, file) if sync_keeps_name && self.files[*file].was_synced);
            if is_kept || random.random_bool(kept) {
                naming.apply(&mut names);
            }
        }
        let mut left = |(name, file): (String, usize)| (name, self.files[file].after_loss_of_power(kept, random));
        names.into_iter().map(&mut left).collect()
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Naming::Created(name, file) => names.insert(name.clone(), *file),
            Naming::Unlinked(name) => names.remove(name),
        };
    }
}

impl File {
    fn after_loss_of_power(&self, kept: f64, random: &mut StdRng) -> Vec<u8> {
        let mut left = self.durable.clone();
        for (_, change) in &self.changes {
            match change {
                Change::Truncate(_) if random.random_bool(kept) => change.apply(&mut left),
                Change::Truncate(_) => {}
                Change::Write { offset, data } => {
                    // The length may be on the disk before what it spans.
                    if random.random_bool(kept / 2.0) && left.len() < offset + data.len() {
                        left.resize(offset + data.len(), 0);
                    }
                    for (offset, sector) in sectors(*offset, data) {
                        let is_torn = kept < 1.0 && random.random_bool(0.1);
                        let length = if is_torn {
                            random.random_range(0..sector.len())
                        } else {
                            sector.len()
                        };
                        if random.random_bool(kept) {
                            put(&mut left, offset, &sector[..length]);
                        }
                    }
                }
            }
        }
        left
    }
}

/// The parts of a write by sectors of the file.
fn sectors(offset: usize, data: &[u8]) -> Vec<(usize, &[u8])> {
    let mut parts = Vec::new();
    let (mut offset, mut data) = (offset, data);
    while !data.is_empty() {
        let (part, rest) = data.split_at(data.len().min(SECTOR - offset % SECTOR));
        parts.push((offset, part));
        offset += part.len();
        data = rest;
    }
    parts
}

pub fn write(files: &Files, directory: &Path) {
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).unwrap();
    }
}

/// All files of a directory but SQLite's shared memory.
pub fn read(directory: &Path) -> Files {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    let kept = named.filter(|(name, _)| !name.ends_with("-shm"));
    kept.map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}
