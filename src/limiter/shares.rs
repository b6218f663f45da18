//! Whose turn it is among those who have a share of the rate, and all others. Knows no time but a virtual one.
//!
//! Start-time fair queueing, as of Goyal, Vin and Cheng (SIGCOMM 1996), with permits in the place of packets. Each payer
//! with a share is a group, and all without one are another. A group's next permit has a tag, its start in virtual time;
//! the lowest one is served, and moves its group's tag on by the price of a permit, which is the inverse of the share. So of
//! two groups that both wait, over any stretch, what each was served times its price differs by one permit of each at most.
//!
//! A group that comes back takes its turn from now on: what it did not use is gone, and those who did use it owe nothing.
//! One that comes back at once keeps its tag, so a caller with one request at a time gets no more than its share by it, while
//! others wait.
//!
//! As tags only ever move on, those who come later take nothing from what goes before one who waits.

use std::iter;

use super::{
    lanes::{Lane, Lanes},
    payer::{Payer, Queue},
};

/// The place of one waiter, to withdraw it by.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    own: Option<u32>,
    lane: Lane,
    number: u64,
}

/// Those who share one part of the rate.
struct Group<W> {
    /// Whose own part it is; `None` for all without one.
    own: Option<u32>,
    lanes: Lanes<Waiting<W>>,
    /// What a permit costs, by the newest request.
    price: u64,
    /// The tag of its next permit, in virtual time.
    next: u128,
}

struct Waiting<W> {
    payer: Option<u32>,
    waiter: W,
}

/// All who wait.
pub struct Shares<W> {
    rest: Group<W>,
    /// Those with a share who wait, or whose tag is not reached yet. Empty where no shares are set, which then cost nothing.
    own: Vec<Group<W>>,
    /// The tag of the permit that was given last.
    now: u128,
    /// How many wait of each payer that has an id, if any do.
    waiting: Vec<(u32, usize)>,
    len: usize,
    next_number: u64,
}

impl Ticket {
    /// Says in which order of all who wait it came.
    pub fn number(self) -> u64 {
        self.number
    }
}

impl<W> Group<W> {
    fn new(own: Option<u32>) -> Self {
        Self {
            own,
            lanes: Lanes::new(),
            price: Payer::ANONYMOUS.price(),
            next: 0,
        }
    }

    fn waits(&self) -> bool {
        self.lanes.len() > 0
    }

    /// The tag that a permit of this group would have if one came now and were the first.
    fn start(&self, now: u128) -> u128 {
        if self.waits() { self.next } else { self.next.max(now) }
    }

    /// How many of those who wait here get their permits before a tag; at the tag itself too, if this group goes first.
    fn before(&self, tag: u128, goes_first: bool) -> usize {
        let Some(behind) = (tag + u128::from(goes_first)).checked_sub(self.next) else {
            return 0;
        };
        let permits = behind.div_ceil(self.price.into());
        self.lanes.len().min(usize::try_from(permits).unwrap_or(usize::MAX))
    }
}

