//! Spans, as a collector receives them.

use opentelemetry_proto::tonic::trace::v1::{
    Span,
    span::SpanKind,
    status::StatusCode::{self, Error as Failed, Unset},
};
use surveylab_gateway::{
    proto::{AddRespondentRequest, InvitationState, Outcome},
    sandbox::{Fault, Gate, Sandbox},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Code, Request, transport::Identity};

use crate::{
    secrets,
    support::{
        Gateway, Options, added,
        call::{Client, get, stream},
        collector::{Collector, attributes, hex},
        gateway::{run, surveylab},
        holding, request,
        watch::{soon, until, until_waiting},
    },
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn to(collector: &Collector) -> Options {
    Options::new()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
        .env("OTEL_BSP_SCHEDULE_DELAY", 20)
}

/// A call that says of which trace it is part.
fn traced<T>(message: T, trace: &str, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{trace}-{PARENT}-{flags}");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request
        .metadata_mut()
        .insert("tracestate", "vendor=value".parse().unwrap());
    request
}

async fn call(client: &Client, message: AddRespondentRequest) -> Result<Outcome, Code> {
    let answer = client.clone().add_respondent(traced(message, TRACE, "01")).await;
    answer
        .map(|answer| answer.into_inner().outcome())
        .map_err(|status| status.code())
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    attributes(&span.attributes).remove(name)
}

fn of<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn status(span: &Span) -> StatusCode {
    span.status.as_ref().map_or(Unset, |status| status.code())
}

const ADD: &str = "surveylab.invitation.v1.InvitationService/AddRespondent";
const STREAM: &str = "surveylab.invitation.v1.InvitationService/StreamAddRespondent";

#[tokio::test]
async fn a_call_is_a_span_of_its_callers_trace_and_its_steps_are_in_it() {
    let collector = Collector::start().await;
    let sandbox = surveylab().await;
    let gateway = Gateway::with(to(&collector), &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(call(&client, request("c4nary-crk")).await, Ok(Outcome::Added));

    let spans = collector.trace(TRACE, 4).await;
    assert_eq!(names(&spans), [ADD, "claim", "send", "settle"]);
    let [server, steps @ ..] = &spans[..] else { panic!() };
    assert_eq!(hex(&server.parent_span_id), PARENT);
    assert_eq!(server.trace_state, "vendor=value");
    assert_eq!(server.kind(), SpanKind::Server);
    assert_eq!(status(server), Unset);
    let said = attributes(&server.attributes);
    for (name, value) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "surveylab.invitation.v1.InvitationService"),
        ("rpc.method", "AddRespondent"),
        ("rpc.grpc.status_code", "0"),
        ("surveylab_gateway.outcome", "ADDED"),
        ("surveylab_gateway.attempts", "1"),
        ("surveylab_gateway.request_id", TRACE),
    ] {
        assert_eq!(said.get(name).map(String::as_str), Some(value), "{name} in {said:?}");
    }
    assert_eq!(said.len(), 7, "{said:?}");

    let mut before = server.start_time_unix_nano;
    for step in steps {
        assert_eq!(step.parent_span_id, server.span_id, "{}", step.name);
        assert!(before <= step.start_time_unix_nano, "{}", step.name);
        assert!(step.start_time_unix_nano <= step.end_time_unix_nano, "{}", step.name);
        assert!(step.end_time_unix_nano <= server.end_time_unix_nano, "{}", step.name);
        before = step.end_time_unix_nano;
    }
    let send = of(&spans, "send")[0];
    assert_eq!(send.kind(), SpanKind::Client);
    assert_eq!(attribute(send, "http.response.status_code").as_deref(), Some("200"));
    assert_eq!(attribute(send, "surveylab_gateway.answer").as_deref(), Some("added"));

    let resource = collector.resource();
    assert_eq!(resource["service.name"], "surveylab-gateway");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    // Neither its key nor anything else by which a person is known.
    let bytes = String::from_utf8_lossy(&collector.bytes()).into_owned();
    assert!(!bytes.contains("c4nary"));
    // The context is the callers' business: SurveyLab is not told.
    let sent = format!("{:?}", sandbox.requests());
    assert!(!sent.contains(TRACE), "{sent}");
}

/// Holds the one place in flight by a call of another trace, until the gate opens.
async fn occupied(collector: &Collector, sandbox: &Sandbox) -> (Gateway, Gate, JoinHandle<Outcome>) {
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).for_crk("first"));
    let gateway = Gateway::with(to(collector).flag("--max-in-flight", 1), sandbox).await;
    let client = gateway.client().await;
    let first = tokio::spawn(async move { added(&client, request("first")).await });
    sandbox.wait_for_requests(1).await;
    (gateway, gate, first)
}

