//! What the sandbox says about itself, as JSON under `/sandbox/`.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde_json::{Value, json};

use super::{Core, body::Body, fault_text, journal};

const HELP: &str = "\
SurveyLab's sandbox
  GET /api.php                          the webhook
  GET /sandbox/report                   totals and duplicates; ?keys=1 each key; ?cId=ID&crk=CRK one key
  GET /sandbox/requests                 the latest requests
  GET, PUT, DELETE /sandbox/faults      the faults, as a JSON list: [\"status=503,times=3\", {\"fault\": \"hang\"}]
  POST /sandbox/reset                   forget what was received; the faults stay
";

/// A list of faults is some hundred bytes.
const MAX_BODY: usize = 1 << 20;

pub(super) async fn answer(core: &Core, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    let value = match (&head.method, head.uri.path()) {
        (&Method::GET, "/sandbox/report") => report(core, query),
        (&Method::GET, "/sandbox/requests") => requests(core),
        (&Method::POST, "/sandbox/reset") => {
            core.reset();
            report(core, "")
        }
        (&Method::GET, "/sandbox/faults") => faults(core),
        (&Method::DELETE, "/sandbox/faults") => {
            core.lock().rules.replace(Vec::new());
            faults(core)
        }
        (&Method::PUT, "/sandbox/faults") => {
            let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
                return error(StatusCode::BAD_REQUEST, "the body was cut, or is too long");
            };
            match fault_text::from_json(&body.to_bytes()) {
                Ok(faults) => core.lock().rules.replace(faults),
                Err(wrong) => return error(StatusCode::BAD_REQUEST, &wrong.to_string()),
            }
            faults(core)
        }
        (_, "/sandbox/report" | "/sandbox/requests" | "/sandbox/reset" | "/sandbox/faults") => {
            return error(StatusCode::METHOD_NOT_ALLOWED, "not with this method: see /sandbox");
        }
        (_, "/" | "/sandbox" | "/sandbox/") => return text(StatusCode::OK, HELP),
        _ => return text(StatusCode::NOT_FOUND, HELP),
    };
    respond(StatusCode::OK, &value)
}

fn report(core: &Core, query: &str) -> Value {
    let (mut collector_id, mut crk, mut keys) = (None, None, false);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "cId" => collector_id = Some(value),
            "crk" => crk = Some(value),
            "keys" => keys = !matches!(&*value, "0" | "false"),
            _ => {}
        }
    }
    if let (Some(collector_id), Some(crk)) = (&collector_id, &crk) {
        let counts = core.lock().account.of(collector_id, crk);
        return json!({"cId": collector_id, "crk": crk, "requests": counts.requests, "effects": counts.effects});
    }
    let (report, by_key) = {
        let state = core.lock();
        (core.report(&state), keys.then(|| state.account.keys(|_| true)))
    };
    let mut value = json!(report);
    if let (Some(by_key), Some(fields)) = (by_key, value.as_object_mut()) {
        fields.insert("by_key".to_owned(), json!(by_key));
    }
    value
}

fn requests(core: &Core) -> Value {
    let requests = core.lock().journal.requests();
    requests.iter().map(request).collect()
}

/// Everything of a request but its token.
fn request(request: &journal::Request) -> Value {
    let parameters: Vec<_> = request
        .parameters
        .iter()
        .filter(|(name, _)| name != "apiToken")
        .collect();
    json!({
        "at_us": u64::try_from(request.at.as_micros()).unwrap_or(u64::MAX),
        "parameters": parameters,
        "effect": request.effect,
        "status": request.status,
        "fault": request.fault,
    })
}

fn faults(core: &Core) -> Value {
    fault_text::to_json(core.lock().rules.iter())
}

fn error(status: StatusCode, what: &str) -> Response<Body> {
    respond(status, &json!({"error": what}))
}

fn respond(status: StatusCode, value: &Value) -> Response<Body> {
    // People read it with curl: on lines of its own, and the prompt on the next.
    let mut body = format!("{value:#}");
    body.push('\n');
    with_type(status, "application/json", body.into())
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
