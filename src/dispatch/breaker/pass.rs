use super::{Breaker, Probe};
use crate::{invitation::Reason, surveylab::Answer};

/// Leave to make one request. Dropped without an answer that tells something, a probe gives its place to the next call.
pub struct Pass<'a> {
    pub(super) breaker: &'a Breaker,
    pub(super) collector_id: &'a str,
    pub(super) token_version: u64,
    pub(super) probe: Option<u64>,
}

impl Pass<'_> {
    /// What SurveyLab answered.
    pub fn answered(self, answer: &Answer) {
        if self.breaker.after == 0 {
            return;
        }
        match answer {
            Answer::Unauthorized => self.breaker.refused(&self, Reason::SurveylabUnauthorized),
            Answer::BadRequest => self.breaker.refused(&self, Reason::SurveylabBadRequest),
            Answer::Unreachable { .. } | Answer::InDoubt { .. } => {}
            Answer::Added { .. }
            | Answer::ActionFailed { .. }
            | Answer::Forbidden
            | Answer::NotFound
            | Answer::RateLimited { .. }
            | Answer::InternalError
            | Answer::Unavailable { .. }
            | Answer::UnexpectedStatus { .. } => self.breaker.taken(),
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let Some(number) = self.probe else { return };
        let now = self.breaker.clock.now();
        if let Some(open) = &mut self.breaker.lock().open
            && open.probe == Probe::UnderWay(number)
        {
            open.probe = Probe::Due(now);
        }
    }
}
