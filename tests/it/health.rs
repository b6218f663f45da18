//! What machines that watch, and people with grpcurl, get to see: health, reflection, metrics.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::FileDescriptorProto;
use surveylab_gateway::{proto::Outcome, sandbox::Fault};
use tonic::{Code, transport::Channel};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use crate::support::{
    Gateway, added,
    call::{add, stream},
    gateway::surveylab,
    request,
};

const SERVICE: &str = "surveylab.invitation.v1.InvitationService";

#[tokio::test]
async fn health_is_told_overall_and_by_name() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut health = HealthClient::new(gateway.channel().await);
    for service in ["", SERVICE] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status, ServingStatus::Serving as i32, "{service}");
    }
    let unknown = HealthCheckRequest {
        service: "surveylab.invitation.v2.InvitationService".into(),
    };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn health_does_not_depend_on_surveylab() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(401));
    let gateway = Gateway::start(&sandbox).await;
    add(&gateway.client().await, request("k")).await.unwrap_err();
    let mut health = HealthClient::new(gateway.channel().await);
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status, ServingStatus::Serving as i32);
    assert_eq!(gateway.admin("/readyz").await.0, 200);
}

/// Both versions of server reflection speak of the same things, in messages of their own.
macro_rules! reflection {
    ($name:ident, $version:ident) => {
        mod $name {
            use tonic::{Code, transport::Channel};
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };

            async fn ask(channel: &Channel, question: MessageRequest) -> Result<MessageResponse, Code> {
                let request = ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(question),
                };
                let mut client = ServerReflectionClient::new(channel.clone());
                let answers = client.server_reflection_info(tokio_stream::once(request)).await;
                let answer = answers.unwrap().into_inner().message().await;
                let answer = answer.map_err(|status| status.code())?.unwrap();
                Ok(answer.message_response.unwrap())
            }

            pub async fn services(channel: &Channel) -> Vec<String> {
                match ask(channel, MessageRequest::ListServices(String::new())).await {
                    Ok(MessageResponse::ListServicesResponse(list)) => {
                        list.service.into_iter().map(|service| service.name).collect()
                    }
                    other => panic!("{other:?}"),
                }
            }

            /// The encoded files in which a symbol is declared, if it is known.
            pub async fn files_of(channel: &Channel, symbol: &str) -> Option<Vec<Vec<u8>>> {
                match ask(channel, MessageRequest::FileContainingSymbol(symbol.into())).await {
                    Ok(MessageResponse::FileDescriptorResponse(files)) => Some(files.file_descriptor_proto),
                    Err(Code::NotFound) => None,
                    other => panic!("{other:?}"),
                }
            }
        }
    };
}

reflection!(v1, v1);
reflection!(v1alpha, v1alpha);

/// All that a client needs to read calls, answers and the details of errors.
const SYMBOLS: [&str; 13] = [
    SERVICE,
    "surveylab.invitation.v1.AddRespondentRequest",
    "surveylab.invitation.v1.AddRespondentResponse",
    "surveylab.invitation.v1.StreamAddRespondentResponse",
    "surveylab.invitation.v1.Invitation",
    "surveylab.invitation.v1.ListInvitationsResponse",
    "surveylab.invitation.v1.ResolveInvitationRequest",
    "surveylab.invitation.v1.InvitationState",
    "surveylab.invitation.v1.GetStatusResponse",
    "google.rpc.Status",
    "google.rpc.ErrorInfo",
    "google.rpc.BadRequest",
    "google.rpc.RetryInfo",
];

fn declares(file: &[u8], symbol: &str) -> bool {
    let file = FileDescriptorProto::decode(file).unwrap();
    let messages = file.message_type.iter().map(|message| message.name());
    let enums = file.enum_type.iter().map(|message| message.name());
    let services = file.service.iter().map(|message| message.name());
    messages
        .chain(enums)
        .chain(services)
        .any(|name| format!("{}.{name}", file.package()) == symbol)
}

fn assert_services(services: Vec<String>, version: &str) {
    let services: BTreeSet<&str> = services.iter().map(String::as_str).collect();
    for service in [SERVICE, "grpc.health.v1.Health"] {
        assert!(services.contains(service), "{version}: {services:?}");
    }
}

async fn reflecting() -> (Gateway, Channel) {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let channel = gateway.channel().await;
    (gateway, channel)
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let (_gateway, channel) = reflecting().await;
    assert_services(v1::services(&channel).await, "v1");
    assert_services(v1alpha::services(&channel).await, "v1alpha");
}

#[tokio::test]
async fn reflection_knows_the_contract_and_the_details_of_errors() {
    let (_gateway, channel) = reflecting().await;
    for symbol in SYMBOLS {
        let files = v1::files_of(&channel, symbol).await.expect(symbol);
        assert!(files.iter().any(|file| declares(file, symbol)), "{symbol}");
        assert_eq!(v1alpha::files_of(&channel, symbol).await, Some(files), "{symbol}");
    }
    assert_eq!(v1::files_of(&channel, "surveylab.invitation.v1.Nothing").await, None);
}

