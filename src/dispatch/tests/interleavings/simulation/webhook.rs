//! SurveyLab as the plan wants it.

use std::{future::pending, sync::atomic::Ordering};

use futures_util::future::BoxFuture;

use super::{Line, number, pause};
use crate::{
    dispatch::{
        OnServerError,
        tests::interleavings::{
            history::{Event, RequestId},
            plan::Behaviour,
        },
    },
    invitation::{Invitation, Violation},
    surveylab::{Answer, Request, SurveyLab},
};

impl SurveyLab for Line {
    fn encode(&self, invitation: Invitation) -> Result<Request, Violation> {
        let query = String::new();
        Ok(Request { invitation, query })
    }

    fn send<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            if self.is_severed() {
                return pending().await;
            }
            let invitation = &request.invitation;
            let key = number(&invitation.key);
            let data = self.world.data(&invitation.key, invitation.fingerprint);
            let request = self.world.requests.fetch_add(1, Ordering::Relaxed);
            let behaviour = self.world.behaviour(request);
            self.note(Event::Sent { request, key, data });
            self.effect(key, &behaviour);
            let mut wire = Wire {
                line: self,
                request,
                key,
                adds: matches!(behaviour.answer, Answer::Added { .. }),
                answer: None,
            };
            self.world.hiccup().await;
            pause(behaviour.latency).await;
            self.world.hiccup().await;
            if self.is_severed() {
                return pending().await;
            }
            wire.answer = Some(behaviour.answer.clone());
            behaviour.answer
        })
    }
}

impl Line {
    /// Has the effect of a request take place that nobody will hear of.
    fn effect(&self, key: u8, behaviour: &Behaviour) {
        let may = match behaviour.answer {
            Answer::InDoubt { .. } => true,
            Answer::InternalError => self.world.plan.account.on_server_error == OnServerError::Hold,
            _ => false,
        };
        let Some(after) = behaviour.effect.filter(|_| may) else {
            return;
        };
        let line = self.clone();
        self.world.effects.spawn(async move {
            pause(after).await;
            line.note(Event::Effect { key });
        });
    }
}

/// A request on its way. What it does at SurveyLab does not end with the one who made it.
struct Wire<'a> {
    line: &'a Line,
    request: RequestId,
    key: u8,
    adds: bool,
    answer: Option<Answer>,
}

impl Drop for Wire<'_> {
    fn drop(&mut self) {
        let (request, key) = (self.request, self.key);
        if self.adds {
            self.line.note(Event::Effect { key });
        }
        let answer = self.answer.take();
        self.line.note(Event::Back { request, key, answer });
    }
}
