//! Which keys are under way in this process, and who waits for them.
//!
//! One mutex holds it all, and every decision that two callers could race for is made under it: who leads, who joins,
//! whether a flight is still wanted at the moment it goes on the wire.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{Answer, Call, trail::Effort};
use crate::{
    clock::Instant,
    invitation::{Failure, Fingerprint, Key},
    ledger::Doubt,
    limiter::{Arrival, Lane, Queue},
    trace::Trace,
};

mod seat;

pub use seat::Seat;

/// How far a flight has come, as those who wait for it see it.
#[derive(Clone, Debug)]
pub enum Progress {
    /// The ledger is asked what it knows of the key. Until it tells, the key is not this flight's.
    LookingUp,
    /// The ledger is asked for a claim, and was not asked before what it knows: until it tells, the key is not this
    /// flight's either. Once the claim is made a request may be on the wire.
    Claiming,
    /// Nothing is on the wire; after a failed attempt with what it failed with.
    Waiting { last: Option<Failure> },
    /// A request is claimed and may be on the wire.
    OnTheWire,
    /// The answer for all who wait.
    Done(Answer),
    /// It ended without one: begin again.
    Gone,
}

impl Progress {
    /// Is it known whose the key is?
    pub fn is_decided(&self) -> bool {
        !matches!(self, Self::LookingUp | Self::Claiming)
    }

    /// May a request be on the wire?
    pub fn is_on_the_wire(&self) -> bool {
        matches!(self, Self::Claiming | Self::OnTheWire)
    }
}

/// One key under way.
pub struct Flight {
    pub key: Key,
    pub fingerprint: Fingerprint,
    pub progress: watch::Sender<Progress>,
    /// Nobody wants it any more, and nothing was on the wire.
    pub abandoned: CancellationToken,
    /// What its steps are part of: the call of its leader.
    pub trace: Trace,
    pub effort: Effort,
    /// Where it stands among those who wait for a permit.
    pub arrival: Arrival,
    /// Its terms got better.
    pub improved: Notify,
    /// Those who wait were answered before it ended.
    pub announced: Notify,
    /// One of those who wait has been told `Outcome::Added`; to all others it is a duplicate.
    credited: AtomicBool,
}

/// On which terms a flight waits: the best of all its callers'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub queue: Queue,
    /// The queue of one who joined and whose share is another: the flight takes whichever turn comes first, so that
    /// nobody waits longer for having met somebody.
    pub second: Option<Queue>,
    pub until: Option<Instant>,
}

impl Terms {
    fn of(call: &Call) -> Self {
        Self {
            queue: call.queue,
            second: None,
            until: call.until,
        }
    }

    fn improve(&mut self, with: Self) -> bool {
        let before = *self;
        let payer = with.queue.payer;
        let queue = if self.queue.payer.is_in_one_group_with(payer) {
            &mut self.queue
        } else {
            // Of a third group's callers there is hardly ever one.
            self.second.get_or_insert(with.queue)
        };
        if queue.payer.is_in_one_group_with(payer) && queue.lane != Lane::Unary && with.queue.lane == Lane::Unary {
            *queue = with.queue;
        }
        self.until = match (self.until, with.until) {
            (Some(a), Some(b)) => Some(a.max(b)),
            _ => None,
        };
        *self != before
    }
}

struct Seats {
    flight: Arc<Flight>,
    callers: usize,
    /// So many of the callers wish a key in doubt to be sent again.
    resenders: usize,
    terms: Terms,
    /// A request may be on the wire, or an outcome is being recorded: it goes on without callers too.
    committed: bool,
}

impl Seats {
    fn take(&mut self, doubt: Doubt) {
        self.callers += 1;
        self.resenders += usize::from(doubt == Doubt::Resend);
    }

    fn give_back(&mut self, doubt: Doubt) {
        self.callers -= 1;
        self.resenders -= usize::from(doubt == Doubt::Resend);
    }

    /// A second e-mail is risked only while somebody who wants it is there.
    fn doubt(&self) -> Doubt {
        if self.resenders > 0 { Doubt::Resend } else { Doubt::Hold }
    }
}

