//! Targets of [`crate::fuzz`]: what the sandbox is sent and told.

use std::time::Duration;

use serde_json::Value;

use super::{
    Limit, fault_text,
    faults::{Fault, Rules},
    journal::Journal,
    webhook::Parameters,
};
use crate::fuzz::form_pairs;

/// A query string: every reading of it is the same, and of several parameters with one name the last counts.
pub fn query(data: &[u8]) {
    let Ok(query) = str::from_utf8(data) else { return };
    let pairs = form_pairs(query);
    let last = |name: &str| {
        pairs
            .iter()
            .rfind(|(is, _)| is == name)
            .map(|(_, value)| value.as_str())
    };

    let parameters = Parameters::parse(query);
    for (name, value) in [
        ("apiToken", &parameters.token),
        ("cId", &parameters.collector_id),
        ("email", &parameters.email),
        ("crk", &parameters.crk),
    ] {
        assert_eq!(value, last(name).unwrap_or_default(), "{name}");
    }

    let mut journal = Journal::new(1);
    journal.push(Duration::ZERO, query, None);
    let requests = journal.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].query, query);
    assert_eq!(requests[0].parameters, pairs);
    for (name, _) in &pairs {
        assert_eq!(requests[0].parameter(name), last(name));
    }
}

/// A list of faults in JSON, or one fault as text: what is shown of it, put back, says the same; and it applies to no more
/// requests than it says.
pub fn fault(data: &[u8]) {
    let faults = if data.starts_with(b"[") {
        fault_text::from_json(data).ok()
    } else {
        let text = str::from_utf8(data).ok();
        let fault = text.and_then(|text| text.parse().ok());
        let as_json = text.and_then(|text| {
            let list = Value::from(vec![text]).to_string();
            fault_text::from_json(list.as_bytes()).ok()
        });
        let alone = fault.map(|fault: Fault| vec![fault]);
        assert_eq!(alone.as_deref().map(meaning), as_json.as_deref().map(meaning));
        alone
    };
    let Some(faults) = faults else { return };
    let again = fault_text::from_json(json(&faults).to_string().as_bytes());
    assert_eq!(again.as_deref().map(meaning), Ok(meaning(&faults)));

    let mut rules = Rules::default();
    rules.replace(faults);
    for _ in 0..3 {
        rules.apply("collector", "crk");
    }
    for rule in rules.iter() {
        assert!(rule.applied <= rule.seen && rule.seen <= 3);
        assert!((0.0..=1.0).contains(&rule.fault.probability));
        assert!(rule.fault.times.is_none_or(|times| rule.applied <= times));
        assert!(rule.applied <= 3_u64.saturating_sub(rule.fault.skip));
    }
}

/// The faults as the sandbox shows them.
fn json(faults: &[Fault]) -> Value {
    let mut rules = Rules::default();
    rules.replace(faults.to_vec());
    fault_text::to_json(rules.iter())
}

/// All that a fault says, to be compared: with its effect spelled out, as it is shown, and its probability rounded, as
/// serde_json reads a fraction to within one unit in the last place.
fn meaning(faults: &[Fault]) -> Vec<String> {
    let meaning = |fault: &Fault| {
        let mut fault = fault.clone();
        fault.effect = Some(fault.effect());
        fault.probability = (fault.probability * 1e12).round();
        format!("{fault:?}")
    };
    faults.iter().map(meaning).collect()
}

/// Any limit that can be set is one.
pub fn limits(limit: Limit) {
    let limiter = limit.limiter();
    assert!(limiter.is_some_and(|limiter| limiter.check().is_ok()), "{limit:?}");
}
