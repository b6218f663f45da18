//! Faults as people write them: the text of `--fault`, and JSON.

use std::{str::FromStr, time::Duration};

use bytes::Bytes;
use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};

use super::faults::{Effect, Fault, Matching, Outcome, Rule, final_status};
use crate::hex::hex;

/// What `--fault` understands, for a command's help.
pub const FAULT_HELP: &str = "\
A fault to put on: parts with commas between them, such as `status=503,times=3` or `hang,crk=abc`. May be given \
several times; the first that applies to a request decides.

What happens (one, or latency alone):
  status=CODE          an answer of that status; with retry_after=TEXT and body=TEXT
  body=TEXT            a 200 with that body; body_hex=HEX for bytes
  redirect=URL         a 302
  reset_before_answer  the connection reset, without an answer
  close_before_answer  the connection closed, without an answer
  reset_within_answer  half of the body, then a reset
  half_body            half of the body, then a close
  hang                 no answer until the rule is taken back or the client leaves
  latency=50ms         later; also together with one of the others

To which requests:
  cId=ID, crk=CRK, crk_prefix=TEXT   only these
  skip=N               not the first N
  times=N              so many, then no more
  probability=P        a share of them, 0 to 1; seed=N chooses others

Does it take effect (send its e-mail)?
  effect=true|false    default: true where the answer is lost or garbled, for 502, 504 and 2xx; else false
  delayed_effect=2s    so long after its arrival

A comma within a value is written \\, and a backslash \\\\.";

/// What is wrong with the description of a fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FaultError(String);

fn wrong(what: impl Into<String>) -> FaultError {
    FaultError(what.into())
}

/// A fault in JSON.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Spec {
    #[serde(rename = "cId")]
    collector_id: Option<String>,
    crk: Option<String>,
    crk_prefix: Option<String>,
    skip: Option<u64>,
    times: Option<u64>,
    probability: Option<f64>,
    seed: Option<u64>,
    latency_ms: Option<u64>,
    /// What happens, where no field of its own says it.
    fault: Option<String>,
    status: Option<u16>,
    retry_after: Option<String>,
    body: Option<String>,
    body_hex: Option<String>,
    redirect: Option<String>,
    effect: Option<bool>,
    delayed_effect_ms: Option<u64>,
    /// Shown, and ignored when given: what was read may be put back.
    seen: Option<u64>,
    applied: Option<u64>,
}

/// Faults from JSON: a list, each an object or the text form as a string.
pub(super) fn from_json(json: &[u8]) -> Result<Vec<Fault>, FaultError> {
    let list: Vec<serde_json::Value> =
        serde_json::from_slice(json).map_err(|error| wrong(format!("expected a JSON list of faults: {error}")))?;
    let fault = |value| match value {
        serde_json::Value::String(text) => text.parse(),
        value => serde_json::from_value::<Spec>(value)
            .map_err(|error| wrong(error.to_string()))?
            .try_into(),
    };
    let numbered = |(index, value)| fault(value).map_err(|error| wrong(format!("fault {}: {error}", index + 1)));
    list.into_iter().enumerate().map(numbered).collect()
}

/// The rules in JSON, without the fields that say nothing.
pub(super) fn to_json<'a>(rules: impl Iterator<Item = &'a Rule>) -> serde_json::Value {
    let object = |rule| {
        let mut value = serde_json::to_value(Spec::from(rule)).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        value
    };
    rules.map(object).collect()
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut spec = Spec::default();
        for part in split(text) {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value)),
                None => (part.trim(), None),
            };
            spec.set(&name.replace('-', "_"), value)?;
        }
        spec.try_into()
    }
}

/// At commas, but not those behind a backslash.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            ',' => {
                parts.push(String::new());
                continue;
            }
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        };
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

impl Spec {
    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), FaultError> {
        let Some(value) = value else {
            if let Some(other) = self.fault.replace(name.to_owned()) {
                return Err(wrong(format!("{other} and {name} can't both happen")));
            }
            return Ok(());
        };
        let text = || Some(value.to_owned());
        match name {
            "cId" => self.collector_id = text(),
            "crk" => self.crk = text(),
            "crk_prefix" => self.crk_prefix = text(),
            "skip" => self.skip = Some(parse(name, value)?),
            "times" => self.times = Some(parse(name, value)?),
            "probability" => self.probability = Some(parse(name, value)?),
            "seed" => self.seed = Some(parse(name, value)?),
            "latency" => self.latency_ms = Some(millis(name, value)?),
            "status" => self.status = Some(parse(name, value)?),
            "retry_after" => self.retry_after = text(),
            "body" => self.body = text(),
            "body_hex" => self.body_hex = text(),
            "redirect" => self.redirect = text(),
            "effect" => self.effect = Some(parse(name, value)?),
            "delayed_effect" => self.delayed_effect_ms = Some(millis(name, value)?),
            _ => return Err(wrong(format!("a fault has no part {name:?}"))),
        }
        Ok(())
    }

    fn body(&self) -> Result<Option<Bytes>, FaultError> {
        match (&self.body, &self.body_hex) {
            (Some(_), Some(_)) => Err(wrong("body and body_hex can't both be given")),
            (Some(text), None) => Ok(Some(Bytes::from(text.clone()))),
            (None, Some(hex)) => Ok(Some(from_hex(hex)?)),
            (None, None) => Ok(None),
        }
    }

    fn outcome(&self) -> Result<Outcome, FaultError> {
        let body = self.body()?;
        if self.retry_after.is_some() && self.status.is_none() {
            return Err(wrong("retry_after belongs to a status"));
        }
        match (self.fault.as_deref(), self.status, &self.redirect, body) {
            (None, Some(status), None, body) => Ok(Outcome::Status {
                status: final_status(status).ok_or_else(|| wrong("status must be in 200 to 999"))?,
                retry_after: self
                    .retry_after
                    .as_deref()
                    .map(|text| header("retry_after", text))
                    .transpose()?,
                body: body.unwrap_or_default(),
            }),
            (None, None, Some(location), None) => Ok(Outcome::Redirect(header("redirect", location)?)),
            (None, None, None, Some(body)) => Ok(Outcome::Body(body)),
            (None, None, None, None) if self.latency_ms.is_some() => Ok(Outcome::Answer),
            (Some(name), None, None, None) => match name {
                "reset_before_answer" => Ok(Outcome::Reset),
                "close_before_answer" => Ok(Outcome::Close),
                "reset_within_answer" => Ok(Outcome::ResetWithin),
                "half_body" => Ok(Outcome::HalfBody),
                "hang" => Ok(Outcome::Hang),
                "status" | "body" | "redirect" | "latency" => Err(wrong(format!("{name} needs a value"))),
                _ => Err(wrong(format!("there is no fault {name:?}"))),
            },
            (None, None, None, None) => Err(wrong("a fault must say what happens, such as status=503 or hang")),
            _ => Err(wrong("only one thing can happen")),
        }
    }
}

