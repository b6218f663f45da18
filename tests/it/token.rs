//! SurveyLab's token comes from a file and changes with it, while calls go on.

use std::{fs, path::PathBuf};

use surveylab_gateway::{
    proto::Outcome,
    sandbox::{Fault, Gate, Sandbox},
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Gateway, Options, added, calling,
    gateway::{TOKEN, surveylab},
    request,
    watch::until,
};

pub const NEXT_TOKEN: &str = "an0ther-t0ken/c4nary+5ecret";

/// A file with a token in it, to be changed as those who rotate secrets do.
pub struct TokenFile(TempDir);

impl TokenFile {
    pub fn new() -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.replace(TOKEN);
        file
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("token")
    }

    pub fn options(&self, options: Options) -> Options {
        options
            .env("SURVEYLAB_API_TOKEN", "")
            .flag("--api-token-file", self.path().display())
    }

    pub fn replace(&self, token: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, format!("{token}\n")).unwrap();
        fs::rename(next, self.path()).unwrap();
    }
}

/// Has the sandbox take these tokens alone.
pub fn accept(sandbox: &Sandbox, tokens: &[&str]) {
    sandbox.set_api_tokens(tokens.iter().map(|token| token.to_string().into()).collect());
}

/// Which token the latest requests bore.
fn latest_tokens(sandbox: &Sandbox, count: usize) -> Vec<String> {
    let requests = sandbox.requests();
    let latest = requests.iter().rev().take(count);
    let token = |parameters: &[(String, String)]| {
        parameters
            .iter()
            .find(|(name, _)| name == "apiToken")
            .unwrap()
            .1
            .clone()
    };
    latest.map(|request| token(&request.parameters)).collect()
}

/// Returns once the gateway has read a token again.
pub async fn until_read_again(gateway: &Gateway, times: usize) {
    until("the token is read again", async || {
        gateway.log().matches("reloaded after a change").count() >= times
    })
    .await;
}

#[tokio::test]
async fn a_rotation_under_load_fails_no_call() {
    let sandbox = surveylab().await;
    let file = TokenFile::new();
    let gateway = Gateway::with(file.options(Options::new()), &sandbox).await;
    let client = gateway.client().await;
    let enough = CancellationToken::new();
    let mut load = JoinSet::new();
    for caller in 0..8 {
        let (client, enough) = (client.clone(), enough.clone());
        load.spawn(async move {
            let mut calls = 0;
            while !enough.is_cancelled() {
                calls += 1;
                assert_eq!(
                    added(&client, request(&format!("{caller}-{calls}"))).await,
                    Outcome::Added
                );
            }
            calls
        });
    }
    sandbox.wait_for_effects(200).await;
    accept(&sandbox, &[TOKEN, NEXT_TOKEN]);
    assert!(latest_tokens(&sandbox, 100).iter().all(|token| token == TOKEN));
    file.replace(NEXT_TOKEN);
    until("requests bear the new token", async || {
        latest_tokens(&sandbox, 100).iter().all(|token| token == NEXT_TOKEN)
    })
    .await;
    accept(&sandbox, &[NEXT_TOKEN]);
    let so_far = sandbox.report().effects;
    sandbox.wait_for_effects(so_far + 200).await;
    enough.cancel();
    let calls: u64 = load.join_all().await.into_iter().sum();
    let report = sandbox.report();
    assert_eq!((report.requests, report.effects), (calls, calls));
    assert_eq!(report.statuses.keys().copied().collect::<Vec<_>>(), [200]);
    assert!(gateway.path("surveylab-gateway.db").exists());
}

#[tokio::test]
async fn a_file_without_a_token_changes_nothing_and_is_told_without_showing_it() {
    let sandbox = surveylab().await;
    let file = TokenFile::new();
    let gateway = Gateway::with(file.options(Options::new()), &sandbox).await;
    let client = gateway.client().await;
    for (n, wrong) in ["", "wr0ng token", "wr0ng\ntoken", &"wr0ng".repeat(300)]
        .into_iter()
        .enumerate()
    {
        file.replace(wrong);
        until("it is told", async || {
            gateway.log().matches("can't be used").count() > n
        })
        .await;
        assert_eq!(added(&client, request(&format!("k{n}"))).await, Outcome::Added);
    }
    fs::remove_file(file.path()).unwrap();
    until("it is told", async || {
        gateway.log().matches("can't be used").count() > 4
    })
    .await;
    assert_eq!(added(&client, request("gone")).await, Outcome::Added);
    // One that needs more room in a request than may be left.
    file.replace(&"l0ng".repeat(100));
    until("it is told", async || gateway.log().contains("restart to use it")).await;
    assert_eq!(added(&client, request("long")).await, Outcome::Added);
    for part in ["wr0ng", "l0ng", TOKEN] {
        assert!(!gateway.log().contains(part), "{part}");
    }
    file.replace(NEXT_TOKEN);
    until_read_again(&gateway, 1).await;
    accept(&sandbox, &[NEXT_TOKEN]);
    assert_eq!(added(&client, request("next")).await, Outcome::Added);
}

#[tokio::test]
async fn a_request_on_the_wire_ends_with_the_token_it_began_with() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::body(r#"{"status":true}"#).for_crk("held").held_by(&gate));
    let file = TokenFile::new();
    let gateway = Gateway::with(file.options(Options::new()), &sandbox).await;
    let client = gateway.client().await;
    let held = calling(&client, "held");
    sandbox.wait_for_requests(1).await;
    file.replace(NEXT_TOKEN);
    until_read_again(&gateway, 1).await;
    accept(&sandbox, &[NEXT_TOKEN]);
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    gate.release();
    assert_eq!(held.await.unwrap().unwrap().outcome(), Outcome::Added);
    assert_eq!(latest_tokens(&sandbox, 2), [NEXT_TOKEN, TOKEN]);
}
