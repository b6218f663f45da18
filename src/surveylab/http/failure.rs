//! Which failures let SurveyLab have seen nothing, and a short text for each.

use std::error::Error as StdError;

use crate::surveylab::{Answer, redact::Secrets};

const MAX_CAUSE_CHARS: usize = 300;

/// A failure before there was an answer's head. Decided on types alone; whatever is not known to have come before the
/// first byte is in doubt.
pub(super) fn of_send(error: reqwest::Error, secrets: &Secrets<'_>) -> Answer {
    let cause = cause(&error, secrets);
    if never_written(&error) {
        Answer::Unreachable { cause }
    } else {
        Answer::InDoubt {
            http_status: None,
            cause,
        }
    }
}

/// Three facts say that no byte of the request went out:
/// - The request could not be built (reqwest `Kind::Builder`).
/// - hyper-util's `ErrorKind::Connect`: it is made only in `Client::one_connection_for` and `Client::connect_to`
///   (`client/legacy/client.rs`), which end before the request is handed to a connection, and covers name, TCP, TLS
///   and the connect timeout.
/// - hyper's `Kind::Canceled`: over HTTP/1 it is made only where the request is given back unread (see `http.rs`);
///   the connection broke before its task took the request up.
///
/// reqwest's whole-request timeout is none of them (`is_connect` is false, even while connecting), nor is an I/O error
/// from a new connection that broke before its first use (`ErrorKind::SendRequest`, as after the first byte).
fn never_written(error: &reqwest::Error) -> bool {
    error.is_builder() || error.is_connect() || sources(error).any(is_canceled)
}

fn is_canceled(error: &(dyn StdError + 'static)) -> bool {
    error
        .downcast_ref::<hyper::Error>()
        .is_some_and(hyper::Error::is_canceled)
}

/// What happened, fit for logs, callers and ledgers. The error must have lost its URL.
pub(super) fn cause(error: &reqwest::Error, secrets: &Secrets<'_>) -> String {
    let what = if error.is_dns() {
        "the name was not resolved"
    } else if error.is_connect() && error.is_timeout() {
        "no connection in time"
    } else if error.is_connect() {
        "no connection"
    } else if error.is_timeout() {
        "no whole answer in time"
    } else if error.is_body() || error.is_decode() {
        "the answer broke off"
    } else if sources(error).any(is_canceled) {
        "the connection closed before the request was written"
    } else {
        "the connection failed before an answer came"
    };
    // Texts of TLS and the operating system name hosts and certificates, never the request; cleaned all the same.
    secrets.clean(&format!("{what}: {}", chain(error)), MAX_CAUSE_CHARS)
}

/// The texts of the error's sources, outermost first.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    for source in sources(error) {
        let text = source.to_string();
        // A nested error of reqwest could carry a URL of its own; the client's wrapper only names the kind.
        let says_nothing = source.is::<reqwest::Error>()
            || source.is::<hyper_util::client::legacy::Error>()
            || texts.iter().any(|known| known.contains(&text));
        if !says_nothing {
            texts.push(text);
        }
    }
    texts.join(": ")
}

fn sources(error: &reqwest::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(error.source(), |error: &&(dyn StdError + 'static)| (*error).source())
}
