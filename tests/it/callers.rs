//! Who calls, and what they may do: tokens, rights, the file that is read again, and what those see who only try.

use std::{fs, sync::Arc};

use hyper::{Request as HttpRequest, header::HeaderValue};
use surveylab_gateway::{
    callers::Token,
    proto::{
        AddRespondentRequest, AddRespondentResponse, GetInvitationRequest, GetStatusRequest, GetStatusResponse,
        Invitation, ListInvitationsRequest, ListInvitationsResponse, Outcome, Resolution, ResolveInvitationRequest,
    },
    sandbox::{Fault, Sandbox},
};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use crate::{
    hostile::peer::ADD,
    support::{
        Error, Gateway, Options,
        call::{COLLECTOR, Client, item},
        gateway::{TOKEN, run, surveylab},
        request, status_error,
        watch::{metric, soon, until},
    },
};

const OTHER: &str = "another-collector";

/// A callers' file, in a directory of its own.
struct File(TempDir);

impl File {
    fn with(blocks: &[String]) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(blocks);
        file
    }

    fn path(&self) -> String {
        self.0.path().join("callers.toml").display().to_string()
    }

    /// Another content, all at once.
    fn write(&self, blocks: &[String]) {
        let beside = self.0.path().join("beside");
        fs::write(&beside, blocks.concat()).unwrap();
        fs::rename(beside, self.path()).unwrap();
    }
}

fn token() -> Token {
    Token::generate().unwrap()
}

fn block(name: &str, tokens: &[&Token], rest: &str) -> String {
    let hashes: Vec<_> = tokens.iter().map(|token| format!("\"{}\"", token.hash())).collect();
    format!(
        "[[caller]]\nname = \"{name}\"\ntokens = [{}]\n{rest}\n",
        hashes.join(", ")
    )
}

async fn guarded(sandbox: &Sandbox, file: &File) -> Gateway {
    Gateway::with(Options::new().flag("--callers", file.path()), sandbox).await
}

/// A request with these values of `authorization`.
fn with<T>(message: T, authorizations: &[&str]) -> Request<T> {
    let mut request = Request::new(message);
    for value in authorizations {
        request.metadata_mut().append("authorization", value.parse().unwrap());
    }
    request
}

fn by<T>(token: &Token, message: T) -> Request<T> {
    with(message, &[&format!("Bearer {}", token.expose())])
}

fn in_collector(collector_id: &str, crk: &str) -> AddRespondentRequest {
    AddRespondentRequest {
        collector_id: collector_id.into(),
        ..request(crk)
    }
}

async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Error> {
    call.await
        .map(Response::into_inner)
        .map_err(|status| status_error(&status))
}

async fn add(client: &Client, token: &Token, message: AddRespondentRequest) -> Result<AddRespondentResponse, Error> {
    answer(client.clone().add_respondent(by(token, message))).await
}

async fn get(client: &Client, token: &Token, collector_id: &str) -> Result<Invitation, Error> {
    let message = GetInvitationRequest {
        collector_id: collector_id.into(),
        crk: "k".into(),
    };
    answer(client.clone().get_invitation(by(token, message))).await
}

async fn list(client: &Client, token: &Token, collector_id: &str) -> Result<ListInvitationsResponse, Error> {
    let message = ListInvitationsRequest {
        collector_id: collector_id.into(),
        ..ListInvitationsRequest::default()
    };
    answer(client.clone().list_invitations(by(token, message))).await
}

async fn resolve(client: &Client, token: &Token, collector_id: &str) -> Result<Invitation, Error> {
    let message = ResolveInvitationRequest {
        collector_id: collector_id.into(),
        crk: "k".into(),
        resolution: Resolution::Added.into(),
    };
    answer(client.clone().resolve_invitation(by(token, message))).await
}

async fn status(client: &Client, token: &Token) -> Result<GetStatusResponse, Error> {
    answer(client.clone().get_status(by(token, GetStatusRequest {}))).await
}

