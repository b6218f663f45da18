//! What `/metrics` tells: as documented, of bounded size, and nothing of anybody. And that what watches it looks for what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use surveylab_gateway::{
    proto::{AddRespondentRequest, GetStatusRequest, InvitationState, ListInvitationsRequest, Outcome, Resolution},
    sandbox::{Fault, Gate, Sandbox},
};
use tonic::Code;

use crate::{
    callers::refusing,
    support::{
        Gateway, Options, added,
        call::{COLLECTOR, Client, add, get, resolve, stream},
        gateway::surveylab,
        postgres, request,
        watch::{add_within, list, metric, page, soon, until},
    },
};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Type and labels of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Described {
    kind: String,
    labels: BTreeSet<String>,
}

/// The rows of the table in docs/metrics.md.
fn documented() -> BTreeMap<String, Described> {
    let text = fs::read_to_string(root("docs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, kind, labels, unit, ..] = cells[..] else {
            panic!("{row}")
        };
        assert!(!unit.is_empty(), "{row}");
        let labels = labels
            .split(',')
            .map(|label| label.trim().trim_matches('`').to_string());
        let described = Described {
            kind: kind.into(),
            labels: labels.filter(|label| !label.is_empty()).collect(),
        };
        (name.trim_matches('`').to_string(), described)
    });
    rows.collect()
}

/// A series of a scrape: its metric, and its labels.
type Series = (String, BTreeMap<String, String>);

#[derive(Default)]
struct Scrape {
    text: String,
    metrics: BTreeMap<String, Described>,
    series: BTreeSet<Series>,
}

impl Scrape {
    async fn of(gateway: &Gateway) -> Self {
        let (status, text) = gateway.admin("/metrics").await;
        assert_eq!(status, 200);
        let mut scrape = Self::default();
        let mut kinds = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(line) = line.strip_prefix("# TYPE ") {
                let (name, kind) = line.split_once(' ').unwrap();
                assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
                kinds.insert(name.to_string(), kind.to_string());
            } else if !line.starts_with('#') {
                scrape.add(line, &kinds);
            }
        }
        scrape.text = text;
        scrape
    }

    fn add(&mut self, line: &str, kinds: &BTreeMap<String, String>) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let (full, labels) = series.split_once('{').unwrap_or((series, ""));
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| full.strip_suffix(end).filter(|name| kinds.contains_key(*name)))
            .unwrap_or(full);
        let labels = labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.is_empty());
        let labels: BTreeMap<_, _> = labels
            .map(|label| {
                let (name, value) = label.split_once('=').unwrap();
                (name.to_string(), value.trim_matches('"').to_string())
            })
            .collect();
        let described = Described {
            kind: kinds[name].clone(),
            labels: labels.keys().filter(|label| *label != "le").cloned().collect(),
        };
        let known = self.metrics.entry(name.into()).or_insert_with(|| described.clone());
        assert_eq!(*known, described, "{line}: all series of a metric have the same labels");
        self.series.insert((full.into(), labels));
    }
}

fn invalid() -> AddRespondentRequest {
    AddRespondentRequest {
        email: "no address".into(),
        ..request("invalid")
    }
}

/// Calls all there is to call, with all kinds of ends.
async fn use_all(gateway: &Gateway, sandbox: &Sandbox) {
    let client = gateway.client().await;
    assert_eq!(added(&client, request("added")).await, Outcome::Added);
    assert_eq!(added(&client, request("added")).await, Outcome::Duplicate);
    let would = AddRespondentRequest {
        validate_only: true,
        ..request("other")
    };
    assert_eq!(added(&client, would).await, Outcome::WouldAdd);
    assert_eq!(add(&client, invalid()).await.unwrap_err().code, Code::InvalidArgument);
    for (crk, status) in [("bad", 400), ("odd", 418), ("lost", 502), ("resolved", 504)] {
        sandbox.add_fault(Fault::status(status).for_crk(crk).times(1));
        add(&client, request(crk)).await.unwrap_err();
    }
    sandbox.add_fault(Fault::status(429).retry_after("1").for_crk("paused").times(1));
    assert_eq!(added(&client, request("paused")).await, Outcome::Added);
    resolve(&client, "resolved", Resolution::NotAdded).await.unwrap();
    resolve(&client, "added", Resolution::Added).await.unwrap_err();
    let items = vec![request("item"), invalid(), request("added")];
    assert_eq!(
        stream(&client, items).await.iter().filter(|item| item.is_ok()).count(),
        2
    );
    assert_eq!(list(&client, InvitationState::InDoubt).await, ["lost"]);
    assert!(get(&client, "unknown").await.is_none());
    client.clone().get_status(GetStatusRequest {}).await.unwrap();
}

