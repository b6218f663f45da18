//! A collector of spans, by OTLP's own service.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use super::watch::until;

#[derive(Default)]
struct Received {
    exports: Vec<ExportTraceServiceRequest>,
    authorization: Option<String>,
}

struct Service(Arc<Mutex<Received>>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock().unwrap();
        if let Some(value) = request.metadata().get("authorization") {
            received.authorization = Some(value.to_str().unwrap().into());
        }
        received.exports.push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector that keeps all it receives, until it is dropped.
pub struct Collector {
    pub endpoint: String,
    received: Arc<Mutex<Received>>,
    task: JoinHandle<()>,
}

impl Collector {
    pub async fn start() -> Self {
        Self::of(Server::builder(), "http").await
    }

    /// Its certificate names localhost.
    pub async fn with_tls(identity: Identity) -> Self {
        let tls = ServerTlsConfig::new().identity(identity);
        Self::of(Server::builder().tls_config(tls).unwrap(), "https").await
    }

    async fn of(mut server: Server, scheme: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
        let received = Arc::new(Mutex::new(Received::default()));
        let service = TraceServiceServer::new(Service(received.clone()));
        let server = server.add_service(service);
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Self {
            endpoint,
            received,
            task,
        }
    }

    /// All spans so far, in the order of their beginnings.
    pub fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        let resources = received.exports.iter().flat_map(|export| &export.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        let mut spans: Vec<Span> = scopes.flat_map(|scope| scope.spans.clone()).collect();
        spans.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
        spans
    }

    /// The spans of a trace, once there are so many.
    pub async fn trace(&self, trace_id: &str, count: usize) -> Vec<Span> {
        let in_it = || self.spans().into_iter().filter(|span| hex(&span.trace_id) == trace_id);
        until(&format!("{count} spans of {trace_id} arrive"), async || {
            in_it().count() >= count
        })
        .await;
        let spans: Vec<Span> = in_it().collect();
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    /// What all exports say of who sends them.
    pub fn resource(&self) -> HashMap<String, String> {
        let received = self.received.lock().unwrap();
        let resource = &received.exports[0].resource_spans[0].resource;
        attributes(&resource.as_ref().unwrap().attributes)
    }

    pub fn authorization(&self) -> Option<String> {
        self.received.lock().unwrap().authorization.clone()
    }

    /// All that was received, as it was on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let received = self.received.lock().unwrap();
        received
            .exports
            .iter()
            .flat_map(|export| export.encode_to_vec())
            .collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Attributes as text, for comparison.
pub fn attributes(of: &[KeyValue]) -> HashMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(is) => is.to_string(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = of.iter().map(|pair| {
        let value = pair.value.as_ref().and_then(|value| value.value.as_ref());
        (pair.key.clone(), value.map_or_else(String::new, text))
    });
    pairs.collect()
}
