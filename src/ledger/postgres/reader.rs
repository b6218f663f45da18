//! A task that owns one connection and answers what is asked of it, many questions in one round trip. A question is
//! sent after it came in, so its answer holds every step that was acknowledged before.

use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_postgres::{Client, Statement};

use super::{
    census,
    id::Id,
    link::{Link, PATIENCE, SILENT, Session, Statements, plan_by_keys},
    read::{self, LOOK_UP, Standing},
};
use crate::{
    invitation::Key,
    ledger::{Census, Error, Query, Record, Replica},
    metrics::{self, Access},
    postgres::describe,
};

const QUEUE: usize = 4_096;
const MAX_BATCH: usize = 1_024;

/// Asks to be told of the end of the claim that another replica has on a key, and tells its number.
const WATCH: &str = "UPDATE pending SET watched = true \
                     WHERE collector_id = $1 AND crk = $2 AND replica <> $3 RETURNING claim";

type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// What can be asked. Each can be asked twice.
enum Question {
    LookUp(Key, Answer<Standing>),
    /// The key, and who asks.
    Watch(Key, Id, Answer<Option<Id>>),
    List(Query, Answer<Vec<Record>>),
    Census(Answer<Census>),
    /// Who asks.
    Replicas(Id, Answer<Vec<Replica>>),
    Probe(Answer<()>),
    Stop,
}

impl Question {
    fn refuse(self, why: &str) {
        let error = Error::Unavailable(why.into());
        // Who asked may be gone.
        match self {
            Self::LookUp(_, answer) => drop(answer.send(Err(error))),
            Self::Watch(_, _, answer) => drop(answer.send(Err(error))),
            Self::List(_, answer) => drop(answer.send(Err(error))),
            Self::Census(answer) => drop(answer.send(Err(error))),
            Self::Replicas(_, answer) => drop(answer.send(Err(error))),
            Self::Probe(answer) => drop(answer.send(Err(error))),
            Self::Stop => {}
        }
    }
}

/// The reader's statements.
pub(super) struct Reading {
    look_up: Statement,
    watch: Statement,
}

impl Statements for Reading {
    async fn prepare(client: &Client) -> Result<Self, tokio_postgres::Error> {
        plan_by_keys(client).await?;
        Ok(Self {
            look_up: client.prepare(LOOK_UP).await?,
            watch: client.prepare(WATCH).await?,
        })
    }
}

/// The handle of the task, which ends when all of these are dropped. All clones are one.
#[derive(Clone)]
pub(super) struct Reader {
    queue: mpsc::Sender<Question>,
}

impl Reader {
    /// The handle, and the task to spawn.
    pub(super) fn new(link: Link<Reading>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, asked) = mpsc::channel(QUEUE);
        (Self { queue }, serve(link, asked))
    }

    async fn ask<T>(&self, question: impl FnOnce(Answer<T>) -> Question) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(question(answer)).await.map_err(|_| Error::closed())?;
        answered.await.map_err(|_| Error::closed())?
    }

    pub(super) async fn look_up(&self, key: Key) -> Result<Standing, Error> {
        self.ask(|answer| Question::LookUp(key, answer)).await
    }

    /// Has the end of the claim that another than `replica` has on a key told on the channel; tells the claim's number
    /// if there is one.
    pub(super) async fn watch(&self, key: Key, replica: Id) -> Result<Option<Id>, Error> {
        self.ask(|answer| Question::Watch(key, replica, answer)).await
    }

    pub(super) async fn list(&self, query: Query) -> Result<Vec<Record>, Error> {
        self.ask(|answer| Question::List(query, answer)).await
    }

    pub(super) async fn census(&self) -> Result<Census, Error> {
        self.ask(Question::Census).await
    }

    pub(super) async fn replicas(&self, own: Id) -> Result<Vec<Replica>, Error> {
        self.ask(|answer| Question::Replicas(own, answer)).await
    }

    pub(super) async fn probe(&self) -> Result<(), Error> {
        self.ask(Question::Probe).await
    }

    pub(super) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Lets the task finish what it was asked so far, and end.
    pub(super) async fn stop(&self) {
        // Fails if the task takes nothing any more, which is what is wanted.
        let _ = self.queue.send(Question::Stop).await;
    }
}

