use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use surveylab_gateway::{
    proto::{AddRespondentRequest, Invitation, InvitationState, ListInvitationsRequest},
    sandbox::{Fault, Gate},
};

use super::{LEDGER, json, ledger, made, over, stop, told};
use crate::support::{
    Gateway,
    call::{COLLECTOR, Client, add, rpc_error},
    gateway::{BINARY, surveylab},
    request,
    watch::{page, soon},
};

/// All of a collector's invitations, as the API lists them.
async fn listed(client: &Client, collector_id: &str) -> Vec<Invitation> {
    let request = ListInvitationsRequest {
        collector_id: collector_id.into(),
        page_size: 1000,
        ..ListInvitationsRequest::default()
    };
    page(client, request).await.invitations
}

/// A row as the API would have it.
fn expected(invitation: &Invitation) -> Value {
    let time = |time: Option<prost_types::Timestamp>| {
        let time = std::time::SystemTime::try_from(time?).unwrap();
        Some(humantime::format_rfc3339_micros(time).to_string())
    };
    let error = invitation.last_error.clone().map(rpc_error);
    let http_status = error.as_ref().and_then(|error| error.http_status());
    let state = invitation.state().as_str_name();
    serde_json::json!({
        "collector_id": invitation.collector_id,
        "crk": invitation.crk,
        "state": state.strip_prefix("INVITATION_STATE_").unwrap(),
        "attempts": invitation.attempts,
        "created_at": time(invitation.created_at),
        "updated_at": time(invitation.updated_at),
        "added_at": time(invitation.added_at),
        "reason": error.as_ref().map(|error| error.reason.clone()),
        "http_status": http_status.map(|status| status.parse::<u16>().unwrap()),
    })
}

/// Exported lines of JSON without the notification, which the API shows with an answer only, and those notifications.
fn without_notifications(ndjson: &str) -> (Vec<Value>, Vec<Value>) {
    let lines = ndjson.lines().map(|line| {
        let mut row = json(line);
        let notification = row.as_object_mut().unwrap().remove("notification").unwrap();
        (row, notification)
    });
    lines.unzip()
}

/// CSV as NDJSON would have it.
fn rows_of_csv(text: &str) -> Vec<Value> {
    let mut csv = csv::Reader::from_reader(text.as_bytes());
    let names = csv.headers().unwrap().clone();
    let rows = csv.records().map(|row| {
        let row = row.unwrap();
        let fields = names.iter().zip(row.iter()).map(|(name, text)| {
            let value = match name {
                _ if text.is_empty() => Value::Null,
                "attempts" | "http_status" => text.parse::<u64>().unwrap().into(),
                _ => text.into(),
            };
            (name.to_string(), value)
        });
        Value::Object(fields.collect())
    });
    rows.collect()
}

