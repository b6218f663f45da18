//! The status page: what it is told, what a browser is told about it, and that it lives while things are bad. How it looks and
//! moves is tested in a browser: tests/page.sh.

use std::{path::Path, process::Command};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use serde_json::Value;
use surveylab_gateway::{
    proto::{InvitationState, Outcome},
    sandbox::Fault,
};
use tokio::task::{JoinSet, spawn_blocking};

use crate::support::{
    Gateway, Options, added,
    call::{COLLECTOR, add, state, stream},
    gateway::{BINARY, surveylab},
    postgres, request,
    watch::{soon, until},
};

async fn ask(gateway: &Gateway, method: Method, path: &str, headers: &[(&str, &str)]) -> Response<String> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", gateway.admin));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let http = Http::builder(TokioExecutor::new()).build_http();
    let answer = soon(http.request(request.body(Empty::<Bytes>::new()).unwrap()))
        .await
        .unwrap();
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(head, String::from_utf8(body.into()).unwrap())
}

async fn get(gateway: &Gateway, path: &str) -> Response<String> {
    ask(gateway, Method::GET, path, &[]).await
}

async fn status(gateway: &Gateway) -> Value {
    let answer = get(gateway, "/status.json").await;
    assert_eq!(answer.status(), StatusCode::OK);
    serde_json::from_str(answer.body()).unwrap()
}

fn header<'a>(answer: &'a Response<String>, name: &str) -> &'a str {
    let value = answer.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

const FILES: [(&str, &str); 8] = [
    ("/", "text/html; charset=utf-8"),
    ("/page/page.css", "text/css; charset=utf-8"),
    ("/page/page.js", "text/javascript; charset=utf-8"),
    ("/page/charts.js", "text/javascript; charset=utf-8"),
    ("/page/icon.svg", "image/svg+xml"),
    ("/page/uPlot.js", "text/javascript; charset=utf-8"),
    ("/page/uPlot.css", "text/css; charset=utf-8"),
    ("/page/uPlot.LICENSE", "text/plain; charset=utf-8"),
];

#[tokio::test]
async fn a_browser_may_load_and_run_nothing_but_the_pages_own_files() {
    let gateway = Gateway::start(&surveylab().await).await;
    let kinds = FILES.iter().chain(&[("/status.json", "application/json")]);
    for (path, kind) in kinds {
        let answer = get(&gateway, path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert_eq!(header(&answer, "content-type"), *kind, "{path}");
        assert_eq!(
            header(&answer, "content-security-policy"),
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "{path}"
        );
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(header(&answer, name), value, "{path}: {name}");
        }
    }
    let page = get(&gateway, "/").await.into_body();
    for (name, value) in [("src", "src=\""), ("href", "href=\"")] {
        for link in page.split(value).skip(1) {
            let link = format!("/{}", link.split('"').next().unwrap());
            assert_eq!(get(&gateway, &link).await.status(), StatusCode::OK, "{name} {link}");
        }
    }
    let mut scripts = page.split("<script").skip(1);
    assert!(scripts.all(|script| script.split('>').next().unwrap().contains("src=")));
    assert!(!page.contains("style=") && !page.contains("<style"));
}

#[tokio::test]
async fn files_are_sent_again_only_if_they_changed() {
    let gateway = Gateway::start(&surveylab().await).await;
    for (path, _) in FILES {
        let first = get(&gateway, path).await;
        assert_eq!(header(&first, "cache-control"), "no-cache", "{path}");
        let tag = header(&first, "etag");
        let again = ask(&gateway, Method::GET, path, &[("if-none-match", tag)]).await;
        assert_eq!(
            (again.status(), again.body().as_str()),
            (StatusCode::NOT_MODIFIED, ""),
            "{path}"
        );
        let other = ask(&gateway, Method::GET, path, &[("if-none-match", "\"other\"")]).await;
        assert_eq!(other.status(), StatusCode::OK, "{path}");
    }
    let status = get(&gateway, "/status.json").await;
    assert_eq!(header(&status, "cache-control"), "no-store");
}

