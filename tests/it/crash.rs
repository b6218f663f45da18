//! SIGKILL at any moment: what was on the wire is in doubt, what waited is free, nothing is sent twice.

use std::collections::BTreeSet;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use surveylab_gateway::{
    proto::{AddRespondentRequest, InvitationState, Outcome},
    sandbox::Sandbox,
};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{
    Gateway, Options,
    call::{Client, add, added, get, item, stream},
    gateway::{ended_by, surveylab_with},
    holding, request,
    watch::{list, soon, until_waiting},
};

const SIGKILL: i32 = 9;

/// The crks that have reached SurveyLab, ordered.
fn arrived(sandbox: &Sandbox) -> Vec<String> {
    sandbox.keys().into_iter().map(|key| key.crk).collect()
}

/// Kills a gateway with some requests on the wire and all others waiting, unary calls and stream items.
async fn kill_with_on_the_wire(on_the_wire: u64, options: Options) {
    let (sandbox, gate) = holding().await;
    let mut gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;

    let crks: Vec<String> = (0..24).map(|i| format!("k{i:02}")).collect();
    let (unary, streamed) = crks.split_at(12);
    let mut calls = JoinSet::new();
    for crk in unary {
        let (client, request) = (client.clone(), request(crk));
        calls.spawn(async move { add(&client, request).await });
    }
    let items: Vec<_> = streamed.iter().map(|crk| request(crk)).collect();
    let items = tokio_stream::iter(items);
    let _responses = client.clone().stream_add_respondent(items).await.unwrap();
    soon(sandbox.wait_for_requests(on_the_wire)).await;
    until_waiting(&gateway, "", crks.len() - usize::try_from(on_the_wire).unwrap()).await;

    assert_eq!(ended_by(gateway.kill()), Some(SIGKILL));
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap_err();
    }
    soon(sandbox.wait_until_idle()).await;
    gate.release();
    let in_doubt = arrived(&sandbox);
    assert_eq!(in_doubt.len() as u64, on_the_wire);

    let fast = |options: Options| options.flag("--rate", "100000/s").flag("--burst", 1000);
    let gateway = gateway.restart_with(fast).await;
    let client = gateway.client().await;
    assert_eq!(list(&client, InvitationState::InDoubt).await, in_doubt);
    assert_eq!(list(&client, InvitationState::Unspecified).await, in_doubt);
    for crk in &crks {
        let result = add(&client, request(crk)).await;
        if in_doubt.contains(crk) {
            let error = result.unwrap_err();
            assert_eq!(
                (error.code, error.reason.as_str(), error.sent()),
                (Code::FailedPrecondition, "OUTCOME_IN_DOUBT", "unknown")
            );
        } else {
            assert_eq!(result.unwrap().outcome(), Outcome::Added, "{crk}");
        }
    }
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
    assert_eq!(arrived(&sandbox), crks);

    let resend = AddRespondentRequest {
        resend_in_doubt: true,
        ..request(&in_doubt[0])
    };
    assert_eq!(added(&client, resend).await, Outcome::Added);
    assert_eq!(get(&client, &in_doubt[0]).await.unwrap().attempts, 2);
}

#[tokio::test]
async fn after_a_kill_only_what_was_on_the_wire_is_in_doubt_while_others_waited_for_a_place() {
    kill_with_on_the_wire(4, Options::new().flag("--max-in-flight", 4)).await;
}

#[tokio::test]
async fn after_a_kill_only_what_was_on_the_wire_is_in_doubt_while_others_waited_for_the_rate() {
    let slow = Options::new()
        .flag("--rate", "1/h")
        .flag("--burst", 1)
        .flag("--max-wait", "7days");
    kill_with_on_the_wire(1, slow).await;
}

/// Calls until the gateway is gone: the crks that it said it added.
async fn call_all(client: Client, crks: Vec<String>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for crk in crks {
        match add(&client, request(&crk)).await {
            Ok(_) => acknowledged.push(crk),
            Err(error) => {
                assert_eq!(error.reason, "", "{crk}: {error:?}");
                break;
            }
        }
    }
    acknowledged
}

/// The same through one stream.
async fn stream_all(client: Client, crks: Vec<String>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let items: Vec<_> = crks.iter().map(|crk| request(crk)).collect();
    let Ok(responses) = client.clone().stream_add_respondent(tokio_stream::iter(items)).await else {
        return acknowledged;
    };
    let mut responses = responses.into_inner();
    while let Ok(Some(response)) = responses.message().await {
        let crk = response.crk.clone();
        let (_, result) = item(response);
        result.unwrap();
        acknowledged.push(crk);
    }
    acknowledged
}

#[tokio::test]
async fn kills_at_random_moments_lose_nothing_acknowledged_and_send_nothing_twice() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let sandbox = surveylab_with(|config| config.latency = std::time::Duration::from_millis(2)).await;
    let mut gateway = Gateway::start(&sandbox).await;
    let mut all = Vec::new();
    for round in 0..4 {
        let crks: Vec<String> = (0..400).map(|i| format!("r{round}-{i:03}")).collect();
        let client = gateway.client().await;
        let mut calls = JoinSet::new();
        for part in crks[..200].chunks(10) {
            calls.spawn(call_all(client.clone(), part.to_vec()));
        }
        calls.spawn(stream_all(client.clone(), crks[200..].to_vec()));
        let killed_after = sandbox.report().requests + random.random_range(1..390);
        soon(sandbox.wait_for_requests(killed_after)).await;
        gateway.kill();
        let acknowledged: BTreeSet<String> = calls.join_all().await.into_iter().flatten().collect();
        soon(sandbox.wait_until_idle()).await;

        gateway = gateway.restart().await;
        let client = gateway.client().await;
        let in_doubt = list(&client, InvitationState::InDoubt).await;
        assert_eq!(list(&client, InvitationState::Pending).await, Vec::<String>::new());
        let results = stream(&client, crks.iter().map(|crk| request(crk)).collect()).await;
        for (crk, result) in crks.iter().zip(results) {
            match result {
                Ok(response) if acknowledged.contains(crk) => assert_eq!(response.outcome(), Outcome::Duplicate),
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.reason, "OUTCOME_IN_DOUBT", "{crk}");
                    assert!(in_doubt.contains(crk) && !acknowledged.contains(crk), "{crk}");
                }
            }
        }
        println!(
            "round {round}: killed after {killed_after}, {} acknowledged, {} in doubt so far",
            acknowledged.len(),
            in_doubt.len()
        );
        all.extend(crks);
    }
    let twice: Vec<_> = sandbox.keys().into_iter().filter(|key| key.requests > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // Whatever is neither with SurveyLab nor in doubt would be lost.
    let client = gateway.client().await;
    let mut known = list(&client, InvitationState::InDoubt).await;
    known.extend(list(&client, InvitationState::Added).await);
    known.sort();
    assert_eq!(known, all);
}