fn differences(one: &BTreeMap<String, Described>, other: &BTreeMap<String, Described>) -> Vec<String> {
    let differing = one
        .iter()
        .filter(|(name, described)| other.get(*name) != Some(*described));
    differing
        .map(|(name, described)| format!("{name}: {described:?}"))
        .collect()
}

#[tokio::test]
async fn the_table_and_the_gateway_tell_the_same_metrics() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    use_all(&gateway, &sandbox).await;
    until("the keys are counted", async || {
        metric(&gateway, "ledger_keys", "").await == 7.0
    })
    .await;
    let mut told = Scrape::of(&gateway).await.metrics;

    let server = postgres::shared();
    let database = server.database();
    let replica = Gateway::with(
        Options::new()
            .flag("--rate", "2000/s")
            .flag("--burst", 500)
            .flag("--ledger", database.url()),
        &sandbox,
    )
    .await;
    until("the replica is counted", async || {
        metric(&replica, "replicas", "").await == 1.0
    })
    .await;
    let refusing = refusing(&sandbox).await;
    let others = [Scrape::of(&replica).await.metrics, Scrape::of(&refusing).await.metrics];
    for (name, described) in others.into_iter().flatten() {
        assert_eq!(*told.entry(name).or_insert_with(|| described.clone()), described);
    }

    let table = documented();
    let undocumented = differences(&told, &table);
    assert!(
        undocumented.is_empty(),
        "told, and not in the table like this: {undocumented:#?}"
    );
    let untold = differences(&table, &told);
    assert!(untold.is_empty(), "in the table, and not told like this: {untold:#?}");
}