#[tokio::test]
async fn only_reading_is_possible_and_only_what_is_there() {
    let gateway = Gateway::start(&surveylab().await).await;
    for path in ["/", "/status.json", "/page/page.js"] {
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let answer = ask(&gateway, method, path, &[]).await;
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
        let head = ask(&gateway, Method::HEAD, path, &[]).await;
        assert_eq!((head.status(), head.body().as_str()), (StatusCode::OK, ""), "{path}");
    }
    for path in ["/page", "/page/", "/page/../Cargo.toml", "/index.html", "/status"] {
        assert_eq!(get(&gateway, path).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn a_strangers_name_for_the_port_shows_nothing() {
    let gateway = Gateway::start(&surveylab().await).await;
    for path in ["/", "/status.json", "/page/page.js"] {
        let answer = ask(&gateway, Method::GET, path, &[("host", "rebound.example.com:9464")]).await;
        assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
        assert!(!answer.body().contains("version"), "{path}");
    }
    for host in ["localhost:9464", "gateway", "[::1]:9464", "gateway.svc.cluster.local"] {
        let answer = ask(&gateway, Method::GET, "/status.json", &[("host", host)]).await;
        assert_eq!(answer.status(), StatusCode::OK, "{host}");
    }
    // Machines that watch may call it what they like.
    for path in ["/metrics", "/healthz", "/readyz"] {
        let answer = ask(&gateway, Method::GET, path, &[("host", "monitored.example.com")]).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn it_is_told_how_the_gateway_stands_and_what_calls_came_to() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(404).for_crk("404"));
    let options = Options::new()
        .flag("--rate", "120/s")
        .flag("--burst", 100)
        .flag("--max-queue", 11)
        .flag("--max-in-flight", 13);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    assert_eq!(added(&client, request("k")).await, Outcome::Duplicate);
    add(&client, request("404")).await.unwrap_err();
    add(&client, request("")).await.unwrap_err();
    stream(&client, vec![request("s"), request("k")]).await;

    let mut status = Value::Null;
    // An interval that has just begun tells nothing yet; if the whole of one has passed it is a sample.
    until("the calls are counted", async || {
        status = self::status(&gateway).await;
        status["running"].is_object() || status["samples"][0].is_object()
    })
    .await;
    let sample = match &status["samples"][0] {
        Value::Null => &status["running"],
        sample => sample,
    };
    for (count, expected) in [
        ("number", 1),
        ("added", 2),
        ("duplicate", 2),
        ("failed", 1),
        ("in_doubt", 0),
        ("other", 1),
        ("requests", 3),
        ("rate_limited", 0),
        ("waiting_unary", 0),
        ("in_flight", 0),
    ] {
        assert_eq!(sample[count], expected, "{count}: {sample}");
    }
    let [p50, p99] = ["p50_ms", "p99_ms"].map(|name| sample[name].as_f64().unwrap());
    assert!(p50 > 0.0 && p50 <= p99, "{sample}");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&status["ledger"], &status["sandbox"]),
        (&"sqlite".into(), &false.into())
    );
    assert_eq!(
        status["condition"],
        serde_json::json!({"state": "serving", "why": null, "left_ms": null})
    );
    for (limit, expected) in [
        ("configured_rate", 120.0),
        ("learned_rate", 120.0),
        ("burst", 100.0),
        ("max_queue", 11.0),
        ("max_in_flight", 13.0),
    ] {
        assert_eq!(status["limiter"][limit].as_f64(), Some(expected), "{limit}");
    }
    assert_eq!(
        status["doubts"],
        serde_json::json!({"count": 0, "more": false, "oldest": []})
    );
    assert_eq!(
        (&status["replicas"], &status["problem"]),
        (&Value::Array(Vec::new()), &Value::Null)
    );
    assert!(status["now_ms"].as_i64() > Some(1_700_000_000_000), "{status}");
}

#[tokio::test]
async fn a_pause_is_told_with_its_reason_and_what_is_left_of_it() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(429).retry_after("3000"));
    let gateway = Gateway::with(Options::new().flag("--max-wait", "1s"), &sandbox).await;
    add(&gateway.client().await, request("k")).await.unwrap_err();
    let status = status(&gateway).await;
    let condition = &status["condition"];
    assert_eq!(
        (&condition["state"], &condition["why"]),
        (&"paused".into(), &"SurveyLab answered 429".into())
    );
    let left = condition["left_ms"].as_u64().unwrap();
    assert!(left > 2_000_000 && left <= 3_000_000, "{left}");
    let limiter = &status["limiter"];
    assert!(limiter["learned_rate"].as_f64() < limiter["configured_rate"].as_f64());
}