#[tokio::test]
async fn every_attempt_has_its_steps_and_the_wait_before_it() {
    let collector = Collector::start().await;
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(503).for_crk("k").times(2));
    let (gateway, gate, first) = occupied(&collector, &sandbox).await;
    let client = gateway.client().await;
    let second = tokio::spawn({
        let client = client.clone();
        async move { call(&client, request("k")).await }
    });
    until_waiting(&gateway, "", 1).await;
    gate.release();
    assert_eq!(soon(first).await.unwrap(), Outcome::Added);
    assert_eq!(soon(second).await.unwrap(), Ok(Outcome::Added));

    let spans = collector.trace(TRACE, 13).await;
    let [server, steps @ ..] = &spans[..] else { panic!() };
    assert_eq!(attribute(server, "surveylab_gateway.attempts").as_deref(), Some("3"));
    for attempt in steps.chunks(4) {
        assert_eq!(names(attempt), ["wait", "claim", "send", "settle"]);
        assert_eq!(
            attribute(&attempt[0], "surveylab_gateway.lane").as_deref(),
            Some("unary")
        );
    }
    let answers: Vec<_> = of(&spans, "send")
        .into_iter()
        .map(|send| {
            let answer = attribute(send, "surveylab_gateway.answer");
            (
                answer.unwrap(),
                attribute(send, "http.response.status_code").unwrap(),
                status(send),
            )
        })
        .collect();
    let refused = ("unavailable".into(), "503".into(), Failed);
    assert_eq!(
        answers,
        [refused.clone(), refused, ("added".into(), "200".into(), Unset)]
    );
}

#[tokio::test]
async fn an_error_is_told_by_code_and_reason_and_is_the_servers_only_where_it_is() {
    let collector = Collector::start().await;
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(404).for_crk("unknown"));
    sandbox.add_fault(Fault::status(503).for_crk("away"));
    let gateway = Gateway::with(to(&collector).flag("--max-attempts", 1), &sandbox).await;
    let client = gateway.client().await;
    let invalid = AddRespondentRequest {
        email: "c4nary".into(),
        ..request("invalid")
    };
    for (message, code, number, reason, is_error) in [
        (request("unknown"), Code::NotFound, "5", "SURVEYLAB_NOT_FOUND", false),
        (request("away"), Code::Unavailable, "14", "SURVEYLAB_UNAVAILABLE", true),
        (invalid, Code::InvalidArgument, "3", "INVALID_REQUEST", false),
    ] {
        assert_eq!(call(&client, message).await, Err(code));
        until(reason, async || {
            let spans = collector.spans();
            let span = spans.iter().find(|span| {
                span.name == ADD && attribute(span, "surveylab_gateway.reason").as_deref() == Some(reason)
            });
            span.is_some_and(|span| {
                assert_eq!(attribute(span, "rpc.grpc.status_code").as_deref(), Some(number));
                assert_eq!(status(span) == Failed, is_error, "{reason}");
                true
            })
        })
        .await;
    }
}

#[tokio::test]
async fn a_stream_is_one_span_with_a_part_for_each_item() {
    let collector = Collector::start().await;
    let sandbox = surveylab().await;
    let (gateway, gate, first) = occupied(&collector, &sandbox).await;
    let client = gateway.client().await;
    let streaming = tokio::spawn(async move {
        let list = tokio_stream::iter([request("a"), request("b")]);
        let results = client.clone().stream_add_respondent(traced(list, TRACE, "01")).await;
        let mut results = results.unwrap().into_inner();
        while results.message().await.unwrap().is_some() {}
    });
    until_waiting(&gateway, "lane=\"stream\"", 2).await;
    gate.release();
    soon(first).await.unwrap();
    soon(streaming).await.unwrap();

    let spans = collector.trace(TRACE, 11).await;
    let stream = &spans[0];
    assert_eq!((stream.name.as_str(), stream.kind()), (STREAM, SpanKind::Server));
    assert_eq!(attribute(stream, "rpc.grpc.status_code").as_deref(), Some("0"));
    for (sequence, item) in of(&spans, "item").into_iter().enumerate() {
        assert_eq!(item.parent_span_id, stream.span_id);
        assert_eq!(
            attribute(item, "surveylab_gateway.sequence"),
            Some(sequence.to_string())
        );
        assert_eq!(attribute(item, "surveylab_gateway.outcome").as_deref(), Some("ADDED"));
        let of_it = spans.iter().filter(|span| span.parent_span_id == item.span_id);
        let steps: Vec<Span> = of_it.cloned().collect();
        assert_eq!(names(&steps), ["wait", "claim", "send", "settle"]);
        assert_eq!(
            attribute(&steps[0], "surveylab_gateway.lane").as_deref(),
            Some("stream")
        );
    }
}

