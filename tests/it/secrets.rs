//! The API token and personal data go to SurveyLab and nowhere else: not into logs, errors, metrics or the ledger,
//! whatever goes wrong, and also where SurveyLab's answer repeats them.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use surveylab_gateway::{
    proto::{AddRespondentRequest, ListInvitationsRequest, Outcome, Resolution},
    sandbox::{Fault, Gate, Sandbox},
};
use tonic::Status;

use crate::support::{
    Gateway, Options, added,
    call::{Client, resolve},
    deadline::with_deadline,
    gateway::{TOKEN, surveylab},
    request,
    watch::until,
};
use crate::token::{NEXT_TOKEN, TokenFile, accept, until_read_again};

/// Values that occur nowhere else, by the field that they are in.
const CANARIES: [(&str, &str); 8] = [
    ("email", "c4nary.mail+tag@c4nary.example.com"),
    ("phone", "+48 600 c4nary 100"),
    ("first_name", "C4naryna Żółć"),
    ("last_name", "C4narska/Nowak"),
    ("referrer", "c4nary referrer?a=b&c=d"),
    ("custom1", "c4nary\tcustom \"one\""),
    ("custom8", "c4nary-custom-eight 😀"),
    ("token", TOKEN),
];

fn value(field: &str) -> String {
    let (_, value) = CANARIES.iter().find(|(is, _)| *is == field).unwrap();
    value.to_string()
}