impl<W> Shares<W> {
    pub fn new() -> Self {
        Self {
            rest: Group::new(None),
            own: Vec::new(),
            now: 0,
            waiting: Vec::new(),
            len: 0,
            next_number: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn unary_len(&self) -> usize {
        self.groups().map(|group| group.lanes.unary_len()).sum()
    }

    /// How many wait of each payer who has any waiting, by [`Payer::id`].
    pub fn waiting(&self) -> Vec<(Option<u32>, usize)> {
        let known = self.waiting.iter().map(|(_, count)| count).sum();
        let nobodys = (self.len > known).then(|| (None, self.len - known));
        let known = self.waiting.iter().map(|(id, count)| (Some(*id), *count));
        nobodys.into_iter().chain(known).collect()
    }

    /// Does this payer's group have so many places as it has a part of `all`?
    pub fn has_its_part(&self, payer: Payer, all: usize) -> bool {
        let own = payer.own();
        let group = self.groups().find(|group| group.own == own);
        group.map_or(0, |group| group.lanes.len()) >= payer.part_of(all)
    }

    pub fn push(&mut self, queue: Queue, waiter: W) -> Ticket {
        let number = self.next_number;
        self.next_number += 1;
        self.push_again(queue, number, waiter)
    }

    /// Lets one wait who waited before and has left: before all of its lane who came after it.
    pub fn push_again(&mut self, queue: Queue, number: u64, waiter: W) -> Ticket {
        if self.len == 0 {
            // Nobody was kept waiting by anybody: all begin anew.
            self.own.clear();
            (self.now, self.rest.next) = (0, 0);
        }
        let Queue { payer, lane } = queue;
        let now = self.now;
        let group = self.group_or_new(payer.own());
        group.next = group.start(now);
        group.price = payer.price();
        let payer = payer.id();
        group.lanes.push(lane, number, Waiting { payer, waiter });
        let own = group.own;
        self.came(payer);
        Ticket { own, lane, number }
    }

    pub fn remove(&mut self, ticket: Ticket) -> Option<W> {
        let Ticket { own, lane, number } = ticket;
        let Waiting { payer, waiter } = self.group_mut(own)?.lanes.remove(lane, number)?;
        self.left(payer);
        Some(waiter)
    }

    /// Takes out the one whose turn it is.
    pub fn pop(&mut self) -> Option<W> {
        let group = if self.own.is_empty() {
            &mut self.rest
        } else {
            self.next_group()?
        };
        let Waiting { payer, waiter } = group.lanes.pop()?;
        self.left(payer);
        Some(waiter)
    }

    /// The group whose turn it is, charged for one permit.
    fn next_group(&mut self) -> Option<&mut Group<W>> {
        let now = self.now;
        self.own.retain(|group| group.waits() || group.next > now);
        let group = iter::once(&mut self.rest)
            .chain(&mut self.own)
            .filter(|group| group.waits())
            .min_by_key(|group| group.next)?;
        self.now = group.next;
        group.next += u128::from(group.price);
        Some(group)
    }

    /// How many permits go out at least before one who came to this queue now would get one, if nobody leaves.
    pub fn ahead(&self, queue: Queue) -> usize {
        self.before(queue.payer, |lanes| lanes.ahead(queue.lane))
    }

    /// One without a share, as the newest of their requests has it.
    pub fn rest(&self) -> Payer {
        Payer::rest(self.rest.price)
    }

    /// How many permits go out before a unary call that came now would get one, if nobody else comes or leaves.
    pub fn ahead_of_new_unary(&self, payer: Payer) -> usize {
        self.before(payer, Lanes::ahead_of_new_unary)
    }

    /// The same for the first item of a stream that began now.
    pub fn ahead_of_new_stream(&self, payer: Payer) -> usize {
        self.before(payer, Lanes::ahead_of_new_stream)
    }

    /// How many go before one of a payer's, given how many do in its group.
    fn before(&self, payer: Payer, in_group: impl Fn(&Lanes<Waiting<W>>) -> usize) -> usize {
        let own = payer.own();
        let group = self.groups().find(|group| group.own == own);
        let ahead = group.map_or(0, |group| in_group(&group.lanes));
        if self.own.is_empty() && own.is_none() {
            return ahead;
        }
        let start = group.map_or(self.now, |group| group.start(self.now));
        let tag = start + u128::from(payer.price()) * ahead as u128;
        // Of groups with the same tag the first one is served first; a new one will be the last.
        let mut goes_first = true;
        let mut others = 0;
        for group in self.groups() {
            if group.own == own {
                goes_first = false;
            } else {
                others += group.before(tag, goes_first);
            }
        }
        ahead + others
    }

    /// Goes through all who wait with their place in their group (0 is next) at the best, and takes out those for whom
    /// `keep` is false. What other groups' permits add to a place is not known before it is known who of them stays.
    pub fn retain(&mut self, mut keep: impl FnMut(usize, &W) -> bool) -> Vec<W> {
        let groups = iter::once(&mut self.rest).chain(&mut self.own);
        let out: Vec<_> = groups
            .flat_map(|group| group.lanes.retain(|place, waiting| keep(place, &waiting.waiter)))
            .collect();
        let gone = out.into_iter().map(|Waiting { payer, waiter }| {
            self.left(payer);
            waiter
        });
        gone.collect()
    }

    fn groups(&self) -> impl Iterator<Item = &Group<W>> {
        iter::once(&self.rest).chain(&self.own)
    }

    fn group_mut(&mut self, own: Option<u32>) -> Option<&mut Group<W>> {
        match own {
            None => Some(&mut self.rest),
            Some(_) => self.own.iter_mut().find(|group| group.own == own),
        }
    }

    fn group_or_new(&mut self, own: Option<u32>) -> &mut Group<W> {
        if own.is_none() {
            return &mut self.rest;
        }
        let at = self.own.iter().position(|group| group.own == own);
        let at = at.unwrap_or_else(|| {
            self.own.push(Group::new(own));
            self.own.len() - 1
        });
        &mut self.own[at]
    }

    fn came(&mut self, payer: Option<u32>) {
        self.len += 1;
        let Some(id) = payer else { return };
        match self.waiting.iter_mut().find(|(other, _)| *other == id) {
            Some((_, waiting)) => *waiting += 1,
            None => self.waiting.push((id, 1)),
        }
    }

    fn left(&mut self, payer: Option<u32>) {
        self.len -= 1;
        let Some(id) = payer else { return };
        if let Some(at) = self.waiting.iter().position(|(other, _)| *other == id) {
            self.waiting[at].1 -= 1;
            if self.waiting[at].1 == 0 {
                self.waiting.swap_remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
