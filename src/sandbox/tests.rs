use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinSet,
};

use super::*;

const PROCESSED: &str = r#"{"status":true,"notification":"Action processed correctly"}"#;
const FAILED: &str = r#"{"status":false,"notification":"Action failed"}"#;
/// Longer than any test: what it delays never happens.
const NEVER: Duration = Duration::from_secs(3_600);

/// A client that sees every byte, and how a connection ends.
struct Client(BufReader<TcpStream>);

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// How the connection ended before the promised length was there.
    end: Option<io::Result<()>>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| {
            line.split_once(": ")
                .is_some_and(|(is, _)| is.eq_ignore_ascii_case(name))
        };
        self.head
            .lines()
            .find(named)
            .and_then(|line| line.split_once(": "))
            .map(|(_, value)| value)
    }
}

impl Client {
    async fn connect(sandbox: &Sandbox) -> Self {
        Self(BufReader::new(TcpStream::connect(sandbox.address()).await.unwrap()))
    }

    async fn send(&mut self, method: &str, target: &str, body: &str) {
        let length = body.len();
        let request = format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}");
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    /// Err is how the connection ended without a head: `UnexpectedEof` for a close.
    async fn receive(&mut self) -> io::Result<Answer> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let mut answer = Answer {
            status: head[9..12].parse().unwrap(),
            head,
            body: Vec::new(),
            end: None,
        };
        let length: usize = answer
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        while answer.body.len() < length && answer.end.is_none() {
            let mut rest = vec![0; length - answer.body.len()];
            match self.0.read(&mut rest).await {
                Ok(0) => answer.end = Some(Ok(())),
                Ok(read) => answer.body.extend_from_slice(&rest[..read]),
                Err(error) => answer.end = Some(Err(error)),
            }
        }
        Ok(answer)
    }

    async fn get(&mut self, target: &str) -> io::Result<Answer> {
        self.send("GET", target, "").await;
        self.receive().await
    }
}

async fn start() -> Sandbox {
    Sandbox::start(Config::default()).await.unwrap()
}

async fn with_faults(faults: Vec<Fault>) -> Sandbox {
    let config = Config {
        faults,
        ..Config::default()
    };
    Sandbox::start(config).await.unwrap()
}

fn target(crk: &str) -> String {
    format!("/api.php?apiToken=secret&cId=c&email=a%40example.com&crk={crk}")
}

async fn get(sandbox: &Sandbox, target: &str) -> io::Result<Answer> {
    Client::connect(sandbox).await.get(target).await
}

async fn call(sandbox: &Sandbox, method: &str, target: &str, body: &str) -> Answer {
    let mut client = Client::connect(sandbox).await;
    client.send(method, target, body).await;
    client.receive().await.unwrap()
}

async fn add(sandbox: &Sandbox, crk: &str) -> Answer {
    get(sandbox, &target(crk)).await.unwrap()
}

#[tokio::test]
async fn adds_once_and_refuses_a_repeat() {
    let sandbox = start().await;
    let mut client = Client::connect(&sandbox).await;
    let first = client.get(&target("a")).await.unwrap();
    assert_eq!((first.status, first.text()), (200, PROCESSED));
    let repeat = client.get(&target("a")).await.unwrap();
    assert_eq!((repeat.status, repeat.text()), (200, FAILED));
    let elsewhere = client
        .get("/any/api.php?apiToken=t&cId=other&email=e&crk=a")
        .await
        .unwrap();
    assert_eq!((elsewhere.status, elsewhere.text()), (200, PROCESSED));

    assert_eq!(sandbox.effects_of("c", "a"), 1);
    assert_eq!(sandbox.requests_of("c", "a"), 2);
    assert_eq!(sandbox.effects_of("c", "unknown"), 0);
    let report = sandbox.report();
    assert_eq!((report.requests, report.effects, report.keys), (3, 2, 2));
    assert_eq!(report.statuses, [(200, 3)].into());
    assert_eq!(report.to_string(), "received 3 requests, sent 2 e-mails, 0 keys twice");
}

