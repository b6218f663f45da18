//! Spans, for OpenTelemetry: one for each call, and below it one for each step of its requests.
//!
//! They are made by OpenTelemetry's own API and not out of `tracing`'s spans: a request goes on when its caller has left,
//! and a span of `tracing` stays open for as long as it has children. So nothing but what this module is told is
//! exported: no log line, and no span of a dependency. Where nothing is exported, and for a call that is not sampled, a
//! [`Trace`] is empty and costs nothing.
//!
//! The context is not sent on to SurveyLab: it is a third party, which would learn how the callers' requests belong
//! together, and makes no use of it.
//!
//! A span never holds a crk, personal data, a URL, or words of SurveyLab.

use std::{borrow::Cow, sync::OnceLock};

use hyper::HeaderMap;
use opentelemetry::{
    Context, KeyValue, Value,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span},
};

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Begins to record spans. Without it there are none.
pub fn install(tracer: SdkTracer) {
    let _first_wins = TRACER.set(tracer);
}

/// The span of which a call says that it is part, by W3C Trace Context.
pub struct Caller(Context);

impl Caller {
    /// Empty where the headers name none, or none that can be understood.
    pub fn of(headers: &HeaderMap) -> Self {
        // Most calls of most services have none.
        if !headers.contains_key("traceparent") {
            return Self(Context::new());
        }
        Self(TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers)))
    }

    /// Its trace, in hexadecimal digits.
    pub fn trace_id(&self) -> Option<String> {
        let span = self.0.span();
        let context = span.span_context();
        context.is_valid().then(|| context.trace_id().to_string())
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// A span that has parts. Cheap to clone: all clones are one. Empty where nothing is recorded.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    span: Option<Context>,
}

impl Trace {
    /// The span of a call: part of its caller's, or else the first of its trace.
    pub fn of_call(name: &'static str, caller: &Caller) -> Self {
        let tracer = TRACER.get();
        tracer.map_or_else(Self::default, |tracer| {
            Self::of(tracer.build_with_context(builder(name, SpanKind::Server), &caller.0))
        })
    }

    /// A part that has parts itself.
    pub fn part(&self, name: &'static str) -> Self {
        let span = self.begin(name, SpanKind::Internal);
        span.map_or_else(Self::default, Self::of)
    }

    /// A part without parts.
    pub fn step(&self, name: &'static str) -> Step {
        Step {
            span: self.begin(name, SpanKind::Internal),
        }
    }

    /// The part that lies with somebody else.
    pub fn request(&self, name: &'static str) -> Step {
        Step {
            span: self.begin(name, SpanKind::Client),
        }
    }

    fn begin(&self, name: &'static str, kind: SpanKind) -> Option<Span> {
        let parent = self.span.as_ref()?;
        Some(TRACER.get()?.build_with_context(builder(name, kind), parent))
    }

    fn of(span: Span) -> Self {
        let is_sampled = span.is_recording();
        Self {
            span: is_sampled.then(|| Context::new().with_span(span)),
        }
    }

    pub fn is_recorded(&self) -> bool {
        self.span.is_some()
    }

    /// The trace that it is in, in hexadecimal digits.
    pub fn id(&self) -> Option<String> {
        let span = self.span.as_ref()?.span();
        Some(span.span_context().trace_id().to_string())
    }

    pub fn set(&self, attribute: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.span {
            context.span().set_attribute(KeyValue::new(attribute, value));
        }
    }

    /// Its work is done in another trace, or in another part of this one.
    pub fn link(&self, other: &Self) {
        if let (Some(context), Some(other)) = (&self.span, &other.span) {
            context.span().add_link(other.span().span_context().clone(), Vec::new());
        }
    }

    /// It ended as its peer must not expect.
    pub fn failed(&self, why: impl Into<Cow<'static, str>>) {
        if let Some(context) = &self.span {
            context.span().set_status(Status::error(why));
        }
    }

    /// Its parts may go on.
    pub fn end(&self) {
        if let Some(context) = &self.span {
            context.span().end();
        }
    }
}

fn builder(name: &'static str, kind: SpanKind) -> SpanBuilder {
    SpanBuilder::from_name(name).with_kind(kind)
}

/// A step under way, until it is dropped.
#[must_use = "it ends when it is dropped"]
pub struct Step {
    span: Option<Span>,
}

impl Step {
    pub fn set(&mut self, attribute: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new(attribute, value));
        }
    }

    pub fn failed(&mut self, why: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.span {
            span.set_status(Status::error(why));
        }
    }
}
