//! SurveyLabs that answer with anything, through the whole gateway: what may have arrived is in doubt, what can't have is
//! not, no key gets another key's answer, the others are served meanwhile, and memory stays bounded.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use surveylab_gateway::proto::{InvitationState, Outcome};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, crypto,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};
use tonic::Code;

use crate::support::{
    Error, Gateway, Options,
    call::{Client, add, added, state},
    request,
    watch::{resident_memory, soon, until},
};

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<W: AsyncRead + AsyncWrite + Send + Unpin> Wire for W {}

/// One connection of the gateway's, and the crks of the requests that came on it.
struct Connection {
    wire: Box<dyn Wire>,
    unread: Vec<u8>,
    arrived: Arc<Mutex<Vec<String>>>,
}

impl Connection {
    /// The crk of the next request; `None` when the gateway has closed.
    async fn request(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                let head = String::from_utf8(head).unwrap();
                let crk = head.split("crk=").nth(1).unwrap();
                let crk = crk.split(['&', ' ']).next().unwrap().to_string();
                self.arrived.lock().unwrap().push(crk.clone());
                return Some(crk);
            }
            if !matches!(self.wire.read_buf(&mut self.unread).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// False if the gateway has closed.
    async fn say(&mut self, words: &[u8]) -> bool {
        self.wire.write_all(words).await.is_ok() && self.wire.flush().await.is_ok()
    }

    /// The answer that an honest SurveyLab gives, which tells whose it is.
    async fn answer(&mut self, crk: &str) -> bool {
        self.say(&answer(crk)).await
    }
}

fn answer(notification: &str) -> Vec<u8> {
    let body = format!("{{\"status\":true,\"notification\":\"{notification}\"}}");
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A SurveyLab that does with each connection as it likes. Ends with the test's runtime.
struct Hostile {
    address: SocketAddr,
    arrived: Arc<Mutex<Vec<String>>>,
}

impl Hostile {
    async fn start<F>(behave: impl Fn(Connection) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::over(None, behave).await
    }

    async fn over<F>(tls: Option<TlsAcceptor>, behave: impl Fn(Connection) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let arrived = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn({
            let arrived = arrived.clone();
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let wire: Box<dyn Wire> = match &tls {
                        None => Box::new(stream),
                        // One that the gateway broke off has brought no request.
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => continue,
                        },
                    };
                    tokio::spawn(behave(Connection {
                        wire,
                        unread: Vec::new(),
                        arrived: arrived.clone(),
                    }));
                }
            }
        });
        Self { address, arrived }
    }

    fn url(&self) -> String {
        format!("http://{}/api.php", self.address)
    }

    /// How many requests for a key arrived.
    fn requests_of(&self, crk: &str) -> usize {
        self.arrived
            .lock()
            .unwrap()
            .iter()
            .filter(|arrived| *arrived == crk)
            .count()
    }
}

fn options() -> Options {
    Options::new().flag("--max-attempts", 1)
}

#[track_caller]
fn assert_in_doubt(error: &Error, what: &str) {
    assert_eq!(
        (error.code, error.reason.as_str(), error.sent()),
        (Code::FailedPrecondition, "OUTCOME_IN_DOUBT", "unknown"),
        "{what}: {error:?}"
    );
}

#[track_caller]
fn assert_unreachable(error: &Error, what: &str) {
    assert_eq!(
        (error.code, error.reason.as_str(), error.sent()),
        (Code::Unavailable, "SURVEYLAB_UNREACHABLE", "no"),
        "{what}: {error:?}"
    );
}

// Answers that say nothing

/// What comes instead of an answer, and then again and again.
struct Nonsense {
    what: &'static str,
    begin: Vec<u8>,
    endless: &'static [u8],
}

const TRUE: &str = "{\"status\":true}";

/// `{"status":true}`, compressed by gzip. Who unpacks this one unpacks one that grows a thousandfold.
const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x2a\x2e\x49\x2c\x29\x2d\x56\xb2\
          \x2a\x29\x2a\x4d\xad\x05\x00\x4c\x0f\xb3\xa1\x0f\x00\x00\x00";

