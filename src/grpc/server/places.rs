//! The connections that are open, up to a number, and which of them makes room for another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Calls of one connection that are under way beyond those that HTTP/2 counts: one that its caller resets is none to
/// HTTP/2 at once, but takes memory until its task has noticed.
const MAX_UNNOTICED: usize = 4096;
/// Calls of one connection that were reset before they had an answer, less those that had one. Far above what a client
/// that cancels its calls by the hundred causes, and a bound for one that only does that (CVE-2023-44487).
const MAX_ABANDONED: usize = 10_000;

/// Room for so many connections. Cheap to clone.
///
/// When all places are taken, a newcomer gets that of the connection that has been without a call for longest: an
/// honest client does not miss it, as it connects again with its next call, and those who only sit there never lock
/// anyone out. A connection with a call under way is never ended for another.
#[derive(Clone)]
pub struct Places {
    max_connections: usize,
    max_calls: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: HashMap<u64, Open>,
    /// Counts up; orders the moments at which connections became idle, and names them.
    next: u64,
}

struct Open {
    calls: usize,
    abandoned: usize,
    /// When its last call ended, or when it was opened.
    idle_since: u64,
    leave: CancellationToken,
}

/// A connection's place, free again when this is dropped.
pub struct Place {
    id: u64,
    places: Places,
    /// Cancelled when the connection must end at once: the place has gone to another, or its calls are too many.
    pub leave: CancellationToken,
}

/// Begins the calls of one connection.
#[derive(Clone)]
pub struct Calls {
    connection: u64,
    places: Places,
}

/// A call under way, until this is dropped.
pub struct Call(Calls);

/// A call that has no answer yet. Dropped without one it counts as abandoned.
pub struct Unanswered {
    calls: Calls,
    is_answered: bool,
}

impl Places {
    /// `max_streams` is what HTTP/2 allows of calls at once on one connection.
    pub fn new(max_connections: usize, max_streams: usize) -> Self {
        Self {
            max_connections,
            max_calls: max_streams.saturating_add(MAX_UNNOTICED),
            state: Arc::default(),
        }
    }

    /// A place, if need be that of an idle connection; `None` if there is none.
    pub fn take(&self) -> Option<Place> {
        let mut state = self.lock();
        if state.open.len() >= self.max_connections {
            let idle = state.open.iter().filter(|(_, open)| open.calls == 0);
            let (&longest_idle, _) = idle.min_by_key(|(_, open)| open.idle_since)?;
            if let Some(open) = state.open.remove(&longest_idle) {
                open.leave.cancel();
            }
        }
        let id = state.tick();
        let leave = CancellationToken::new();
        let open = Open {
            calls: 0,
            abandoned: 0,
            idle_since: id,
            leave: leave.clone(),
        };
        state.open.insert(id, open);
        Some(Place {
            id,
            places: self.clone(),
            leave,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Place {
    pub fn calls(&self) -> Calls {
        Calls {
            connection: self.id,
            places: self.places.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().open.remove(&self.id);
    }
}

impl Calls {
    pub fn begin(&self) -> Call {
        if let Some(open) = self.places.lock().open.get_mut(&self.connection) {
            open.calls += 1;
            if open.calls > self.places.max_calls {
                open.leave.cancel();
            }
        }
        Call(self.clone())
    }

    pub fn unanswered(&self) -> Unanswered {
        Unanswered {
            calls: self.clone(),
            is_answered: false,
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.places.lock();
        let now = state.tick();
        // Its connection may have ended before it.
        if let Some(open) = state.open.get_mut(&self.0.connection) {
            open.calls -= 1;
            open.idle_since = now;
        }
    }
}

impl Unanswered {
    pub fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let mut state = self.calls.places.lock();
        // Its connection may have ended before it.
        let Some(open) = state.open.get_mut(&self.calls.connection) else {
            return;
        };
        if self.is_answered {
            open.abandoned = open.abandoned.saturating_sub(1);
        } else {
            open.abandoned += 1;
            if open.abandoned > MAX_ABANDONED {
                open.leave.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_gets_the_place_of_the_longest_idle() {
        let places = Places::new(3, 10);
        let [first, second, third] = [(); 3].map(|()| places.take().unwrap());
        // The first one was busy a moment ago, the second one is.
        drop(first.calls().begin());
        let call = second.calls().begin();
        let fourth = places.take().unwrap();
        let left = || [&first, &second, &third, &fourth].map(|place| place.leave.is_cancelled());
        assert_eq!(left(), [false, false, true, false]);
        let fifth = places.take().unwrap();
        assert_eq!(left(), [true, false, true, false]);
        drop(call);
        drop(fifth);
        assert_eq!(left(), [true, false, true, false]);
    }

    #[test]
    fn with_a_call_on_every_connection_there_is_no_place() {
        let places = Places::new(2, 10);
        let [first, second] = [(); 2].map(|()| places.take().unwrap());
        let _call = first.calls().begin();
        let calls = [second.calls().begin(), second.calls().begin()];
        assert!(places.take().is_none());
        let [one, other] = calls;
        drop(one);
        assert!(places.take().is_none());
        drop(other);
        let third = places.take().unwrap();
        assert!(second.leave.is_cancelled() && !first.leave.is_cancelled());
        // What ends late of a connection that is gone changes nothing.
        drop(second);
        let _call = third.calls().begin();
        assert!(places.take().is_none());
        drop(first);
        assert!(places.take().is_some());
    }
    #[test]
    fn who_only_abandons_calls_must_leave() {
        let places = Places::new(2, 10);
        let [patient, hasty] = [(); 2].map(|()| places.take().unwrap());
        for _ in 0..MAX_ABANDONED {
            drop(hasty.calls().unanswered());
            drop(patient.calls().unanswered());
        }
        patient.calls().unanswered().answered();
        drop(patient.calls().unanswered());
        assert!(!patient.leave.is_cancelled() && !hasty.leave.is_cancelled());
        drop(hasty.calls().unanswered());
        assert!(!patient.leave.is_cancelled() && hasty.leave.is_cancelled());
    }

    #[test]
    fn who_begins_calls_faster_than_they_are_worked_off_must_leave() {
        let places = Places::new(1, 10);
        let place = places.take().unwrap();
        let calls: Vec<Call> = (0..places.max_calls).map(|_| place.calls().begin()).collect();
        assert!(!place.leave.is_cancelled());
        let _one_more = place.calls().begin();
        assert!(place.leave.is_cancelled());
        drop(calls);
    }
}