/// Prometheus' text format: every sample by its name and labels. Panics at a line that is none, at a sample that comes
/// twice, and at one without a type.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut types = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name) = (words.next().unwrap(), words.next().expect(line));
            assert!(["HELP", "TYPE"].contains(&kind), "{line}");
            let is = words.next().expect(line);
            if kind == "TYPE" {
                assert!(["counter", "gauge", "histogram"].contains(&is), "{line}");
                assert!(types.insert(name.to_string()), "{line}");
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect(line);
        let name = series.split('{').next().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
        let of_histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|end| name.strip_suffix(end));
        assert!(of_histogram.chain([name]).any(|name| types.contains(name)), "{line}");
        assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
        let before = samples.insert(series.to_string(), value.parse().expect(line));
        assert_eq!(before, None, "{line}");
    }
    samples
}

/// The one sample with this name and these labels, in whatever order they are written.
fn sample(samples: &BTreeMap<String, f64>, name: &str, labels: &[&str]) -> Option<f64> {
    let mut found = samples.iter().filter(|(series, _)| {
        let (is, rest) = series.split_once('{').unwrap_or((series, ""));
        is == name && labels.iter().all(|label| rest.contains(label))
    });
    let first = found.next().map(|(_, value)| *value);
    assert!(found.next().is_none(), "{name} {labels:?} is one sample");
    first
}

#[tokio::test]
async fn metrics_count_calls_requests_and_the_rate() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(404).for_crk("404"));
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    assert_eq!(added(&client, request("k")).await, Outcome::Duplicate);
    add(&client, request("404")).await.unwrap_err();
    add(&client, request("")).await.unwrap_err();
    stream(&client, vec![request("k"), request("s")]).await;

    let (status, text) = gateway.admin("/metrics").await;
    assert_eq!(status, 200);
    let samples = samples(&text);
    let calls = |labels: &[&str]| sample(&samples, "surveylab_gateway_calls_total", labels);
    let unary = r#"method="AddRespondent""#;
    assert_eq!(calls(&[unary, r#"code="OK""#]), Some(2.0));
    assert_eq!(calls(&[unary, r#"reason="SURVEYLAB_NOT_FOUND""#]), Some(1.0));
    assert_eq!(calls(&[unary, r#"reason="INVALID_REQUEST""#]), Some(1.0));
    assert_eq!(calls(&[r#"method="StreamAddRespondent""#, r#"code="OK""#]), Some(2.0));
    for kind in [r#"kind="configured""#, r#"kind="learned""#] {
        let rate = sample(&samples, "surveylab_gateway_rate_per_second", &[kind]);
        assert_eq!(rate.map(f64::round), Some(100_000.0));
    }
    assert_eq!(sample(&samples, "surveylab_gateway_pause_seconds", &[]), Some(0.0));
    assert_eq!(sample(&samples, "surveylab_gateway_requests_in_flight", &[]), Some(0.0));
    for lane in [r#"lane="unary""#, r#"lane="stream""#] {
        assert_eq!(
            sample(&samples, "surveylab_gateway_waiting_requests", &[lane]),
            Some(0.0)
        );
    }
    let timed = sample(&samples, "surveylab_gateway_call_duration_seconds_count", &[unary]);
    assert_eq!(timed, Some(4.0));
    let requests = |answer: &str| sample(&samples, "surveylab_gateway_surveylab_requests_total", &[answer]);
    assert_eq!(requests(r#"answer="added""#), Some(2.0));
    assert_eq!(requests(r#"answer="not_found""#), Some(1.0));
    let timed = sample(
        &samples,
        "surveylab_gateway_surveylab_request_duration_seconds_count",
        &[],
    );
    assert_eq!(timed, Some(3.0));
}

#[tokio::test]
async fn metrics_show_what_a_429_taught() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(429).retry_after("60"));
    let options = crate::support::Options::new()
        .flag("--max-wait", "5s")
        .flag("--rate", "10/s");
    let gateway = Gateway::with(options, &sandbox).await;
    add(&gateway.client().await, request("k")).await.unwrap_err();
    let samples = samples(&gateway.admin("/metrics").await.1);
    let rate = |kind: &str| sample(&samples, "surveylab_gateway_rate_per_second", &[kind]).unwrap();
    assert_eq!(rate(r#"kind="configured""#), 10.0);
    assert!((rate(r#"kind="learned""#) - 7.0).abs() < 0.01);
    assert!(sample(&samples, "surveylab_gateway_pause_seconds", &[]) > Some(0.0));
}

#[tokio::test]
async fn the_admin_port_answers_machines_that_watch() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    assert_eq!(gateway.admin("/healthz").await, (200, "ok\n".into()));
    assert_eq!(gateway.admin("/readyz").await, (200, "ready\n".into()));
    assert_eq!(gateway.admin("/nothing").await.0, 404);
}
