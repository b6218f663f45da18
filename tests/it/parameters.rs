//! What a caller gives arrives at SurveyLab byte for byte, and what SurveyLab can't be given is refused before anything
//! happens.

use std::{cell::Cell, collections::BTreeMap};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use surveylab_gateway::{
    proto::{AddRespondentRequest, InvitationState, Outcome},
    sandbox::Sandbox,
};
use tonic::Code;

use crate::support::{
    Gateway, added,
    call::{Client, add, stream},
    gateway::{TOKEN, surveylab, surveylab_with},
    request,
    watch::list,
};

/// All parameters that SurveyLab is to get for a request, by its own names. Empty fields are absent.
fn wanted(request: &AddRespondentRequest) -> BTreeMap<&'static str, String> {
    let r = request.clone();
    let all = [
        ("apiToken", TOKEN.to_string()),
        ("cId", r.collector_id),
        ("email", r.email),
        ("crk", r.crk),
        ("referrer", r.referrer),
        ("language", r.language),
        ("phone", r.phone),
        ("firstName", r.first_name),
        ("lastName", r.last_name),
        ("custom1", r.custom1),
        ("custom2", r.custom2),
        ("custom3", r.custom3),
        ("custom4", r.custom4),
        ("custom5", r.custom5),
        ("custom6", r.custom6),
        ("custom7", r.custom7),
        ("custom8", r.custom8),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// What SurveyLab got last. Panics if a parameter came twice.
fn received(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let last = sandbox.requests().pop().expect("a request arrived");
    let count = last.parameters.len();
    let parameters: BTreeMap<_, _> = last.parameters.into_iter().collect();
    assert_eq!(parameters.len(), count, "no parameter comes twice");
    parameters
}

fn assert_received(sandbox: &Sandbox, request: &AddRespondentRequest) {
    let received = received(sandbox);
    let received: BTreeMap<&str, String> = received.iter().map(|(name, value)| (&**name, value.clone())).collect();
    assert_eq!(received, wanted(request));
}

#[tokio::test]
async fn every_parameter_arrives_byte_for_byte() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let texts = [
        "a&b=c+d#e%f",
        "&email=someone.else@example.com&crk=other",
        "%26crk%3Dother%00%0d%0a",
        "two  spaces, and one at the end ",
        "Zażółć gęślą jaźń",
        "👩‍👩‍👧 🇵🇱 \u{feff}\u{200f}",
        "line one\nline two\tafter a tab",
        "\"quoted\" 'twice' \\ / ? ; : @ < > [ ] { } | ^ ` ~ * ! $ ( ) ,",
        "custom1[]=x&custom1[0]=y",
    ];
    for (index, text) in texts.iter().enumerate() {
        let line = text.replace(['\n', '\t'], " ");
        let request = AddRespondentRequest {
            collector_id: format!("C_{index}-z"),
            crk: line.trim().into(),
            email: "a&b=c+d#e%f@example.com".into(),
            referrer: format!("r {text}"),
            language: "zh-Hant-TW".into(),
            phone: format!("+48 {line}"),
            first_name: format!("f {line}"),
            last_name: format!("l {line}"),
            custom1: format!("1 {text}"),
            custom2: format!("2 {text}"),
            custom3: format!("3 {text}"),
            custom4: format!("4 {text}"),
            custom5: format!("5 {text}"),
            custom6: format!("6 {text}"),
            custom7: format!("7 {text}"),
            custom8: format!("8 {text}"),
            ..AddRespondentRequest::default()
        };
        assert_eq!(added(&client, request.clone()).await, Outcome::Added);
        assert_received(&sandbox, &request);
    }
    assert_eq!(sandbox.report().effects, texts.len() as u64);
}

#[tokio::test]
async fn empty_fields_are_not_sent() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    let received = received(&sandbox);
    let names: Vec<&str> = received.keys().map(String::as_str).collect();
    assert_eq!(names, ["apiToken", "cId", "crk", "email"]);
}

#[tokio::test]
async fn the_query_holds_only_unreserved_characters_and_its_own_separators() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let printable: String = (' '..='~').collect();
    let with_all = AddRespondentRequest {
        custom1: printable,
        ..request("k")
    };
    assert_eq!(added(&client, with_all).await, Outcome::Added);
    let query = sandbox.requests().pop().unwrap().query;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~%=&".contains(c);
    assert!(query.chars().all(plain), "{query}");
}

/// Any text that is accepted: every character but control characters, `allowed` excepted.
fn text(allowed: &'static [char]) -> impl Strategy<Value = String> {
    let nasty: Vec<char> = "&=+#%;?/\\ \"'<>[]ąęłżóŻŁ😀\u{feff}\u{2028}".chars().collect();
    let character = prop_oneof![
        prop::sample::select(nasty),
        any::<char>().prop_filter("no control character", |c| !c.is_control()),
        prop::sample::select([&['%', '2', '6'], allowed].concat()),
    ];
    vec(character, 0..24).prop_map(String::from_iter)
}

