//! Who of one group waits, and whose turn it is. Knows nothing of time, nor of other groups.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// Where a request waits. Unary calls go before streams; streams among themselves take turns, one item each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Unary,
    Stream(StreamId),
}

/// Tells the streams of one process apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

/// So many unary permits in a row may go before a waiting stream's one: a stream gets at least every tenth.
const UNARY_IN_A_ROW: u32 = 9;

/// Waiters of each lane in the order in which they came. Ordered maps, so that withdrawing is as cheap as coming.
pub struct Lanes<W> {
    unary: BTreeMap<u64, W>,
    streams: HashMap<StreamId, BTreeMap<u64, W>>,
    /// Streams with a waiter, the next one to be served first.
    turns: VecDeque<StreamId>,
    unary_in_a_row: u32,
    len: usize,
}

impl<W> Lanes<W> {
    pub fn new() -> Self {
        Self {
            unary: BTreeMap::new(),
            streams: HashMap::new(),
            turns: VecDeque::new(),
            unary_in_a_row: 0,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn unary_len(&self) -> usize {
        self.unary.len()
    }

    /// Lets one wait. Its number tells it from all others; those of a lane are served in the order of their numbers.
    pub fn push(&mut self, lane: Lane, number: u64, waiter: W) {
        if self.len == 0 {
            self.unary_in_a_row = 0;
        }
        self.len += 1;
        match lane {
            Lane::Unary => {
                self.unary.insert(number, waiter);
            }
            Lane::Stream(id) => {
                let queue = self.streams.entry(id).or_default();
                if queue.is_empty() {
                    self.turns.push_back(id);
                }
                queue.insert(number, waiter);
            }
        }
    }

    pub fn remove(&mut self, lane: Lane, number: u64) -> Option<W> {
        let waiter = match lane {
            Lane::Unary => self.unary.remove(&number),
            Lane::Stream(id) => {
                let queue = self.streams.get_mut(&id)?;
                let waiter = queue.remove(&number);
                if queue.is_empty() {
                    self.streams.remove(&id);
                    self.turns.retain(|turn| *turn != id);
                }
                waiter
            }
        };
        self.len -= usize::from(waiter.is_some());
        waiter
    }

    /// Takes out the one whose turn it is.
    pub fn pop(&mut self) -> Option<W> {
        let stream_is_due = self.unary.is_empty() || self.unary_in_a_row >= UNARY_IN_A_ROW;
        let waiter = if stream_is_due && !self.turns.is_empty() {
            self.unary_in_a_row = 0;
            self.pop_stream()
        } else {
            // Counts only while a stream waits.
            self.unary_in_a_row = if self.turns.is_empty() {
                0
            } else {
                self.unary_in_a_row + 1
            };
            self.unary.pop_first().map(|(_, waiter)| waiter)
        };
        self.len -= usize::from(waiter.is_some());
        waiter
    }

    fn pop_stream(&mut self) -> Option<W> {
        let id = self.turns.pop_front()?;
        let queue = self.streams.get_mut(&id)?;
        let (_, waiter) = queue.pop_first()?;
        if queue.is_empty() {
            self.streams.remove(&id);
        } else {
            self.turns.push_back(id);
        }
        Some(waiter)
    }

    /// How many permits go out at least before one who came to this lane now would get one.
    pub fn ahead(&self, lane: Lane) -> usize {
        match lane {
            Lane::Unary => self.unary.len(),
            Lane::Stream(id) => {
                let own = self.streams.get(&id).map_or(0, BTreeMap::len);
                // With each own item goes one of every other stream that has so many.
                let others: usize = self
                    .streams
                    .iter()
                    .filter(|(other, _)| **other != id)
                    .map(|(_, queue)| queue.len().min(own))
                    .sum();
                let streams = own + others;
                streams + self.unary.len().min(streams * UNARY_IN_A_ROW as usize)
            }
        }
    }

    /// How many permits go out before a unary call that came now would get one, if nobody else comes or leaves.
    pub fn ahead_of_new_unary(&self) -> usize {
        let unary = self.unary.len();
        let streams = self.len - unary;
        let turns = (unary + self.unary_in_a_row as usize) / UNARY_IN_A_ROW as usize;
        unary + turns.min(streams)
    }

    /// The same for the first item of a stream that began now.
    pub fn ahead_of_new_stream(&self) -> usize {
        let turns = self.turns.len();
        // Before each stream's turn, this one's included, go so many unary permits at most.
        let most = ((turns + 1) * UNARY_IN_A_ROW as usize).saturating_sub(self.unary_in_a_row as usize);
        turns + self.unary.len().min(most)
    }

    /// Goes through all who wait with their place (0 is next) at the best, and takes out those for whom `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(usize, &W) -> bool) -> Vec<W> {
        let mut out = Vec::new();
        let mut sift = |queue: &mut BTreeMap<u64, W>| {
            let mut place = 0;
            let gone: Vec<u64> = queue
                .iter()
                .filter(|(_, waiter)| {
                    let stays = keep(place, waiter);
                    place += usize::from(stays);
                    !stays
                })
                .map(|(number, _)| *number)
                .collect();
            out.extend(gone.iter().filter_map(|number| queue.remove(number)));
        };
        sift(&mut self.unary);
        self.streams.values_mut().for_each(sift);
        self.streams.retain(|_, queue| !queue.is_empty());
        let streams = &self.streams;
        self.turns.retain(|id| streams.contains_key(id));
        self.len -= out.len();
        out
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    const A: Lane = Lane::Stream(StreamId(1));
    const B: Lane = Lane::Stream(StreamId(2));

    /// Returns the waiter's number.
    fn push(lanes: &mut Lanes<&'static str>, lane: Lane, waiter: &'static str) -> u64 {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        lanes.push(lane, number, waiter);
        number
    }

    fn drain(lanes: &mut Lanes<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| lanes.pop()).collect()
    }

    #[test]
    fn unary_goes_first_in_order_and_streams_take_turns() {
        let mut lanes = Lanes::new();
        for (lane, waiter) in [
            (A, "a1"),
            (A, "a2"),
            (Lane::Unary, "u1"),
            (A, "a3"),
            (B, "b1"),
            (Lane::Unary, "u2"),
        ] {
            push(&mut lanes, lane, waiter);
        }
        assert_eq!(drain(&mut lanes), ["u1", "u2", "a1", "b1", "a2", "a3"]);
        assert_eq!(lanes.len(), 0);
    }

    #[test]
    fn a_stream_gets_every_tenth_permit() {
        let mut lanes = Lanes::new();
        push(&mut lanes, A, "a");
        push(&mut lanes, A, "a");
        for _ in 0..20 {
            push(&mut lanes, Lane::Unary, "u");
        }
        let order = drain(&mut lanes);
        let streams: Vec<usize> = (0..order.len()).filter(|at| order[*at] == "a").collect();
        assert_eq!(streams, [9, 19]);
    }

    #[test]
    fn unary_permits_without_a_waiting_stream_do_not_count() {
        let mut lanes = Lanes::new();
        for _ in 0..9 {
            push(&mut lanes, Lane::Unary, "u");
            lanes.pop();
        }
        push(&mut lanes, A, "a");
        push(&mut lanes, Lane::Unary, "u");
        assert_eq!(drain(&mut lanes), ["u", "a"]);
    }

    #[test]
    fn the_withdrawn_are_passed_over() {
        let mut lanes = Lanes::new();
        let first = push(&mut lanes, A, "a1");
        push(&mut lanes, B, "b1");
        let unary = push(&mut lanes, Lane::Unary, "u1");
        assert_eq!(lanes.remove(A, first), Some("a1"));
        assert_eq!(lanes.remove(A, first), None);
        assert_eq!(lanes.remove(Lane::Unary, unary), Some("u1"));
        assert_eq!(lanes.len(), 1);
        assert_eq!(drain(&mut lanes), ["b1"]);
    }

    #[test]
    fn ahead_counts_what_goes_before_at_least() {
        let mut lanes = Lanes::new();
        assert_eq!(lanes.ahead(A), 0);
        for _ in 0..3 {
            push(&mut lanes, A, "a");
            push(&mut lanes, B, "b");
        }
        push(&mut lanes, B, "b");
        push(&mut lanes, Lane::Unary, "u");
        assert_eq!(lanes.ahead(A), 3 + 3 + 1);
        assert_eq!(lanes.ahead(B), 4 + 3 + 1);
        assert_eq!(lanes.ahead(Lane::Unary), 1);
        assert_eq!(lanes.ahead(Lane::Stream(StreamId(3))), 0);
    }

    proptest! {
        #[test]
        fn a_newcomer_gets_its_permit_after_as_many_as_foretold(
            // Unary, or one of four streams; or a permit is given.
            steps in prop::collection::vec(0..=6_u64, 0..120),
            lane in prop_oneof![Just(Lane::Unary), Just(Lane::Stream(StreamId(9)))],
        ) {
            let mut lanes = Lanes::new();
            for step in steps {
                match step {
                    0 | 1 => {
                        push(&mut lanes, Lane::Unary, "before");
                    }
                    2..=5 => {
                        push(&mut lanes, Lane::Stream(StreamId(step)), "before");
                    }
                    _ => {
                        lanes.pop();
                    }
                }
            }
            let foretold = match lane {
                Lane::Unary => lanes.ahead_of_new_unary(),
                Lane::Stream(_) => lanes.ahead_of_new_stream(),
            };
            push(&mut lanes, lane, "newcomer");
            let ahead = drain(&mut lanes).into_iter().take_while(|waiter| *waiter == "before").count();
            prop_assert_eq!(ahead, foretold);
        }
    }

    #[test]
    fn retain_tells_places_among_those_who_stay() {
        let mut lanes = Lanes::new();
        for waiter in ["u1", "u2", "u3"] {
            push(&mut lanes, Lane::Unary, waiter);
        }
        push(&mut lanes, A, "a1");
        let mut places = Vec::new();
        let out = lanes.retain(|place, waiter| {
            places.push((*waiter, place));
            !matches!(*waiter, "u1" | "a1")
        });
        assert_eq!(out, ["u1", "a1"]);
        assert_eq!(places, [("u1", 0), ("u2", 0), ("u3", 1), ("a1", 0)]);
        assert_eq!(drain(&mut lanes), ["u2", "u3"]);
    }
}
