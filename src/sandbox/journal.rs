//! The log of requests, bounded.

use std::{collections::VecDeque, fmt, time::Duration};

/// One request to the webhook, as it was received.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// Its arrival, since the sandbox's start; in whole microseconds.
    pub at: Duration,
    /// The query as it came, token and all.
    pub query: String,
    /// The decoded parameters, in order.
    pub parameters: Vec<(String, String)>,
    /// It sent its e-mail.
    pub effect: bool,
    /// The status that answered it; none while it waits, and when there was no answer.
    pub status: Option<u16>,
    /// The fault that applied to it.
    pub fault: Option<&'static str>,
}

impl Request {
    /// A parameter's decoded value. Of several with one name the last, as in PHP.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .rev()
            .find(|(is, _)| is == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Without personal data and token: a failed assertion prints it.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("at", &self.at)
            .field("cId", &self.parameter("cId"))
            .field("crk", &self.parameter("crk"))
            .field("effect", &self.effect)
            .field("status", &self.status)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

/// A request's place in the log, also once it has left it.
#[derive(Clone, Copy)]
pub(super) struct Ticket(u64);

struct Entry {
    at: Duration,
    query: Box<str>,
    effect: bool,
    status: Option<u16>,
    fault: Option<&'static str>,
}

/// The latest requests, up to a number. Parameters are decoded when they are asked for.
pub(super) struct Journal {
    capacity: usize,
    entries: VecDeque<Entry>,
    /// The ticket of the first entry.
    first: u64,
    /// Tickets below are from before a reset.
    reset_at: u64,
    next: u64,
}

impl Journal {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: VecDeque::new(),
            first: 0,
            reset_at: 0,
            next: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        self.entries.clear();
        self.first = self.next;
        self.reset_at = self.next;
    }

    /// Whether a request came before the last reset, and so counts no more.
    pub(super) fn is_forgotten(&self, ticket: Ticket) -> bool {
        ticket.0 < self.reset_at
    }

    pub(super) fn push(&mut self, at: Duration, query: &str, fault: Option<&'static str>) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        if self.capacity == 0 {
            self.first = self.next;
            return ticket;
        }
        if self.entries.len() == self.capacity {
            self.entries.pop_front();
            self.first += 1;
        }
        self.entries.push_back(Entry {
            at,
            query: query.into(),
            effect: false,
            status: None,
            fault,
        });
        ticket
    }

    pub(super) fn set_effect(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entry(ticket) {
            entry.effect = true;
        }
    }

    pub(super) fn set_status(&mut self, ticket: Ticket, status: u16) {
        if let Some(entry) = self.entry(ticket) {
            entry.status = Some(status);
        }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        let request = |entry: &Entry| Request {
            at: entry.at,
            query: entry.query.to_string(),
            parameters: form_urlencoded::parse(entry.query.as_bytes()).into_owned().collect(),
            effect: entry.effect,
            status: entry.status,
            fault: entry.fault,
        };
        self.entries.iter().map(request).collect()
    }

    fn entry(&mut self, Ticket(ticket): Ticket) -> Option<&mut Entry> {
        let index = ticket.checked_sub(self.first)?;
        self.entries.get_mut(usize::try_from(index).ok()?)
    }
}