#[tokio::test]
async fn no_label_tells_of_anybody_and_keys_make_no_series() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    use_all(&gateway, &sandbox).await;
    until("the keys are counted", async || {
        metric(&gateway, "ledger_keys", "").await == 7.0
    })
    .await;
    let before = Scrape::of(&gateway).await;
    for (name, labels) in &before.series {
        for (label, value) in labels {
            let private = [COLLECTOR, "example.com", "@", "lost", "paused"]
                .iter()
                .find(|private| value.contains(*private));
            assert_eq!(private, None, "{name}: {label}");
            // `le` has any number.
            let is_word = value.chars().all(|c| c.is_ascii_alphanumeric() || "_.+-".contains(c));
            assert!(is_word, "{name}: {label}={value}");
        }
    }

    let client = gateway.client().await;
    let requests = (0..1000).map(|number| AddRespondentRequest {
        collector_id: format!("{COLLECTOR}{}", number % 100),
        email: format!("person{number}@example.com"),
        ..request(&format!("key {number}"))
    });
    let results = stream(&client, requests.collect()).await;
    assert!(results.iter().all(Result::is_ok));
    let after = Scrape::of(&gateway).await;
    assert_eq!(after.series, before.series);
    assert_eq!(metric(&gateway, "ledger_keys", r#"state="added""#).await, 1003.0);
}

#[tokio::test]
async fn calls_answers_and_keys_are_counted_by_what_they_came_to() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let of = async |name, label| metric(&gateway, name, label).await;
    assert_eq!(of("surveylab_requests_total", r#"answer="in_doubt""#).await, 0.0);
    use_all(&gateway, &sandbox).await;
    until("the keys are counted", async || of("ledger_keys", "").await == 7.0).await;
    for (name, label, value) in [
        ("outcomes_total", r#"outcome="added""#, 3.0),
        ("outcomes_total", r#"outcome="duplicate""#, 2.0),
        ("outcomes_total", r#"outcome="would_add""#, 1.0),
        ("calls_total", r#"reason="INVALID_REQUEST""#, 2.0),
        ("calls_total", r#"reason="OUTCOME_IN_DOUBT""#, 2.0),
        ("surveylab_requests_total", "", 8.0),
        ("surveylab_requests_total", r#"answer="in_doubt""#, 2.0),
        ("surveylab_responses_total", "", 8.0),
        ("surveylab_responses_total", r#"status="200""#, 3.0),
        ("surveylab_responses_total", r#"status="429""#, 1.0),
        ("surveylab_responses_total", r#"status="other""#, 1.0),
        ("pauses_total", "", 1.0),
        ("paused_seconds_total", "", 1.0),
        // Of eight permits one came after the pause.
        ("wait_seconds_count", r#"lane="unary""#, 7.0),
        ("wait_seconds_count", r#"lane="stream""#, 1.0),
        ("ledger_keys", r#"state="pending""#, 0.0),
        ("ledger_keys", r#"state="added""#, 3.0),
        ("ledger_keys", r#"state="failed""#, 3.0),
        ("doubts_open", "", 1.0),
        ("ready", "", 1.0),
        ("ledger_up", "", 1.0),
        ("ledger_errors_total", "", 0.0),
        ("streams_total", "", 1.0),
        ("build_info", r#"ledger="sqlite""#, 1.0),
    ] {
        assert_eq!(of(name, label).await, value, "{name} {label}");
    }
    assert!(of("oldest_doubt_age_seconds", "").await > 0.0);
    until("the stream has ended", async || of("streams_open", "").await == 0.0).await;
    // Eight claims that are settled, and a resolution; a claim that is refused may be in a batch with others.
    let steps = of("ledger_batch_size_sum", "").await;
    assert!((17.0..=20.0).contains(&steps), "{steps}");
    let commits = of("ledger_batch_size_count", "").await;
    assert!((1.0..=steps).contains(&commits), "{commits} commits of {steps} steps");
    assert_eq!(of("ledger_commit_seconds_count", "").await, commits);

    // What the process before this one knew is counted again.
    let gateway = gateway.restart().await;
    until("the keys are counted", async || {
        metric(&gateway, "ledger_keys", "").await == 7.0
    })
    .await;
    assert_eq!(metric(&gateway, "doubts_open", "").await, 1.0);
    assert_eq!(metric(&gateway, "outcomes_total", "").await, 0.0);
}

#[tokio::test]
async fn what_waits_is_told_while_it_waits_and_how_long_it_waited_after() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).times(1));
    let options = Options::new().flag("--max-in-flight", 1).flag("--max-queue", 7);
    let gateway = Gateway::with(options, &sandbox).await;
    let call = |client: Client, crk: &'static str| tokio::spawn(async move { added(&client, request(crk)).await });
    let first = call(gateway.client().await, "first");
    soon(sandbox.wait_for_requests(1)).await;
    let second = call(gateway.client().await, "second");
    let of = async |name, label| metric(&gateway, name, label).await;
    until("it waits", async || {
        of("waiting_requests", r#"lane="unary""#).await == 1.0
    })
    .await;
    assert_eq!(
        of("requests_in_flight", "").await,
        of("max_requests_in_flight", "").await
    );
    assert_eq!(of("max_waiting_requests", "").await, 7.0);
    assert_eq!(of("connections_open", "").await, 2.0);
    assert_eq!(of("ledger_keys", r#"state="pending""#).await, 1.0);
    gate.release();
    for call in [first, second] {
        assert_eq!(soon(call).await.unwrap(), Outcome::Added);
    }
    assert_eq!(of("wait_seconds_count", r#"lane="unary""#).await, 2.0);
    assert!(of("wait_seconds_sum", "").await > 0.0);
    until("nobody is connected", async || of("connections_open", "").await == 0.0).await;
    assert_eq!(of("connections_total", "").await, 2.0);
}

#[tokio::test]
async fn a_ledger_that_is_gone_is_told_and_does_not_hold_up_the_answer() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let (file, away) = (gateway.path("surveylab-gateway.db"), gateway.path("away"));
    fs::rename(&file, &away).unwrap();
    add_within(&client, request("k"), Duration::from_secs(60))
        .await
        .unwrap_err();
    let of = async |name, label| metric(&gateway, name, label).await;
    assert_eq!((of("ready", "").await, of("ledger_up", "").await), (0.0, 0.0));
    assert!(of("ledger_errors_total", "").await >= 1.0);
    fs::rename(&away, &file).unwrap();
    until("it is back", async || of("ready", "").await == 1.0).await;
    assert_eq!(of("ledger_up", "").await, 1.0);
    let listing = page(&client, ListInvitationsRequest::default()).await;
    assert!(listing.invitations.is_empty());
}

/// The program that checks what Prometheus reads, if it is there.
fn promtool() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&path).map(|place| place.join("promtool")).collect();
    places.push(root("target/tools/prometheus/usr/bin/promtool"));
    places.into_iter().find(|place| place.is_file())
}

#[tokio::test]
async fn prometheus_own_check_finds_nothing_wrong() {
    let Some(promtool) = promtool() else {
        println!("SKIPPED: there is no promtool; tests/promtool.sh gets it");
        return;
    };
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    use_all(&gateway, &sandbox).await;
    let scrape = gateway.path("scrape");
    fs::write(&scrape, Scrape::of(&gateway).await.text).unwrap();
    let mut check = Command::new(promtool);
    check
        .args(["check", "metrics"])
        .stdin(Stdio::from(fs::File::open(&scrape).unwrap()));
    let output = tokio::task::spawn_blocking(move || check.output().unwrap())
        .await
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success() && told.is_empty(),
        "{}",
        String::from_utf8_lossy(&told)
    );
}

/// The names of metrics in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_name = |word: &&str| word.starts_with("surveylab_gateway_") || word.starts_with("process_");
    words.filter(is_name).map(Into::into).collect()
}

#[test]
fn alerts_and_dashboard_look_for_what_there_is() {
    let table = documented();
    let exists = |name: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().any(|end| {
            let described = name.strip_suffix(end).and_then(|name| table.get(name));
            described.is_some_and(|described| described.kind == "histogram")
        });
        let is_plain = table.get(name).is_some_and(|described| described.kind != "histogram");
        of_histogram || is_plain
    };
    for file in [
        "deploy/prometheus/alerts.yml",
        "deploy/prometheus/alerts_test.yml",
        "deploy/grafana/surveylab-gateway.json",
    ] {
        let names = names_in(&fs::read_to_string(root(file)).unwrap());
        assert!(names.len() > 10, "{file}: {names:?}");
        let unknown: Vec<_> = names.iter().filter(|name| !exists(name)).collect();
        assert!(unknown.is_empty(), "{file} looks for {unknown:?}");
    }
}

#[test]
fn every_alert_is_tried_and_has_its_words_for_people() {
    let rules = fs::read_to_string(root("deploy/prometheus/alerts.yml")).unwrap();
    let tests = fs::read_to_string(root("deploy/prometheus/alerts_test.yml")).unwrap();
    let runbook = fs::read_to_string(root("docs/alerts.md")).unwrap();
    let rules: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(rules.len() > 10);
    for rule in &rules {
        let alert = rule.lines().next().unwrap();
        for part in ["expr:", "severity:", "summary:", "description:"] {
            assert!(rule.contains(part), "{alert} has no {part}");
        }
        let link = format!("runbook: docs/alerts.md#{}\n", alert.to_lowercase());
        assert!(rule.contains(&link), "{alert} has no {link}");
        assert!(runbook.contains(&format!("\n## {alert}\n")), "{alert} has no heading");
        assert!(
            tests.contains(&format!("alertname=\"{alert}\"")),
            "{alert} is not tried"
        );
    }
    assert_eq!(
        runbook.matches("\n## ").count(),
        rules.len(),
        "a heading without an alert"
    );
}

#[test]
fn the_dashboard_is_one_that_grafana_can_read() {
    let text = fs::read_to_string(root("deploy/grafana/surveylab-gateway.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(dashboard["uid"], "surveylab-gateway");
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let named: Vec<_> = variables
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(named, ["datasource", "job", "instance"]);
    let panels = dashboard["panels"].as_array().unwrap();
    let rows: Vec<_> = panels.iter().filter(|panel| panel["type"] == "row").collect();
    let titles: Vec<_> = rows.iter().map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(
        titles,
        ["Now", "Calls", "SurveyLab", "Waiting", "Ledger", "Process", "Replicas"]
    );
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            assert!(target["expr"].as_str().unwrap().contains("job=~\"$job\""), "{target}");
        }
        let place = &panel["gridPos"];
        assert!(
            place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24,
            "{panel}"
        );
    }
}