#[tokio::test]
async fn sends_again_if_told_to_and_reports_the_duplicate() {
    let config = Config {
        on_repeat: OnRepeat::SendAgain,
        ..Config::default()
    };
    let sandbox = Sandbox::start(config).await.unwrap();
    for crk in ["a", "a", "b"] {
        assert_eq!(add(&sandbox, crk).await.text(), PROCESSED);
    }
    let report = sandbox.report();
    let twice = KeyCounts {
        collector_id: "c".into(),
        crk: "a".into(),
        requests: 2,
        effects: 2,
    };
    assert_eq!(report.duplicates, [twice]);
    assert_eq!(report.to_string(), "received 3 requests, sent 3 e-mails, 1 key twice");
}

#[tokio::test]
async fn checks_in_order_token_rate_parameters_collector() {
    let config = Config {
        api_token: Some("secret".to_owned().into()),
        collectors: vec!["c".into()],
        limit: Some(Limit {
            rate: "1/h".parse().unwrap(),
            burst: NonZeroU32::new(3).unwrap(),
        }),
        ..Config::default()
    };
    let sandbox = Sandbox::start(config).await.unwrap();
    // A wrong token spends none of the three.
    for query in [
        "",
        "?cId=c&email=e&crk=a",
        "?apiToken=Secret&cId=c&email=e&crk=a",
        "?apiToken=",
    ] {
        assert_eq!(
            get(&sandbox, &format!("/api.php{query}")).await.unwrap().status,
            400,
            "{query}"
        );
    }
    assert_eq!(
        get(&sandbox, "/api.php?apiToken=secret&cId=unknown&crk=a")
            .await
            .unwrap()
            .status,
        400
    );
    assert_eq!(
        get(&sandbox, "/api.php?apiToken=secret&cId=unknown&email=e&crk=a")
            .await
            .unwrap()
            .status,
        404
    );
    assert_eq!(add(&sandbox, "a").await.text(), PROCESSED);
    let over = get(&sandbox, "/api.php?apiToken=secret").await.unwrap();
    assert_eq!(over.status, 429);
    let seconds: u64 = over.header("retry-after").unwrap().parse().unwrap();
    assert!((3_500..=3_600).contains(&seconds), "{seconds}");
    assert_eq!(
        sandbox.report().statuses,
        [(200, 1), (400, 5), (404, 1), (429, 1)].into()
    );
}

#[tokio::test]
async fn refuses_a_request_without_a_required_parameter() {
    let sandbox = start().await;
    for query in [
        "cId=c&email=e",
        "cId=c&crk=a",
        "email=e&crk=a",
        "cId=&email=e&crk=a",
        "cld=c&email=e&crk=a",
    ] {
        let answer = get(&sandbox, &format!("/api.php?apiToken=t&{query}")).await.unwrap();
        assert_eq!(answer.status, 400, "{query}");
    }
    assert_eq!(sandbox.report().effects, 0);
}

#[tokio::test]
async fn answers_get_only_and_api_php_only() {
    let sandbox = start().await;
    let post = call(&sandbox, "POST", &target("a"), "").await;
    assert_eq!((post.status, post.header("allow")), (405, Some("GET")));
    assert_eq!(get(&sandbox, "/api.html").await.unwrap().status, 404);
    assert_eq!(get(&sandbox, "/sandbox").await.unwrap().status, 200);
    assert_eq!(call(&sandbox, "GET", "/sandbox/reset", "").await.status, 405);
    assert_eq!(sandbox.report().requests, 0);
}