async fn serve(mut link: Link<Reading>, mut asked: mpsc::Receiver<Question>) {
    let mut questions = Vec::new();
    while asked.recv_many(&mut questions, MAX_BATCH).await > 0 {
        if questions.iter().any(|question| matches!(question, Question::Stop)) {
            asked.close();
        }
        // A lost connection shows by the first question after it, which can be asked again.
        let mut tries = 2;
        while !questions.is_empty() && tries > 0 {
            tries -= 1;
            let session = match link.session().await {
                Ok(session) => session,
                Err(error) => {
                    metrics::ledger_failed(Access::Read);
                    let why = error.to_string();
                    questions.drain(..).for_each(|question| question.refuse(&why));
                    break;
                }
            };
            let lost = match timeout(PATIENCE, answer(session, &mut questions)).await {
                Ok(Ok(())) => continue,
                Ok(Err(lost)) => lost,
                Err(_) => SILENT.into(),
            };
            link.sever();
            if tries == 0 {
                metrics::ledger_failed(Access::Read);
                questions.drain(..).for_each(|question| question.refuse(&lost));
            }
        }
    }
}

/// Answers all there is, and leaves what it could not for want of a connection.
async fn answer(session: &Session<Reading>, questions: &mut Vec<Question>) -> Result<(), String> {
    let (client, statements) = (&session.client, &session.statements);
    let keys: Vec<Key> = questions
        .iter()
        .filter_map(|question| match question {
            Question::LookUp(key, _) => Some(key.clone()),
            _ => None,
        })
        .collect();
    // Sent together: a connection answers in order.
    let (standings, others) = tokio::join!(
        biased;
        look_up(client, statements, &keys),
        join_all(questions.iter().map(|question| ask(client, statements, question))),
    );
    let mut standings = standings.map_err(|error| describe(&error))?.into_iter();
    let mut lost = None;
    for (question, other) in std::mem::take(questions).into_iter().zip(others) {
        match (question, other) {
            (Question::LookUp(_, answer), _) => {
                let standing = standings
                    .next()
                    .unwrap_or(Err(Error::Unavailable("it was not found".into())));
                drop(answer.send(standing));
            }
            (Question::Watch(_, _, answer), Ok(Found::Claim(claim))) => drop(answer.send(Ok(claim))),
            (Question::List(_, answer), Ok(Found::Page(page))) => drop(answer.send(page)),
            (Question::Census(answer), Ok(Found::Census(census))) => drop(answer.send(Ok(census))),
            (Question::Replicas(_, answer), Ok(Found::Replicas(replicas))) => drop(answer.send(Ok(replicas))),
            (Question::Probe(answer), Ok(_)) => drop(answer.send(Ok(()))),
            (Question::Stop, _) => {}
            (question, Err(error)) if error.as_db_error().is_none() => {
                lost = Some(describe(&error));
                questions.push(question);
            }
            (question, Err(error)) => question.refuse(&describe(&error)),
            (question, Ok(_)) => question.refuse("it was not found"),
        }
    }
    lost.map_or(Ok(()), Err)
}

/// What a question other than a look-up comes to.
enum Found {
    Nothing,
    Claim(Option<Id>),
    Page(Result<Vec<Record>, Error>),
    Census(Census),
    Replicas(Vec<Replica>),
}

async fn ask(client: &Client, statements: &Reading, question: &Question) -> Result<Found, tokio_postgres::Error> {
    Ok(match question {
        Question::LookUp(..) | Question::Stop => Found::Nothing,
        Question::Watch(key, replica, _) => {
            let row = client
                .query_opt(&statements.watch, &[&key.collector_id(), &key.crk(), replica])
                .await?;
            Found::Claim(row.map(|row| row.try_get(0)).transpose()?)
        }
        Question::List(query, _) => Found::Page(read::list(client, query).await?.map_err(Error::from)),
        Question::Census(_) => Found::Census(census::take(client).await?),
        Question::Replicas(own, _) => Found::Replicas(read::replicas(client, *own).await?),
        Question::Probe(_) => {
            client.batch_execute("SELECT 1").await?;
            Found::Nothing
        }
    })
}

/// Looks keys up; where the server fails at one of them, each by itself.
async fn look_up(
    client: &Client,
    statements: &Reading,
    keys: &[Key],
) -> Result<Vec<Result<Standing, Error>>, tokio_postgres::Error> {
    let readable = |found: Vec<Result<Standing, read::Unreadable>>| {
        found
            .into_iter()
            .map(|standing| standing.map_err(Error::from))
            .collect()
    };
    match read::look_up(client, &statements.look_up, keys).await {
        Ok(found) => return Ok(readable(found)),
        Err(error) if error.as_db_error().is_none() => return Err(error),
        Err(_) => {}
    }
    let mut found = Vec::new();
    for key in keys {
        match read::look_up(client, &statements.look_up, std::slice::from_ref(key)).await {
            Ok(one) => found.extend(readable(one)),
            Err(error) if error.as_db_error().is_none() => return Err(error),
            Err(error) => found.push(Err(Error::Unavailable(describe(&error)))),
        }
    }
    Ok(found)
}