fn canary(crk: &str) -> AddRespondentRequest {
    AddRespondentRequest {
        email: value("email"),
        phone: value("phone"),
        first_name: value("first_name"),
        last_name: value("last_name"),
        referrer: value("referrer"),
        custom1: value("custom1"),
        custom8: value("custom8"),
        ..request(crk)
    }
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Every form in which a value could show: as it is, in JSON or `Debug`, percent-encoded, as in a form.
fn forms(value: &str) -> Vec<String> {
    let encoded = utf8_percent_encode(value, UNRESERVED).to_string();
    let unquoted = |quoted: String| quoted[1..quoted.len() - 1].to_string();
    let mut forms = vec![
        value.to_string(),
        unquoted(format!("{value:?}")),
        unquoted(serde_json::Value::from(value).to_string()),
        encoded.to_lowercase(),
        encoded.replace("%20", "+"),
        encoded,
    ];
    forms.sort();
    forms.dedup();
    forms
}

/// One character a byte: text and binary files are searched alike, with the quick search that texts have.
fn bytewise(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Where things were said: a name for the place, and what it holds.
#[derive(Default)]
pub struct Places(Vec<(String, String)>);

impl Places {
    pub fn add(&mut self, name: impl Into<String>, content: impl AsRef<[u8]>) {
        self.0.push((name.into(), bytewise(content.as_ref())));
    }

    fn add_status(&mut self, name: &str, status: &Status) {
        self.add(format!("{name}: message"), status.message());
        self.add(format!("{name}: details"), status.details());
        self.add(format!("{name}: debug"), format!("{status:?} {status}"));
        self.add(format!("{name}: metadata"), format!("{:?}", status.metadata()));
    }

    /// Both ports, the log, and every file.
    async fn add_gateway(&mut self, name: &str, gateway: &Gateway) {
        for path in ["/metrics", "/readyz", "/healthz", "/status.json"] {
            self.add(format!("{name}: {path}"), gateway.admin(path).await.1);
        }
        self.add_remains(name, gateway);
    }

    /// What is there without the process, too.
    pub fn add_remains(&mut self, name: &str, gateway: &Gateway) {
        self.add(format!("{name}: log"), gateway.log());
        for (path, content) in gateway.files() {
            self.add(format!("{name}: {}", path.display()), content);
        }
    }

    pub fn hits(&self, form: &str) -> Vec<&str> {
        let form = bytewise(form.as_bytes());
        let hits = self.0.iter().filter(|(_, content)| content.contains(&form));
        hits.map(|(name, _)| &**name).collect()
    }

    pub fn assert_clean(&self) {
        for (field, value) in CANARIES {
            for form in forms(value) {
                assert!(
                    self.hits(&form).is_empty(),
                    "{field} as {form} in {:?}",
                    self.hits(&form)
                );
            }
        }
        // What all of them have in common, in whatever form; the words of the token, too.
        for part in ["c4nary", "C4nar", "5ecret"] {
            assert!(self.hits(part).is_empty(), "{part} in {:?}", self.hits(part));
        }
    }
}

/// Bodies that repeat all that SurveyLab was given, in every form.
fn echoes() -> Vec<String> {
    let everything: Vec<String> = CANARIES.iter().flat_map(|(_, value)| forms(value)).collect();
    let text = serde_json::Value::from(everything.join(" | "));
    let url = format!("api.php?apiToken={TOKEN}&email={}", value("email"));
    vec![
        format!(r#"{{"status":true,"notification":{text}}}"#),
        format!(r#"{{"status":false,"notification":{text}}}"#),
        format!(r#"{{"status":false,"notification":{{"request":{text}}}}}"#),
        format!(r#"{{"status":"maybe","notification":{text}}}"#),
        format!("<html>GET {url}: {text}</html>"),
        text.to_string(),
    ]
}

/// Everything that can go wrong at SurveyLab, by the crk for which it does.
fn failures() -> Vec<(String, Fault)> {
    let echoes = echoes();
    let all = &echoes[1];
    let mut failures = vec![
        ("hang".into(), Fault::hang()),
        ("reset".into(), Fault::reset_before_answer()),
        ("close".into(), Fault::close_before_answer()),
        ("half".into(), Fault::half_body()),
        ("reset-within".into(), Fault::reset_within_answer()),
        (
            "redirect".into(),
            Fault::redirect(&format!("http://127.0.0.1:1/api.php?apiToken={TOKEN}")),
        ),
    ];
    for status in [400, 401, 403, 404, 418, 500, 502, 503, 504, 520] {
        failures.push((format!("s{status}"), Fault::status(status).with_body(all.clone())));
    }
    for (index, echo) in echoes.iter().enumerate() {
        failures.push((format!("echo{index}"), Fault::body(echo.clone())));
    }
    failures
}

pub fn traced() -> Options {
    Options::new()
        .env("RUST_LOG", "trace")
        .flag("--access-log", "on")
        .flag("--upstream-timeout", "1s")
        .flag("--max-attempts", 2)
}

async fn call(client: &Client, request: AddRespondentRequest, places: &mut Places) {
    let crk = request.crk.clone();
    match client.clone().add_respondent(request).await {
        Ok(answer) => places.add(format!("{crk}: answer"), format!("{answer:?}")),
        Err(status) => places.add_status(&crk, &status),
    }
}

/// Every failure unary and in a stream, then the same again, then what the ledger tells of it all.
pub async fn everything_that_can_be_said(client: &Client, places: &mut Places) {
    for _ in 0..2 {
        for (crk, _) in failures() {
            call(client, canary(&crk), places).await;
        }
        let items: Vec<_> = failures()
            .iter()
            .map(|(crk, _)| canary(&format!("{crk}-item")))
            .collect();
        let results = client.clone().stream_add_respondent(tokio_stream::iter(items)).await;
        let mut results = results.unwrap().into_inner();
        while let Some(result) = results.message().await.unwrap() {
            places.add(format!("{}: item", result.crk), format!("{result:?}"));
            places.add(
                format!("{}: item's bytes", result.crk),
                prost::Message::encode_to_vec(&result),
            );
        }
    }

    let reused = AddRespondentRequest {
        email: "another@example.com".into(),
        ..canary("added")
    };
    assert_eq!(added(client, canary("added")).await, Outcome::Added);
    assert_eq!(added(client, canary("added")).await, Outcome::Duplicate);
    call(client, reused, places).await;
    let resend = AddRespondentRequest {
        resend_in_doubt: true,
        ..canary("close")
    };
    call(client, resend, places).await;
    resolve(client, "close", Resolution::Added).await.unwrap();
    let validated = AddRespondentRequest {
        validate_only: true,
        ..canary("s404")
    };
    call(client, validated, places).await;

    let invalid = [
        AddRespondentRequest {
            email: "c4nary at c4nary".into(),
            phone: "c4nary\n".into(),
            custom1: "c4nary\0".into(),
            ..canary("invalid")
        },
        AddRespondentRequest {
            custom2: "c4nary😀😀😀".repeat(220),
            ..canary("too-long")
        },
    ];
    for request in invalid {
        call(client, request, places).await;
    }

    let all = ListInvitationsRequest::default();
    let listed = client.clone().list_invitations(all).await.unwrap().into_inner();
    assert_eq!(listed.invitations.len(), 2 * failures().len() + 1);
    places.add("list", format!("{listed:?}"));
    places.add("list's bytes", prost::Message::encode_to_vec(&listed));
}

pub fn add_faults(sandbox: &Sandbox) {
    for (crk, fault) in failures() {
        sandbox.add_fault(fault.clone().for_crk(format!("{crk}-item")));
        sandbox.add_fault(fault.for_crk(crk));
    }
}

#[tokio::test]
async fn no_secret_shows_anywhere_whatever_goes_wrong() {
    let sandbox = surveylab().await;
    add_faults(&sandbox);
    let gateway = Gateway::with(traced(), &sandbox).await;
    let client = gateway.client().await;
    let mut places = Places::default();
    everything_that_can_be_said(&client, &mut places).await;
    places.add_gateway("running", &gateway).await;

    // A crash with a request on the wire, and an end in order.
    sandbox.set_faults(vec![Fault::hang().for_crk("crash")]);
    let before = sandbox.report().requests;
    let crashing = tokio::spawn({
        let client = client.clone();
        async move { client.clone().add_respondent(canary("crash")).await }
    });
    sandbox.wait_for_requests(before + 1).await;
    let mut gateway = gateway;
    gateway.kill();
    places.add_status("crash", &crashing.await.unwrap().unwrap_err());
    places.add_remains("crashed", &gateway);
    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    call(&client, canary("crash"), &mut places).await;
    places.add_gateway("restarted", &gateway).await;
    gateway.signal("TERM");
    let (gateway, _) = gateway.once_ended().await;
    places.add_remains("ended", &gateway);

    // It would be found, if it were there: what may be kept and said is.
    let received = sandbox.requests();
    for (_, value) in CANARIES {
        let arrived = |(_, parameter): &(String, String)| parameter == value;
        assert!(received.iter().any(|request| request.parameters.iter().any(arrived)));
    }
    for (kept, place) in [
        ("echo3-item", ".db"),
        ("echo3-item", "running: log"),
        ("[redacted]", ".db"),
        ("[redacted]", "echo1: message"),
        ("[redacted]", "echo0: answer"),
        ("SURVEYLAB_ACTION_FAILED", "echo1: details"),
        ("\"level\":\"DEBUG\"", "running: log"),
        ("SURVEYLAB_ACTION_FAILED", "/metrics"),
    ] {
        let hits = places.hits(kept);
        assert!(
            hits.iter().any(|name| name.contains(place)),
            "{kept} in {place}, found in {hits:?}"
        );
    }
    places.assert_clean();
}

#[tokio::test]
async fn no_secret_shows_where_surveylab_cannot_be_reached() {
    let sandbox = surveylab().await;
    let urls = [
        "http://127.0.0.1:1/api.php".to_string(),
        "http://surveylab.invalid/api.php".into(),
        sandbox.url().replace("http://", "https://"),
    ];
    for url in urls {
        let gateway = Gateway::in_front_of(&url, traced()).await;
        let client = gateway.client().await;
        let mut places = Places::default();
        call(&client, canary("k"), &mut places).await;
        places.add_gateway(&url, &gateway).await;
        assert!(!places.hits("SURVEYLAB_UNREACHABLE").is_empty());
        places.assert_clean();
    }
}

#[tokio::test]
async fn no_secret_shows_when_the_gateway_refuses_by_itself() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(429).retry_after("60").with_body(echoes()[1].clone()));
    let gateway = Gateway::with(traced().flag("--max-wait", "5s"), &sandbox).await;
    let client = gateway.client().await;
    let mut places = Places::default();
    call(&client, canary("limited"), &mut places).await;
    call(&client, canary("waits"), &mut places).await;
    let impatient = with_deadline(canary("deadline"), Duration::from_secs(2));
    let status = client.clone().add_respondent(impatient).await.unwrap_err();
    places.add_status("deadline", &status);
    places.add_gateway("paused", &gateway).await;
    assert!(!places.hits("SURVEYLAB_RATE_LIMITED").is_empty());
    assert!(!places.hits("WAIT_TOO_LONG").is_empty());
    places.assert_clean();
}

#[tokio::test]
async fn a_token_from_a_file_shows_as_little() {
    let sandbox = surveylab().await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), format!("{TOKEN}\n")).unwrap();
    let options = traced()
        .env("SURVEYLAB_API_TOKEN", "")
        .flag("--api-token-file", secret.path().display());
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, canary("k")).await, Outcome::Added);
    let mut places = Places::default();
    places.add_gateway("file", &gateway).await;
    let arguments = std::fs::read(format!("/proc/{}/cmdline", gateway.pid())).unwrap();
    places.add("arguments", arguments);
    assert!(!places.hits("listening").is_empty());
    places.assert_clean();
}