fn any_request() -> impl Strategy<Value = AddRespondentRequest> {
    let line = || text(&[]);
    let lines = || text(&['\n', '\t']);
    let key = (
        "[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}@[a-z]{1,10}\\.(com|pl)",
        line(),
        "([a-zA-Z]{2,3}(-[a-zA-Z0-9]{1,8}){0,2})?",
    );
    (key, (line(), line(), line()), vec(lines(), 9)).prop_map(
        |((email, crk, language), (phone, first_name, last_name), lines)| {
            let mut lines = lines.into_iter();
            let mut next = || lines.next().unwrap();
            let crk = crk.trim();
            AddRespondentRequest {
                crk: if crk.is_empty() { "k".into() } else { crk.into() },
                email,
                referrer: next(),
                language,
                phone,
                first_name,
                last_name,
                custom1: next(),
                custom2: next(),
                custom3: next(),
                custom4: next(),
                custom5: next(),
                custom6: next(),
                custom7: next(),
                custom8: next(),
                ..AddRespondentRequest::default()
            }
        },
    )
}

#[test]
fn any_accepted_text_arrives_and_nothing_else_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (sandbox, gateway, client) = runtime.block_on(async {
        let sandbox = surveylab_with(|config| config.log_requests = 1).await;
        let gateway = Gateway::start(&sandbox).await;
        let client = gateway.client().await;
        (sandbox, gateway, client)
    });
    // Every case has a collector of its own, so that no two share a key.
    let cases = Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&any_request(), |request| {
        cases.set(cases.get() + 1);
        let request = AddRespondentRequest {
            collector_id: format!("c{}", cases.get()),
            ..request
        };
        let answer = runtime.block_on(add(&client, request.clone()));
        prop_assert_eq!(answer.map(|answer| answer.outcome()), Ok(Outcome::Added));
        assert_received(&sandbox, &request);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}\n{}", gateway.log()));
    assert_eq!(sandbox.report().requests, cases.get());
}

type Change = fn(&mut AddRespondentRequest);

/// What must be refused, and for which field.
fn refused() -> Vec<(&'static str, Change)> {
    vec![
        ("collector_id", |r| r.collector_id.clear()),
        ("collector_id", |r| r.collector_id = "c".repeat(65)),
        ("collector_id", |r| r.collector_id = "canary id".into()),
        ("collector_id", |r| r.collector_id = "canary&crk=x".into()),
        ("collector_id", |r| r.collector_id = "canaryż".into()),
        ("crk", |r| r.crk.clear()),
        ("crk", |r| r.crk = "ż".repeat(65)),
        ("crk", |r| r.crk = " canary".into()),
        ("crk", |r| r.crk = "canary\u{a0}".into()),
        ("crk", |r| r.crk = " ".into()),
        ("crk", |r| r.crk = "canary\ncanary".into()),
        ("crk", |r| r.crk = "canary\u{85}canary".into()),
        ("email", |r| r.email.clear()),
        ("email", |r| r.email = "canary".into()),
        ("email", |r| r.email = "@canary.example".into()),
        ("email", |r| r.email = "canary@".into()),
        ("email", |r| r.email = "canary@@example.com".into()),
        ("email", |r| r.email = " canary@example.com".into()),
        ("email", |r| r.email = "canary@example.com\r\nBcc: x@example.com".into()),
        ("email", |r| r.email = "canary@example.com,canary@example.com".into()),
        ("email", |r| r.email = "Canary <canary@example.com>".into()),
        ("email", |r| r.email = " <canary@example.com>".into()),
        ("email", |r| r.email = "\r\n <canary@example.com>\r\n".into()),
        ("email", |r| r.email = "\"can\tary\"@example.com".into()),
        ("email", |r| r.email = format!("{}@example.com", "c".repeat(65))),
        ("email", |r| r.email = long_email(255)),
        ("referrer", |r| r.referrer = "c".repeat(2_049)),
        ("referrer", |r| r.referrer = "canary\0".into()),
        ("referrer", |r| r.referrer = "canary\r\n".into()),
        ("language", |r| r.language = "c".into()),
        ("language", |r| r.language = "canary".into()),
        ("language", |r| r.language = "pl_PL".into()),
        ("language", |r| r.language = "pl-".into()),
        ("language", |r| r.language = "p1".into()),
        ("phone", |r| r.phone = "canary\n".into()),
        ("phone", |r| r.phone = "c".repeat(2_049)),
        ("first_name", |r| r.first_name = "canary\t".into()),
        ("first_name", |r| r.first_name = "ż".repeat(2_049)),
        ("last_name", |r| r.last_name = "canary\u{7f}".into()),
        ("last_name", |r| r.last_name = "c".repeat(2_049)),
        ("custom1", |r| r.custom1 = "canary\u{1b}[31m".into()),
        ("custom2", |r| r.custom2 = "c".repeat(2_049)),
        ("custom3", |r| r.custom3 = "canary\u{b}".into()),
        ("custom4", |r| r.custom4 = "c".repeat(2_049)),
        ("custom5", |r| r.custom5 = "canary\r".into()),
        ("custom6", |r| r.custom6 = "c".repeat(2_049)),
        ("custom7", |r| r.custom7 = "canary\u{9f}".into()),
        ("custom8", |r| r.custom8 = "c".repeat(2_049)),
    ]
}

