//! One key, one request, one e-mail; whoever calls, however often, whenever.

use surveylab_gateway::proto::{AddRespondentRequest, Outcome};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{
    Gateway, added,
    call::{Client, add, stream},
    gateway::surveylab,
    request,
};

/// 50 callers with one key at once: so many unary, the others in one stream. How many were told what.
async fn fifty(client: &Client, crk: &str, unary: usize) -> (usize, usize) {
    let mut calls = JoinSet::new();
    for _ in 0..unary {
        let (client, request) = (client.clone(), request(crk));
        calls.spawn(async move { vec![added(&client, request).await] });
    }
    let (client, items) = (client.clone(), vec![request(crk); 50 - unary]);
    calls.spawn(async move {
        let results = stream(&client, items).await;
        results.into_iter().map(|result| result.unwrap().outcome()).collect()
    });
    let outcomes: Vec<Outcome> = calls.join_all().await.concat();
    let count = |outcome| outcomes.iter().filter(|other| **other == outcome).count();
    (count(Outcome::Added), count(Outcome::Duplicate))
}

#[tokio::test]
async fn fifty_calls_with_one_key_make_one_request() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    for (crk, unary) in [("unary", 50), ("stream", 0), ("mixed", 25)] {
        assert_eq!(fifty(&client, crk, unary).await, (1, 49), "{crk}");
        assert_eq!(sandbox.requests_of("c0llector", crk), 1, "{crk}");
    }

    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    for (crk, unary) in [("unary", 50), ("stream", 0), ("mixed", 25)] {
        assert_eq!(fifty(&client, crk, unary).await, (0, 50), "{crk}");
    }
    assert_eq!(sandbox.report().requests, 3);
}

#[tokio::test]
async fn a_key_with_other_data_is_refused_whichever_field_differs() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let full = AddRespondentRequest {
        referrer: "ab".into(),
        language: "pl".into(),
        phone: "1".into(),
        first_name: "a".into(),
        last_name: "b".into(),
        custom1: "x".into(),
        custom2: String::new(),
        custom8: "y".into(),
        ..request("k")
    };
    assert_eq!(added(&client, full.clone()).await, Outcome::Added);
    let change = |change: fn(&mut AddRespondentRequest)| {
        let mut request = full.clone();
        change(&mut request);
        request
    };
    let others = [
        change(|r| r.email = "anna@example.com".into()),
        change(|r| r.referrer.push('c')),
        change(|r| r.language = "en".into()),
        change(|r| r.phone.clear()),
        change(|r| r.custom8.clear()),
        // The same letters, in other fields.
        change(|r| (r.first_name, r.last_name) = ("ab".into(), String::new())),
        change(|r| (r.first_name, r.last_name) = (String::new(), "ab".into())),
        change(|r| (r.custom1, r.custom2) = (String::new(), "x".into())),
    ];
    for other in others {
        let error = add(&client, other).await.unwrap_err();
        assert_eq!(
            (error.code, error.reason.as_str(), error.sent()),
            (Code::AlreadyExists, "CRK_REUSED", "no")
        );
        assert_eq!(error.domain, "surveylab-gateway");
    }
    assert_eq!(added(&client, full).await, Outcome::Duplicate);
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn the_same_crk_in_another_collector_is_another_invitation() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let elsewhere = AddRespondentRequest {
        collector_id: "another".into(),
        ..request("k")
    };
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    assert_eq!(added(&client, elsewhere).await, Outcome::Added);
    assert_eq!(
        (sandbox.effects_of("c0llector", "k"), sandbox.effects_of("another", "k")),
        (1, 1)
    );
}