fn nonsense() -> Vec<Nonsense> {
    let case = |what, begin: &[u8], endless| Nonsense {
        what,
        begin: begin.to_vec(),
        endless,
    };
    let head = |headers: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\n{body}").into_bytes();
    let many_headers = format!("HTTP/1.1 200 OK\r\n{}\r\n{TRUE}", "x-more: 1\r\n".repeat(100_000));
    let compressed = format!("content-encoding: gzip\r\ncontent-length: {}", GZIP.len());
    let compressed = [&head(&compressed, ""), GZIP].concat();
    let length = |length: &str| head(&format!("content-length: {length}"), TRUE);
    vec![
        case(
            "endless headers",
            b"HTTP/1.1 200 OK\r\n",
            b"x-more: abcdefghijklmnopqrstuvwxyz\r\n",
        ),
        case(
            "one endless header",
            b"HTTP/1.1 200 OK\r\nx: ",
            b"abcdefghijklmnopqrstuvwxyz",
        ),
        case("an endless reason", b"HTTP/1.1 200 ", b"OK "),
        case("100 000 headers", many_headers.as_bytes(), b""),
        case(
            "an endless body",
            &head("content-length: 99999999999", ""),
            b"            ",
        ),
        case(
            "a body until the end of the connection",
            &head("x: y", "{"),
            b"\"status\":true, ",
        ),
        case(
            "endless chunks",
            &head("transfer-encoding: chunked", ""),
            b"4\r\n    \r\n",
        ),
        case("an endless chunk's size", &head("transfer-encoding: chunked", ""), b"0"),
        case(
            "an endless chunk's extension",
            &head("transfer-encoding: chunked", "f;"),
            b"abcdefgh",
        ),
        case(
            "endless trailers",
            &head("transfer-encoding: chunked", &format!("f\r\n{TRUE}\r\n0\r\n")),
            b"x-more: abcdefgh\r\n",
        ),
        case("a compressed body", &compressed, b""),
        case("a length too short", &length("5"), b""),
        case("a length too long", &length("16"), b""),
        case("two lengths", &length("15\r\ncontent-length: 16"), b""),
        case("a negative length", &length("-15"), b""),
        case("a length beyond all numbers", &length("99999999999999999999999"), b""),
        case("a body alone", TRUE.as_bytes(), b""),
        case(
            "HTTP/2",
            b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\x04\0\0\xff\xff\0\x06\0\0\x40\0",
            b"",
        ),
        case("a NUL in a header", &head("x: a\0b\r\ncontent-length: 15", TRUE), b""),
        case("NULs alone", &[0; 1_000], b""),
    ]
}

#[tokio::test]
async fn whatever_answers_say_nothing_leave_their_key_in_doubt_and_harm_no_other() {
    let hostile = Hostile::start(|mut connection| async move {
        while let Some(crk) = connection.request().await {
            let Some(number) = crk.strip_prefix("bad-") else {
                connection.answer(&crk).await;
                continue;
            };
            let Nonsense { begin, endless, .. } = nonsense().swap_remove(number.parse().unwrap());
            // Until the gateway has closed the connection.
            let mut listens = connection.say(&begin).await;
            let piece = endless.repeat(1_000);
            while listens && !endless.is_empty() {
                listens = connection.say(&piece).await;
            }
            return;
        }
    })
    .await;
    // hyper reads a chunk's size for as long as it comes.
    let options = options().flag("--upstream-timeout", "10s");
    let gateway = Gateway::in_front_of(&hostile.url(), options).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("good")).await, Outcome::Added);
    let before = resident_memory(&gateway);
    let mut bad = JoinSet::new();
    for number in 0..nonsense().len() {
        let client = client.clone();
        bad.spawn(async move { (number, add(&client, request(&format!("bad-{number}"))).await) });
    }
    let mut good = 0;
    while !bad.is_empty() {
        assert_eq!(added(&client, request(&format!("good-{good}"))).await, Outcome::Added);
        good += 1;
        while let Some(ended) = bad.try_join_next() {
            let (number, result) = ended.unwrap();
            let what = nonsense()[number].what;
            assert_in_doubt(&result.expect_err(what), what);
            let crk = format!("bad-{number}");
            assert_eq!(state(&client, &crk).await, Some(InvitationState::InDoubt), "{what}");
            assert_eq!(hostile.requests_of(&crk), 1, "{what}");
        }
    }
    let grown = resident_memory(&gateway).saturating_sub(before);
    println!("{good} good keys meanwhile, {} KiB more memory", grown / 1024);
    assert!(grown < 64 << 20, "{grown}");
}

#[tokio::test]
async fn endless_informational_answers_end_at_the_timeout() {
    let hostile = Hostile::start(|mut connection| async move {
        while let Some(crk) = connection.request().await {
            if crk == "many" {
                let many = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(10_000);
                connection.say(&many).await;
            }
            let hints = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100);
            while crk == "endless" && connection.say(&hints).await {}
            connection.answer(&crk).await;
        }
    })
    .await;
    let options = options().flag("--upstream-timeout", "5s");
    let gateway = Gateway::in_front_of(&hostile.url(), options).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("many")).await, Outcome::Added);
    let before = resident_memory(&gateway);
    let error = soon(add(&client, request("endless"))).await.unwrap_err();
    assert_in_doubt(&error, "endless");
    assert_eq!(hostile.requests_of("endless"), 1);
    let grown = resident_memory(&gateway).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown}");
    assert_eq!(added(&client, request("good")).await, Outcome::Added);
}

