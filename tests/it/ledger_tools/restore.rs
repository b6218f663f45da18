//! What docs/operations.md says under "Restore", done step by step.

use std::{collections::BTreeSet, fs, path::PathBuf};

use surveylab_gateway::{
    proto::{AddRespondentRequest, InvitationState, Outcome, Resolution},
    sandbox::{Fault, Gate, Sandbox},
};

use super::{LEDGER, checked, json, ledger, over, stop, told};
use crate::support::{
    Gateway, adding,
    call::{COLLECTOR, Client, add, added, resolve, state},
    gateway::surveylab,
    request,
    watch::{list, soon},
};

/// The crks that an export shows in one of these states.
fn exported(csv: &str, states: &[&str]) -> BTreeSet<String> {
    let mut csv = csv::Reader::from_reader(csv.as_bytes());
    let rows = csv.records().map(Result::unwrap);
    rows.filter(|row| states.contains(&&row[2]))
        .map(|row| row[1].to_string())
        .collect()
}

/// What SurveyLab's contact list shows.
fn contacts(sandbox: &Sandbox) -> BTreeSet<String> {
    let keys = sandbox.keys().into_iter();
    keys.filter(|key| key.effects > 0).map(|key| key.crk).collect()
}

/// What a key would come to, sending nothing: the outcome, or the error's reason.
async fn would(client: &Client, crk: &str) -> String {
    let dry = AddRespondentRequest {
        validate_only: true,
        ..request(crk)
    };
    match add(client, dry).await {
        Ok(response) => response.outcome().as_str_name().into(),
        Err(error) => error.reason,
    }
}

const BEFORE: [&str; 7] = [
    "added",
    "failed",
    "failed, added since",
    "in doubt",
    "in doubt, resolved since",
    "in doubt, freed and added since",
    "pending",
];
const SINCE: [&str; 3] = ["new", "new failed", "new in doubt"];

/// A ledger that was backed up, and went on: the gateway, and the backup.
async fn a_gateway_that_went_on(sandbox: &Sandbox, directory: &std::path::Path) -> (Gateway, PathBuf) {
    let gate = Gate::new();
    sandbox.add_fault(Fault::status(404).for_crk("failed"));
    sandbox.add_fault(Fault::status(404).for_crk("failed, added since").times(1));
    sandbox.add_fault(Fault::status(404).for_crk("new failed"));
    sandbox.add_fault(Fault::reset_before_answer().for_crk("in doubt"));
    sandbox.add_fault(Fault::reset_before_answer().for_crk("in doubt, resolved since"));
    sandbox.add_fault(Fault::status(502).for_crk("in doubt, freed and added since").times(1));
    sandbox.add_fault(Fault::reset_before_answer().for_crk("new in doubt"));
    sandbox.add_fault(Fault::hold(&gate).for_crk("pending"));
    let path = directory.join(LEDGER);
    let gateway = Gateway::with(over(&path), sandbox).await;
    let client = gateway.client().await;
    for crk in &BEFORE[..6] {
        let _ = add(&client, request(crk)).await;
    }
    let call = adding(&client, "pending");
    soon(sandbox.wait_for_requests(7)).await;

    let backup = directory.join("backup.db");
    told(&path, &["backup", backup.to_str().unwrap()]).await;

    gate.release();
    assert_eq!(soon(call).await.unwrap(), Outcome::Added);
    assert_eq!(added(&client, request("failed, added since")).await, Outcome::Added);
    resolve(&client, "in doubt, resolved since", Resolution::Added)
        .await
        .unwrap();
    resolve(&client, "in doubt, freed and added since", Resolution::NotAdded)
        .await
        .unwrap();
    assert_eq!(
        added(&client, request("in doubt, freed and added since")).await,
        Outcome::Added
    );
    for crk in SINCE {
        let _ = add(&client, request(crk)).await;
    }
    (gateway, backup)
}

