//! Sorts more than memory holds.

use std::{
    array,
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    rc::Rc,
};

/// Entries in memory at once, of five numbers 5 MiB.
pub(super) const RUN: usize = 1 << 17;
/// How much of each run is in memory while runs are merged: enough for a disk, and little for a thousand runs.
const PIECE: usize = 512;

/// Sorts entries of N numbers. Up to a bound it does so in memory, beyond it in a temporary file that has no name, so
/// nothing is left of it however the process ends.
pub(super) struct Sorter<const N: usize> {
    run: usize,
    entries: Vec<[u64; N]>,
    spilled: Option<BufWriter<File>>,
    /// How many entries each run in the file has.
    lengths: Vec<u64>,
}

impl<const N: usize> Sorter<N> {
    /// `run` is how many entries are in memory at once.
    pub fn new(run: usize) -> Self {
        Self {
            run,
            entries: Vec::new(),
            spilled: None,
            lengths: Vec::new(),
        }
    }

    pub fn push(&mut self, entry: [u64; N]) -> io::Result<()> {
        if self.entries.len() == self.run {
            self.spill()?;
        }
        self.entries.push(entry);
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.spilled {
            Some(file) => file,
            none => none.insert(BufWriter::new(tempfile::tempfile()?)),
        };
        self.entries.sort_unstable();
        for number in self.entries.iter().flatten() {
            file.write_all(&number.to_ne_bytes())?;
        }
        self.lengths.push(self.entries.len() as u64);
        self.entries.clear();
        Ok(())
    }

    /// All entries, the least first.
    pub fn sorted(mut self) -> io::Result<Sorted<N>> {
        self.entries.sort_unstable();
        let mut runs = Vec::new();
        if let Some(file) = self.spilled {
            let file = Rc::new(file.into_inner().map_err(io::IntoInnerError::into_error)?);
            let mut offset = 0;
            for length in self.lengths {
                runs.push(Run {
                    file: Some(Rc::clone(&file)),
                    offset,
                    left: length,
                    entries: Vec::new().into_iter(),
                });
                offset += length * Run::<N>::ENTRY;
            }
        }
        runs.push(Run {
            file: None,
            offset: 0,
            left: 0,
            entries: self.entries.into_iter(),
        });
        let mut heads = BinaryHeap::new();
        for (index, run) in runs.iter_mut().enumerate() {
            heads.extend(run.next()?.map(|entry| Reverse((entry, index))));
        }
        Ok(Sorted { runs, heads })
    }
}

/// Entries in their order.
pub(super) struct Sorted<const N: usize> {
    runs: Vec<Run<N>>,
    /// The next entry of each run that has one.
    heads: BinaryHeap<Reverse<([u64; N], usize)>>,
}

impl<const N: usize> Sorted<N> {
    pub fn next(&mut self) -> io::Result<Option<[u64; N]>> {
        let Some(Reverse((entry, index))) = self.heads.pop() else {
            return Ok(None);
        };
        let next = self.runs[index].next()?;
        self.heads.extend(next.map(|entry| Reverse((entry, index))));
        Ok(Some(entry))
    }
}

/// Entries that were sorted together, in memory or in the file.
struct Run<const N: usize> {
    file: Option<Rc<File>>,
    offset: u64,
    /// How many are still in the file alone.
    left: u64,
    entries: std::vec::IntoIter<[u64; N]>,
}

impl<const N: usize> Run<N> {
    const ENTRY: u64 = (N * size_of::<u64>()) as u64;

    fn next(&mut self) -> io::Result<Option<[u64; N]>> {
        if let Some(entry) = self.entries.next() {
            return Ok(Some(entry));
        }
        let Some(file) = self.file.as_ref().filter(|_| self.left > 0) else {
            return Ok(None);
        };
        let count = self.left.min(PIECE as u64);
        let mut file = &**file;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = vec![0; usize::try_from(count * Self::ENTRY).map_err(io::Error::other)?];
        file.read_exact(&mut bytes)?;
        let (numbers, _) = bytes.as_chunks::<8>();
        let (entries, _) = numbers.as_chunks::<N>();
        let entries: Vec<_> = entries
            .iter()
            .map(|entry| array::from_fn(|index| u64::from_ne_bytes(entry[index])))
            .collect();
        self.entries = entries.into_iter();
        self.left -= count;
        self.offset += count * Self::ENTRY;
        Ok(self.entries.next())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(run: usize, entries: &[[u64; 3]]) -> Vec<[u64; 3]> {
        let mut sorter = Sorter::new(run);
        for entry in entries {
            sorter.push(*entry).unwrap();
            assert!(sorter.entries.len() <= run);
        }
        let mut sorted = sorter.sorted().unwrap();
        std::iter::from_fn(|| sorted.next().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn any_entries_come_out_in_their_order(
            run in 1_usize..9,
            entries in proptest::collection::vec(proptest::array::uniform3(0_u64..5), 0..40),
        ) {
            let mut wanted = entries.clone();
            wanted.sort_unstable();
            prop_assert_eq!(sorted(run, &entries), wanted);
        }
    }

    #[test]
    fn runs_longer_than_a_piece_are_read_on() {
        let entries: Vec<_> = (0..5 * PIECE as u64 + 3)
            .map(|n| [n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n, u64::MAX - n])
            .collect();
        let mut wanted = entries.clone();
        wanted.sort_unstable();
        assert!(sorted(2 * PIECE + 1, &entries) == wanted);
    }
}