fn assert_forbidden<T: std::fmt::Debug>(answer: Result<T, Error>) {
    let error = answer.unwrap_err();
    assert_eq!(
        (error.code, error.reason.as_str(), error.sent()),
        (Code::PermissionDenied, "CALLER_FORBIDDEN", "no")
    );
    assert_eq!(error.domain, "surveylab-gateway");
}

fn assert_unauthenticated(error: &Error) {
    assert_eq!(
        (error.code, error.reason.as_str(), error.sent()),
        (Code::Unauthenticated, "CALLER_UNAUTHENTICATED", "no")
    );
    assert_eq!(error.domain, "surveylab-gateway");
}

#[tokio::test]
async fn a_call_needs_one_good_token_and_is_not_told_what_is_wrong_with_another() {
    let sandbox = surveylab().await;
    let good = token();
    let file = File::with(&[block("billing", &[&good], "")]);
    let gateway = guarded(&sandbox, &file).await;
    let good = good.expose();
    let right = format!("Bearer {good}");
    let wrong: [&[&str]; 11] = [
        &[],
        &[""],
        &["Bearer"],
        &["Bearer "],
        &[good],
        &[&format!("Bearer {}", token().expose())],
        &[&format!("Bearer {}", &good[..good.len() - 1])],
        &[&format!("Bearer {good}A")],
        &[&format!("Basic {good}")],
        &[&right, &right],
        &[&right, &format!("Bearer {}", token().expose())],
    ];
    let mut errors = Vec::new();
    for authorizations in wrong {
        // A connection has only so many failures.
        let client = gateway.client().await;
        let called = client.clone().add_respondent(with(request("k"), authorizations)).await;
        errors.push(status_error(&called.unwrap_err()));
        let items = tokio_stream::once(request("k"));
        let called = client.clone().stream_add_respondent(with(items, authorizations)).await;
        errors.push(status_error(&called.unwrap_err()));
    }
    for error in &errors {
        assert_unauthenticated(error);
        assert_eq!(error, &errors[0]);
    }
    assert_eq!(sandbox.report().requests, 0);
    let failures = async |why: &str| metric(&gateway, "authentication_failures_total", why).await;
    assert_eq!(failures("why=\"missing\"").await, 2.0);
    assert_eq!(failures("why=\"token\"").await, 20.0);

    let client = gateway.client().await;
    for (number, scheme) in ["Bearer ", "bearer ", "BEARER  "].iter().enumerate() {
        let authorization = format!("{scheme}{good}");
        let message = with(request(&format!("k{number}")), &[&authorization]);
        let added = answer(client.clone().add_respondent(message)).await.unwrap();
        assert_eq!(added.outcome(), Outcome::Added);
    }
    assert_eq!(sandbox.report().effects, 3);
}