#[tokio::test]
async fn a_restored_backup_holds_what_it_knows_and_nothing_is_sent_twice_once_the_rest_was_made_known_to_it() {
    let sandbox = surveylab().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(LEDGER);
    let (gateway, backup) = a_gateway_that_went_on(&sandbox, directory.path()).await;
    let sent_before = sandbox.report().requests;

    // 1. Stop the gateway.
    let gateway = stop(gateway).await;
    assert_eq!(checked(&path).await.1["gateway"]["running"], false);

    // 2. Is the backup whole, and how old is it?
    let (code, report) = checked(&backup).await;
    assert_eq!(code, Some(0));
    assert_eq!(
        report["keys"],
        serde_json::json!({ "total": 7, "added": 1, "failed": 2, "inDoubt": 3, "pending": 1 })
    );
    let last_change = report["lastChange"].as_str().unwrap().to_string();

    // 3. The old files out of the way, all of them; 4. the backup in their place; 5. does it look right?
    let old = directory.path().join("old");
    fs::create_dir(&old).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let name = format!("{LEDGER}{suffix}");
        if directory.path().join(&name).exists() {
            fs::rename(directory.path().join(&name), old.join(&name)).unwrap();
        }
    }
    fs::copy(&backup, &path).unwrap();
    assert_eq!(checked(&path).await.1["keys"], report["keys"]);

    // 6. What the ledger can't know, from what is still to be read of the old one and from SurveyLab's contacts.
    let known = exported(&told(&path, &["export"]).await, &["ADDED", "IN_DOUBT", "PENDING"]);
    let (_, old_export, _) = ledger(&old.join(LEDGER), &["export"]).await;
    let since: BTreeSet<String> = {
        let ndjson = told(&old.join(LEDGER), &["export", "--format=ndjson"]).await;
        let rows = ndjson.lines().map(json);
        let newer = rows.filter(|row| row["updated_at"].as_str().unwrap() > last_change.as_str());
        newer.map(|row| row["crk"].as_str().unwrap().into()).collect()
    };
    let had = &exported(&old_export, &["ADDED", "IN_DOUBT", "PENDING"]) - &known;
    let there = &contacts(&sandbox) - &known;
    let lost: BTreeSet<String> = ["failed, added since", "new", "new in doubt"].map(Into::into).into();
    assert_eq!(had, lost, "by the old ledger");
    assert_eq!(
        there, lost,
        "by SurveyLab's contact list alone, if nothing of the old ledger can be read"
    );
    assert!(
        had.is_subset(&since),
        "all changed after the backup's last change: {since:?}"
    );

    // 7. Made known to the ledger: their calls, with a fake SurveyLab in place of the real one.
    let gateway = gateway
        .restart_with(|options| options.env("GATEWAY_SANDBOX", "true"))
        .await;
    let client = gateway.client().await;
    assert_states_after_the_restore(&client).await;
    for crk in &lost {
        assert_eq!(added(&client, request(crk)).await, Outcome::Added);
    }
    let gateway = stop(gateway).await;
    assert_eq!(sandbox.report().requests, sent_before, "no request reached SurveyLab");

    // 8. The real one again, and all callers come back with all they ever had.
    let gateway = gateway
        .restart_with(|options| options.env("GATEWAY_SANDBOX", "false"))
        .await;
    let client = gateway.client().await;
    sandbox.clear_faults();
    let effects = sandbox.report().effects;
    for crk in BEFORE.iter().chain(&SINCE) {
        let came_to = add(&client, request(crk)).await;
        match *crk {
            "failed" | "new failed" => assert_eq!(came_to.unwrap().outcome(), Outcome::Added),
            _ if crk.starts_with("in doubt") || *crk == "pending" => {
                assert_eq!(came_to.unwrap_err().reason, "OUTCOME_IN_DOUBT", "{crk}");
            }
            _ => assert_eq!(came_to.unwrap().outcome(), Outcome::Duplicate, "{crk}"),
        }
    }
    assert_eq!(
        sandbox.report().effects,
        effects + 2,
        "the two that SurveyLab had refused"
    );
    let twice: Vec<_> = sandbox.keys().into_iter().filter(|key| key.effects > 1).collect();
    assert!(
        twice.iter().all(|key| key.crk == "in doubt, freed and added since"),
        "that one a person freed, before any of this: {twice:?}"
    );
}

/// Which keys are free, known and in doubt, as the table in docs/operations.md has it.
async fn assert_states_after_the_restore(client: &Client) {
    let free = "OUTCOME_WOULD_ADD";
    for (crk, is, would_be) in [
        ("added", Some(InvitationState::Added), "OUTCOME_DUPLICATE"),
        ("failed", Some(InvitationState::Failed), free),
        ("failed, added since", Some(InvitationState::Failed), free),
        ("in doubt", Some(InvitationState::InDoubt), "OUTCOME_IN_DOUBT"),
        (
            "in doubt, resolved since",
            Some(InvitationState::InDoubt),
            "OUTCOME_IN_DOUBT",
        ),
        (
            "in doubt, freed and added since",
            Some(InvitationState::InDoubt),
            "OUTCOME_IN_DOUBT",
        ),
        ("pending", Some(InvitationState::InDoubt), "OUTCOME_IN_DOUBT"),
        ("new", None, free),
        ("new failed", None, free),
        ("new in doubt", None, free),
    ] {
        assert_eq!(state(client, crk).await, is, "{crk}");
        assert_eq!(would(client, crk).await, would_be, "{crk}");
    }
    let resend = AddRespondentRequest {
        resend_in_doubt: true,
        validate_only: true,
        ..request("in doubt, resolved since")
    };
    assert_eq!(
        added(client, resend).await,
        Outcome::WouldAdd,
        "what nobody is to do before it is looked up"
    );
    assert_eq!(list(client, InvitationState::Unspecified).await.len(), BEFORE.len());
}

#[tokio::test]
async fn a_restored_backup_alone_sends_again_what_came_after_it() {
    // What the steps above are for: without them there would be second e-mails. If this fails because nothing is sent
    // twice, docs/operations.md asks for more than is needed.
    let sandbox = surveylab().await;
    let directory = tempfile::tempdir().unwrap();
    let (gateway, backup) = a_gateway_that_went_on(&sandbox, directory.path()).await;
    let gateway = stop(gateway).await;
    fs::copy(&backup, directory.path().join(LEDGER)).unwrap();
    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    sandbox.clear_faults();
    for crk in ["new", "failed, added since"] {
        assert_eq!(sandbox.effects_of(COLLECTOR, crk), 1);
        assert_eq!(added(&client, request(crk)).await, Outcome::Added);
        assert_eq!(sandbox.effects_of(COLLECTOR, crk), 2);
    }
}