#[tokio::test]
async fn decodes_byte_for_byte() {
    let texts = [
        "&=+#%",
        "%2B+%26",
        "zażółć gęślą jaźń",
        "🦀👩‍🚀",
        "a\tb\nc",
        " ",
        "\u{feff}\"“”",
    ];
    let sandbox = start().await;
    for (index, text) in texts.iter().enumerate() {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("apiToken", "t")
            .append_pair("cId", "c")
            .append_pair("email", "a+b@example.com")
            .append_pair("crk", &format!("{index}{text}"))
            .append_pair("custom1", text)
            .finish();
        assert_eq!(
            get(&sandbox, &format!("/api.php?{query}")).await.unwrap().text(),
            PROCESSED
        );
        let request = &sandbox.requests()[index];
        assert_eq!(request.query, query);
        assert_eq!(request.parameter("custom1"), Some(*text));
        assert_eq!(request.parameter("email"), Some("a+b@example.com"));
        assert_eq!(sandbox.effects_of("c", &format!("{index}{text}")), 1);
    }
    // Upper and lower case digits, %20 and +, and a name that is there twice: the last, as in PHP.
    let answer = get(
        &sandbox,
        "/api.php?apiToken=t&cId=x&cId=%63&email=e&crk=%c4%85+%C4%85%20&crk=last%23",
    )
    .await
    .unwrap();
    assert_eq!(answer.text(), PROCESSED);
    assert_eq!(sandbox.effects_of("c", "last#"), 1);
    let names: Vec<(String, String)> = sandbox.requests().pop().unwrap().parameters;
    assert_eq!(names[4], ("crk".to_owned(), "ą ą ".to_owned()));
}

#[tokio::test]
async fn answers_with_any_status_and_takes_effect_where_the_answer_may_be_lost() {
    for (status, effects) in [
        (400, 0),
        (401, 0),
        (429, 0),
        (500, 0),
        (503, 0),
        (502, 1),
        (504, 1),
        (204, 1),
        (999, 0),
    ] {
        let sandbox = with_faults(vec![Fault::status(status)]).await;
        assert_eq!(add(&sandbox, "a").await.status, status);
        assert_eq!(sandbox.report().effects, effects, "{status}");
        assert_eq!(sandbox.requests()[0].status, Some(status));
        assert_eq!(sandbox.requests()[0].fault, Some("status"));
    }
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let fault = Fault::status(503)
        .retry_after(date)
        .with_body("away")
        .with_effect(Effect::AtOnce);
    let sandbox = with_faults(vec![fault]).await;
    let answer = add(&sandbox, "a").await;
    assert_eq!((answer.header("retry-after"), answer.text()), (Some(date), "away"));
    assert_eq!(sandbox.effects_of("c", "a"), 1);
}

#[tokio::test]
async fn a_fault_does_not_pass_the_checks() {
    let config = Config {
        collectors: vec!["other".into()],
        faults: vec![Fault::status(502)],
        ..Config::default()
    };
    let sandbox = Sandbox::start(config).await.unwrap();
    assert_eq!(add(&sandbox, "a").await.status, 502);
    assert_eq!(sandbox.report().effects, 0);
}

#[tokio::test]
async fn garbles_bodies() {
    for body in [
        &b""[..],
        b"\xff\xfe\x00",
        "„status”:true".as_bytes(),
        br#"{"status":tr"#,
    ] {
        let sandbox = with_faults(vec![Fault::body(body)]).await;
        let answer = add(&sandbox, "a").await;
        assert_eq!((answer.status, &*answer.body), (200, body));
        assert_eq!(sandbox.effects_of("c", "a"), 1);
    }
}

#[tokio::test]
async fn redirects() {
    let sandbox = with_faults(vec![Fault::redirect("http://127.0.0.1:1/api.php")]).await;
    let answer = add(&sandbox, "a").await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (302, Some("http://127.0.0.1:1/api.php"))
    );
    assert_eq!(sandbox.report().effects, 0);
}

#[tokio::test]
async fn ends_connections_without_an_answer() {
    for (fault, end) in [
        (Fault::reset_before_answer(), io::ErrorKind::ConnectionReset),
        (Fault::close_before_answer(), io::ErrorKind::UnexpectedEof),
    ] {
        let sandbox = with_faults(vec![fault.clone(), fault.with_effect(Effect::Never)]).await;
        assert_eq!(get(&sandbox, &target("a")).await.unwrap_err().kind(), end);
        assert_eq!(sandbox.effects_of("c", "a"), 1);
        assert_eq!(sandbox.requests()[0].status, None);
        // Also on a connection that has served before.
        sandbox.clear_faults();
        let mut client = Client::connect(&sandbox).await;
        assert_eq!(client.get(&target("b")).await.unwrap().status, 200);
        sandbox.add_fault(match end {
            io::ErrorKind::ConnectionReset => Fault::reset_before_answer().with_effect(Effect::Never),
            _ => Fault::close_before_answer().with_effect(Effect::Never),
        });
        assert_eq!(client.get(&target("d")).await.unwrap_err().kind(), end);
        assert_eq!(sandbox.effects_of("c", "d"), 0);
        assert!(sandbox.report().statuses.iter().eq([(&200, &1)]));
    }
}