// Answers too many

/// Each answer tells whose it is: a key that is told it was added was told so by its own.
fn assert_own(crk: &str, result: Result<surveylab_gateway::proto::AddRespondentResponse, Error>) -> bool {
    match result {
        Ok(response) => {
            assert_eq!(response.notification, crk, "another one's answer");
            true
        }
        Err(error) => {
            assert_in_doubt(&error, crk);
            false
        }
    }
}

/// What can't be told apart on one connection needs connections of its own.
fn no_connection_twice() -> Options {
    options().flag("--upstream-idle-timeout", "0s")
}

const STALE: &str = "another one's";

#[tokio::test]
async fn a_second_answer_together_with_the_first_is_nobodys() {
    let hostile = Hostile::start(|mut connection| async move {
        while let Some(crk) = connection.request().await {
            connection.say(&[answer(&crk), answer(STALE)].concat()).await;
        }
    })
    .await;
    let gateway = Gateway::in_front_of(&hostile.url(), options()).await;
    let client = gateway.client().await;
    let mut callers = JoinSet::new();
    for caller in 0..8 {
        let client = client.clone();
        callers.spawn(async move {
            for i in 0..50 {
                let crk = format!("k{caller}-{i}");
                assert!(assert_own(&crk, add(&client, request(&crk)).await));
            }
        });
    }
    callers.join_all().await;
}

