//! What the gateway's answer about a row means for the import: an end, or another try.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::results::{Outcome, Record};
use crate::{
    cli::client::rpc_error,
    grpc::code_name,
    invitation::Reason,
    proto::{self, stream_add_respondent_response::Result as Item},
};

/// What an answer comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Final(Record),
    /// validate_only: the row would be sent.
    WouldAdd,
    Again(Again),
    /// SurveyLab refuses every request, so none was made for the row.
    TurnedAway(Again),
}

/// A row that can be tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Again {
    /// As the gateway advised.
    pub after: Duration,
    /// SurveyLab had the request and answered it: it may be this row that it can't take.
    pub was_sent: bool,
    /// The row's result, should it not be tried again.
    pub record: Record,
}

/// As the gateway says of such a row.
const INVALID_REQUEST: &str = "INVALID_REQUEST";

/// Without RetryInfo.
const LATER: Duration = Duration::from_secs(1);

/// Reads an answer about the row at a line of the list. `None` if it holds nothing that can be understood.
pub fn read(line: u64, response: proto::StreamAddRespondentResponse) -> Option<Answer> {
    match response.result? {
        Item::Added(added) => {
            let outcome = match added.outcome() {
                proto::Outcome::Added => Outcome::Added,
                proto::Outcome::Duplicate => Outcome::Duplicate,
                proto::Outcome::WouldAdd => return Some(Answer::WouldAdd),
                proto::Outcome::Unspecified => return None,
            };
            let sent = if outcome == Outcome::Added { "yes" } else { "no" };
            Some(Answer::Final(Record {
                line,
                crk: one_line(&response.crk),
                outcome,
                code: code_name(Code::Ok).into(),
                reason: String::new(),
                sent: sent.into(),
                message: one_line(&added.notification),
            }))
        }
        Item::Error(error) => Some(of_error(line, &response.crk, &rpc_error(&error))),
    }
}

fn of_error(line: u64, crk: &str, error: &Status) -> Answer {
    let details = error.get_error_details();
    let info = details.error_info();
    let reason = info.map_or("", |info| info.reason.as_str());
    let sent = info
        .and_then(|info| info.metadata.get("sent"))
        .map_or("unknown", String::as_str);
    let in_doubt = reason == Reason::OutcomeInDoubt.as_str();
    let record = Record {
        line,
        crk: one_line(crk),
        outcome: if in_doubt { Outcome::InDoubt } else { Outcome::Failed },
        code: code_name(error.code()).into(),
        reason: reason.into(),
        sent: sent.into(),
        message: one_line(error.message()),
    };
    let advised = details.retry_info().and_then(|retry| retry.retry_delay);
    if info.is_some_and(|info| info.metadata.contains_key("breaker")) {
        return Answer::TurnedAway(Again {
            after: advised.unwrap_or(LATER),
            was_sent: false,
            record,
        });
    }
    // In doubt is neither of them, ever.
    if matches!(error.code(), Code::Unavailable | Code::ResourceExhausted) {
        let answered = [Reason::SurveylabInternalError, Reason::SurveylabUnavailable];
        return Answer::Again(Again {
            after: advised.unwrap_or(LATER),
            was_sent: answered.iter().any(|other| other.as_str() == reason),
            record,
        });
    }
    Answer::Final(record)
}

/// The result of a row that is not sent, as it is no good.
pub fn bad(line: u64, crk: &str, why: &str) -> Record {
    Record {
        line,
        crk: one_line(crk),
        outcome: Outcome::Failed,
        code: code_name(Code::InvalidArgument).into(),
        reason: INVALID_REQUEST.into(),
        sent: "no".into(),
        message: one_line(why),
    }
}

/// Reasons that are not about a row: one after the other they say that no other row will fare better.
pub fn is_about_all(record: &Record) -> bool {
    if record.outcome == Outcome::InDoubt {
        // One that was in doubt before says nothing about now.
        return record.sent != "no";
    }
    [
        Reason::SurveylabUnauthorized,
        Reason::SurveylabForbidden,
        Reason::SurveylabNotFound,
        Reason::SurveylabInternalError,
        Reason::SurveylabUnavailable,
        Reason::SurveylabUnexpectedStatus,
    ]
    .iter()
    .any(|reason| reason.as_str() == record.reason)
        || record.reason.starts_with("CALLER_")
}

/// A result is one line of its file, so that a record that a kill cut short is known as such.
pub fn one_line(text: &str) -> String {
    text.split(char::is_control).collect::<Vec<_>>().join(" ")
}