#[tokio::test]
async fn cuts_answers_in_half() {
    for is_reset in [true, false] {
        let fault = if is_reset {
            Fault::reset_within_answer()
        } else {
            Fault::half_body()
        };
        let sandbox = with_faults(vec![fault]).await;
        let answer = add(&sandbox, "a").await;
        assert_eq!(answer.header("content-length"), Some(&*PROCESSED.len().to_string()));
        assert_eq!(answer.text(), &PROCESSED[..PROCESSED.len() / 2]);
        match answer.end {
            Some(Err(error)) => assert!(is_reset && error.kind() == io::ErrorKind::ConnectionReset, "{error}"),
            end => assert!(!is_reset && end.is_some()),
        }
        assert_eq!(sandbox.effects_of("c", "a"), 1);
    }
}

#[tokio::test]
async fn hangs_until_the_rule_is_taken_back() {
    let sandbox = with_faults(vec![Fault::hang().for_crk("a")]).await;
    let mut client = Client::connect(&sandbox).await;
    client.send("GET", &target("a"), "").await;
    sandbox.wait_for_requests(1).await;
    sandbox.wait_for_effects(1).await;
    assert_eq!(sandbox.requests()[0].status, None);
    assert_eq!(add(&sandbox, "b").await.text(), PROCESSED);
    sandbox.clear_faults();
    assert_eq!(client.receive().await.unwrap().text(), PROCESSED);
    assert_eq!(sandbox.requests()[0].status, Some(200));
}

#[tokio::test]
async fn notices_that_a_client_left_a_hanging_request() {
    let sandbox = with_faults(vec![Fault::hang()]).await;
    let mut client = Client::connect(&sandbox).await;
    client.send("GET", &target("a"), "").await;
    sandbox.wait_for_requests(1).await;
    drop(client);
    sandbox.wait_until_idle().await;
    assert_eq!(sandbox.report().statuses, [].into());
}

#[tokio::test]
async fn holds_until_the_gate_is_released() {
    let gate = Gate::new();
    let sandbox = with_faults(vec![Fault::hold(&gate)]).await;
    let mut clients = Vec::new();
    for crk in ["a", "b", "c"] {
        let mut client = Client::connect(&sandbox).await;
        client.send("GET", &target(crk), "").await;
        clients.push(client);
    }
    sandbox.wait_for_requests(3).await;
    assert_eq!(
        (sandbox.report().most_at_once, sandbox.report().statuses),
        (3, [].into())
    );
    gate.release_some(1);
    let mut answers: JoinSet<_> = clients
        .into_iter()
        .map(|mut client| async move { client.receive().await.unwrap().status })
        .collect();
    assert_eq!(answers.join_next().await.unwrap().unwrap(), 200);
    assert_eq!(sandbox.report().statuses, [(200, 1)].into());
    gate.release();
    assert_eq!(answers.join_all().await, [200, 200]);
    assert_eq!(add(&sandbox, "d").await.status, 200);
}

