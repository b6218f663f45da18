//! Many calls at once, of keys that tell what becomes of them.

use std::{collections::HashMap, ops::Range};

use surveylab_gateway::{
    proto::{AddRespondentRequest, AddRespondentResponse},
    sandbox::{Fault, Sandbox},
};
use tokio::task::JoinSet;

use super::trace::{CRK_LENGTH, MARK};
use crate::support::{
    Error,
    call::{Client, add, item},
    gateway::surveylab_with,
    request,
};

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Added with its first request.
    Plain,
    /// Refused.
    Bad,
    /// Nobody knows.
    Doubtful,
    /// Not processed, and added with its second request.
    Again,
}

impl Fate {
    fn mark(self) -> char {
        match self {
            Fate::Plain => 'p',
            Fate::Bad => 'b',
            Fate::Doubtful => 'd',
            Fate::Again => 'a',
        }
    }

    pub fn of(crk: &str) -> Self {
        let mark = crk[MARK.len()..].chars().next().unwrap();
        let all = [Fate::Plain, Fate::Bad, Fate::Doubtful, Fate::Again];
        all.into_iter().find(|fate| fate.mark() == mark).unwrap()
    }
}

pub fn keys(fate: Fate, round: char, numbers: Range<usize>) -> Vec<String> {
    let crk = |i| format!("{MARK}{}-{round}{i:04}", fate.mark());
    let crks: Vec<String> = numbers.map(crk).collect();
    assert!(crks.iter().all(|crk| crk.len() == CRK_LENGTH));
    crks
}

/// A SurveyLab that does with these keys what is their fate.
pub async fn surveylab_for(again: &[String]) -> Sandbox {
    surveylab_with(|config| {
        config.faults = vec![
            Fault::status(400).for_crk_prefix(format!("{MARK}{}", Fate::Bad.mark())),
            Fault::status(502).for_crk_prefix(format!("{MARK}{}", Fate::Doubtful.mark())),
        ];
        let once = again.iter().map(|crk| Fault::status(503).for_crk(crk).times(1));
        config.faults.extend(once);
    })
    .await
}

/// A list of calls to make.
pub struct Load {
    pub unary: Vec<String>,
    pub streamed: Vec<String>,
}

impl Load {
    /// Some of every fate, both ways.
    pub fn mixed(round: char, plain: usize) -> Self {
        let (unary, streamed) = [
            (Fate::Plain, plain),
            (Fate::Bad, 12),
            (Fate::Doubtful, 8),
            (Fate::Again, 4),
        ]
        .map(|(fate, count)| {
            let mut crks = keys(fate, round, 0..count);
            let streamed = crks.split_off(count / 2);
            (crks, streamed)
        })
        .into_iter()
        .unzip::<_, _, Vec<_>, Vec<_>>();
        Self {
            unary: unary.concat(),
            streamed: streamed.concat(),
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.unary.iter().chain(&self.streamed)
    }

    /// Makes all calls, those of plain keys twice at once, and checks that each came to its key's fate. Calls that the
    /// gateway's death cut off are left out.
    pub async fn run(&self, client: &Client) -> Answers {
        let mut calls = JoinSet::new();
        for part in self.unary.chunks(16) {
            let plain = part.iter().filter(|crk| Fate::of(crk) == Fate::Plain);
            let twins: Vec<String> = plain.cloned().collect();
            calls.spawn(unary(client.clone(), part.to_vec()));
            calls.spawn(unary(client.clone(), twins));
        }
        calls.spawn(stream(client.clone(), self.streamed.clone()));
        let mut answers = Answers::new();
        for (crk, answer) in calls.join_all().await.into_iter().flatten() {
            assert_fate(&crk, &answer);
            if let Ok(response) = answer {
                answers.insert(crk, response);
            }
        }
        answers
    }
}

/// What the callers were told of keys that were added.
pub type Answers = HashMap<String, AddRespondentResponse>;

type Answered = (String, Result<AddRespondentResponse, Error>);

async fn unary(client: Client, crks: Vec<String>) -> Vec<Answered> {
    let mut answers = Vec::new();
    for crk in crks {
        let answer = add(&client, request(&crk)).await;
        if answer.as_ref().is_err_and(is_cut_off) {
            break;
        }
        answers.push((crk, answer));
    }
    answers
}

/// Without a reason it is the transport's.
fn is_cut_off(error: &Error) -> bool {
    error.reason.is_empty()
}

async fn stream(client: Client, crks: Vec<String>) -> Vec<Answered> {
    let mut answers = Vec::new();
    let items: Vec<AddRespondentRequest> = crks.iter().map(|crk| request(crk)).collect();
    let Ok(responses) = client.clone().stream_add_respondent(tokio_stream::iter(items)).await else {
        return answers;
    };
    let mut responses = responses.into_inner();
    while let Ok(Some(response)) = responses.message().await {
        let crk = response.crk.clone();
        answers.push((crk, item(response).1));
    }
    answers
}

fn assert_fate(crk: &str, answer: &Result<AddRespondentResponse, Error>) {
    let reason = answer.as_ref().err().map(|error| error.reason.as_str());
    let expected = match Fate::of(crk) {
        Fate::Plain | Fate::Again => None,
        Fate::Bad => Some("SURVEYLAB_BAD_REQUEST"),
        Fate::Doubtful => Some("OUTCOME_IN_DOUBT"),
    };
    assert_eq!(reason, expected, "{crk}: {answer:?}");
}
