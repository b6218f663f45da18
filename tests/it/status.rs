//! GetStatus and the command `status`: what a person on call is told, also while things are bad.

use std::{fs, time::SystemTime};

use serde_json::Value;
use surveylab_gateway::{
    proto::{GetStatusRequest, GetStatusResponse, Outcome, ServingState},
    sandbox::Fault,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{
    Gateway, Options, adding,
    call::Client,
    gateway::{run, surveylab},
    holding,
    process::Process,
    request,
    watch::{metric, soon, until, until_waiting},
};

pub async fn status(client: &Client) -> GetStatusResponse {
    soon(client.clone().get_status(GetStatusRequest {}))
        .await
        .unwrap()
        .into_inner()
}

fn seconds(span: Option<prost_types::Duration>) -> f64 {
    span.map_or(0.0, |span| std::time::Duration::try_from(span).unwrap().as_secs_f64())
}

#[tokio::test]
async fn a_quiet_gateway_tells_its_settings() {
    let sandbox = surveylab().await;
    let options = Options::new()
        .flag("--rate", "120/m")
        .flag("--burst", 7)
        .flag("--max-queue", 11)
        .flag("--max-in-flight", 13);
    let before = SystemTime::now();
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let status = status(&client).await;
    let started: SystemTime = status.started_at.unwrap().try_into().unwrap();
    // Ledgers keep microseconds.
    assert!(started >= before - std::time::Duration::from_micros(1) && started <= SystemTime::now());
    assert!(
        status.tokens_available > 6.0 && status.tokens_available <= 7.0,
        "{status:?}"
    );
    let expected = GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        state: ServingState::Serving.into(),
        configured_rate: 2.0,
        learned_rate: 2.0,
        burst: 7,
        max_queue: 11,
        max_in_flight: 13,
        unary_wait: Some(prost_types::Duration::default()),
        stream_wait: Some(prost_types::Duration::default()),
        ledger: "sqlite".into(),
        started_at: status.started_at,
        tokens_available: status.tokens_available,
        ..GetStatusResponse::default()
    };
    assert_eq!(status, expected);
    assert_eq!(metric(&gateway, "calls_total", r#"method="GetStatus""#).await, 1.0);
    assert_eq!(sandbox.report().requests, 0);
}

#[tokio::test]
async fn what_waits_and_what_is_under_way_is_counted_while_it_lasts() {
    let (sandbox, gate) = holding().await;
    let options = Options::new()
        .flag("--max-in-flight", 1)
        .flag("--rate", "1/m")
        .flag("--burst", 1)
        .flag("--max-wait", "10h");
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let first = adding(&client, "first");
    soon(sandbox.wait_for_requests(1)).await;
    let others = [adding(&client, "a"), adding(&client, "b")];
    let (items, requests) = mpsc::channel(3);
    for crk in ["c", "d", "e"] {
        items.send(request(crk)).await.unwrap();
    }
    let mut streaming = client.clone();
    let opened = streaming.stream_add_respondent(ReceiverStream::new(requests));
    let results = soon(opened).await.unwrap().into_inner();
    until_waiting(&gateway, "", 5).await;

    let busy = status(&client).await;
    assert_eq!((busy.in_flight, busy.open_streams), (1, 1));
    assert_eq!((busy.waiting_unary, busy.waiting_streams), (2, 3));
    assert!(busy.tokens_available < 1.0, "{busy:?}");
    // Three minutes, of which some have passed: the token after those of two calls. Then one for the stream that waits.
    let (unary, stream) = (seconds(busy.unary_wait), seconds(busy.stream_wait));
    assert!(unary > 0.0 && unary <= 180.0, "{busy:?}");
    assert!((stream - unary - 60.0).abs() < 1.0, "{busy:?}");

    drop((results, items));
    others.iter().for_each(JoinHandle::abort);
    gate.release();
    assert_eq!(soon(first).await.unwrap(), Outcome::Added);
    until("nothing is counted any more", async || {
        let quiet = status(&client).await;
        let counts = [
            quiet.in_flight,
            quiet.open_streams,
            quiet.waiting_unary,
            quiet.waiting_streams,
        ];
        counts == [0; 4]
    })
    .await;
}

#[tokio::test]
async fn a_pause_is_told_and_what_it_taught() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(429).retry_after("600").times(1));
    let options = Options::new().flag("--rate", "10/s").flag("--max-wait", "5s");
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    client.clone().add_respondent(request("k")).await.unwrap_err();
    let paused = status(&client).await;
    assert_eq!((paused.state(), &*paused.state_reason), (ServingState::Serving, ""));
    assert!((paused.learned_rate - 7.0).abs() < 1e-9, "{paused:?}");
    let pause = seconds(paused.pause);
    assert!(pause > 0.0 && pause <= 600.0, "{paused:?}");
    for wait in [paused.unary_wait, paused.stream_wait] {
        assert!((seconds(wait) - pause).abs() < 1.0, "{paused:?}");
    }
    let (code, stdout, _) = command(&gateway, &[]).await;
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(
        lines[1].starts_with("paused for ") && lines[1].ends_with(": SurveyLab answered 429"),
        "{stdout}"
    );
    assert!(lines[2].starts_with("rate 10/s, learned 7/s"), "{stdout}");
}

#[tokio::test]
async fn a_ledger_that_cannot_write_is_told_until_it_can() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let (file, away) = (gateway.path("surveylab-gateway.db"), gateway.path("away"));
    fs::rename(&file, &away).unwrap();
    // Nobody has called: asking is enough.
    let bad = status(&client).await;
    assert_eq!(bad.state(), ServingState::LedgerUnavailable);
    assert!(bad.state_reason.contains("was deleted or moved away"), "{bad:?}");
    let (code, stdout, _) = command(&gateway, &[]).await;
    assert_eq!(code, Some(0), "it answered");
    assert!(
        stdout.starts_with("nothing is sent: the ledger is unavailable: "),
        "{stdout}"
    );
    fs::rename(&away, &file).unwrap();
    until("the ledger is back", async || {
        status(&client).await.state() == ServingState::Serving
    })
    .await;
}