#[tokio::test]
async fn each_caller_has_its_methods_and_its_collectors_and_no_others() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::reset_before_answer().for_crk("k"));
    let [plain, narrow, writer, operator, narrow_operator] = [(); 5].map(|()| token());
    let only = format!("collectors = [\"{COLLECTOR}\"]");
    let file = File::with(&[
        block("plain", &[&plain], ""),
        block("narrow", &[&narrow], &only),
        block("writer", &[&writer], "methods = [\"StreamAddRespondent\"]"),
        block("operator", &[&operator], "operator = true"),
        block(
            "narrow-operator",
            &[&narrow_operator],
            &format!("operator = true\n{only}"),
        ),
    ]);
    let gateway = guarded(&sandbox, &file).await;
    let client = gateway.client().await;

    // Without a list of collectors: all of them, but nothing of an operator's.
    for collector in [COLLECTOR, OTHER] {
        let in_doubt = add(&client, &plain, in_collector(collector, "k")).await.unwrap_err();
        assert_eq!(in_doubt.reason, "OUTCOME_IN_DOUBT");
        get(&client, &plain, collector).await.unwrap();
        assert_forbidden(list(&client, &plain, collector).await);
        assert_forbidden(resolve(&client, &plain, collector).await);
    }
    assert_forbidden(list(&client, &plain, "").await);
    status(&client, &plain).await.unwrap();

    // With one: only those of it.
    let requests = sandbox.report().requests;
    assert_forbidden(add(&client, &narrow, in_collector(OTHER, "n")).await);
    assert_forbidden(get(&client, &narrow, OTHER).await);
    assert_forbidden(add(&client, &narrow, in_collector("", "n")).await);
    assert_eq!(sandbox.report().requests, requests);
    add(&client, &narrow, in_collector(COLLECTOR, "n")).await.unwrap();
    get(&client, &narrow, COLLECTOR).await.unwrap();

    // With a list of methods: only those of it.
    assert_forbidden(add(&client, &writer, request("w")).await);
    assert_forbidden(get(&client, &writer, COLLECTOR).await);
    assert_forbidden(status(&client, &writer).await);
    let mut streaming = client.clone();
    let streamed = streaming.stream_add_respondent(by(&writer, tokio_stream::once(request("w"))));
    let streamed = streamed.await.unwrap().into_inner().message().await.unwrap();
    item(streamed.unwrap()).1.unwrap();

    // Operators list and resolve, in their collectors.
    assert_forbidden(list(&client, &narrow_operator, "").await);
    assert_forbidden(list(&client, &narrow_operator, OTHER).await);
    assert_forbidden(resolve(&client, &narrow_operator, OTHER).await);
    assert_eq!(
        list(&client, &narrow_operator, COLLECTOR)
            .await
            .unwrap()
            .invitations
            .len(),
        3
    );
    resolve(&client, &narrow_operator, COLLECTOR).await.unwrap();
    assert_eq!(list(&client, &operator, "").await.unwrap().invitations.len(), 4);
    resolve(&client, &operator, OTHER).await.unwrap();
    add(&client, &operator, in_collector(OTHER, "o")).await.unwrap();

    let forbidden = async |label: &str| metric(&gateway, "forbidden_total", label).await;
    assert_eq!(forbidden("caller=\"plain\",method=\"ListInvitations\"").await, 3.0);
    assert_eq!(forbidden("caller=\"narrow\",method=\"AddRespondent\"").await, 2.0);
    assert_eq!(forbidden("").await, 14.0);
    assert!(gateway.log().contains("a caller was refused what it may not do"));
}

#[tokio::test]
async fn a_breaker_of_a_collector_is_told_to_those_who_may_use_it() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(400));
    let [broad, narrow] = [token(), token()];
    let file = File::with(&[
        block("broad", &[&broad], ""),
        block("narrow", &[&narrow], &format!("collectors = [\"{COLLECTOR}\"]")),
    ]);
    let options = Options::new().flag("--breaker-after", 1).flag("--callers", file.path());
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    for (collector, told) in [(OTHER, [Some(OTHER), None]), (COLLECTOR, [Some(""); 2])] {
        let refused = add(&client, &broad, in_collector(collector, "k")).await.unwrap_err();
        assert_eq!(refused.reason, "SURVEYLAB_BAD_REQUEST");
        for (token, told) in [&broad, &narrow].into_iter().zip(told) {
            let breaker = status(&client, token).await.unwrap().breaker;
            assert_eq!(breaker.as_ref().map(|breaker| &*breaker.collector_id), told);
        }
    }
}