/// All flights of the process, by key.
#[derive(Default)]
pub struct InFlight {
    flights: Mutex<HashMap<Key, Seats>>,
}

/// What a caller finds when it comes with a key.
pub enum Entered {
    /// Nobody is under way with it: this caller leads.
    Leads(Lead),
    /// Somebody is, with the same data.
    Joins(Seat),
    /// Somebody is, with other data.
    Reused,
    /// Somebody looks it up, with other data: whose the key is will be known then.
    Undecided(watch::Receiver<Progress>),
}

impl InFlight {
    pub fn enter(self: &Arc<Self>, call: &Call) -> Entered {
        let invitation = &call.request.invitation;
        let mut flights = self.lock();
        match flights.entry(invitation.key.clone()) {
            Entry::Occupied(entry) => {
                let seats = entry.into_mut();
                if seats.flight.fingerprint != invitation.fingerprint {
                    let flight = &seats.flight;
                    return match flight.progress.borrow().is_decided() {
                        true => Entered::Reused,
                        false => Entered::Undecided(flight.progress.subscribe()),
                    };
                }
                seats.take(call.doubt);
                if seats.terms.improve(Terms::of(call)) {
                    seats.flight.improved.notify_one();
                }
                Entered::Joins(Seat::new(self, &seats.flight, call.doubt))
            }
            Entry::Vacant(entry) => {
                let flight = Arc::new(Flight {
                    key: invitation.key.clone(),
                    fingerprint: invitation.fingerprint,
                    progress: watch::Sender::new(Progress::LookingUp),
                    abandoned: CancellationToken::new(),
                    trace: call
                        .trail
                        .as_ref()
                        .map_or_else(Trace::default, |trail| trail.trace.clone()),
                    effort: Effort::default(),
                    arrival: Arrival::default(),
                    improved: Notify::new(),
                    announced: Notify::new(),
                    credited: AtomicBool::new(false),
                });
                let mut seats = Seats {
                    flight: flight.clone(),
                    callers: 0,
                    resenders: 0,
                    terms: Terms::of(call),
                    committed: false,
                };
                seats.take(call.doubt);
                entry.insert(seats);
                Entered::Leads(Lead {
                    seat: Seat::new(self, &flight, call.doubt),
                    landing: Landing {
                        in_flight: self.clone(),
                        flight,
                        landed: false,
                    },
                })
            }
        }
    }

    /// Watches the key without a wish that anything be sent.
    pub fn observe(&self, key: &Key, fingerprint: Fingerprint) -> Observed {
        let flights = self.lock();
        let Some(Seats { flight, .. }) = flights.get(key) else {
            return Observed::Nobody;
        };
        match *flight.progress.borrow() {
            Progress::LookingUp => Observed::Nobody,
            Progress::Claiming => Observed::Undecided(flight.progress.subscribe()),
            _ if flight.fingerprint != fingerprint => Observed::Reused,
            _ => Observed::UnderWay(flight.progress.subscribe()),
        }
    }

    /// The terms on which the flight waits now; `None` once it is abandoned.
    pub fn terms(&self, flight: &Arc<Flight>) -> Option<Terms> {
        self.with(flight, |seats| seats.terms)
    }

    /// What to do should the key be in doubt, going by those who wait now.
    pub fn doubt(&self, flight: &Arc<Flight>) -> Doubt {
        self.with(flight, |seats| seats.doubt()).unwrap_or(Doubt::Hold)
    }

    /// From here on the flight goes on whoever leaves. Tells what to do should the key be in doubt, or `None` if nobody
    /// wanted the flight any more.
    pub fn commit(&self, flight: &Arc<Flight>) -> Option<Doubt> {
        self.with(flight, |seats| {
            seats.committed = true;
            flight.progress.send_modify(|progress| {
                *progress = match progress {
                    Progress::LookingUp => Progress::Claiming,
                    _ => Progress::OnTheWire,
                };
            });
            seats.doubt()
        })
    }

