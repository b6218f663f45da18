//! What must hold of a trace, and of a disk after a loss of power. Each breach is one line.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use surveylab_gateway::{
    clock::Clock,
    ledger::{Ledger as _, Query, Record, State, sqlite::Sqlite},
};

use super::{
    load::{Answers, Fate},
    trace::{Event, Story, crks_in},
};

/// What the settled row of an added key ends with: SurveyLab's words.
const NOTIFICATION: &[u8] = b"Action processed correctly";
/// Between a key and the notification lie the fingerprint and a few numbers.
const ROW: usize = 100;

/// Where each key's claim and outcome were written, by crk.
#[derive(Default)]
struct Writes {
    /// Writes with the key in whichever table.
    any: HashMap<String, Vec<usize>>,
    /// Writes with the key's row in the table of outcomes: the only one with a notification.
    settled: HashMap<String, Vec<usize>>,
}

impl Writes {
    fn find(events: &[Event]) -> Self {
        let mut writes = Self::default();
        for (at, event) in events.iter().enumerate() {
            let Event::Write { data, .. } = event else { continue };
            for (crk, behind) in crks_in(data) {
                let row = &behind[..behind.len().min(ROW)];
                let end = row.windows(4).position(|bytes| bytes == b"key-").unwrap_or(row.len());
                let is_settled = row[..end]
                    .windows(NOTIFICATION.len())
                    .any(|bytes| bytes == NOTIFICATION);
                if is_settled {
                    writes.settled.entry(crk.clone()).or_default().push(at);
                }
                writes.any.entry(crk).or_default().push(at);
            }
        }
        writes
    }
}

/// Each request to SurveyLab went out behind a durable claim, and each answer that a key was added behind its durable
/// outcome. Tells the breaches, and how many requests and answers were looked at.
pub fn order(story: &Story<'_>) -> (Vec<String>, usize, usize) {
    let writes = Writes::find(story.events);
    let durable = story.durable();
    let within = |writes: Option<&Vec<usize>>, from: usize, to: usize| {
        let mut writes = writes.into_iter().flatten();
        writes.any(|write| *write > from && durable.get(write).is_some_and(|synced| *synced < to))
    };
    let mut breaches = Vec::new();
    for (crk, requests) in &story.requests {
        if !within(writes.any.get(crk), 0, requests[0]) {
            breaches.push(format!("{crk}: sent at {} without a durable claim", requests[0]));
        }
    }
    let mut answers = 0;
    for (crk, answered) in &story.answers {
        let Some(requests) = story.requests.get(crk) else {
            breaches.push(format!("{crk}: answered at {answered}, and never sent"));
            continue;
        };
        if matches!(Fate::of(crk), Fate::Bad | Fate::Doubtful) {
            continue;
        }
        answers += 1;
        let sent = requests[requests.len() - 1];
        if !within(writes.settled.get(crk), sent, *answered) {
            breaches.push(format!(
                "{crk}: sent at {sent}, answered at {answered} without a durable outcome"
            ));
        }
    }
    (breaches, story.requests.len(), answers)
}

/// What the world knew of the keys at one moment.
pub struct Known<'a> {
    /// Requests that may have reached SurveyLab, by crk.
    sent: BTreeMap<&'a str, usize>,
    /// Keys that callers may have been told of.
    answered: BTreeSet<&'a str>,
    /// What they were told.
    answers: &'a Answers,
    /// Keys that were claimed, or about to be.
    asked: &'a [String],
}

impl<'a> Known<'a> {
    /// Before event `at`.
    pub fn at(story: &'a Story<'_>, at: usize, answers: &'a Answers, asked: &'a [String]) -> Self {
        let sent = story.requests.iter().filter_map(|(crk, requests)| {
            let count = requests.iter().filter(|request| **request < at).count();
            (count > 0).then_some((crk.as_str(), count))
        });
        let answered = story.answers.iter().filter(|(_, answered)| **answered < at);
        Self {
            sent: sent.collect(),
            answered: answered.map(|(crk, _)| crk.as_str()).collect(),
            answers,
            asked,
        }
    }

    /// Opens the ledger as the gateway does, and compares.
    pub async fn breaches(&self, ledger: &Path) -> Vec<String> {
        let records = match Sqlite::open(ledger, &Clock::system()) {
            Ok(opened) => {
                let query = Query {
                    limit: usize::MAX,
                    ..Query::default()
                };
                let records = opened.list(query).await;
                opened.close().await;
                records
            }
            Err(error) => Err(error),
        };
        let records = match records {
            Ok(records) => records,
            Err(error) => return vec![format!("it can't be read: {error}")],
        };
        let mut breaches = self.compare(&records);
        let integrity = integrity(ledger);
        if integrity != "ok" {
            breaches.push(format!("SQLite finds: {integrity}"));
        }
        breaches
    }

    fn compare(&self, records: &[Record]) -> Vec<String> {
        let by_crk: BTreeMap<&str, &Record> = records.iter().map(|record| (record.key.crk(), record)).collect();
        let mut breaches = Vec::new();
        for crk in by_crk.keys() {
            if !self.asked.iter().any(|asked| asked == crk) {
                breaches.push(format!("{crk} is there, and nobody asked for it"));
            }
        }
        for crk in self.asked {
            let record = by_crk.get(crk.as_str()).copied();
            if let Some(expected) = self.wrong(crk, record) {
                breaches.push(format!("{crk}: {expected}, but it is {record:?}"));
            }
        }
        breaches
    }

    /// What is expected of a key, if that is not what there is.
    fn wrong(&self, crk: &str, record: Option<&Record>) -> Option<String> {
        use State::{Added, Failed, InDoubt};
        let state = record.map(|record| record.state);
        let sent = self.sent.get(crk).copied().unwrap_or(0);
        let answered = self.answered.contains(crk);
        let may_be: &[Option<State>] = match (Fate::of(crk), sent, answered) {
            // A claim may be durable before its request.
            (_, 0, _) => &[None, Some(InDoubt)],
            (Fate::Plain, _, false) => &[Some(InDoubt), Some(Added)],
            (Fate::Bad, _, false) => &[Some(InDoubt), Some(Failed)],
            (Fate::Doubtful, ..) => &[Some(InDoubt)],
            (Fate::Again, 1, _) => &[Some(InDoubt), Some(Failed)],
            (Fate::Again, _, false) => &[Some(InDoubt), Some(Added)],
            (Fate::Plain | Fate::Again, _, true) => &[Some(Added)],
            (Fate::Bad, _, true) => &[Some(Failed)],
        };
        if !may_be.contains(&state) {
            return Some(format!("sent {sent} times, answered: {answered}, may be {may_be:?}"));
        }
        let told = self.answers.get(crk).filter(|_| answered && state == Some(Added))?;
        let record = record?;
        let at = record.added_at.map(|at| std::time::SystemTime::from(at).into());
        let same = told.added_at == at && told.attempts == record.attempts;
        (!same).then(|| format!("callers were told {told:?}"))
    }
}

/// What SQLite's own check says of a file.
fn integrity(ledger: &Path) -> String {
    let checked = rusqlite::Connection::open(ledger)
        .and_then(|db| db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)));
    checked.unwrap_or_else(|error| error.to_string())
}