#[tokio::test]
async fn no_token_shows_around_a_rotation() {
    let sandbox = surveylab().await;
    accept(&sandbox, &[TOKEN, NEXT_TOKEN]);
    let both = serde_json::Value::from([TOKEN, NEXT_TOKEN].map(|token| forms(token).join(" | ")).join(" | "));
    let echo = Fault::body(format!(r#"{{"status":true,"notification":{both}}}"#));
    let gate = Gate::new();
    sandbox.add_fault(echo.clone().for_crk("held").held_by(&gate));
    sandbox.add_fault(echo.for_crk("after"));
    sandbox.add_fault(Fault::status(401));
    let file = TokenFile::new();
    let options = file.options(traced().flag("--upstream-timeout", "30s"));
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let mut places = Places::default();
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.clone().add_respondent(canary("held")).await }
    });
    sandbox.wait_for_requests(1).await;
    file.replace(NEXT_TOKEN);
    until_read_again(&gateway, 1).await;
    // It went out with the old token, and is answered with both.
    gate.release();
    places.add("held: answer", format!("{:?}", held.await.unwrap().unwrap()));
    call(&client, canary("after"), &mut places).await;
    // Until the breaker speaks of it.
    for n in 0..25 {
        call(&client, canary(&format!("refused-{n}")), &mut places).await;
    }
    file.replace("c4nary with blanks");
    until("it is told", async || gateway.log().contains("can't be used")).await;
    places.add_gateway("rotated", &gateway).await;
    for (said, place) in [
        ("[redacted]", "held: answer"),
        ("[redacted]", "after: answer"),
        ("SurveyLab refuses every request", "rotated: log"),
    ] {
        assert!(
            places.hits(said).iter().any(|name| name.contains(place)),
            "{said} in {place}"
        );
    }
    places.assert_clean();
}