#[tokio::test]
async fn a_second_answer_on_an_idle_connection_is_nobodys() {
    let (said, mut saying) = mpsc::unbounded_channel();
    let hostile = Hostile::start(move |mut connection| {
        let said = said.clone();
        async move {
            while let Some(crk) = connection.request().await {
                connection.answer(&crk).await;
                // The gateway may have closed by then.
                connection.say(&answer(STALE)).await;
                said.send(()).unwrap();
            }
        }
    })
    .await;
    let gateway = Gateway::in_front_of(&hostile.url(), no_connection_twice()).await;
    let client = gateway.client().await;
    for i in 0..200 {
        let crk = format!("k{i}");
        assert!(assert_own(&crk, add(&client, request(&crk)).await));
        // By now the second answer has been said, and the next request can meet it.
        soon(saying.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_answer_that_races_the_next_request_is_nobodys() {
    let hostile = Hostile::start(|mut connection| async move {
        let mut before = None;
        while let Some(crk) = connection.request().await {
            // What it owes nobody any more comes in the place of the next answer.
            if let Some(before) = before.replace(crk.clone()) {
                connection.answer(&before).await;
            } else {
                connection.answer(&crk).await;
            }
        }
    })
    .await;
    let gateway = Gateway::in_front_of(&hostile.url(), no_connection_twice()).await;
    let client = gateway.client().await;
    for i in 0..50 {
        let crk = format!("k{i}");
        assert!(assert_own(&crk, add(&client, request(&crk)).await));
    }
}

/// Whether the answer or the request is first is a race; no manner of it may call what arrived unsent, or added what
/// did not arrive.
#[tokio::test]
async fn an_answer_before_the_request_is_no_proof_of_anything_but_what_arrived() {
    let hostile = Hostile::start(|mut connection| async move {
        connection.answer(STALE).await;
        while connection.request().await.is_some() {}
    })
    .await;
    let options = options().flag("--upstream-timeout", "2s");
    let gateway = Gateway::in_front_of(&hostile.url(), options).await;
    let client = gateway.client().await;
    let mut calls = JoinSet::new();
    for i in 0..50 {
        let (client, crk) = (client.clone(), format!("k{i}"));
        calls.spawn(async move { (add(&client, request(&crk)).await, crk) });
    }
    for (result, crk) in soon(calls.join_all()).await {
        match result {
            Ok(_) => until("the request arrives", async || hostile.requests_of(&crk) == 1).await,
            Err(error) if error.reason == "SURVEYLAB_UNREACHABLE" => assert_eq!(hostile.requests_of(&crk), 0),
            Err(error) => assert_in_doubt(&error, &crk),
        }
        assert!(hostile.requests_of(&crk) <= 1);
    }
}

// TLS

/// Who vouches for a SurveyLab's certificate, for whom and for when.
struct Certificates {
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Self {
            authority: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    fn acceptor(&self, name: &str, last_year: i32) -> TlsAcceptor {
        let mut params = CertificateParams::new([name.to_string()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(certificate)],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    fn trusted_by(&self, options: Options, directory: &Path) -> Options {
        let file = directory.join("authority.pem");
        std::fs::write(&file, self.authority.pem()).unwrap();
        options.env("SSL_CERT_FILE", file.display())
    }
}

async fn over_tls(
    tls: TlsAcceptor,
    trusted: &Certificates,
    behave: impl Fn(Connection) -> futures_util::future::BoxFuture<'static, ()> + Send + 'static,
) -> (Hostile, Gateway, Client) {
    let hostile = Hostile::over(Some(tls), behave).await;
    let directory = tempfile::tempdir().unwrap();
    let options = trusted.trusted_by(options(), directory.path());
    let gateway = Gateway::in_front_of(&hostile.url().replace("http:", "https:"), options).await;
    let client = gateway.client().await;
    (hostile, gateway, client)
}

#[tokio::test]
async fn over_tls_only_a_trusted_certificate_of_the_right_name_and_time_is_told_anything() {
    let (trusted, other) = (Certificates::new(), Certificates::new());
    for (what, tls) in [
        ("trusted", trusted.acceptor("127.0.0.1", 4000)),
        ("untrusted", other.acceptor("127.0.0.1", 4000)),
        ("expired", trusted.acceptor("127.0.0.1", 2021)),
        ("wrong name", trusted.acceptor("app.surveylab.example", 4000)),
    ] {
        let (hostile, _gateway, client) = over_tls(tls, &trusted, |mut connection| {
            Box::pin(async move {
                while let Some(crk) = connection.request().await {
                    connection.answer(&crk).await;
                }
            })
        })
        .await;
        let result = add(&client, request("k")).await;
        if what == "trusted" {
            assert!(assert_own("k", result));
            assert_eq!(hostile.requests_of("k"), 1);
        } else {
            assert_unreachable(&result.unwrap_err(), what);
            assert_eq!(state(&client, "k").await, Some(InvitationState::Failed), "{what}");
            assert_eq!(hostile.requests_of("k"), 0, "{what}");
        }
    }
}

#[tokio::test]
async fn over_tls_what_is_cut_after_the_request_is_in_doubt() {
    let trusted = Certificates::new();
    let tls = trusted.acceptor("127.0.0.1", 4000);
    // Dropped without a close_notify, as by whoever cuts the connection.
    let (hostile, _gateway, client) = over_tls(tls, &trusted, |mut connection| {
        Box::pin(async move {
            let said: &[u8] = match connection.request().await.as_deref() {
                Some("at-once") => b"",
                Some("in-the-head") => b"HTTP/1.1 200 OK\r\ncontent-le",
                Some("in-the-body") => b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\"",
                // A truncation attack: the end of the connection is the end of the body, unless close_notify is missing.
                Some("until-the-end") => b"HTTP/1.1 200 OK\r\n\r\n{\"status\":true}",
                _ => return,
            };
            connection.say(said).await;
        })
    })
    .await;
    for crk in ["at-once", "in-the-head", "in-the-body", "until-the-end"] {
        assert_in_doubt(&add(&client, request(crk)).await.expect_err(crk), crk);
        assert_eq!(state(&client, crk).await, Some(InvitationState::InDoubt), "{crk}");
        assert_eq!(hostile.requests_of(crk), 1, "{crk}");
    }
}

#[tokio::test]
async fn a_handshake_that_fails_sends_nothing_and_is_tried_again() {
    // An alert in the middle, bytes that are no TLS, HTTP, nothing; then the other end.
    let words: [&[u8]; 4] = [
        b"\x15\x03\x03\0\x02\x02\x28",
        &[0xff; 256],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
    ];
    for words in words {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/api.php", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            let mut hellos = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut hello = vec![0; 16 * 1024];
                let read = stream.read(&mut hello).await.unwrap();
                hello.truncate(read);
                hellos.push(hello);
                stream.write_all(words).await.unwrap();
            }
            hellos
        });
        let gateway = Gateway::in_front_of(&url, Options::new().flag("--max-attempts", 2)).await;
        let client = gateway.client().await;
        let error = soon(add(&client, request("k"))).await.unwrap_err();
        assert_unreachable(&error, "two handshakes");
        assert!(error.retry.is_some_and(|retry| retry > Duration::ZERO));
        for hello in soon(serving).await.unwrap() {
            assert!(!hello.windows(4).any(|window| window == b"GET " || window == b"crk="));
        }
    }
}
