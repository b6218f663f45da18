//! Callers that have to show a certificate.

use std::fs;

use surveylab_gateway::{callers::Token, proto::Outcome};
use tonic::{Code, Request};

use super::{client_tls, connect, with_tls};
use crate::support::{
    Gateway, added,
    call::add,
    certificates::{Authority, HERE, Pair},
    gateway::surveylab,
    request,
    watch::{metric, soon, until},
};

#[tokio::test]
async fn only_who_shows_a_certificate_of_the_client_ca_is_served() {
    let sandbox = surveylab().await;
    let [authority, clients, others] = [(); 3].map(|()| Authority::new());
    let options = with_tls(&authority.issue("gateway", HERE)).flag("--tls-client-ca", clients.ca().display());
    let gateway = Gateway::with(options, &sandbox).await;

    let name = "DNS:caller.example";
    let refused = [
        None,
        Some(others.issue("other", name)),
        // Signed by the CA of the gateway's own certificate.
        Some(authority.issue("caller", name)),
        Some(clients.issue_expired("expired", name)),
    ];
    for identity in &refused {
        let tls = client_tls(&authority.ca(), identity.as_ref());
        // By TLS 1.3 the client has done its part before the gateway looks at its certificate.
        let error = match soon(connect(gateway.grpc, tls)).await {
            Err(_refused) => continue,
            Ok(client) => soon(add(&client, request("refused"))).await.unwrap_err(),
        };
        assert!(
            matches!(error.code, Code::Unavailable | Code::Unknown | Code::Cancelled),
            "{identity:?}: {error:?}"
        );
    }
    until("each of them is counted", async || {
        metric(&gateway, "tls_handshakes_failed_total", "").await >= refused.len() as f64
    })
    .await;
    assert_eq!(sandbox.report().requests, 0);

    let right = clients.issue("right", name);
    let client = connect(gateway.grpc, client_tls(&authority.ca(), Some(&right)))
        .await
        .unwrap();
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
}

/// With callers a certificate says who calls, and a token does without one.
#[tokio::test]
async fn a_certificates_names_say_who_calls_and_a_token_needs_none() {
    let sandbox = surveylab().await;
    let [authority, clients] = [(); 2].map(|()| Authority::new());
    let token = Token::generate().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let callers = directory.path().join("callers.toml");
    let text = format!(
        "[[caller]]\nname = \"crm\"\nnames = [\"spiffe://example.com/crm\"]\n\
         [[caller]]\nname = \"billing\"\ntokens = [\"{}\"]\n",
        token.hash()
    );
    fs::write(&callers, text).unwrap();
    let options = with_tls(&authority.issue("gateway", HERE))
        .flag("--tls-client-ca", clients.ca().display())
        .flag("--callers", callers.display());
    let gateway = Gateway::with(options, &sandbox).await;
    let client = async |identity: Option<&Pair>| {
        let tls = client_tls(&authority.ca(), identity);
        connect(gateway.grpc, tls).await.unwrap()
    };

    let crm = clients.issue("crm", "DNS:crm.example.com,URI:spiffe://example.com/crm");
    assert_eq!(added(&client(Some(&crm)).await, request("crm")).await, Outcome::Added);
    let stranger = clients.issue("stranger", "DNS:stranger.example.com");
    for identity in [None, Some(&stranger)] {
        let error = add(&client(identity).await, request("k")).await.unwrap_err();
        assert_eq!(
            (error.code, error.reason.as_str()),
            (Code::Unauthenticated, "CALLER_UNAUTHENTICATED")
        );
    }
    // The token is billing's, with a certificate of nobody, of another caller, or without one.
    for (identity, is_let_in) in [(None, true), (Some(&stranger), false), (Some(&crm), false)] {
        let mut call = Request::new(request("billing"));
        let bearer = format!("Bearer {}", token.expose());
        call.metadata_mut().insert("authorization", bearer.parse().unwrap());
        let answer = client(identity).await.add_respondent(call).await;
        assert_eq!(answer.is_ok(), is_let_in, "{answer:?}");
    }
    assert_eq!(sandbox.report().effects, 2);
}