/// What a shell makes of a command, in the gateway's directory, where the gateway's binary is on the path.
async fn shell(gateway: &Gateway, command: &str) -> bool {
    let binaries = Path::new(BINARY).parent().unwrap().display();
    let mut shell = Command::new("bash");
    shell
        .args(["-c", command])
        .current_dir(gateway.directory.path())
        .env_clear()
        .env("PATH", format!("{binaries}:/usr/bin:/bin"));
    let output = spawn_blocking(move || shell.output().unwrap()).await.unwrap();
    println!("{command}\n{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

#[tokio::test]
async fn a_doubt_is_shown_with_commands_that_settle_it_whatever_its_crk_holds() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(502));
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let crks = [
        "order 7",
        "--target=http://evil.example",
        "it's \"$(touch pwned)\" `touch pwned` ; touch pwned #",
        "</script><img src=x onerror=alert(1)>",
        "\u{202e}gnp.exe\u{200b}'\\!\u{a0}é🙂",
    ];
    for crk in crks {
        add(&client, request(crk)).await.unwrap_err();
    }
    let status = status(&gateway).await;
    assert_eq!(status["doubts"]["count"], crks.len());
    for (index, crk) in crks.iter().enumerate() {
        let doubt = &status["doubts"]["oldest"][index];
        // The oldest comes first.
        assert_eq!(
            (&doubt["crk"], &doubt["collector_id"]),
            (&(*crk).into(), &COLLECTOR.into())
        );
        assert_eq!((&doubt["http_status"], &doubt["attempts"]), (&502.into(), &1.into()));
        assert!(doubt["since_ms"].as_i64() <= status["now_ms"].as_i64());
        let (command, becomes) = match index % 2 {
            0 => ("added", InvitationState::Added),
            _ => ("not_added", InvitationState::Failed),
        };
        assert!(shell(&gateway, doubt[command].as_str().unwrap()).await, "{crk}");
        assert_eq!(state(&client, crk).await, Some(becomes), "{crk}");
    }
    assert!(!gateway.path("pwned").exists());
    until("none is left", async || {
        self::status(&gateway).await["doubts"]["count"] == 0
    })
    .await;
}

#[tokio::test]
async fn many_pages_are_answered_at_once() {
    let gateway = Gateway::start(&surveylab().await).await;
    let mut pages = JoinSet::new();
    for _ in 0..200 {
        let url = format!("http://{}/status.json?after=0", gateway.admin).parse().unwrap();
        pages.spawn(async move {
            let http = Http::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
            let answer = soon(http.get(url)).await.unwrap();
            (answer.status(), answer.headers().contains_key(header::CONTENT_TYPE))
        });
    }
    while let Some(answered) = pages.join_next().await {
        assert_eq!(answered.unwrap(), (StatusCode::OK, true));
    }
}

#[tokio::test]
async fn samples_that_the_page_has_are_not_sent_again() {
    let gateway = Gateway::start(&surveylab().await).await;
    let mut first = Value::Null;
    until("the first sample is taken", async || {
        first = status(&gateway).await;
        first["samples"][0]["number"] == 1
    })
    .await;
    let later = get(&gateway, "/status.json?after=1").await.into_body();
    let later: Value = serde_json::from_str(&later).unwrap();
    let has_the_first = |status: &Value| status["samples"].as_array().unwrap().iter().any(|s| s["number"] == 1);
    assert!(has_the_first(&first) && !has_the_first(&later), "{later}");
    assert_eq!(first["instance"], later["instance"]);
    // What is no number leaves nothing out.
    let all = get(&gateway, "/status.json?after=-1&x=%ff").await.into_body();
    assert!(has_the_first(&serde_json::from_str(&all).unwrap()));
}