#[tokio::test]
async fn one_item_of_another_callers_collector_leaves_the_stream_to_go_on() {
    let sandbox = surveylab().await;
    let token = token();
    let file = File::with(&[block("narrow", &[&token], &format!("collectors = [\"{COLLECTOR}\"]"))]);
    let gateway = guarded(&sandbox, &file).await;
    let items = ["a", "b", "c"].map(|crk| {
        let collector = if crk == "b" { OTHER } else { COLLECTOR };
        in_collector(collector, crk)
    });
    let mut client = gateway.client().await;
    let results = client
        .stream_add_respondent(by(&token, tokio_stream::iter(items)))
        .await;
    let mut results = results.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(result) = results.message().await.unwrap() {
        seen.push((result.crk.clone(), item(result)));
    }
    seen.sort_by_key(|(_, (sequence, _))| *sequence);
    let crks: Vec<_> = seen.iter().map(|(crk, _)| crk.as_str()).collect();
    assert_eq!(crks, ["a", "b", "c"]);
    for (crk, (_, result)) in seen {
        if crk == "b" {
            assert_forbidden(result);
        } else {
            assert_eq!(result.unwrap().outcome(), Outcome::Added);
        }
    }
    assert_eq!(sandbox.report().requests, 2);
    let failed = "method=\"StreamAddRespondent\",code=\"PERMISSION_DENIED\",reason=\"CALLER_FORBIDDEN\"";
    assert_eq!(metric(&gateway, "calls_total", failed).await, 1.0);
}

async fn reflects(gateway: &Gateway) -> Result<(), Code> {
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(gateway.channel().await);
    let answers = reflection.server_reflection_info(tokio_stream::once(question)).await;
    let answer = answers.map_err(|status| status.code())?.into_inner().message().await;
    answer.map(|_| ()).map_err(|status| status.code())
}

