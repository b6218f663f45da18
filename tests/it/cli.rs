//! The commands that people and scripts use, each against a real gateway.

use serde_json::Value;
use surveylab_gateway::{
    proto::{InvitationState, ListInvitationsRequest, Outcome},
    sandbox::Fault,
};
use tonic::Code;

use crate::support::{
    Gateway, added,
    call::{COLLECTOR, stream},
    gateway::{BINARY, run, surveylab},
    process::Process,
    request, status_error,
    watch::{list, page, soon},
};

/// Exit code, stdout, stderr.
type Ran = (Option<i32>, String, String);

/// Runs a command against a gateway.
async fn command(gateway: &Gateway, arguments: &[&str]) -> Ran {
    let target = format!("http://{}", gateway.grpc);
    soon(run(arguments, &[("GATEWAY_TARGET", &target)])).await
}

async fn add(gateway: &Gateway, crk: &str, flags: &[&str]) -> Ran {
    let common = [
        "add",
        "--collector",
        COLLECTOR,
        "--email",
        "jan@example.com",
        "--crk",
        crk,
    ];
    command(gateway, &[&common, flags].concat()).await
}

async fn invitations(gateway: &Gateway, what: &str, crk: &str, flags: &[&str]) -> Ran {
    let common = ["invitations", what, "--collector", COLLECTOR, "--crk", crk];
    command(gateway, &[&common, flags].concat()).await
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn add_tells_what_happened_in_words_json_and_exit_code() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::reset_before_answer().for_crk("doubt").times(1));
    sandbox.add_fault(Fault::status(404).for_crk("missing"));
    let gateway = Gateway::start(&sandbox).await;

    // 0: added, or added before.
    let (code, stdout, stderr) = add(&gateway, "k", &["--first-name=Jan", "--custom", "3=gold"]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(
        stdout.starts_with("added: k at ") && stdout.contains("Action processed correctly"),
        "{stdout}"
    );
    let sent = &sandbox.requests()[0];
    assert_eq!(
        (sent.parameter("firstName"), sent.parameter("custom3")),
        (Some("Jan"), Some("gold"))
    );
    let same = ["--first-name=Jan", "--custom=3=gold"];
    let (code, stdout, _) = add(&gateway, "k", &same).await;
    assert_eq!(code, Some(0));
    assert!(stdout.starts_with("duplicate: k was added at "), "{stdout}");
    let (code, stdout, _) = add(&gateway, "k", &[&same[..], &["--json"]].concat()).await;
    let answer = json(&stdout);
    assert_eq!(code, Some(0));
    assert_eq!(
        (&answer["crk"], &answer["outcome"]),
        (&"k".into(), &"OUTCOME_DUPLICATE".into())
    );
    assert_eq!(answer["attempts"], 1);
    let (code, stdout, _) = add(&gateway, "other", &["--validate-only"]).await;
    assert_eq!(
        (code, stdout.starts_with("would add: other")),
        (Some(0), true),
        "{stdout}"
    );
    assert_eq!(sandbox.report().requests, 1);

    // 3: refused.
    let (code, stdout, stderr) = add(&gateway, "k", &[]).await;
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    assert!(stderr.starts_with("ALREADY_EXISTS CRK_REUSED: "), "{stderr}");
    let (code, stdout, stderr) = add(&gateway, "missing", &["--json"]).await;
    assert_eq!((code, stderr.as_str()), (Some(3), ""));
    let error = &json(&stdout)["error"];
    assert_eq!(
        (&error["code"], &error["reason"]),
        (&"NOT_FOUND".into(), &"SURVEYLAB_NOT_FOUND".into())
    );
    assert_eq!(
        (&error["metadata"]["sent"], &error["metadata"]["http_status"]),
        (&"yes".into(), &"404".into())
    );
    let (code, stdout, _) = add(
        &gateway,
        "bad",
        &["--phone=1\u{7}", "--language=english please", "--json"],
    )
    .await;
    assert_eq!(code, Some(3));
    let violations = json(&stdout)["error"]["fieldViolations"].clone();
    let fields: Vec<_> = violations
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["field"].as_str().unwrap())
        .collect();
    assert_eq!(fields.len(), 2, "{violations}");
    assert!(
        fields.contains(&"phone") && fields.contains(&"language"),
        "{violations}"
    );

    // 4: in doubt.
    let (code, _, stderr) = add(&gateway, "doubt", &[]).await;
    assert_eq!(code, Some(4));
    assert!(
        stderr.contains("OUTCOME_IN_DOUBT") && stderr.contains("(sent to SurveyLab: unknown)"),
        "{stderr}"
    );
    let (code, stdout, _) = add(&gateway, "doubt", &["--json"]).await;
    assert_eq!(
        (code, json(&stdout)["error"]["reason"].as_str()),
        (Some(4), Some("OUTCOME_IN_DOUBT"))
    );
    let (code, stdout, _) = add(&gateway, "doubt", &["--resend-in-doubt", "--json"]).await;
    assert_eq!((code, json(&stdout)["attempts"].as_u64()), (Some(0), Some(2)));
}

