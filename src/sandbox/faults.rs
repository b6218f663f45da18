//! Faults on demand: what is to go wrong, for which requests, and how often.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{StatusCode, header::HeaderValue};
use tokio::sync::Semaphore;

/// One rule. The first rule that applies to a request decides; a request that no rule applies to is answered as usual.
///
/// Made by the constructors, named after what happens, and narrowed by the methods:
/// `Fault::status(503).for_crk("a").times(3)`. Also parsed from the text of `--fault` (see [`super::FAULT_HELP`]).
#[derive(Clone, Debug)]
pub struct Fault {
    pub(super) matching: Matching,
    pub(super) skip: u64,
    pub(super) times: Option<u64>,
    pub(super) probability: f64,
    pub(super) seed: u64,
    pub(super) latency: Duration,
    pub(super) gate: Option<Gate>,
    pub(super) outcome: Outcome,
    pub(super) effect: Option<Effect>,
}

/// Which requests: all that is set must hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Matching {
    pub(super) collector_id: Option<String>,
    pub(super) crk: Option<String>,
    pub(super) crk_prefix: Option<String>,
}

/// What the client gets to see.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// What it would have got without the fault; a fault of latency or a gate alone.
    Answer,
    Status {
        status: StatusCode,
        retry_after: Option<HeaderValue>,
        body: Bytes,
    },
    /// A 200 with this body.
    Body(Bytes),
    /// A 302 there.
    Redirect(HeaderValue),
    /// RST, without an answer.
    Reset,
    /// FIN, without an answer.
    Close,
    /// Half of the body, then RST.
    ResetWithin,
    /// Half of the body, then FIN.
    HalfBody,
    /// Nothing, for as long as the rule is there and the client stays; then the usual answer.
    Hang,
}

/// Whether the request does at SurveyLab what it asks for. A request that the checks refuse never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Never,
    /// At its arrival, so before any latency.
    AtOnce,
    /// So long after its arrival, client or no client.
    After(Duration),
}

impl Fault {
    fn new(outcome: Outcome) -> Self {
        Self {
            matching: Matching::default(),
            skip: 0,
            times: None,
            probability: 1.0,
            seed: 0,
            latency: Duration::ZERO,
            gate: None,
            outcome,
            effect: None,
        }
    }

    /// The usual answer, later.
    pub fn latency(latency: Duration) -> Self {
        Self::new(Outcome::Answer).after(latency)
    }

    /// The usual answer once `gate` lets it pass.
    pub fn hold(gate: &Gate) -> Self {
        Self::new(Outcome::Answer).held_by(gate)
    }

    /// An answer of this status with an empty body.
    ///
    /// # Panics
    /// When `status` is not in 200..=999: it is for statuses known in code. Those from outside come through `FromStr`.
    pub fn status(status: u16) -> Self {
        let status = final_status(status).expect("a final HTTP status");
        Self::new(Outcome::Status {
            status,
            retry_after: None,
            body: Bytes::new(),
        })
    }

    /// A 200 with this body.
    pub fn body(body: impl Into<Bytes>) -> Self {
        Self::new(Outcome::Body(body.into()))
    }

    /// A 302.
    ///
    /// # Panics
    /// When `location` is no header value.
    pub fn redirect(location: &str) -> Self {
        Self::new(Outcome::Redirect(location.try_into().expect("a header value")))
    }

    /// The connection reset, without an answer.
    pub fn reset_before_answer() -> Self {
        Self::new(Outcome::Reset)
    }

    /// The connection closed, without an answer.
    pub fn close_before_answer() -> Self {
        Self::new(Outcome::Close)
    }

    /// A head that promises the whole body, half of the body, then a reset.
    pub fn reset_within_answer() -> Self {
        Self::new(Outcome::ResetWithin)
    }

    /// A head that promises the whole body, half of the body, then a close.
    pub fn half_body() -> Self {
        Self::new(Outcome::HalfBody)
    }

    /// No answer until the rule is removed or replaced (then the usual one), or the client leaves.
    pub fn hang() -> Self {
        Self::new(Outcome::Hang)
    }

    /// Only requests to this collector.
    pub fn for_collector(mut self, collector_id: impl Into<String>) -> Self {
        self.matching.collector_id = Some(collector_id.into());
        self
    }

    /// Only requests with this crk.
    pub fn for_crk(mut self, crk: impl Into<String>) -> Self {
        self.matching.crk = Some(crk.into());
        self
    }

