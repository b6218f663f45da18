//! What happens to one key.

use std::collections::BTreeMap;

use super::{
    super::history::{Event, Moment},
    Seen, Told, ensure,
};
use crate::ledger::{Doubt, Resolution, State};

/// A key by what its requests told, whatever the ledger holds.
#[derive(Default)]
struct Risk {
    told: Told,
    /// The ledger has what was told.
    recorded: bool,
    /// The last claim, and when it was asked for.
    claim: Option<(Doubt, Moment)>,
    /// How often somebody allowed one effect more.
    allowances: usize,
    effects: usize,
}

/// A key whose request may have had an effect is sent again only if a caller wished it or a person found that it had none;
/// one whose request had an effect is never.
pub fn effects(seen: &Seen<'_>) -> Result<(), String> {
    let mut keys: BTreeMap<u8, Risk> = BTreeMap::new();
    for (at, _, event) in seen.events() {
        let Some(key) = event.key() else { continue };
        let risk = keys.entry(key).or_default();
        match event {
            Event::Claimed { doubt, asked, .. } => risk.claim = Some((*doubt, *asked)),
            Event::Sent { request, data, .. } => {
                ensure!(
                    risk.told != Told::Effect,
                    "request {request} at {at} for key {key}, which was added"
                );
                if risk.told == Told::Doubt {
                    ensure!(
                        risk.claim.is_some_and(|claim| is_wished(seen, key, *data, claim)),
                        "request {request} at {at} for key {key}, which was in doubt, and nobody wished it"
                    );
                    risk.allowances += 1;
                }
            }
            Event::Back { answer, .. } => {
                risk.told = risk.told.max(seen.told(answer.as_ref()));
                risk.recorded = false;
            }
            Event::Settled { state, .. } => match state {
                State::Added => risk.recorded = true,
                // Lost with its process: a claim, perhaps without any request, or what was told of it.
                State::InDoubt if risk.told == Told::None || !risk.recorded => risk.told = Told::Doubt,
                _ => {}
            },
            Event::Resolved { resolution, .. } => match resolution {
                Resolution::NotAdded => {
                    risk.told = Told::None;
                    risk.allowances += 1;
                }
                Resolution::Added => (risk.told, risk.recorded) = (Told::Effect, true),
            },
            Event::Effect { .. } => {
                risk.effects += 1;
                ensure!(
                    risk.effects <= 1 + risk.allowances,
                    "effect {} at {at} of key {key}, with {} allowances",
                    risk.effects,
                    risk.allowances
                );
            }
            _ => {}
        }
    }
    Ok(())
}

/// A caller wished, at the moment of the claim, that the key be sent again should it be in doubt.
fn is_wished(seen: &Seen<'_>, key: u8, data: u8, (doubt, asked): (Doubt, Moment)) -> bool {
    let process = seen.history.entries[asked].process;
    let mut callers = seen.callers(process, key, asked, asked);
    doubt == Doubt::Resend && callers.any(|call| call.asked.doubt == Doubt::Resend && call.asked.data == data)
}

/// A request goes out under a claim that the ledger has, wanted by somebody, and one at a time.
pub fn wire(seen: &Seen<'_>) -> Result<(), String> {
    let mut on_the_wire: BTreeMap<u8, usize> = BTreeMap::new();
    let mut claims: BTreeMap<u8, (usize, bool)> = BTreeMap::new();
    for (at, process, event) in seen.events() {
        match event {
            Event::Claims { key, data } if *key < 100 => {
                let mut callers = seen.callers(process, *key, at, at);
                ensure!(
                    callers.any(|call| call.asked.data == *data),
                    "a claim at {at} for key {key} that nobody wants"
                );
            }
            Event::Claimed { key, .. } => drop(claims.insert(*key, (process, false))),
            Event::Sent { request, key, data } => {
                let known = seen.known_at(*key, at);
                ensure!(
                    known.is_some_and(|known| known.state == State::Pending && known.data == *data),
                    "request {request} at {at} for key {key}, which is {known:?}"
                );
                let claim = claims.get_mut(key);
                ensure!(
                    claim.as_ref().is_some_and(|claim| **claim == (process, false)),
                    "request {request} at {at} for key {key} under the claim {claim:?}"
                );
                claim.into_iter().for_each(|claim| claim.1 = true);
                let other = on_the_wire.insert(*key, *request);
                ensure!(
                    other.is_none(),
                    "request {request} at {at} for key {key} beside request {other:?}"
                );
            }
            Event::Back { key, .. } => drop(on_the_wire.remove(key)),
            Event::Released { key } => {
                let claim = claims.remove(key);
                ensure!(
                    claim.is_some_and(|(_, sent)| !sent),
                    "key {key} was released at {at} after a request"
                );
            }
            _ => {}
        }
    }
    Ok(())
}

/// What was told of the last request, or that it was lost, is how the key is settled; and a request is settled before
/// another thing is done with its key.
pub fn settlements(seen: &Seen<'_>) -> Result<(), String> {
    // Of each key: the last answer of the claim that is out, if any.
    let mut backs: BTreeMap<u8, Option<Told>> = BTreeMap::new();
    let mut doubts: BTreeMap<u8, bool> = BTreeMap::new();
    let mut ended = Vec::new();
    for (at, process, event) in seen.events() {
        match event {
            Event::CutOff | Event::Died => ended.push(process),
            Event::Claimed { key, .. } => {
                let before = seen.known_at(*key, at - 1);
                doubts.insert(*key, before.is_some_and(|known| known.state == State::InDoubt));
                backs.insert(*key, None);
            }
            Event::Back { key, answer, .. } => {
                backs.insert(*key, Some(seen.told(answer.as_ref())));
            }
            Event::Settled { key, state } => {
                let was_in_doubt = doubts.get(key).copied().unwrap_or_default();
                let told = backs.get(key).copied().flatten();
                let expected = match told {
                    Some(Told::Effect) => State::Added,
                    Some(Told::None) if !was_in_doubt => State::Failed,
                    _ => State::InDoubt,
                };
                let lost = ended.contains(&process) && *state == State::InDoubt;
                ensure!(
                    *state == expected || lost,
                    "key {key} was settled {state:?} at {at} after {told:?}"
                );
                ensure!(
                    told.is_some() || lost,
                    "key {key} was settled at {at} without a request"
                );
            }
            _ => {}
        }
    }
    Ok(())
}