#[tokio::test]
async fn what_goes_on_without_its_caller_stays_in_its_trace() {
    let collector = Collector::start().await;
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::with(to(&collector), &sandbox).await;
    let client = gateway.client().await;
    let leaves = tokio::spawn(async move { call(&client, request("k")).await });
    sandbox.wait_for_requests(1).await;
    leaves.abort();
    // The call's span ends with the call, and does not wait for what goes on.
    until("the call's span arrives", async || {
        !of(&collector.spans(), ADD).is_empty()
    })
    .await;
    let spans = collector.spans();
    assert_eq!(
        attribute(of(&spans, ADD)[0], "rpc.grpc.status_code").as_deref(),
        Some("1")
    );
    assert_eq!(names(&spans), [ADD, "claim"]);

    gate.release();
    let spans = collector.trace(TRACE, 4).await;
    assert_eq!(names(&spans), [ADD, "claim", "send", "settle"]);
    assert!(spans.iter().skip(1).all(|step| step.parent_span_id == spans[0].span_id));
}

#[tokio::test]
async fn a_call_that_joins_another_is_linked_to_it() {
    const OTHER: &str = "11111111111111111111111111111111";
    let collector = Collector::start().await;
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::with(to(&collector), &sandbox).await;
    let client = gateway.client().await;
    let calls = [TRACE, OTHER].map(|trace| traced(request("k"), trace, "01"));
    let mut answers = Vec::new();
    for call in calls {
        let mut client = client.clone();
        answers.push(tokio::spawn(async move { client.add_respondent(call).await }));
        sandbox.wait_for_requests(1).await;
    }
    // By then the second call is there too: it came on the same connection.
    assert_eq!(get(&client, "k").await.unwrap().state(), InvitationState::Pending);
    gate.release();
    for answer in answers {
        soon(answer).await.unwrap().unwrap();
    }
    let leads = collector.trace(TRACE, 4).await;
    let joins = collector.trace(OTHER, 1).await;
    assert_eq!(
        attribute(&joins[0], "surveylab_gateway.joined").as_deref(),
        Some("true")
    );
    assert_eq!(attribute(&leads[0], "surveylab_gateway.joined"), None);
    let links: Vec<_> = joins[0].links.iter().map(|link| &link.span_id).collect();
    assert_eq!(links, [&leads[0].span_id]);
}

#[tokio::test]
async fn of_a_trace_that_is_not_sampled_nothing_is_exported() {
    const SAMPLED: &str = "22222222222222222222222222222222";
    let collector = Collector::start().await;
    let sandbox = surveylab().await;
    let gateway = Gateway::with(to(&collector), &sandbox).await;
    let client = gateway.client().await;
    for (crk, trace, flags) in [("a", TRACE, "00"), ("b", SAMPLED, "01")] {
        let answer = client.clone().add_respondent(traced(request(crk), trace, flags)).await;
        assert_eq!(answer.unwrap().into_inner().outcome(), Outcome::Added);
    }
    collector.trace(SAMPLED, 4).await;
    // An end flushes whatever is left.
    gateway.signal("TERM");
    assert!(soon(gateway.ended()).await.success());
    assert_eq!(collector.spans().len(), 4);
}