#[tokio::test]
async fn a_field_that_is_given_twice_is_refused_before_anything_is_sent() {
    let arguments = ["add", "--collector=c", "--email=a@example.com", "--crk=k"];
    let (code, _, stderr) = soon(run(&[&arguments[..], &["--custom=1=x", "--custom=1=y"]].concat(), &[])).await;
    assert_eq!(
        (code, stderr.as_str()),
        (Some(2), "surveylab-gateway: --custom: a field is given twice\n")
    );
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_is_called_so_whoever_notices_it_first() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::hang());
    let gateway = Gateway::start(&sandbox).await;
    for crk in ["a", "b", "c", "d"] {
        let (code, _, stderr) = add(&gateway, crk, &["--timeout=300ms"]).await;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.starts_with("DEADLINE_EXCEEDED"), "{stderr}");
        assert!(stderr.contains("the same c"), "{stderr}");
    }
}

#[tokio::test]
async fn add_can_be_tried_again_when_there_is_no_gateway_or_no_time() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(429).retry_after("3600"));
    let gateway = Gateway::start(&sandbox).await;
    // 1: not now.
    for crk in ["k", "k", "other"] {
        let (code, _, stderr) = add(&gateway, crk, &[]).await;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(
            stderr.contains("RESOURCE_EXHAUSTED") && stderr.contains("try again in "),
            "{stderr}"
        );
    }
    let nobody = TcpPort::closed();
    for flags in [&[][..], &["--json"]] {
        let (code, stdout, stderr) = add(&gateway, "k", &[&["--target", &nobody.0], flags].concat()).await;
        assert_eq!(code, Some(1));
        assert!(
            format!("{stdout}{stderr}").contains(&format!("no gateway at {}", nobody.0)),
            "{stdout}{stderr}"
        );
    }

    // 2: wrong flags.
    for wrong in [&["--custom=9=x"][..], &["--target=ftp://x"], &["--timeout=never"]] {
        let (code, stdout, stderr) = add(&gateway, "k", wrong).await;
        assert_eq!(
            (code, stdout.as_str(), stderr.lines().count()),
            (Some(2), "", 1),
            "{stderr}"
        );
        let flag = wrong[0].split('=').next().unwrap();
        assert!(stderr.contains(flag), "{stderr}");
    }
    let (code, _, stderr) = command(&gateway, &["add", "--crk=k"]).await;
    assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("--collector") && stderr.contains("--email"), "{stderr}");
}

/// A URL where nobody listens.
struct TcpPort(String);

impl TcpPort {
    fn closed() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self(format!("http://{}", listener.local_addr().unwrap()))
    }
}

