//! Callers that have to show a certificate.

use surveylab_gateway::proto::Outcome;
use tonic::Code;

use super::{client_tls, connect, with_tls};
use crate::support::{
    Gateway, added,
    call::add,
    certificates::{Authority, HERE},
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