/// An address of so many bytes, whose local part is as long as it may be.
fn long_email(bytes: usize) -> String {
    let labels = format!(".{}", "d".repeat(60)).repeat(2);
    let rest = bytes - 64 - "@".len() - labels.len() - ".com".len();
    format!("{}@{}{labels}.com", "l".repeat(64), "e".repeat(rest))
}

/// One call that must be refused: the fields that are named. Says nothing of the values, in text or details.
async fn violations(client: &Client, request: AddRespondentRequest) -> Vec<String> {
    let status = client.clone().add_respondent(request.clone()).await.unwrap_err();
    let told = format!("{status:?}{}", String::from_utf8_lossy(status.details()));
    assert!(!told.to_lowercase().contains("canary"), "{told}");
    let error = crate::support::status_error(&status);
    assert_eq!(
        (error.code, &*error.reason),
        (Code::InvalidArgument, "INVALID_REQUEST"),
        "{error:?}"
    );
    assert_eq!((&*error.domain, error.sent()), ("surveylab-gateway", "no"));
    assert_eq!(error.retry, None);

    let validated = AddRespondentRequest {
        validate_only: true,
        ..request.clone()
    };
    let results = stream(client, vec![request, validated]).await;
    for result in results {
        assert_eq!(result.unwrap_err(), error, "a stream's item is told the same");
    }
    error.violations
}

async fn assert_nothing_happened(sandbox: &Sandbox, client: &Client) {
    assert_eq!(sandbox.report().requests, 0);
    assert!(list(client, InvitationState::Unspecified).await.is_empty());
}

#[tokio::test]
async fn what_surveylab_cannot_be_given_is_refused_before_anything_happens() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    for (index, (field, spoil)) in refused().into_iter().enumerate() {
        let mut request = request("k");
        spoil(&mut request);
        assert_eq!(violations(&client, request).await, [field], "case {index}");
    }
    assert_nothing_happened(&sandbox, &client).await;
}

#[tokio::test]
async fn all_that_is_wrong_is_said_at_once() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let mut fields: Vec<&str> = Vec::new();
    let mut request = request("k");
    for (field, spoil) in refused() {
        spoil(&mut request);
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    assert_eq!(fields.len(), 16, "every field can be wrong");
    assert_eq!(violations(&client, request).await, fields);
    assert_nothing_happened(&sandbox, &client).await;
}

#[tokio::test]
async fn the_longest_of_every_field_is_accepted() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let longest: [Change; 12] = [
        |r| r.collector_id = "c".repeat(64),
        |r| r.crk = "ż".repeat(64),
        |r| r.crk = "k".into(),
        |r| r.email = long_email(254),
        |r| r.email = "żółć@example.com".into(),
        |r| r.email = "a+b@sub.example.com".into(),
        |r| r.language = "gsw".into(),
        |r| r.language = "de-Latn-CH-1901-x-abcdefgh-12345678".into(),
        |r| r.referrer = "\n".repeat(2_048),
        |r| r.phone = "1".repeat(2_048),
        |r| r.first_name = "n".repeat(2_048),
        |r| r.custom8 = "ż".repeat(1_024),
    ];
    for (index, change) in longest.into_iter().enumerate() {
        let mut request = request(&format!("k{index}"));
        change(&mut request);
        assert_eq!(added(&client, request.clone()).await, Outcome::Added, "case {index}");
        assert_received(&sandbox, &request);
    }
}

#[tokio::test]
async fn a_request_line_that_is_too_long_names_its_largest_field() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let filled = |last_name: usize| AddRespondentRequest {
        // 6 bytes a letter when encoded: fewer letters than in the others, and yet the largest.
        custom5: "ż".repeat(500),
        custom6: "x".repeat(2_048),
        referrer: "x".repeat(1_500),
        last_name: "x".repeat(last_name),
        ..request("k")
    };
    assert_eq!(violations(&client, filled(2_048)).await, ["custom5"]);
    assert_nothing_happened(&sandbox, &client).await;

    // How long the line is, all told, can be seen at SurveyLab.
    assert_eq!(added(&client, filled(100)).await, Outcome::Added);
    let query = sandbox.requests().pop().unwrap().query.len();
    let line = "GET /api.php?".len() + query + " HTTP/1.1".len();
    let one_below = 100 + 7_999 - line;
    let longest = AddRespondentRequest {
        crk: "l".into(),
        ..filled(one_below)
    };
    assert_eq!(added(&client, longest.clone()).await, Outcome::Added);
    assert_received(&sandbox, &longest);
    assert_eq!(violations(&client, filled(one_below + 1)).await, ["custom5"]);
}
