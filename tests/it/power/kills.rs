//! Kills at the ledger's own operations: within a commit, a checkpoint, a recovery, within a write.

use std::{collections::BTreeMap, fs, os::unix::process::ExitStatusExt as _};

use rand::RngExt as _;
use surveylab_gateway::{
    proto::{InvitationState, Outcome},
    sandbox::Sandbox,
};

use super::{
    SIGKILL, count,
    load::{Answers, Fate, Load, keys, surveylab_for},
    seeded,
};
use crate::support::{
    Gateway,
    call::{Client, stream},
    request,
    shim::{KillAt, Power},
    watch::{list, soon},
};

/// Calls of a round, whose keys no other round has.
fn load(round: usize) -> Load {
    const CALLS: usize = 80;
    let letter = char::from(b'A' + u8::try_from(round / 100).unwrap());
    let first = round % 100 * CALLS;
    let mut unary = keys(Fate::Plain, letter, first..first + CALLS);
    let streamed = unary.split_off(CALLS / 2);
    Load { unary, streamed }
}

/// Where kills have hit.
#[derive(Debug, Default)]
struct Hits {
    starting: u32,
    working: u32,
    stopping: u32,
    not_at_all: u32,
}

/// One ledger and its SurveyLab, through many lives.
struct Lives {
    power: Power,
    sandbox: Sandbox,
    told: Answers,
    hits: Hits,
}

impl Lives {
    /// Starts up, works and stops, unless the kill comes before that.
    async fn live(&mut self, kill: KillAt, load: &Load) {
        let options = kill.set(self.power.options());
        let gateway = match Gateway::try_in_front_of(&self.sandbox.url(), options).await {
            Ok(gateway) => gateway,
            Err((status, log)) => {
                assert_eq!(status.signal(), Some(SIGKILL), "{log}");
                self.hits.starting += 1;
                return;
            }
        };
        let client = gateway.client().await;
        assert_right(&client, &self.sandbox, &self.told).await;
        let answers = load.run(&client).await;
        let is_done = load.keys().all(|crk| answers.contains_key(crk));
        self.told.extend(answers);
        drop(client);
        if is_done {
            gateway.signal("TERM");
        }
        let (gateway, status) = soon(gateway.once_ended()).await;
        soon(self.sandbox.wait_until_idle()).await;
        match (status.signal(), is_done) {
            (Some(SIGKILL), false) => self.hits.working += 1,
            (Some(SIGKILL), true) => self.hits.stopping += 1,
            _ => {
                assert!(status.success(), "{status}\n{}", gateway.log());
                self.hits.not_at_all += 1;
            }
        }
    }
}

/// What callers were told is so, and what may have reached SurveyLab is not free.
async fn assert_right(client: &Client, sandbox: &Sandbox, told: &Answers) {
    assert_eq!(list(client, InvitationState::Pending).await, Vec::<String>::new());
    assert_eq!(list(client, InvitationState::Failed).await, Vec::<String>::new());
    let mut held = BTreeMap::new();
    for state in [InvitationState::Added, InvitationState::InDoubt] {
        held.extend(list(client, state).await.into_iter().map(|crk| (crk, state)));
    }
    for crk in told.keys() {
        assert_eq!(held.get(crk), Some(&InvitationState::Added), "{crk} was acknowledged");
    }
    for key in sandbox.keys() {
        assert!(held.contains_key(&key.crk), "{} was sent, and is free", key.crk);
        assert_eq!((key.requests, key.effects), (1, 1), "{}", key.crk);
    }
}

/// On the database itself the first operation makes the file, and the second writes its first page.
#[tokio::test]
async fn a_first_write_that_was_cut_short_is_taken_back() {
    let sandbox = surveylab_for(&[]).await;
    // Not all of the 16 bytes by which a database is known; a page without its contents; a page.
    for (part, contents) in [(2, None), (0, Some(vec![0; 4096])), (1000, None)] {
        let power = Power::new();
        let kill = KillAt {
            files: ".db",
            operation: 2,
            part,
        };
        let killed = Gateway::try_in_front_of(&sandbox.url(), kill.set(power.options())).await;
        assert_eq!(killed.err().unwrap().0.signal(), Some(SIGKILL));
        if let Some(contents) = contents {
            fs::write(power.ledger(), contents).unwrap();
        }
        let bytes = fs::read(power.ledger()).unwrap();
        assert_eq!(bytes.len(), [8, 4096][usize::from(part != 2)]);
        assert!(fs::metadata(power.ledger().with_extension("db-journal")).unwrap().len() > 0);
        let gateway = Gateway::with(power.options(), &sandbox).await;
        assert_eq!(
            list(&gateway.client().await, InvitationState::Unspecified).await,
            Vec::<String>::new()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_within_the_ledgers_own_operations_lose_nothing_and_send_nothing_twice() {
    let mut random = seeded();
    let mut lives = Lives {
        power: Power::new(),
        sandbox: surveylab_for(&[]).await,
        told: Answers::new(),
        hits: Hits::default(),
    };
    let loads: Vec<Load> = (0..count("POWER_KILLS", 20)).map(load).collect();
    for (round, load) in loads.iter().enumerate() {
        // Starting takes some 40 operations, and so does the checkpoint at the end, nearly alone in writing to the
        // database itself.
        let (files, most) = [("", 30), ("", 100), ("", 300), (".db", 16)][round % 4];
        let kill = KillAt {
            files,
            operation: random.random_range(1..most),
            part: [0, 1000, random.random_range(1..1000)][random.random_range(0..3)],
        };
        println!("round {round}: {kill:?}");
        lives.live(kill, load).await;
    }
    let Lives {
        power,
        sandbox,
        told,
        hits,
    } = lives;
    println!("{hits:?}, {} keys acknowledged", told.len());

    let gateway = Gateway::with(power.options(), &sandbox).await;
    let client = gateway.client().await;
    assert_right(&client, &sandbox, &told).await;
    let before = sandbox.keys().len();
    let crks: Vec<&String> = loads.iter().flat_map(Load::keys).collect();
    let results = stream(&client, crks.iter().map(|crk| request(crk)).collect()).await;
    for (crk, result) in crks.iter().zip(results) {
        match result {
            Ok(response) if told.contains_key(*crk) => assert_eq!(response.outcome(), Outcome::Duplicate, "{crk}"),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.reason, "OUTCOME_IN_DOUBT", "{crk}");
                assert!(!told.contains_key(*crk), "{crk}");
            }
        }
    }
    println!("{before} keys sent before, {} in the end", sandbox.keys().len());
    assert!(sandbox.keys().iter().all(|key| key.requests == 1 && key.effects == 1));
}
