//! What is done to one request, and to one answer.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion};
use secrecy::SecretString;
use surveylab_gateway::{
    clock::Clock,
    invitation::{Invitation, Respondent, validate},
    surveylab::{
        SurveyLab as _,
        http::{HttpConfig, HttpSurveyLab},
    },
};

use crate::support::keys::{crk, key};

pub fn requests(criterion: &mut Criterion) {
    let surveylab = surveylab();
    let mut group = criterion.benchmark_group("request");
    for (name, respondent) in [("usual", usual()), ("all fields", all_fields())] {
        let key = key(crk(0, 1));
        assert_eq!(validate(&key, &respondent), []);
        group.bench_function(BenchmarkId::new("validate", name), |bencher| {
            bencher.iter(|| validate(black_box(&key), black_box(&respondent)));
        });
        group.bench_function(BenchmarkId::new("fingerprint", name), |bencher| {
            let invitation = || (key.clone(), respondent.clone());
            bencher.iter_batched(
                invitation,
                |(key, respondent)| Invitation::new(key, respondent),
                BatchSize::SmallInput,
            );
        });
        let invitation = Invitation::new(key.clone(), respondent);
        group.bench_function(BenchmarkId::new("encode", name), |bencher| {
            bencher.iter_batched(
                || invitation.clone(),
                |invitation| surveylab.encode(invitation),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

pub fn answers(criterion: &mut Criterion) {
    let surveylab = surveylab();
    let request = surveylab
        .encode(Invitation::new(key(crk(0, 1)), usual()))
        .expect("a short request");
    let page = format!("<html><body>{}</body></html>", "Proszę czekać. ".repeat(512));
    let mut group = criterion.benchmark_group("answer");
    for (name, http_status, retry_after, body, comes_to) in [
        (
            "added",
            200,
            None,
            r#"{"status":true,"notification":"Action processed correctly"}"#,
            "added",
        ),
        (
            "refused, with the respondent's address",
            200,
            None,
            r#"{"status":false,"notification":"Użytkownik jan.kowalski@example.com został już dodany do tej listy"}"#,
            "action_failed",
        ),
        (
            "typographic quotes",
            200,
            None,
            "{„status”: true, „notification”: „Action processed correctly”}",
            "added",
        ),
        ("a page of 8 KiB", 200, None, &page, "in_doubt"),
        (
            "429 with a date",
            429,
            Some("Fri, 31 Dec 2100 23:59:59 GMT"),
            "",
            "rate_limited",
        ),
    ] {
        let classify = |body| surveylab.classify(&request, http_status, retry_after.map(str::as_bytes), body);
        assert_eq!(classify(body.into()).name(), comes_to);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(|| body.into(), classify, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn surveylab() -> HttpSurveyLab {
    let config = HttpConfig {
        url: "http://127.0.0.1:1/webhook".parse().expect("a URL"),
        token: SecretString::from("0123456789abcdef0123456789abcdef").into(),
        upstream_timeout: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(10),
        max_in_flight: 1,
        idle_timeout: Duration::ZERO,
        clock: Clock::system(),
    };
    HttpSurveyLab::new(config).expect("a client")
}

fn usual() -> Respondent {
    Respondent {
        email: "jan.kowalski@example.com".into(),
        language: "pl".into(),
        first_name: "Jan".into(),
        last_name: "Kowalski".into(),
        ..Respondent::default()
    }
}

fn all_fields() -> Respondent {
    Respondent {
        referrer: "https://shop.example/orders/4711?from=mail&lang=pl".into(),
        phone: "+48 600 700 800".into(),
        first_name: "Świętosława".into(),
        last_name: "Brzęczyszczykiewicz-Żółć".into(),
        custom: std::array::from_fn(|number| format!("wartość pola własnego nr {number}, dość długa")),
        ..usual()
    }
}