#[tokio::test]
async fn replicas_are_listed_and_a_pause_told_that_another_one_met() {
    let sandbox = surveylab().await;
    let database = postgres::shared().database();
    let options = Options::new()
        .flag("--ledger", database.url())
        .flag("--rate", "100/s")
        .flag("--max-wait", "1s");
    let one = Gateway::with(options.clone(), &sandbox).await;
    let other = Gateway::with(options, &sandbox).await;
    let mut status = Value::Null;
    until("both are listed", async || {
        status = self::status(&one).await;
        status["replicas"].as_array().unwrap().len() == 2
    })
    .await;
    let replicas = status["replicas"].as_array().unwrap();
    let owns: Vec<bool> = replicas.iter().map(|replica| replica["own"] == true).collect();
    assert_eq!(owns, [true, false], "the longest-running first");
    for (replica, gateway) in replicas.iter().zip([&one, &other]) {
        let name = replica["name"].as_str().unwrap();
        assert!(name.ends_with(&format!("/{}", gateway.pid())), "{name}");
        let left = replica["lease_left_ms"].as_u64().unwrap();
        assert!(left <= 10_000, "{left}");
        assert!(replica["started_ms"].as_i64() <= status["now_ms"].as_i64().map(|now| now + 1000));
    }

    sandbox.add_fault(Fault::status(429).retry_after("600"));
    add(&other.client().await, request("k")).await.unwrap_err();
    assert_eq!(self::status(&other).await["condition"]["why"], "SurveyLab answered 429");
    // A replica hears of it when it next asks for tokens.
    let client = one.client().await;
    until("the other one knows", async || {
        let _refused = add(&client, request("other")).await;
        self::status(&one).await["condition"]["why"] == "SurveyLab answered 429 to another replica"
    })
    .await;
}

#[tokio::test]
async fn a_ledger_that_hangs_leaves_the_page_alive_and_is_told() {
    let sandbox = surveylab().await;
    let server = postgres::shared();
    let database = server.database();
    let options = Options::new().flag("--ledger", database.url());
    let gateway = Gateway::with(options, &sandbox).await;
    sandbox.add_fault(Fault::status(502));
    add(&gateway.client().await, request("k")).await.unwrap_err();
    until("the doubt is shown", async || {
        status(&gateway).await["doubts"]["count"] == 1
    })
    .await;

    let name = database.name.clone();
    let hung = spawn_blocking(move || {
        let lock = "BEGIN; LOCK TABLE invitation IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(120)";
        server.psql(&name, lock)
    });
    let mut hanging = Value::Null;
    until("the page says that it hangs", async || {
        hanging = status(&gateway).await;
        hanging["problem"]
            .as_str()
            .is_some_and(|why| why.contains("has not answered"))
    })
    .await;
    assert_eq!(hanging["doubts"]["count"], 1, "what was known stays on show");
    database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)' AND pid <> pg_backend_pid()");
    let _terminated = hung.await;
    until("it has recovered", async || status(&gateway).await["problem"].is_null()).await;
}

#[tokio::test]
async fn a_ledger_that_is_away_is_told_in_words() {
    let sandbox = surveylab().await;
    let database = postgres::shared().database();
    let relay = crate::support::relay::Relay::to(([127, 0, 0, 1], database.server.port).into()).await;
    let ledger = database.url_by(&relay.address.to_string());
    let options = Options::new().flag("--ledger", ledger).flag("--replica-lease", "2s");
    let gateway = Gateway::with(options, &sandbox).await;
    assert_eq!(status(&gateway).await["condition"]["state"], "serving");
    // Nothing listens there.
    relay.turn_to(([127, 0, 0, 1], 1).into());
    relay.cut();
    until("it is told", async || {
        let condition = status(&gateway).await["condition"].clone();
        condition["state"] == "ledger_unavailable"
            && condition["why"].as_str().is_some_and(|why| why.contains("ledger"))
    })
    .await;
    relay.turn_to(([127, 0, 0, 1], database.server.port).into());
    until("it serves again", async || {
        status(&gateway).await["condition"]["state"] == "serving"
    })
    .await;
}