#[tokio::test]
async fn invitations_can_be_looked_at_and_settled() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::reset_before_answer().for_crk_prefix("doubt").times(2));
    sandbox.add_fault(Fault::status(404).for_crk("failed"));
    let gateway = Gateway::start(&sandbox).await;
    for (crk, expected) in [("added", 0), ("doubt1", 4), ("doubt2", 4), ("failed", 3)] {
        assert_eq!(add(&gateway, crk, &[]).await.0, Some(expected), "{crk}");
    }

    let (code, stdout, _) = invitations(&gateway, "get", "added", &[]).await;
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("state       added") && stdout.contains("attempts    1"),
        "{stdout}"
    );
    let (_, stdout, _) = invitations(&gateway, "get", "doubt1", &["--json"]).await;
    let doubt = json(&stdout);
    assert_eq!(doubt["state"], "INVITATION_STATE_IN_DOUBT");
    assert_eq!(doubt["lastError"]["reason"], "OUTCOME_IN_DOUBT");
    assert!(
        doubt.get("addedAt").is_none() && doubt["createdAt"].is_string(),
        "{doubt}"
    );
    let (code, _, stderr) = invitations(&gateway, "get", "unknown", &[]).await;
    assert_eq!(code, Some(3));
    assert!(stderr.starts_with("NOT_FOUND"), "{stderr}");

    let (code, stdout, _) = command(&gateway, &["invitations", "list"]).await;
    assert_eq!(code, Some(0));
    let rows: Vec<&str> = stdout.lines().collect();
    assert!(rows[0].starts_with("COLLECTOR"), "{stdout}");
    for (row, words) in rows[1..].iter().zip(["added", "doubt1", "doubt2", "failed"]) {
        assert!(row.contains(COLLECTOR) && row.contains(words), "{stdout}");
    }
    assert!(rows[4].contains("SURVEYLAB_NOT_FOUND (HTTP 404)"), "{stdout}");
    let (_, stdout, _) = command(&gateway, &["invitations", "list", "--state=in-doubt", "--json"]).await;
    let crks: Vec<Value> = stdout.lines().map(|line| json(line)["crk"].clone()).collect();
    assert_eq!(crks, ["doubt1", "doubt2"]);
    let (code, stdout, _) = command(&gateway, &["invitations", "list", "--collector=another"]).await;
    assert_eq!((code, stdout.trim()), (Some(0), "none"));
    let (code, stdout, _) = command(&gateway, &["invitations", "list", "--collector=another", "--json"]).await;
    assert_eq!((code, stdout.as_str()), (Some(0), ""));

    let (code, stdout, _) = invitations(&gateway, "resolve", "doubt1", &["--as=added", "--json"]).await;
    assert_eq!(
        (code, json(&stdout)["state"].as_str()),
        (Some(0), Some("INVITATION_STATE_ADDED"))
    );
    let (code, stdout, _) = invitations(&gateway, "resolve", "doubt2", &["--as=not-added"]).await;
    assert_eq!((code, stdout.contains("failed")), (Some(0), true), "{stdout}");
    for crk in ["doubt1", "doubt2", "added"] {
        let (code, _, stderr) = invitations(&gateway, "resolve", crk, &["--as=added"]).await;
        assert_eq!((code, stderr.contains("NOT_IN_DOUBT")), (Some(3), true), "{stderr}");
    }
    assert_eq!(
        invitations(&gateway, "resolve", "doubt1", &["--as=perhaps"]).await.0,
        Some(2)
    );
    assert_eq!(invitations(&gateway, "resolve", "doubt1", &[]).await.0, Some(2));

    // Settled as added: a duplicate now. As not added: free.
    let (_, stdout, _) = add(&gateway, "doubt1", &[]).await;
    assert!(stdout.starts_with("duplicate"), "{stdout}");
    let (_, stdout, _) = add(&gateway, "doubt2", &[]).await;
    assert!(stdout.starts_with("added"), "{stdout}");
    assert_eq!(
        (
            sandbox.requests_of(COLLECTOR, "doubt1"),
            sandbox.requests_of(COLLECTOR, "doubt2")
        ),
        (1, 2)
    );
}

#[tokio::test]
async fn a_list_goes_over_many_pages() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let crks: Vec<String> = (0..2100).map(|i| format!("k{i:04}")).collect();
    for result in stream(&client, crks.iter().map(|crk| request(crk)).collect()).await {
        result.unwrap();
    }
    let (code, stdout, _) = command(&gateway, &["invitations", "list", "--json"]).await;
    assert_eq!(code, Some(0));
    let listed: Vec<String> = stdout
        .lines()
        .map(|line| json(line)["crk"].as_str().unwrap().into())
        .collect();
    assert_eq!(listed, crks);
    let (_, stdout, _) = command(&gateway, &["invitations", "list"]).await;
    assert_eq!(stdout.lines().count(), 1 + crks.len(), "one header");
    for limit in [1, 1000, 1001] {
        let limited = format!("--limit={limit}");
        let (_, stdout, _) = command(&gateway, &["invitations", "list", "--json", &limited]).await;
        assert_eq!(stdout.lines().count(), limit);
    }
    // The call's own bounds: at most 1000 a page, 100 if nothing is asked for.
    for (asked, given) in [(0, 100), (7, 7), (1000, 1000), (5000, 1000)] {
        let request = ListInvitationsRequest {
            page_size: asked,
            ..ListInvitationsRequest::default()
        };
        assert_eq!(page(&client, request).await.invitations.len(), given);
    }
    assert_eq!(list(&client, InvitationState::Added).await, crks);
}