#[tokio::test]
async fn draining_is_told_while_it_lasts() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let held = adding(&client, "k");
    soon(sandbox.wait_for_requests(1)).await;
    gateway.signal("TERM");
    until("it drains", async || {
        status(&client).await.state() == ServingState::Draining
    })
    .await;
    let draining = status(&client).await;
    assert_eq!((&*draining.state_reason, draining.in_flight), ("shutting down", 1));
    let (code, stdout, _) = command(&gateway, &[]).await;
    assert_eq!(
        (code, stdout.lines().next()),
        (Some(0), Some("draining: shutting down"))
    );
    gate.release();
    assert_eq!(soon(held).await.unwrap(), Outcome::Added);
    assert!(soon(gateway.ended()).await.success());
}

/// `status` against a gateway: exit code, stdout, stderr.
async fn command(gateway: &Gateway, flags: &[&str]) -> (Option<i32>, String, String) {
    let target = gateway.grpc.to_string();
    soon(run(&[&["status"], flags].concat(), &[("GATEWAY_TARGET", &target)])).await
}

#[tokio::test]
async fn the_command_tells_people_lines_and_programs_json() {
    let sandbox = surveylab().await;
    let options = Options::new()
        .flag("--rate", "2/s")
        .flag("--burst", 5)
        .flag("--ledger", "memory:");
    let gateway = Gateway::with(options, &sandbox).await;
    let (code, stdout, stderr) = command(&gateway, &[]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[..2], ["serving", "rate 2/s; 4 of 5 tokens available"]);
    let version = format!("version {}, ledger memory, up ", env!("CARGO_PKG_VERSION"));
    assert!(lines.last().is_some_and(|line| line.starts_with(&version)), "{stdout}");

    let (code, stdout, stderr) = command(&gateway, &["--json"]).await;
    assert_eq!((code, stderr.as_str(), stdout.lines().count()), (Some(0), "", 1));
    let told: Value = serde_json::from_str(&stdout).unwrap();
    for (name, value) in [
        ("state", Value::from("SERVING_STATE_SERVING")),
        ("stateReason", "".into()),
        ("configuredRate", 2.0.into()),
        ("learnedRate", 2.0.into()),
        ("burst", 5.into()),
        ("pauseSeconds", 0.0.into()),
        ("waitingUnary", 0.into()),
        ("waitingStreams", 0.into()),
        ("maxQueue", 100_000.into()),
        ("inFlight", 0.into()),
        ("maxInFlight", 32.into()),
        ("openStreams", 0.into()),
        ("unaryWaitSeconds", 0.0.into()),
        ("streamWaitSeconds", 0.0.into()),
        ("ledger", "memory".into()),
        ("sandbox", false.into()),
    ] {
        assert_eq!(told[name], value, "{name}: {stdout}");
    }
}

#[tokio::test]
async fn the_commands_exit_codes_are_those_of_the_others() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let nobody = ["--target", "127.0.0.1:1", "--timeout=1s"];
    let (code, stdout, stderr) = command(&gateway, &nobody).await;
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (Some(1), "", 1));
    assert!(stderr.contains("no gateway at http://127.0.0.1:1"), "{stderr}");
    let (code, stdout, stderr) = command(&gateway, &[&nobody[..], &["--json"]].concat()).await;
    assert_eq!((code, stderr.as_str()), (Some(1), ""));
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(told["error"]["code"], "UNAVAILABLE", "{stdout}");
    let (code, stdout, stderr) = command(&gateway, &["--watch=yes"]).await;
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (Some(2), "", 1));
}

#[tokio::test]
async fn a_watch_goes_on_when_the_gateway_goes_and_ends_with_ctrl_c() {
    let sandbox = surveylab().await;
    let mut gateway = Gateway::with(Options::new().flag("--rate", "3/s"), &sandbox).await;
    let target = gateway.grpc.to_string();
    for flags in [&[][..], &["--json"]] {
        let arguments = [&["status", "--watch", "--target", &target], flags].concat();
        let mut watch = Process::spawn(&arguments, &[], gateway.directory.path());
        let text = if flags.is_empty() {
            "rate 3/s"
        } else {
            "\"configuredRate\":3.0"
        };
        for _ in 0..2 {
            watch.line_with(text).await;
        }
        let (code, rest) = watch.end_with("INT").await;
        assert_eq!(code, Some(0));
        assert!(rest.iter().all(|line| !line.contains('\u{1b}')), "{rest:?}");
    }

    let mut watch = Process::spawn(
        &["status", "--watch", "--target", &target],
        &[],
        gateway.directory.path(),
    );
    watch.line_with("serving").await;
    gateway.kill();
    for _ in 0..2 {
        watch.line_with("no gateway at").await;
    }
    assert_eq!(watch.end_with("TERM").await.0, Some(0));
}

#[tokio::test]
async fn a_watch_ends_when_nobody_reads() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let (target, binary) = (gateway.grpc.to_string(), crate::support::gateway::BINARY);
    // `head` leaves after the first line.
    let script = format!("{binary} status --watch --json --target {target} | head -n 1; echo \"${{PIPESTATUS[0]}}\"");
    let output = tokio::process::Command::new("bash").args(["-c", &script]).output();
    let output = soon(output).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().nth(1), Some("0"), "{text}");
}