#[tokio::test]
async fn an_export_is_what_the_api_lists_in_both_formats_whether_a_gateway_runs_or_not() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::status(404).for_crk_prefix("failed"));
    sandbox.add_fault(Fault::reset_before_answer().for_crk_prefix("doubt"));
    sandbox.add_fault(Fault::status(503).for_crk("again").times(1));
    sandbox.add_fault(Fault::hold(&gate).for_crk_prefix("held"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(LEDGER);
    let gateway = Gateway::with(over(&path), &sandbox).await;
    let client = gateway.client().await;
    let odd = [
        "=1+1",
        "@x",
        "a,b",
        "say \"hi\"",
        "żółć",
        "x;y",
        "failed",
        "doubt 1",
        "doubt 2",
        "again",
        "~",
    ];
    for crk in odd {
        let _ = add(&client, request(crk)).await;
    }
    let elsewhere = AddRespondentRequest {
        collector_id: "another".into(),
        ..request("z")
    };
    add(&client, elsewhere).await.unwrap();
    // One claim over nothing, one over a refusal.
    sandbox.add_fault(Fault::status(404).for_crk("held failed").times(1));
    let requests = sandbox.report().requests;
    let calls: Vec<_> = ["held", "held later"]
        .map(|crk| {
            let client = client.clone();
            tokio::spawn(async move { add(&client, request(crk)).await })
        })
        .into();
    soon(sandbox.wait_for_requests(requests + 2)).await;

    let mut all: Vec<Value> = Vec::new();
    for collector in ["another", COLLECTOR] {
        all.extend(listed(&client, collector).await.iter().map(expected));
    }
    assert_eq!(all.len(), odd.len() + 3);
    let ndjson = told(&path, &["export", "--format=ndjson"]).await;
    let (rows, notifications) = without_notifications(&ndjson);
    assert_eq!(rows, all);
    assert_eq!(notifications[0], "Action processed correctly");

    let (code, csv, stderr) = ledger(&path, &["export"]).await;
    assert_eq!(code, Some(0));
    assert!(csv.starts_with(
        "collector_id,crk,state,attempts,created_at,updated_at,added_at,reason,http_status,notification\n"
    ));
    assert_eq!(rows_of_csv(&csv), ndjson.lines().map(json).collect::<Vec<_>>());
    assert!(csv.contains("\nc0llector,=1+1,ADDED,"), "as it is: {csv}");
    assert!(stderr.contains("2 values begin with =, +, - or @"), "{stderr}");

    // Filters.
    for (flag, state) in [
        ("pending", InvitationState::Pending),
        ("added", InvitationState::Added),
        ("failed", InvitationState::Failed),
        ("in-doubt", InvitationState::InDoubt),
    ] {
        let name = state.as_str_name().strip_prefix("INVITATION_STATE_").unwrap();
        let text = told(&path, &["export", "--format=ndjson", "--state", flag]).await;
        let wanted: Vec<Value> = all.iter().filter(|row| row["state"] == name).cloned().collect();
        assert!(!wanted.is_empty(), "{flag}");
        assert_eq!(without_notifications(&text).0, wanted, "{flag}");
    }
    let text = told(&path, &["export", "--format=ndjson", "--collector=another"]).await;
    assert_eq!(without_notifications(&text).0, all[..1]);
    assert_eq!(
        told(&path, &["export", "--collector=nobody's"]).await.lines().count(),
        1,
        "the names"
    );
    assert_eq!(
        told(&path, &["export", "--collector=nobody's", "--format=ndjson"]).await,
        ""
    );

    gate.release();
    for call in calls {
        soon(call).await.unwrap().unwrap();
    }
    let mut all: Vec<Value> = Vec::new();
    for collector in ["another", COLLECTOR] {
        all.extend(listed(&client, collector).await.iter().map(expected));
    }
    let gateway = stop(gateway).await;
    let ndjson = told(&path, &["export", "--format=ndjson"]).await;
    assert_eq!(without_notifications(&ndjson).0, all);
    drop(gateway);

    // Into a file: the same, not over another one, and nothing else beside it.
    let file = directory.path().join("export.ndjson");
    let name = file.to_str().unwrap();
    let into_file = ["export", "--format=ndjson", "--output", name];
    told(&path, &into_file).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), ndjson);
    let (code, _, stderr) = ledger(&path, &into_file).await;
    assert_eq!(
        (code, stderr.contains("is there already; --force replaces it")),
        (Some(2), true),
        "{stderr}"
    );
    told(&path, &[&into_file[..], &["--force"]].concat()).await;
    assert_eq!(super::files(directory.path()).len(), 3, "ledger, lock and export");
}

/// An export whose reader is slow: the process, and a way to read its lines.
fn export(path: &Path) -> (std::process::Child, impl Iterator<Item = String>) {
    let mut child = Command::new(BINARY)
        .args(["ledger", "export", "--format=ndjson"])
        .arg(format!("--ledger=sqlite:{}", path.display()))
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines.map_while(Result::ok))
}

/// The most memory that an export has taken when its last lines are to be read.
fn peak_memory(keys: u32) -> u64 {
    let (_directory, path) = made(keys);
    let (mut child, mut lines) = export(&path);
    // More than fits into a pipe is left unread, so the process still is there.
    let left = 5_000;
    assert_eq!(lines.by_ref().take((keys - left) as usize).count() as u32, keys - left);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    assert_eq!(lines.count() as u32, left);
    assert!(child.wait().unwrap().success());
    kilobytes * 1024
}

#[tokio::test]
async fn an_export_takes_no_more_memory_for_many_keys_and_ends_when_nobody_reads() {
    let (few, many) = (peak_memory(10_000), peak_memory(150_000));
    println!("peak memory: {few} bytes for 10000 keys, {many} for 150000");
    // The ledger is 15 MB larger, its export 35.
    assert!(
        many < few + (4 << 20),
        "{few} bytes for 10 000 keys, {many} for 150 000"
    );

    let (_directory, path) = made(20_000);
    let (child, mut lines) = export(&path);
    assert!(lines.next().is_some());
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()),
        (Some(0), "")
    );
}