    /// The claim was made, so the key is this flight's.
    pub fn claimed(&self, flight: &Flight) {
        flight.progress.send_if_modified(|progress| {
            let was_undecided = !progress.is_decided();
            *progress = Progress::OnTheWire;
            was_undecided
        });
    }

    /// Keys with a request that may be on the wire, or an outcome to be recorded.
    pub fn committed(&self) -> usize {
        self.lock().values().filter(|seats| seats.committed).count()
    }

    /// Nothing is on the wire any more, and the flight is to wait again. False if nobody is left to wait for it: then it
    /// has ended.
    pub fn uncommit(&self, flight: &Arc<Flight>, last: Option<Failure>) -> bool {
        let mut flights = self.lock();
        let Some(seats) = flights
            .get_mut(&flight.key)
            .filter(|seats| Arc::ptr_eq(&seats.flight, flight))
        else {
            return false;
        };
        if seats.callers == 0 {
            flights.remove(&flight.key);
            return false;
        }
        seats.committed = false;
        flight.progress.send_replace(Progress::Waiting { last });
        true
    }

    /// Gives a seat back, if the flight is still there and `may` agrees.
    fn leave(&self, flight: &Arc<Flight>, doubt: Doubt, may: impl FnOnce(&Seats) -> bool) -> bool {
        let mut flights = self.lock();
        let seats = flights.get_mut(&flight.key);
        let Some(seats) = seats.filter(|seats| Arc::ptr_eq(&seats.flight, flight) && may(seats)) else {
            return false;
        };
        seats.give_back(doubt);
        if seats.callers == 0 && !seats.committed {
            flights.remove(&flight.key);
            flight.abandoned.cancel();
        }
        true
    }

    fn remove(&self, flight: &Arc<Flight>) {
        let mut flights = self.lock();
        if flights
            .get(&flight.key)
            .is_some_and(|seats| Arc::ptr_eq(&seats.flight, flight))
        {
            flights.remove(&flight.key);
        }
    }

    fn with<T>(&self, flight: &Arc<Flight>, f: impl FnOnce(&mut Seats) -> T) -> Option<T> {
        let mut flights = self.lock();
        let seats = flights.get_mut(&flight.key)?;
        Arc::ptr_eq(&seats.flight, flight).then(|| f(seats))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Seats>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one who only watches finds.
pub enum Observed {
    /// The ledger knows as much as anybody here.
    Nobody,
    Reused,
    /// Whose the key is will be known as soon as a claim is answered.
    Undecided(watch::Receiver<Progress>),
    UnderWay(watch::Receiver<Progress>),
}

/// The first caller of a flight: it lands the flight where the ledger knows the key, or else sends it off.
pub struct Lead {
    pub seat: Seat,
    pub landing: Landing,
}

/// The right, and the duty, to end a flight. Dropped without an answer (the leader left during the look-up, or a bug
/// panicked), it tells those who wait to begin again: the ledger then says what is known.
pub struct Landing {
    in_flight: Arc<InFlight>,
    pub flight: Arc<Flight>,
    landed: bool,
}

impl Landing {
    /// The key is free: from here on it is this flight's.
    pub fn looked_up(&self) {
        self.flight.progress.send_replace(Progress::Waiting { last: None });
    }

    pub fn land(mut self, answer: Answer) {
        self.landed = true;
        // Removed first: who comes from now on looks into the ledger.
        self.in_flight.remove(&self.flight);
        self.flight.progress.send_replace(Progress::Done(answer));
    }

    /// Answers those who wait and those who come, but keeps the key under way: its outcome is not recorded yet.
    pub fn announce(&self, answer: Answer) {
        self.flight.progress.send_replace(Progress::Done(answer));
        self.flight.announced.notify_one();
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        self.in_flight.remove(&self.flight);
        self.flight.progress.send_if_modified(|progress| {
            let unanswered = !matches!(progress, Progress::Done(_));
            if unanswered {
                *progress = Progress::Gone;
            }
            unanswered
        });
    }
}