/// The code of a call to a method that there may be.
async fn code_of(gateway: &Gateway, path: &'static str, token: Option<&Token>) -> Code {
    let mut grpc = tonic::client::Grpc::new(gateway.channel().await);
    grpc.ready().await.unwrap();
    let message = match token {
        Some(token) => by(token, GetStatusRequest {}),
        None => Request::new(GetStatusRequest {}),
    };
    let codec = tonic_prost::ProstCodec::<_, GetStatusRequest>::default();
    let path = hyper::http::uri::PathAndQuery::from_static(path);
    match grpc.unary(message, path, codec).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

#[tokio::test]
async fn health_is_open_and_reflection_as_set_and_all_else_needs_credentials() {
    let sandbox = surveylab().await;
    let token = token();
    let file = File::with(&[block("billing", &[&token], "")]);
    let gateway = guarded(&sandbox, &file).await;
    let mut health = HealthClient::new(gateway.channel().await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    health.watch(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(reflects(&gateway).await, Ok(()));
    for unknown in [
        "/surveylab.invitation.v1.InvitationService/DeleteEverything",
        "/surveylab.invitation.v2.InvitationService/GetStatus",
        "/grpc.health.v1.HealthX/Check",
        "/GetStatus",
    ] {
        assert_eq!(
            code_of(&gateway, unknown, None).await,
            Code::Unauthenticated,
            "{unknown}"
        );
        assert_eq!(
            code_of(&gateway, unknown, Some(&token)).await,
            Code::Unimplemented,
            "{unknown}"
        );
    }
    let unreflected = gateway
        .restart_with(|options| options.flag("--reflection", "off"))
        .await;
    assert_eq!(reflects(&unreflected).await, Err(Code::Unimplemented));
    let mut health = HealthClient::new(unreflected.channel().await);
    health.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_change_of_the_file_holds_for_new_calls_and_for_the_next_items_of_open_streams() {
    let sandbox = surveylab().await;
    let [billing, watch, late] = [(); 3].map(|()| token());
    let watching = block("watch", &[&watch], "");
    let file = File::with(&[block("billing", &[&billing], ""), watching.clone()]);
    let gateway = guarded(&sandbox, &file).await;
    let client = gateway.client().await;
    let (items, requests) = mpsc::channel(1);
    let call = by(&billing, ReceiverStream::new(requests));
    let results = client.clone().stream_add_respondent(call).await;
    let mut results = results.unwrap().into_inner();
    let mut send = async |crk: &str| {
        items.send(request(crk)).await.unwrap();
        let result = soon(results.message()).await.map_err(|status| status_error(&status))?;
        item(result.unwrap()).1
    };
    assert_eq!(send("a").await.unwrap().outcome(), Outcome::Added);
    assert_unauthenticated(&status(&client, &late).await.unwrap_err());

    // One is added.
    file.write(&[
        block("billing", &[&billing], ""),
        watching.clone(),
        block("late", &[&late], ""),
    ]);
    until("the new caller is known", async || {
        status(&gateway.client().await, &late).await.is_ok()
    })
    .await;
    assert_eq!(send("b").await.unwrap().outcome(), Outcome::Added);

    // One is narrowed: the stream goes on, without its items there.
    file.write(&[
        block("billing", &[&billing], &format!("collectors = [\"{OTHER}\"]")),
        watching.clone(),
    ]);
    until("the caller is narrowed", async || {
        get(&client, &billing, COLLECTOR)
            .await
            .is_err_and(|error| error.reason == "CALLER_FORBIDDEN")
    })
    .await;
    assert_forbidden(send("c").await);
    assert_unauthenticated(&status(&client, &late).await.unwrap_err());

    // A file that is wrong changes nothing.
    file.write(&["[[caller]]\nname = \"billing\"\n".into()]);
    until("the wrong file is told", async || {
        gateway.log().contains("the caller has no credential")
    })
    .await;
    status(&client, &watch).await.unwrap();
    assert_forbidden(send("d").await);

    // Its token is taken away.
    let other = token();
    file.write(&[block("billing", &[&other], ""), watching]);
    until("the token is gone", async || {
        let client = gateway.client().await;
        status(&client, &billing)
            .await
            .is_err_and(|error| error.code == Code::Unauthenticated)
    })
    .await;
    assert_unauthenticated(&send("e").await.unwrap_err());
    status(&client, &watch).await.unwrap();
    assert_eq!(sandbox.report().requests, 2);
}

#[tokio::test]
async fn a_stream_whose_method_is_taken_away_ends() {
    let sandbox = surveylab().await;
    let token = token();
    let file = File::with(&[block("billing", &[&token], "")]);
    let gateway = guarded(&sandbox, &file).await;
    let client = gateway.client().await;
    let (items, requests) = mpsc::channel(1);
    let call = by(&token, ReceiverStream::new(requests));
    let mut results = client.clone().stream_add_respondent(call).await.unwrap().into_inner();
    file.write(&[block("billing", &[&token], "methods = [\"AddRespondent\"]")]);
    until("the caller is narrowed", async || {
        status(&client, &token)
            .await
            .is_err_and(|error| error.reason == "CALLER_FORBIDDEN")
    })
    .await;
    items.send(request("a")).await.unwrap();
    assert_forbidden(soon(results.message()).await.map_err(|status| status_error(&status)));
    assert_eq!(sandbox.report().requests, 0);
}

#[tokio::test]
async fn a_token_is_replaced_without_one_failed_call() {
    let sandbox = surveylab().await;
    let [old, new] = [(); 2].map(|()| token());
    let file = File::with(&[block("billing", &[&old], "")]);
    let gateway = guarded(&sandbox, &file).await;
    let client = gateway.client().await;
    let mut calls = 0;
    let mut call = async |token: &Token| {
        calls += 1;
        add(&client, token, request(&format!("k{calls}"))).await.unwrap();
    };
    call(&old).await;
    file.write(&[block("billing", &[&old, &new], "")]);
    until("both tokens are known", async || {
        call(&old).await;
        status(&gateway.client().await, &new).await.is_ok()
    })
    .await;
    for token in [&old, &new, &old] {
        call(token).await;
    }
    file.write(&[block("billing", &[&new], "")]);
    until("the old token is gone", async || {
        call(&new).await;
        status(&gateway.client().await, &old).await.is_err()
    })
    .await;
    call(&new).await;
    assert_eq!(sandbox.report().effects, calls);
}

/// More than 20, for a machine that takes a while: one is forgiven every ten seconds.
const MOST_ANSWERS: usize = 60;

/// Tries tokens on one connection until it ends: how many were answered, all of them with a refusal.
async fn try_until_it_ends(gateway: &Gateway, mut next: impl FnMut() -> String) -> usize {
    let stream = TcpStream::connect(gateway.grpc).await.unwrap();
    let (h2, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut answered = 0;
    while answered <= MOST_ANSWERS {
        let request = HttpRequest::post(format!("http://{}{ADD}", gateway.grpc))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", next())
            .body(())
            .unwrap();
        let Ok(mut h2) = h2.clone().ready().await else { break };
        let Ok((answer, _body)) = h2.send_request(request, false) else {
            break;
        };
        let Ok(answer) = soon(answer).await else { break };
        let status = answer.headers().get("grpc-status").map(HeaderValue::as_bytes);
        assert_eq!(status, Some(&b"16"[..]));
        answered += 1;
    }
    drop(h2);
    let _broken = soon(connection).await;
    answered
}

#[tokio::test]
async fn a_thousand_wrong_tokens_let_nobody_in_and_leave_a_short_log_without_them() {
    let began = Instant::now();
    let sandbox = surveylab().await;
    let good = token();
    let file = File::with(&[block("billing", &[&good], "")]);
    let gateway = guarded(&sandbox, &file).await;
    let patient = gateway.client().await;
    status(&patient, &good).await.unwrap();
    let mut tried = Vec::new();
    let (mut answered, mut connections) = (0, 0);
    while tried.len() < 1000 {
        let on_this = try_until_it_ends(&gateway, || {
            // A good one, but for its last characters: enough of them that they never are the same.
            let wrong = token();
            let shared = tried.len() % (good.expose().len() - 10);
            let wrong = format!("{}{}", &good.expose()[..shared], &wrong.expose()[shared..]);
            tried.push(wrong.clone());
            format!("Bearer {wrong}")
        })
        .await;
        assert!((19..=MOST_ANSWERS).contains(&on_this), "{on_this}");
        answered += on_this;
        connections += 1;
    }
    assert_eq!(sandbox.report().requests, 0);
    // Who has a token is not troubled.
    status(&patient, &good).await.unwrap();

    let counted = metric(&gateway, "authentication_failures_total", "why=\"token\"").await;
    assert!(
        counted >= answered as f64 && counted <= tried.len() as f64,
        "{answered} {counted}"
    );
    let log = gateway.log();
    let told = log.lines().filter(|line| line.contains("without valid credentials"));
    let told: Vec<serde_json::Value> = told.map(|line| serde_json::from_str(line).unwrap()).collect();
    let most = began.elapsed().as_secs() + 2;
    assert!(!told.is_empty() && told.len() as u64 <= most, "{} lines", told.len());
    assert!(log.lines().count() as u64 <= most + 20, "{log}");
    assert_eq!(told[0]["why"], "token");
    assert!(
        told[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{:?}",
        told[0]
    );
    for secret in tried.iter().map(String::as_str).chain([good.expose()]) {
        assert!(!log.contains(&secret[4..]), "{secret}");
    }
    println!(
        "{} tokens, {connections} connections, {} lines",
        tried.len(),
        told.len()
    );
}

#[tokio::test]
async fn no_token_shows_anywhere() {
    let sandbox = surveylab().await;
    let [good, narrow] = [(); 2].map(|()| token());
    let file = File::with(&[
        block("billing", &[&good], ""),
        block(
            "narrow",
            &[&narrow],
            &format!("collectors = [\"{OTHER}\"]\nmethods = [\"AddRespondent\"]"),
        ),
    ]);
    let options = Options::new().flag("--callers", file.path()).env("RUST_LOG", "trace");
    let gateway = Gateway::with(options, &sandbox).await;
    let wrong = token();
    let secrets = [&good, &narrow, &wrong].map(|token| token.expose().to_string());
    let mut said = Vec::new();
    for secret in &secrets {
        let client = gateway.client().await;
        for authorizations in [
            &[format!("Bearer {secret}")][..],
            std::slice::from_ref(secret),
            &[format!("Basic {secret}")],
            &[format!("Bearer {secret}"), format!("Bearer {secret}")],
            &[format!("Bearer {secret}x")],
        ] {
            let values: Vec<_> = authorizations.iter().map(String::as_str).collect();
            let unary = client.clone().add_respondent(with(request("k"), &values)).await;
            let items = tokio_stream::once(request("k"));
            let stream = client.clone().stream_add_respondent(with(items, &values)).await;
            for status in unary.err().into_iter().chain(stream.err()) {
                said.push(format!("{status:?} {status}"));
                said.push(String::from_utf8_lossy(status.details()).into_owned());
            }
        }
    }
    // A file with a token where a hash belongs is told about, too.
    file.write(&[format!(
        "[[caller]]\nname = \"{}\"\ntokens = [\"{}\"]\n",
        secrets[0], secrets[1]
    )]);
    until("the wrong file is told", async || {
        gateway.log().contains("the changed file can't be used")
    })
    .await;
    assert!(said.len() > 40, "{}", said.len());
    let metrics = gateway.admin("/metrics").await.1;
    assert!(metrics.contains("surveylab_gateway_authentication_failures_total"));
    said.push(metrics);
    said.push(gateway.admin("/readyz").await.1);
    assert!(gateway.log().contains("\"level\":\"DEBUG\""));
    said.push(gateway.log());
    said.extend(
        gateway
            .files()
            .iter()
            .map(|(_, content)| String::from_utf8_lossy(content).into_owned()),
    );
    let hashes = [&good, &narrow, &wrong].map(|token| token.hash().to_string());
    for text in &said {
        for secret in secrets.iter().map(|secret| &secret["slg_".len()..]) {
            assert!(!text.contains(secret), "{text}");
        }
        for hash in &hashes {
            assert!(!text.contains(&hash["sha256:".len()..]), "{text}");
        }
    }
}

#[tokio::test]
async fn a_wrong_file_is_told_in_one_line_before_anything_is_bound() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let token = token();
    for (content, told) in [
        (String::new(), "line 1: there is no caller in it"),
        (
            "[[caller]]\nname = \"a\"\ncollector = [\"b\"]\n".into(),
            "line 3: unknown key 'collector'",
        ),
        (
            format!("[[caller]]\nname = \"a\"\ntokens = [\"{}\"]\n", token.expose()),
            "line 3: tokens: must be a token's hash, not the token itself",
        ),
    ] {
        let file = File::with(&[content]);
        let path = file.path();
        let arguments = [
            "serve",
            "--sandbox",
            "--ledger=memory:",
            "--listen",
            &address,
            "--admin-listen",
            &address,
        ];
        for (flags, env) in [
            (&["--callers", path.as_str()][..], &[][..]),
            (&[], &[("GATEWAY_CALLERS", path.as_str())]),
        ] {
            let (code, stdout, stderr) = soon(run(&[&arguments[..], flags].concat(), env)).await;
            assert_eq!(
                (code, stdout.as_str(), stderr.lines().count()),
                (Some(2), "", 1),
                "{stderr}"
            );
            assert!(
                stderr.contains("--callers (GATEWAY_CALLERS)") && stderr.contains(told),
                "{stderr}"
            );
            assert!(
                !stderr.contains(&token.expose()[4..]) && !stderr.contains(TOKEN),
                "{stderr}"
            );
        }
    }
}

/// Who came first would be served first, were it not for the shares.
#[tokio::test]
async fn a_flood_of_one_caller_does_not_keep_another_waiting() {
    let sandbox = surveylab().await;
    let [newsletter, billing] = [token(), token()];
    let file = File::with(&[
        block("newsletter", &[&newsletter], "share = \"20%\""),
        block("billing", &[&billing], ""),
    ]);
    let options = Options::new()
        .flag("--rate", "100/s")
        .flag("--burst", 5)
        .flag("--callers", file.path());
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let newsletter = Arc::new(newsletter);
    let flood: Vec<_> = (0..400)
        .map(|key| {
            let (client, token) = (client.clone(), newsletter.clone());
            tokio::spawn(async move { add(&client, &token, request(&format!("n{key}"))).await.map(|_| ()) })
        })
        .collect();
    until("many wait", async || {
        metric(&gateway, "waiting_requests", "lane=\"unary\"").await >= 300.0
    })
    .await;
    let added = soon(add(&client, &billing, request("b"))).await.unwrap();
    assert_eq!(added.outcome(), Outcome::Added);
    let left = flood.iter().filter(|call| !call.is_finished()).count();
    assert!(left > 150, "{left} of the flood were left");
    for call in flood {
        soon(call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_flood_of_one_caller_does_not_fill_the_queue_for_another() {
    let sandbox = surveylab().await;
    let [newsletter, billing] = [token(), token()];
    let file = File::with(&[
        block("newsletter", &[&newsletter], "share = \"20%\""),
        block("billing", &[&billing], ""),
    ]);
    let options = Options::new()
        .flag("--rate", "1/h")
        .flag("--burst", 1)
        .flag("--max-queue", 10)
        .flag("--callers", file.path());
    let gateway = Gateway::with(options, &sandbox).await;
    // One is sent and ten wait; then there is room for billing's four fifths of ten.
    let _streams = [
        fill_queue(&gateway, &newsletter, "n", 9).await,
        fill_queue(&gateway, &billing, "b", 12).await,
    ];
    assert_eq!(metric(&gateway, "waiting_requests", "lane=\"stream\"").await, 18.0);
}

/// Sends a list of 20, of which so many are refused. It stays open while what is returned lives.
async fn fill_queue(gateway: &Gateway, token: &Token, name: &str, refused: usize) -> impl Sized {
    let (sender, list) = mpsc::channel(20);
    for key in 0..20 {
        sender.send(request(&format!("{name}{key}"))).await.unwrap();
    }
    let mut client = gateway.client().await;
    let results = client.stream_add_respondent(by(token, ReceiverStream::new(list))).await;
    let mut results = results.unwrap().into_inner();
    let mut seen = 0;
    while seen < refused {
        match item(soon(results.message()).await.unwrap().unwrap()).1 {
            Ok(added) => assert_eq!(added.outcome(), Outcome::Added),
            Err(error) => {
                assert_eq!(error.reason, "QUEUE_FULL");
                seen += 1;
            }
        }
    }
    (sender, results)
}

#[tokio::test]
async fn what_a_caller_is_refused_is_in_its_access_line() {
    let sandbox = surveylab().await;
    let billing = token();
    let file = File::with(&[block(
        "billing",
        &[&billing],
        &format!("collectors = [\"{COLLECTOR}\"]"),
    )]);
    let options = Options::new().flag("--callers", file.path()).flag("--access-log", "on");
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let items = [in_collector(OTHER, "a"), request("b"), in_collector(OTHER, "c")];
    let stream = by(&billing, tokio_stream::iter(items));
    let mut results = client.clone().stream_add_respondent(stream).await.unwrap().into_inner();
    while results.message().await.unwrap().is_some() {}
    assert_forbidden(list(&client, &billing, COLLECTOR).await);
    for (method, facts) in [
        (
            "StreamAddRespondent",
            [("items", 3), ("added", 1), ("failed", 2)].as_slice(),
        ),
        ("ListInvitations", &[]),
    ] {
        let is_its = |line: &serde_json::Value| line["target"] == "access" && line["method"] == method;
        let of_it = || {
            let log = gateway.log();
            log.lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .find(is_its)
        };
        until(method, async || of_it().is_some()).await;
        let line = of_it().unwrap();
        assert_eq!(line["caller"], "billing", "{line}");
        for (name, value) in facts {
            assert_eq!(line[name], *value, "{line}");
        }
    }
}

/// A gateway that has refused a caller what it may not do.
pub async fn refusing(sandbox: &Sandbox) -> Gateway {
    let token = token();
    let file = File::with(&[block("billing", &[&token], "")]);
    let gateway = guarded(sandbox, &file).await;
    assert_forbidden(list(&gateway.client().await, &token, COLLECTOR).await);
    gateway
}