#[tokio::test]
async fn a_gate_goes_with_any_fault() {
    let gate = Gate::new();
    let sandbox = with_faults(vec![Fault::reset_before_answer().held_by(&gate)]).await;
    let mut client = Client::connect(&sandbox).await;
    client.send("GET", &target("a"), "").await;
    sandbox.wait_for_effects(1).await;
    gate.release();
    assert_eq!(
        client.receive().await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn delays_answers_and_takes_effect_before() {
    let latency = Duration::from_millis(20);
    let sandbox = with_faults(vec![
        Fault::latency(latency).for_crk("slow"),
        Fault::latency(NEVER).for_crk("never"),
    ])
    .await;
    let start = crate::clock::Instant::now();
    assert_eq!(add(&sandbox, "slow").await.text(), PROCESSED);
    assert!(start.elapsed() >= latency);
    let mut client = Client::connect(&sandbox).await;
    client.send("GET", &target("never"), "").await;
    sandbox.wait_for_effects(2).await;
}

#[tokio::test]
async fn takes_effect_after_the_client_has_gone() {
    let late = Effect::After(Duration::from_millis(20));
    let sandbox = with_faults(vec![Fault::reset_before_answer().with_effect(late).times(1)]).await;
    assert!(get(&sandbox, &target("a")).await.is_err());
    sandbox.wait_for_effects(1).await;
    assert_eq!(sandbox.effects_of("c", "a"), 1);
    assert!(sandbox.requests()[0].effect);
    assert_eq!(add(&sandbox, "a").await.text(), FAILED);
}

#[tokio::test]
async fn a_late_effect_is_forgotten_at_a_reset() {
    let late = |millis| Effect::After(Duration::from_millis(millis));
    let sandbox = with_faults(vec![
        Fault::close_before_answer().with_effect(late(10)).for_crk("before"),
        Fault::close_before_answer().with_effect(late(30)).for_crk("after"),
    ])
    .await;
    assert!(get(&sandbox, &target("before")).await.is_err());
    sandbox.reset();
    assert!(get(&sandbox, &target("after")).await.is_err());
    sandbox.wait_for_effects(1).await;
    assert_eq!(
        (sandbox.effects_of("c", "before"), sandbox.effects_of("c", "after")),
        (0, 1)
    );
}

#[tokio::test]
async fn rules_match_skip_and_run_out_in_order() {
    let sandbox = with_faults(vec![
        Fault::status(401).for_collector("other"),
        Fault::status(500).for_crk_prefix("p").skip(1).times(2),
        Fault::status(503).for_crk("p3"),
    ])
    .await;
    let mut statuses = Vec::new();
    for crk in ["p0", "x", "p1", "p2", "p3", "p4"] {
        statuses.push(add(&sandbox, crk).await.status);
    }
    assert_eq!(statuses, [200, 200, 500, 500, 503, 200]);
    assert_eq!(
        get(&sandbox, "/api.php?apiToken=t&cId=other&email=e&crk=p")
            .await
            .unwrap()
            .status,
        401
    );
}

#[tokio::test]
async fn probability_is_a_share_and_the_same_each_time() {
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        let sandbox = with_faults(vec![Fault::status(503).with_probability(0.3, seed)]).await;
        let mut client = Client::connect(&sandbox).await;
        let mut run = Vec::new();
        for n in 0..300 {
            run.push(client.get(&target(&n.to_string())).await.unwrap().status);
        }
        let share = run.iter().filter(|status| **status == 503).count();
        assert!((60..=120).contains(&share), "{share}");
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn a_fault_without_effect_spends_no_rate() {
    let config = Config {
        limit: Some(Limit {
            rate: "1/h".parse().unwrap(),
            burst: NonZeroU32::MIN,
        }),
        faults: vec![Fault::status(500).times(5)],
        ..Config::default()
    };
    let sandbox = Sandbox::start(config).await.unwrap();
    for _ in 0..5 {
        assert_eq!(add(&sandbox, "a").await.status, 500);
    }
    assert_eq!(add(&sandbox, "a").await.text(), PROCESSED);
    assert_eq!(add(&sandbox, "b").await.status, 429);
}

#[tokio::test]
async fn takes_any_limit_and_any_latency() {
    for rate in ["1/h", "1/s", "1000000/s"] {
        let config = Config {
            limit: Some(Limit {
                rate: rate.parse().unwrap(),
                burst: NonZeroU32::MAX,
            }),
            ..Config::default()
        };
        let sandbox = Sandbox::start(config).await.unwrap();
        for crk in 0..20 {
            assert_eq!(add(&sandbox, &crk.to_string()).await.text(), PROCESSED, "{rate}");
        }
    }
    let config = Config {
        latency: Duration::MAX,
        faults: vec![
            Fault::latency(Duration::MAX)
                .with_effect(Effect::After(Duration::MAX))
                .times(1),
        ],
        ..Config::default()
    };
    let sandbox = Sandbox::start(config).await.unwrap();
    let mut clients = Vec::new();
    for crk in ["a", "b"] {
        let mut client = Client::connect(&sandbox).await;
        client.send("GET", &target(crk), "").await;
        clients.push(client);
    }
    sandbox.wait_for_effects(1).await;
    assert_eq!(sandbox.effects_of("c", "b"), 1);
}

#[tokio::test]
async fn reports_over_http() {
    let sandbox = start().await;
    for crk in ["b", "a", "a"] {
        add(&sandbox, crk).await;
    }
    let report = get(&sandbox, "/sandbox/report").await.unwrap().json();
    let expected = json!({
        "requests": 3, "effects": 2, "keys": 2, "statuses": {"200": 3}, "most_at_once": 1, "duplicates": [],
    });
    assert_eq!(report, expected);
    let keys = get(&sandbox, "/sandbox/report?keys=1").await.unwrap().json();
    let a = json!({"cId": "c", "crk": "a", "requests": 2, "effects": 1});
    let b = json!({"cId": "c", "crk": "b", "requests": 1, "effects": 1});
    assert_eq!(keys["by_key"], json!([a, b]));
    assert_eq!(get(&sandbox, "/sandbox/report?cId=c&crk=%61").await.unwrap().json(), a);

    let answer = get(&sandbox, "/sandbox/requests").await.unwrap();
    assert!(!answer.text().contains("secret") && !answer.text().contains("apiToken"));
    let requests = answer.json();
    assert_eq!(
        requests[0]["parameters"],
        json!([["cId", "c"], ["email", "a@example.com"], ["crk", "b"]])
    );
    assert_eq!(
        (&requests[0]["effect"], &requests[2]["effect"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        (&requests[0]["status"], &requests[0]["fault"]),
        (&json!(200), &json!(null))
    );
    let at = |n: usize| requests[n]["at_us"].as_u64().unwrap();
    assert!(at(0) <= at(1) && at(1) <= at(2));

    let reset = call(&sandbox, "POST", "/sandbox/reset", "").await.json();
    assert_eq!((&reset["requests"], &reset["keys"]), (&json!(0), &json!(0)));
    assert!(sandbox.requests().is_empty());
    assert_eq!(add(&sandbox, "a").await.text(), PROCESSED);
    assert_eq!(sandbox.requests().len(), 1);
}

#[tokio::test]
async fn takes_faults_over_http() {
    let sandbox = start().await;
    let faults = r#"["status=503,times=1,retry_after=2", {"fault": "hang", "crk": "a"}, {"latency_ms": 0}]"#;
    let put = call(&sandbox, "PUT", "/sandbox/faults", faults).await;
    assert_eq!(put.status, 200, "{}", put.text());
    assert_eq!(add(&sandbox, "a").await.header("retry-after"), Some("2"));
    let mut client = Client::connect(&sandbox).await;
    client.send("GET", &target("a"), "").await;
    sandbox.wait_for_requests(2).await;

    let shown = get(&sandbox, "/sandbox/faults").await.unwrap().json();
    let first = json!({
        "status": 503, "retry_after": "2", "times": 1, "effect": false, "seen": 2, "applied": 1,
    });
    assert_eq!(shown[0], first);
    assert_eq!(
        shown[1],
        json!({"fault": "hang", "crk": "a", "effect": true, "seen": 1, "applied": 1})
    );
    assert_eq!(
        call(&sandbox, "PUT", "/sandbox/faults", &shown.to_string())
            .await
            .status,
        200
    );
    // Replaced: what hung under the old rules is answered.
    assert_eq!(client.receive().await.unwrap().text(), PROCESSED);

    let wrong = call(&sandbox, "PUT", "/sandbox/faults", r#"["hang", {"statsu": 1}]"#).await;
    assert_eq!(wrong.status, 400);
    assert!(
        wrong.json()["error"]
            .as_str()
            .unwrap()
            .starts_with("fault 2: unknown field `statsu`")
    );
    assert_eq!(call(&sandbox, "PUT", "/sandbox/faults", "no").await.status, 400);
    assert_eq!(
        get(&sandbox, "/sandbox/faults")
            .await
            .unwrap()
            .json()
            .as_array()
            .unwrap()
            .len(),
        3
    );

    assert_eq!(call(&sandbox, "DELETE", "/sandbox/faults", "").await.json(), json!([]));
    assert_eq!(add(&sandbox, "b").await.text(), PROCESSED);
}

#[test]
fn reads_faults_from_text() {
    let shown = |text: &str| {
        let mut rules = Rules::default();
        rules.add(text.parse().unwrap());
        let mut value = fault_text::to_json(rules.iter())[0].take();
        value
            .as_object_mut()
            .unwrap()
            .retain(|name, _| name != "seen" && name != "applied");
        value
    };
    assert_eq!(
        shown("status=503,times=3"),
        json!({"status": 503, "times": 3, "effect": false})
    );
    assert_eq!(
        shown("hang, crk=abc"),
        json!({"fault": "hang", "crk": "abc", "effect": true})
    );
    assert_eq!(
        shown("half-body,crk-prefix=a\\,b"),
        json!({"fault": "half_body", "crk_prefix": "a,b", "effect": true})
    );
    assert_eq!(
        shown("latency=1s 5ms,probability=0.5,seed=7"),
        json!({"latency_ms": 1005, "probability": 0.5, "seed": 7, "effect": true})
    );
    assert_eq!(
        shown("status=429,retry_after=Sun\\, 06 Nov 1994 08:49:37 GMT,body=x=y"),
        json!({"status": 429, "retry_after": "Sun, 06 Nov 1994 08:49:37 GMT", "body": "x=y", "effect": false})
    );
    assert_eq!(shown("body_hex=FFfe"), json!({"body_hex": "fffe", "effect": true}));
    assert_eq!(shown("body="), json!({"body": "", "effect": true}));
    assert_eq!(
        shown("redirect=http://x/?a=b,cId=c,skip=2,latency=50ms,effect=true"),
        json!({"redirect": "http://x/?a=b", "cId": "c", "skip": 2, "latency_ms": 50, "effect": true})
    );
    assert_eq!(
        shown("reset_before_answer,delayed_effect=2s"),
        json!({"fault": "reset_before_answer", "delayed_effect_ms": 2000})
    );
}

#[test]
fn says_what_is_wrong_with_a_fault() {
    for (text, wrong) in [
        ("", "there is no fault \"\""),
        ("times=3", "a fault must say what happens, such as status=503 or hang"),
        ("hang,half_body", "hang and half_body can't both happen"),
        ("hang,status=500", "only one thing can happen"),
        ("status=500,redirect=x", "only one thing can happen"),
        ("status=100", "status must be in 200 to 999"),
        ("status=70000", "status: number too large to fit in target type"),
        ("status", "status needs a value"),
        ("explode", "there is no fault \"explode\""),
        ("hang,colour=red", "a fault has no part \"colour\""),
        ("hang,retry_after=1", "retry_after belongs to a status"),
        ("status=503,retry_after=\n", "retry_after can't be sent in a header"),
        ("hang,probability=2", "probability must be in 0 to 1"),
        ("hang,probability=NaN", "probability must be in 0 to 1"),
        (
            "hang,effect=false,delayed_effect=1s",
            "effect=false and a delayed effect exclude each other",
        ),
        ("body=a,body_hex=00", "body and body_hex can't both be given"),
        ("body_hex=0g", "body_hex must be pairs of hexadecimal digits"),
        ("body_hex=0", "body_hex must be pairs of hexadecimal digits"),
    ] {
        assert_eq!(text.parse::<Fault>().unwrap_err().to_string(), wrong, "{text:?}");
    }
}

#[tokio::test]
async fn the_log_is_bounded_and_the_counts_are_not() {
    for (log_requests, logged) in [(0, &[][..]), (2, &["3", "4"]), (9, &["0", "1", "2", "3", "4"])] {
        let config = Config {
            log_requests,
            ..Config::default()
        };
        let sandbox = Sandbox::start(config).await.unwrap();
        for crk in 0..5 {
            add(&sandbox, &crk.to_string()).await;
        }
        let requests = sandbox.requests();
        assert!(
            requests
                .iter()
                .map(|request| request.parameter("crk").unwrap())
                .eq(logged.iter().copied())
        );
        assert!(
            requests
                .iter()
                .all(|request| request.effect && request.status == Some(200))
        );
        assert_eq!(sandbox.keys().len(), 5);
    }
}

#[tokio::test]
async fn debug_output_shows_no_personal_data_and_no_token() {
    let sandbox = start().await;
    add(&sandbox, "a").await;
    let shown = format!("{:?}", sandbox.requests());
    assert!(
        shown.contains("crk: Some(\"a\")") && !shown.contains("example.com") && !shown.contains("secret"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_at_once_are_counted_exactly() {
    let config = Config {
        on_repeat: OnRepeat::SendAgain,
        ..Config::default()
    };
    let sandbox = Arc::new(Sandbox::start(config).await.unwrap());
    let mut clients = JoinSet::new();
    for client in 0..100 {
        let sandbox = sandbox.clone();
        clients.spawn(async move {
            let mut connection = Client::connect(&sandbox).await;
            for n in 0..10 {
                let crk = (client * 10 + n) % 500;
                assert_eq!(
                    connection.get(&target(&crk.to_string())).await.unwrap().text(),
                    PROCESSED
                );
            }
        });
    }
    sandbox.wait_for_requests(1_000).await;
    clients.join_all().await;
    let report = sandbox.report();
    assert_eq!((report.requests, report.effects, report.keys), (1_000, 1_000, 500));
    assert_eq!(report.duplicates.len(), 500);
    assert_eq!(sandbox.requests().len(), 1_000);
    assert!(sandbox.requests().is_sorted_by_key(|request| request.at));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_requests_for_one_key_one_sends() {
    let sandbox = Arc::new(start().await);
    let mut clients = JoinSet::new();
    for _ in 0..1_000 {
        let sandbox = sandbox.clone();
        clients.spawn(async move { add(&sandbox, "a").await.text() == PROCESSED });
    }
    let added = clients.join_all().await.into_iter().filter(|added| *added).count();
    assert_eq!(
        (added, sandbox.effects_of("c", "a"), sandbox.requests_of("c", "a")),
        (1, 1, 1_000)
    );
}

#[tokio::test]
async fn stops_when_dropped() {
    let sandbox = with_faults(vec![Fault::hang()]).await;
    let (address, core) = (sandbox.address(), sandbox.core.clone());
    let mut client = Client::connect(&sandbox).await;
    client.send("GET", &target("a"), "").await;
    sandbox.wait_for_requests(1).await;
    drop(sandbox);
    assert!(client.receive().await.is_err());
    core.tasks.close();
    core.tasks.wait().await;
    assert_eq!(
        TcpStream::connect(address).await.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
}

#[tokio::test]
async fn stopped_it_can_start_again_on_its_port() {
    let sandbox = start().await;
    let address = sandbox.address();
    add(&sandbox, "a").await;
    sandbox.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
    let config = Config {
        listen: address,
        ..Config::default()
    };
    let sandbox = Sandbox::start(config).await.unwrap();
    assert_eq!(add(&sandbox, "a").await.text(), PROCESSED);
}

#[tokio::test]
async fn closes_idle_connections() {
    let config = Config {
        keep_alive: Duration::from_millis(20),
        ..Config::default()
    };
    let sandbox = Sandbox::start(config).await.unwrap();
    let mut client = Client::connect(&sandbox).await;
    assert_eq!(client.get(&target("a")).await.unwrap().status, 200);
    let mut rest = Vec::new();
    assert_eq!(client.0.read_to_end(&mut rest).await.unwrap(), 0);
}

#[tokio::test]
async fn survives_what_is_no_http() {
    let sandbox = start().await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"GET /api.php?apiToken=\xff HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"GET",
    ] {
        let mut client = Client::connect(&sandbox).await;
        client.0.write_all(garbage).await.unwrap();
        client.0.get_mut().shutdown().await.unwrap();
        let _ = client.0.read_to_end(&mut Vec::new()).await;
    }
    assert_eq!(add(&sandbox, "a").await.text(), PROCESSED);
}