impl TryFrom<Spec> for Fault {
    type Error = FaultError;

    fn try_from(spec: Spec) -> Result<Self, FaultError> {
        let outcome = spec.outcome()?;
        let probability = spec.probability.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&probability) {
            return Err(wrong("probability must be in 0 to 1"));
        }
        let effect = match (spec.effect, spec.delayed_effect_ms) {
            (Some(false), Some(_)) => return Err(wrong("effect=false and a delayed effect exclude each other")),
            (_, Some(millis)) => Some(Effect::After(Duration::from_millis(millis))),
            (Some(true), None) => Some(Effect::AtOnce),
            (Some(false), None) => Some(Effect::Never),
            (None, None) => None,
        };
        Ok(Self {
            matching: Matching {
                collector_id: spec.collector_id,
                crk: spec.crk,
                crk_prefix: spec.crk_prefix,
            },
            skip: spec.skip.unwrap_or(0),
            times: spec.times,
            probability,
            seed: spec.seed.unwrap_or(0),
            latency: Duration::from_millis(spec.latency_ms.unwrap_or(0)),
            gate: None,
            outcome,
            effect,
        })
    }
}

impl From<&Rule> for Spec {
    fn from(rule: &Rule) -> Self {
        let fault = &*rule.fault;
        let mut spec = Self {
            collector_id: fault.matching.collector_id.clone(),
            crk: fault.matching.crk.clone(),
            crk_prefix: fault.matching.crk_prefix.clone(),
            skip: (fault.skip > 0).then_some(fault.skip),
            times: fault.times,
            probability: (fault.probability < 1.0).then_some(fault.probability),
            seed: (fault.seed > 0).then_some(fault.seed),
            latency_ms: (!fault.latency.is_zero()).then(|| whole_millis(fault.latency)),
            seen: Some(rule.seen),
            applied: Some(rule.applied),
            ..Self::default()
        };
        match fault.effect() {
            Effect::Never => spec.effect = Some(false),
            Effect::AtOnce => spec.effect = Some(true),
            Effect::After(delay) => spec.delayed_effect_ms = Some(whole_millis(delay)),
        }
        match &fault.outcome {
            Outcome::Answer if fault.gate.is_none() => spec.latency_ms = Some(whole_millis(fault.latency)),
            Outcome::Status {
                status,
                retry_after,
                body,
            } => {
                spec.status = Some(status.as_u16());
                spec.retry_after = retry_after
                    .as_ref()
                    .map(|text| String::from_utf8_lossy(text.as_bytes()).into());
                if !body.is_empty() {
                    spec.show_body(body);
                }
            }
            Outcome::Body(body) => spec.show_body(body),
            Outcome::Redirect(location) => spec.redirect = Some(String::from_utf8_lossy(location.as_bytes()).into()),
            _ => spec.fault = Some(fault.name().to_owned()),
        }
        spec
    }
}

impl Spec {
    fn show_body(&mut self, body: &Bytes) {
        match std::str::from_utf8(body) {
            Ok(text) => self.body = Some(text.to_owned()),
            Err(_) => self.body_hex = Some(hex(body).to_string()),
        }
    }
}

fn parse<T: FromStr<Err: std::fmt::Display>>(name: &str, value: &str) -> Result<T, FaultError> {
    value.trim().parse().map_err(|error| wrong(format!("{name}: {error}")))
}

fn millis(name: &str, value: &str) -> Result<u64, FaultError> {
    let duration = humantime::parse_duration(value.trim()).map_err(|error| wrong(format!("{name}: {error}")))?;
    Ok(whole_millis(duration))
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn header(name: &str, text: &str) -> Result<HeaderValue, FaultError> {
    HeaderValue::from_str(text).map_err(|_| wrong(format!("{name} can't be sent in a header")))
}

fn from_hex(hex: &str) -> Result<Bytes, FaultError> {
    let digits: Option<Vec<u8>> = hex
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect();
    digits
        .filter(|digits| digits.len() % 2 == 0)
        .map(|digits| digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        .ok_or_else(|| wrong("body_hex must be pairs of hexadecimal digits"))
}
