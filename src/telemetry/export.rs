//! Sends spans to a collector by OTLP over gRPC, as OpenTelemetry's environment variables say.

use std::{
    env, fs, io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hyper::Uri;
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{
    SpanExporter, WithTonicConfig as _,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    resource::{EnvResourceDetector, ResourceDetector as _, SdkProvidedResourceDetector},
    trace::{SdkTracerProvider, SpanData},
};

use crate::{clock::Instant, trace};

const SERVICE: &str = "surveylab-gateway";

const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
/// Each holds for all that is exported, and first for traces alone.
const ENDPOINT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOL: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const CERTIFICATE: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];

/// A collector that is away is worth a line so often.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// A setting in the environment that can't be used. Never holds its value: endpoints and headers may hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: expected http://HOST:PORT or https://HOST:PORT, without a user")]
    Endpoint(&'static str),
    #[error("{0}: only grpc is supported")]
    Protocol(&'static str),
    #[error("{EXPORTER}: expected otlp or none")]
    Exporter,
    #[error(
        "{SAMPLER}: expected always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or \
         parentbased_traceidratio"
    )]
    Sampler,
    #[error("{SAMPLER_ARG}: expected a number from 0 to 1")]
    SamplerArg,
    #[error("{0}: the file can't be read: {1}")]
    Certificate(&'static str, io::Error),
    #[error("OTEL_EXPORTER_OTLP_*: the exporter can't be made of these settings")]
    Build,
    #[error("RUST_LOG: expected a filter such as info or info,access=debug")]
    Filter,
    #[error("the access log can't start: {0}")]
    Lines(io::Error),
}

impl Error {
    /// Is a setting wrong, so that only another one helps?
    pub fn is_of_a_setting(&self) -> bool {
        !matches!(self, Self::Lines(_))
    }
}

/// The export of spans, under way.
pub struct Export {
    provider: SdkTracerProvider,
}

impl Export {
    /// Begins it, if a collector is named.
    pub fn from_environment() -> Result<Option<Self>, Error> {
        let is_disabled = variable(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let Some((name, endpoint)) = first(ENDPOINT).filter(|_| !is_disabled) else {
            return Ok(None);
        };
        match variable(EXPORTER).as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(_) => return Err(Error::Exporter),
        }
        if let Some((name, protocol)) = first(PROTOCOL)
            && protocol != "grpc"
        {
            return Err(Error::Protocol(name));
        }
        check_sampler()?;
        let exporter = SpanExporter::builder().with_tonic();
        let exporter = match scheme(&endpoint).ok_or(Error::Endpoint(name))? {
            Scheme::Http => exporter,
            Scheme::Https => exporter.with_tls_config(tls()?),
        };
        let exporter = exporter.build().map_err(|_may_hold_a_value| Error::Build)?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Reporting {
                exporter,
                reported: Mutex::default(),
            })
            .with_resource(resource())
            .build();
        trace::install(provider.tracer(env!("CARGO_CRATE_NAME")));
        Ok(Some(Self { provider }))
    }

    /// Sends what is left, for no longer than `patience`.
    pub fn close(&self, patience: Duration) {
        // What went wrong was reported by the exporter, or it is the time.
        let _late = self.provider.shutdown_with_timeout(patience);
    }
}

fn variable(name: &str) -> Option<String> {
    // An empty one is as good as none, by OpenTelemetry's specification.
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn first(names: [&'static str; 2]) -> Option<(&'static str, String)> {
    names.into_iter().find_map(|name| Some((name, variable(name)?)))
}

enum Scheme {
    Http,
    Https,
}

fn scheme(endpoint: &str) -> Option<Scheme> {
    let uri: Uri = endpoint.parse().ok()?;
    // What stands before an @ would be sent nowhere, and is meant as a secret.
    if uri.authority()?.as_str().contains('@') {
        return None;
    }
    match uri.scheme_str()? {
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        _ => None,
    }
}

/// The SDK would fall back to a sampler of its own, without a word.
fn check_sampler() -> Result<(), Error> {
    match variable(SAMPLER).as_deref() {
        None | Some("always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off") => Ok(()),
        Some("traceidratio" | "parentbased_traceidratio") => {
            let ratio: Option<f64> = variable(SAMPLER_ARG).map_or(Some(1.0), |ratio| ratio.parse().ok());
            match ratio {
                Some(ratio) if (0.0..=1.0).contains(&ratio) => Ok(()),
                _ => Err(Error::SamplerArg),
            }
        }
        Some(_) => Err(Error::Sampler),
    }
}

fn tls() -> Result<ClientTlsConfig, Error> {
    let tls = ClientTlsConfig::new();
    Ok(match first(CERTIFICATE) {
        None => tls.with_native_roots(),
        Some((name, path)) => {
            let pem = fs::read(path).map_err(|error| Error::Certificate(name, error))?;
            tls.ca_certificate(Certificate::from_pem(pem))
        }
    })
}

/// The gateway's name, unless the environment gives another one, and what the environment says besides.
fn resource() -> Resource {
    let environment = EnvResourceDetector::new().detect();
    let is_named = variable(SERVICE_NAME).is_some() || environment.get(&"service.name".into()).is_some();
    let resource = Resource::builder_empty()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detectors(&[
            Box::new(EnvResourceDetector::new()),
            Box::new(SdkProvidedResourceDetector),
        ]);
    match is_named {
        true => resource.build(),
        false => resource.with_service_name(SERVICE).build(),
    }
}

/// An exporter that says when it can't. The SDK would say so for every batch, or not at all.
#[derive(Debug)]
struct Reporting {
    exporter: SpanExporter,
    reported: Mutex<Option<Instant>>,
}

impl Reporting {
    fn report(&self, error: &OTelSdkError) {
        let now = Instant::now();
        {
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            if reported.is_some_and(|at| now.duration_since(at) < REPORT_EVERY) {
                return;
            }
            *reported = Some(now);
        }
        // Holds a code of gRPC and what the transport says, never the collector's words.
        tracing::warn!(%error, "spans can't be exported and are lost; calls go on");
    }
}

impl opentelemetry_sdk::trace::SpanExporter for Reporting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        if let Err(error) = &result {
            self.report(error);
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