#[tokio::test]
async fn the_standard_variables_say_what_is_exported_and_how() {
    let collector = Collector::start().await;
    let sandbox = surveylab().await;
    let options = Options::new()
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &collector.endpoint)
        // The end flushes.
        .env("OTEL_BSP_SCHEDULE_DELAY", 3_600_000)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20c4nary-header")
        .env("OTEL_SERVICE_NAME", "invitations")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .env("RUST_LOG", "trace");
    let gateway = Gateway::with(options.clone(), &sandbox).await;
    assert_eq!(added(&gateway.client().await, request("k")).await, Outcome::Added);
    gateway.signal("TERM");
    let (gateway, ended) = soon(gateway.once_ended()).await;
    assert!(ended.success());
    assert_eq!(names(&collector.spans()), [ADD, "claim", "send", "settle"]);
    assert_eq!(collector.resource()["service.name"], "invitations");
    assert_eq!(collector.resource()["deployment.environment.name"], "test");
    assert_eq!(collector.authorization().as_deref(), Some("Bearer c4nary-header"));
    assert!(!gateway.log().contains("c4nary-header"));

    for (name, value) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ] {
        let collector = Collector::start().await;
        let options = options.clone().env(name, value);
        let options = options.env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &collector.endpoint);
        let gateway = Gateway::with(options, &sandbox).await;
        assert_eq!(added(&gateway.client().await, request(name)).await, Outcome::Added);
        gateway.signal("TERM");
        assert!(soon(gateway.ended()).await.success());
        assert_eq!(names(&collector.spans()), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn a_wrong_variable_is_told_in_one_line_without_its_value() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector-c4nary:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:c4nary@collector:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/c4nary"),
        ("OTEL_TRACES_EXPORTER", "c4nary"),
        ("OTEL_TRACES_SAMPLER", "c4nary"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/c4nary"),
    ] {
        let mut env = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://localhost:4317"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ];
        env.retain(|(other, _)| *other != name);
        env.push((name, value));
        let arguments = [
            "serve",
            "--sandbox",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
        ];
        let (code, _, stderr) = soon(run(&arguments, &env)).await;
        assert_eq!(code, Some(2), "{name}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(name) && !stderr.contains("c4nary"), "{stderr}");
    }
}

#[tokio::test]
async fn a_collector_with_tls_is_trusted_by_its_authority_alone() {
    let certified = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let collector = Collector::with_tls(Identity::from_pem(&certificate, key)).await;
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("authority.pem");
    std::fs::write(&authority, certificate).unwrap();
    let sandbox = surveylab().await;
    let trusting = to(&collector).env("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.display());
    let gateway = Gateway::with(trusting, &sandbox).await;
    assert_eq!(call(&gateway.client().await, request("k")).await, Ok(Outcome::Added));
    collector.trace(TRACE, 4).await;

    let gateway = Gateway::with(to(&collector), &sandbox).await;
    assert_eq!(
        call(&gateway.client().await, request("other")).await,
        Ok(Outcome::Added)
    );
    until("it is reported", async || reports(&gateway) > 0).await;
    assert_eq!(collector.spans().len(), 4);
}

const EXPORT_FAILED: &str = "spans can't be exported";

fn reports(gateway: &Gateway) -> usize {
    let log = gateway.log();
    log.lines().filter(|line| line.contains(EXPORT_FAILED)).count()
}

#[tokio::test]
async fn a_collector_that_is_away_is_reported_once_and_holds_nothing_up() {
    let sandbox = surveylab().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = listener.local_addr().unwrap();
    drop(listener);
    let options = Options::new()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{away}"))
        .env("OTEL_BSP_SCHEDULE_DELAY", 1);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    for crk in 0..20 {
        assert_eq!(added(&client, request(&crk.to_string())).await, Outcome::Added);
    }
    until("it is reported", async || reports(&gateway) > 0).await;
    for crk in 20..40 {
        assert_eq!(added(&client, request(&crk.to_string())).await, Outcome::Added);
    }
    gateway.signal("TERM");
    let (gateway, ended) = soon(gateway.once_ended()).await;
    assert!(ended.success());
    assert_eq!(reports(&gateway), 1, "{}", gateway.log());
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_neither_calls_nor_the_end() {
    let sandbox = surveylab().await;
    // Accepts by the kernel's queue, and never answers.
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = Options::new()
        .env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://{}", hangs.local_addr().unwrap()),
        )
        // Longer than any test waits: nothing but the gateway's own bound can end it.
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", 3_600_000)
        .env("OTEL_BSP_SCHEDULE_DELAY", 1)
        // Fewer than there will be: the rest is lost.
        .env("OTEL_BSP_MAX_QUEUE_SIZE", 8)
        .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 4);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let list: Vec<_> = (0..200).map(|crk| request(&crk.to_string())).collect();
    let results = soon(stream(&client, list)).await;
    assert!(results.iter().all(Result::is_ok));
    gateway.signal("TERM");
    assert!(soon(gateway.ended()).await.success());
}

#[tokio::test]
async fn no_secret_shows_in_a_span_whatever_goes_wrong() {
    let collector = Collector::start().await;
    let sandbox = surveylab().await;
    secrets::add_faults(&sandbox);
    let options = secrets::traced()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
        .env("OTEL_BSP_MAX_QUEUE_SIZE", 100_000);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let mut places = secrets::Places::default();
    secrets::everything_that_can_be_said(&client, &mut places).await;
    gateway.signal("TERM");
    let (gateway, _) = soon(gateway.once_ended()).await;
    places.add_remains("ended", &gateway);
    places.add("spans", collector.bytes());
    assert!(places.hits("SURVEYLAB_ACTION_FAILED").contains(&"spans"));
    assert!(collector.spans().len() > 200);
    places.assert_clean();
}