    /// Only requests whose crk begins so.
    pub fn for_crk_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.matching.crk_prefix = Some(prefix.into());
        self
    }

    /// Not to the first `skip` matching requests.
    pub fn skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// To so many requests; without it, forever.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// To this share of the matching requests, 0 to 1. The same seed chooses the same ones.
    pub fn with_probability(mut self, probability: f64, seed: u64) -> Self {
        self.probability = probability;
        self.seed = seed;
        self
    }

    /// So long after the arrival (and the gate).
    pub fn after(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Once `gate` lets it pass.
    pub fn held_by(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// A Retry-After header, as text: seconds, a date, or nonsense. Of [`Fault::status`] only.
    ///
    /// # Panics
    /// When `text` is no header value.
    pub fn retry_after(mut self, text: &str) -> Self {
        if let Outcome::Status { retry_after, .. } = &mut self.outcome {
            *retry_after = Some(text.try_into().expect("a header value"));
        }
        self
    }

    /// The body of the answer. Of [`Fault::status`] only.
    pub fn with_body(mut self, text: impl Into<Bytes>) -> Self {
        if let Outcome::Status { body, .. } = &mut self.outcome {
            *body = text.into();
        }
        self
    }

    /// Whether the request takes effect, where the default of what happens does not suit. The default is `AtOnce`
    /// where SurveyLab may well have done its work (a lost or garbled answer, a gateway's 502 and 504, any 2xx), else
    /// `Never`.
    pub fn with_effect(mut self, effect: Effect) -> Self {
        self.effect = Some(effect);
        self
    }

    pub(super) fn effect(&self) -> Effect {
        self.effect.unwrap_or(match &self.outcome {
            Outcome::Redirect(_) => Effect::Never,
            Outcome::Status { status, .. } if !status.is_success() && !matches!(status.as_u16(), 502 | 504) => {
                Effect::Never
            }
            _ => Effect::AtOnce,
        })
    }

    /// The name of what happens, as in logs and JSON.
    pub(super) fn name(&self) -> &'static str {
        match &self.outcome {
            Outcome::Answer if self.gate.is_some() => "hold",
            Outcome::Answer => "latency",
            Outcome::Status { .. } => "status",
            Outcome::Body(_) => "body",
            Outcome::Redirect(_) => "redirect",
            Outcome::Reset => "reset_before_answer",
            Outcome::Close => "close_before_answer",
            Outcome::ResetWithin => "reset_within_answer",
            Outcome::HalfBody => "half_body",
            Outcome::Hang => "hang",
        }
    }
}

/// A status that can end an exchange: hyper's server writes no other.
pub(super) fn final_status(status: u16) -> Option<StatusCode> {
    StatusCode::from_u16(status)
        .ok()
        .filter(|status| !status.is_informational())
}

/// Holds requests back until it is told to let them go. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets all pass, now and later.
    pub fn release(&self) {
        self.0.close();
    }

    /// Lets so many pass, in the order in which they came.
    pub fn release_some(&self, count: usize) {
        self.0.add_permits(count);
    }

    pub(super) async fn pass(&self) {
        // An error means closed: released for all.
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

/// The rules in force, with their counters.
#[derive(Default)]
pub(super) struct Rules(Vec<Rule>);

pub(super) struct Rule {
    pub(super) fault: Arc<Fault>,
    pub(super) seen: u64,
    pub(super) applied: u64,
    /// What its hanging requests wait for.
    hanging: Gate,
}

impl Drop for Rule {
    fn drop(&mut self) {
        self.hanging.release();
    }
}

/// What is to happen to one request.
pub(super) struct Applied {
    pub(super) fault: Arc<Fault>,
    pub(super) hanging: Option<Gate>,
}

impl Rules {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(Rule {
            fault: Arc::new(fault),
            seen: 0,
            applied: 0,
            hanging: Gate::new(),
        });
    }

    pub(super) fn replace(&mut self, faults: Vec<Fault>) {
        self.0.clear();
        faults.into_iter().for_each(|fault| self.add(fault));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    pub(super) fn apply(&mut self, collector_id: &str, crk: &str) -> Option<Applied> {
        let rule = self
            .0
            .iter_mut()
            .find_map(|rule| rule.applies(collector_id, crk).then_some(rule))?;
        Some(Applied {
            hanging: (rule.fault.outcome == Outcome::Hang).then(|| rule.hanging.clone()),
            fault: rule.fault.clone(),
        })
    }
}

impl Rule {
    fn applies(&mut self, collector_id: &str, crk: &str) -> bool {
        let Matching {
            collector_id: only_collector,
            crk: only_crk,
            crk_prefix,
        } = &self.fault.matching;
        let matches = only_collector.as_ref().is_none_or(|only| only == collector_id)
            && only_crk.as_ref().is_none_or(|only| only == crk)
            && crk_prefix
                .as_ref()
                .is_none_or(|prefix| crk.starts_with(prefix.as_str()));
        if !matches {
            return false;
        }
        self.seen += 1;
        let applies = self.seen > self.fault.skip
            && self.fault.times.is_none_or(|times| self.applied < times)
            && chance(self.fault.seed, self.seen) < self.fault.probability;
        self.applied += u64::from(applies);
        applies
    }
}

/// A number in 0..1 for the n-th request: a function of its arguments alone, so that a run can be had again.
/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn chance(seed: u64, n: u64) -> f64 {
    let mut z = seed
        .wrapping_mul(0xD1B5_4A32_D192_ED03)
        .wrapping_add(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    // The upper 53 bits: what an f64 holds exactly.
    (z >> 11) as f64 / (1u64 << 53) as f64
}
