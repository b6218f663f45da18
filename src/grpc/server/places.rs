//! The connections that are open, up to a number, and which of them makes room for another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Room for so many connections. Cheap to clone.
///
/// When all places are taken, a newcomer gets that of the connection that has been without a call for longest: an
/// honest client does not miss it, as it connects again with its next call, and those who only sit there never lock
/// anyone out. A connection with a call under way is never ended for another.
#[derive(Clone)]
pub struct Places {
    max: usize,
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
    /// When its last call ended, or when it was opened.
    idle_since: u64,
    leave: CancellationToken,
}

/// A connection's place, free again when this is dropped.
pub struct Place {
    id: u64,
    places: Places,
    /// Cancelled when the place has gone to another: the connection must end at once.
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

impl Places {
    pub fn new(max: usize) -> Self {
        Self {
            max,
            state: Arc::default(),
        }
    }

    /// A place, if need be that of an idle connection; `None` if there is none.
    pub fn take(&self) -> Option<Place> {
        let mut state = self.lock();
        if state.open.len() >= self.max {
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
        }
        Call(self.clone())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_gets_the_place_of_the_longest_idle() {
        let places = Places::new(3);
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
        let places = Places::new(2);
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
}