#[tokio::test]
async fn pages_go_by_the_order_of_keys_whatever_is_added_between_them() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    for i in 0..30 {
        added(&client, request(&format!("k{:02}", i * 3))).await;
    }
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let asked = ListInvitationsRequest {
            collector_id: COLLECTOR.into(),
            page_size: 10,
            page_token,
            ..ListInvitationsRequest::default()
        };
        let page = page(&client, asked).await;
        listed.extend(page.invitations.into_iter().map(|invitation| invitation.crk));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        // One before the place where the listing goes on, one behind it.
        let last: u32 = listed.last().unwrap()[1..].parse().unwrap();
        for number in [last - 1, last + 1] {
            assert_eq!(added(&client, request(&format!("k{number:02}"))).await, Outcome::Added);
        }
    }
    assert!(listed.is_sorted());
    let old = listed
        .iter()
        .filter(|crk| crk[1..].parse::<u32>().unwrap() % 3 == 0)
        .count();
    assert_eq!(old, 30, "each exactly once: {listed:?}");
    let new: Vec<&String> = listed
        .iter()
        .filter(|crk| crk[1..].parse::<u32>().unwrap() % 3 == 1)
        .collect();
    assert!(
        !new.is_empty() && listed.len() == old + new.len(),
        "those behind, not those before: {listed:?}"
    );

    let wrong = ListInvitationsRequest {
        page_token: "page 2".into(),
        page_size: -1,
        ..ListInvitationsRequest::default()
    };
    let error = status_error(&client.clone().list_invitations(wrong).await.unwrap_err());
    assert_eq!(
        (error.code, error.reason.as_str()),
        (Code::InvalidArgument, "INVALID_REQUEST")
    );
    assert_eq!(error.violations, ["page_size", "page_token"]);
}

#[tokio::test]
async fn healthcheck_tells_by_its_exit_code_whether_a_gateway_serves() {
    let sandbox = surveylab().await;
    let mut gateway = Gateway::start(&sandbox).await;
    let (code, stdout, _) = command(&gateway, &["healthcheck"]).await;
    assert_eq!((code, stdout.trim()), (Some(0), "serving"));
    let target = gateway.grpc.to_string();
    assert_eq!(soon(run(&["healthcheck", "--target", &target], &[])).await.0, Some(0));
    gateway.kill();
    let (code, _, stderr) = command(&gateway, &["healthcheck"]).await;
    assert_eq!((code, stderr.contains("no gateway at ")), (Some(1), true), "{stderr}");
}

#[tokio::test]
async fn odd_command_lines_and_closed_pipes_are_no_reason_to_panic() {
    let (code, _, stderr) = soon(run(&["add", "--timeout=20000years"], &[])).await;
    assert_eq!((code, stderr.contains("--timeout")), (Some(2), true), "{stderr}");

    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    // Neither the unreadable word nor the reader that has gone before the first line may end in a panic (exit code 101).
    let script = format!(
        "\"$0\" $'\\xff'; unreadable=$?; \"$0\" add --target {} --collector c --email a@b.co --crk k | true; \
         echo \"$unreadable ${{PIPESTATUS[0]}}\"",
        gateway.grpc
    );
    let output = tokio::process::Command::new("bash")
        .args(["-c", &script, BINARY])
        .output();
    let output = soon(output).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "2 0", "{output:?}");
}

#[tokio::test]
async fn the_sandbox_runs_by_itself_and_reports_when_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["sandbox", "--listen=127.0.0.1:0", "--fault=status=503,times=1,crk=k"];
    let mut sandbox = Process::spawn(&flags, &[], directory.path());
    let line = sandbox.line_with("http://").await;
    let url = line
        .split_whitespace()
        .find(|word| word.starts_with("http://"))
        .unwrap();
    assert!(url.ends_with("/api.php"), "{line}");
    let gateway = Gateway::in_front_of(url, crate::support::Options::new()).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    assert_eq!(added(&client, request("other")).await, Outcome::Added);
    let (code, rest) = sandbox.terminate().await;
    assert_eq!(
        (code, rest),
        (
            Some(0),
            vec!["received 3 requests, sent 2 e-mails, 0 keys twice".to_string()]
        )
    );
}
