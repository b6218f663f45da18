//! What many clients do at once with one gateway, until it is gone: everything that callers may do, in any order.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use surveylab_gateway::{
    proto::{
        AddRespondentRequest, AddRespondentResponse, InvitationState, ListInvitationsRequest, Outcome, Resolution,
    },
    sandbox::Sandbox,
};
use tokio::{task::JoinSet, time::timeout};
use tonic::Code;

use crate::{
    history::{Asked, Heard, Recorder, Wish},
    support::{
        Error, Gateway,
        call::{COLLECTOR, Client, add, item, request, resolve},
        watch::{add_within, soon},
    },
};

const UNARY_CLIENTS: usize = 8;
const CALLS_EACH: usize = 14;
const STREAMS: usize = 2;
const ITEMS_EACH: usize = 60;

/// What the clients of one process share.
#[derive(Clone)]
struct Load {
    client: Client,
    recorder: Recorder,
    sandbox: Arc<Sandbox>,
    keys: Keys,
    gone: Arc<AtomicBool>,
}

/// The keys that were ever asked for.
#[derive(Clone, Default)]
pub struct Keys(Arc<Mutex<Vec<String>>>);

impl Keys {
    /// Mostly a new one, else one that somebody uses, or has used, as well.
    fn choose(&self, random: &mut StdRng) -> String {
        let mut keys = self.0.lock().unwrap();
        if keys.is_empty() || random.random_bool(0.6) {
            let crk = format!("k{:06}", keys.len());
            keys.push(crk.clone());
            return crk;
        }
        let recent = keys
            .len()
            .saturating_sub(if random.random_bool(0.7) { 20 } else { 400 });
        keys[random.random_range(recent..keys.len())].clone()
    }
}

/// All clients, until each has done its part or found the gateway gone.
pub async fn load(gateway: &Gateway, recorder: &Recorder, sandbox: &Arc<Sandbox>, keys: &Keys, seed: u64) {
    // It may be gone already.
    let Ok(client) = gateway.try_client().await else {
        return;
    };
    let load = Load {
        client,
        recorder: recorder.clone(),
        sandbox: sandbox.clone(),
        keys: keys.clone(),
        gone: Arc::default(),
    };
    let mut clients = JoinSet::new();
    let random = |client: usize| StdRng::seed_from_u64(seed ^ ((client as u64 + 1) << 32));
    for client in 0..UNARY_CLIENTS {
        clients.spawn(load.clone().call(random(client)));
    }
    for client in 0..STREAMS {
        clients.spawn(load.clone().stream(random(100 + client)));
    }
    clients.spawn(load.clone().resolve(random(200)));
    // Nobody waits for ever.
    soon(clients.join_all()).await;
}

impl Load {
    async fn call(self, mut random: StdRng) {
        for _ in 0..CALLS_EACH {
            if self.gone.load(Ordering::Relaxed) {
                return;
            }
            let (asked, request) = self.ask(&mut random);
            let mut in_some = |share, most| {
                let millis = random.random_range(0..most);
                random.random_bool(share).then_some(Duration::from_millis(millis))
            };
            // Some leave at once, some while it waits, some while it is on the wire.
            let (deadline, patience) = (in_some(0.1, 80), in_some(0.1, 30));
            let call = async {
                match deadline {
                    Some(deadline) => add_within(&self.client, request, deadline).await,
                    None => add(&self.client, request).await,
                }
            };
            let answer = match patience {
                None => call.await,
                Some(patience) => match timeout(patience, call).await {
                    Ok(answer) => answer,
                    Err(_) => continue,
                },
            };
            self.note(asked, answer);
        }
    }

    /// A list; some leave before its end.
    async fn stream(self, mut random: StdRng) {
        let count = random.random_range(1..=ITEMS_EACH);
        let (asked, requests): (Vec<_>, Vec<_>) = (0..count).map(|_| self.ask(&mut random)).unzip();
        let leaves_after = random.random_bool(0.3).then(|| random.random_range(0..count));
        let Ok(responses) = self
            .client
            .clone()
            .stream_add_respondent(tokio_stream::iter(requests))
            .await
        else {
            return;
        };
        let mut asked: Vec<Option<Asked>> = asked.into_iter().map(Some).collect();
        let mut responses = responses.into_inner();
        let mut answered = 0;
        while let Ok(Some(response)) = responses.message().await {
            let (sequence, answer) = item(response);
            let asked = asked[usize::try_from(sequence).unwrap()].take();
            self.note(asked.expect("an item is answered once"), answer);
            answered += 1;
            if leaves_after == Some(answered) {
                return;
            }
        }
    }

    /// A person who settles what is in doubt, mostly by what SurveyLab shows at that moment.
    async fn resolve(self, mut random: StdRng) {
        let Ok(page) = self.client.clone().list_invitations(in_doubt()).await else {
            return;
        };
        for invitation in page.into_inner().invitations {
            let crk = &invitation.crk;
            if self.gone.load(Ordering::Relaxed) || random.random_bool(0.8) {
                continue;
            }
            let (resolution, wish) = if self.sandbox.effects_of(COLLECTOR, crk) > 0 {
                (Resolution::Added, Wish::ResolveAdded)
            } else {
                (Resolution::NotAdded, Wish::ResolveNotAdded)
            };
            let asked = self.recorder.ask(crk, "", wish);
            match resolve(&self.client, crk, resolution).await {
                Ok(_) => asked.hears(Heard::Resolved),
                Err(error) => self.note(asked, Err(error)),
            }
        }
    }

    fn ask(&self, random: &mut StdRng) -> (Asked, AddRespondentRequest) {
        let crk = self.keys.choose(random);
        let resend_in_doubt = random.random_bool(0.03);
        let request = AddRespondentRequest {
            email: if random.random_bool(0.05) {
                "other@example.com"
            } else {
                "one@example.com"
            }
            .into(),
            resend_in_doubt,
            ..request(&crk)
        };
        let wish = if resend_in_doubt { Wish::Resend } else { Wish::Add };
        (self.recorder.ask(&crk, &request.email, wish), request)
    }

    fn note(&self, asked: Asked, answer: Result<AddRespondentResponse, Error>) {
        if let Err(error) = &answer
            && error.reason.is_empty()
            // Not its own deadline.
            && !matches!(error.code, Code::DeadlineExceeded | Code::Cancelled)
        {
            self.gone.store(true, Ordering::Relaxed);
        }
        asked.hears(heard(answer));
    }
}

fn in_doubt() -> ListInvitationsRequest {
    ListInvitationsRequest {
        state: InvitationState::InDoubt.into(),
        page_size: 1_000,
        ..ListInvitationsRequest::default()
    }
}

pub fn heard(answer: Result<AddRespondentResponse, Error>) -> Heard {
    match answer {
        Ok(response) if response.outcome() == Outcome::Added => Heard::Added,
        Ok(response) => {
            let at = response.added_at.expect("a duplicate says when it was added");
            Heard::Duplicate(i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos))
        }
        // Made by the client itself.
        Err(error) if error.reason.is_empty() => Heard::Nothing,
        Err(error) => Heard::Error {
            sent: error.sent().into(),
            reason: error.reason,
        },
    }
}
