//! SurveyLab over HTTP/1: one request, sent at most once.
//!
//! What keeps it at once (reqwest 0.13.5, hyper-util 0.1.21, hyper 1.12.0):
//! - reqwest's own retries (`retry.rs`) are switched off, and so are redirects.
//! - hyper-util's `Client::send_request` (`client/legacy/client.rs`) can't be kept from trying again through reqwest,
//!   but does so only where hyper gives the request back (`TrySendError::take_message`) from a connection that had
//!   served before. hyper gives back only what its connection task never took from the queue (`client/dispatch.rs`
//!   `Envelope::drop`, `Sender::try_send`; `proto/h1/dispatch.rs` `Client::recv_msg`), so not a byte of it was
//!   written. Once it is taken, every failure is final (`message: None`).
//! - HTTP/1 ties an answer to its request by nothing but their order on the connection. hyper closes one on which
//!   something comes unasked; an answer too many that comes only after the next request has gone out can't be told from
//!   that one's by anybody who keeps connections. Who fronts SurveyLab with something that broken keeps none.
//! - HTTP/2, whose refused streams could be sent again, is neither offered nor spoken.

mod endpoint;
mod failure;
mod resolve;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use reqwest::{Response, Url, header::RETRY_AFTER, redirect, retry};

pub use self::endpoint::{Endpoint, EndpointError};
use super::{
    Answer, Request, SurveyLab,
    answer::{self, Body, Head, MAX_BODY},
    redact::Secrets,
    request::{self, MAX_REQUEST_LINE},
    token::{Token, Tokens},
};
use crate::{
    clock::Clock,
    invitation::{Invitation, Violation},
    metrics,
};

const USER_AGENT: &str = concat!("surveylab-gateway/", env!("CARGO_PKG_VERSION"));
const LINE_END: &str = " HTTP/1.1";

/// What `HttpSurveyLab` needs.
#[derive(Clone)]
pub struct HttpConfig {
    pub url: Endpoint,
    pub token: Tokens,
    /// Of one request, from its beginning to the end of the answer's body.
    pub upstream_timeout: Duration,
    /// Of name, TCP and TLS together. At most half the upstream timeout is used of it: were the whole to run out
    /// first, it would not tell whether a connection had been made, and what could be tried again would be in doubt.
    pub connect_timeout: Duration,
    /// How many requests there are at once: so many connections are kept for the next ones.
    pub max_in_flight: usize,
    /// For how long one is kept. Zero: each request gets one of its own.
    pub idle_timeout: Duration,
    pub clock: Clock,
}

/// Why there can be no client. Never holds the token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API token is empty")]
    NoToken,
    #[error("the path of the URL and the API token leave no room in a request line of {MAX_REQUEST_LINE} bytes")]
    NoRoom,
    #[error("the HTTP client can't be set up: {0}")]
    Client(String),
}

/// SurveyLab's webhook.
pub struct HttpSurveyLab {
    client: reqwest::Client,
    url: Url,
    pub(super) tokens: Tokens,
    clock: Clock,
}

impl std::fmt::Debug for HttpSurveyLab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpSurveyLab")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

impl HttpSurveyLab {
    pub fn new(config: HttpConfig) -> Result<Self, Error> {
        if config.token.current().plain().is_empty() {
            return Err(Error::NoToken);
        }
        let surveylab = Self {
            client: client(&config)?,
            url: config.url.url().clone(),
            tokens: config.token,
            clock: config.clock,
        };
        if surveylab.around() >= MAX_REQUEST_LINE {
            return Err(Error::NoRoom);
        }
        Ok(surveylab)
    }

    /// The request line's length without the invitation, with room for tokens to come.
    fn around(&self) -> usize {
        "GET ".len() + self.url.path().len() + "?".len() + self.tokens.room() + LINE_END.len()
    }

    /// Where one request goes, token and all.
    pub(super) fn url_of(&self, request: &Request, token: &Token) -> Url {
        let mut url = self.url.clone();
        // Both parts hold only unreserved characters, `%`, `=` and `&`, which `Url` passes on as they are.
        url.set_query(Some(&[token.query_begin(), &request.query].concat()));
        url
    }

    /// What `send` makes of an answer, without a server that gives it: for the benchmark of the parts.
    #[doc(hidden)]
    pub fn classify(&self, request: &Request, http_status: u16, retry_after: Option<&[u8]>, body: Vec<u8>) -> Answer {
        let head = Head {
            http_status,
            retry_after,
        };
        let token = self.tokens.current();
        answer::by_status(&head, self.clock.wall())
            .unwrap_or_else(|| answer::by_body(http_status, Body::Complete(body), &secrets(request, &token, &token)))
    }

    async fn get(&self, request: &Request) -> Answer {
        // The request keeps it, whatever comes meanwhile.
        let token = self.tokens.current();
        match self.client.get(self.url_of(request, &token)).send().await {
            Ok(response) => self.answer(response, request, &token).await,
            Err(error) => failure::of_send(error.without_url(), &secrets(request, &token, &self.tokens.current())),
        }
    }

    async fn answer(&self, response: Response, request: &Request, token: &Token) -> Answer {
        let http_status = response.status().as_u16();
        metrics::response(http_status);
        let head = Head {
            http_status,
            retry_after: response.headers().get(RETRY_AFTER).map(|value| value.as_bytes()),
        };
        // A body that decides nothing is not waited for: hyper keeps the connection if the body is there already
        // (`Conn::poll_drain_or_close_read`), and closes it if not.
        if let Some(answer) = answer::by_status(&head, self.clock.wall()) {
            return answer;
        }
        let body = read_body(response, |error| {
            failure::cause(&error, &secrets(request, token, &self.tokens.current()))
        });
        let body = body.await;
        answer::by_body(http_status, body, &secrets(request, token, &self.tokens.current()))
    }
}

impl SurveyLab for HttpSurveyLab {
    fn encode(&self, invitation: Invitation) -> Result<Request, Violation> {
        request::encode(invitation, self.around())
    }

    fn token_version(&self) -> u64 {
        self.tokens.current().version()
    }

    fn send<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Answer> {
        Box::pin(self.get(request))
    }
}

/// What an answer to a request must not repeat: the token that it bore, and those before and after.
fn secrets<'a>(request: &'a Request, token: &'a Token, now: &'a Token) -> Secrets<'a> {
    let after = (now.version() != token.version()).then(|| now.plain());
    Secrets::of(token.plain(), &request.invitation.respondent).and(token.before(), after)
}

/// Reads at most one piece past the limit, whatever `content-length` promises.
async fn read_body(mut response: Response, cause: impl Fn(reqwest::Error) -> String) -> Body {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > MAX_BODY => return Body::TooLong,
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Body::Complete(body),
            Err(error) => {
                let cause = cause(error.without_url());
                return Body::Broken { cause };
            }
        }
    }
}

fn client(config: &HttpConfig) -> Result<reqwest::Client, Error> {
    // reqwest takes the process's provider and panics without one. If another part has installed one, that is it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .http1_only()
        .redirect(redirect::Policy::none())
        // The limit of none also spares a copy of each request that reqwest keeps for a retry.
        .retry(retry::never().max_retries_per_request(0))
        .referer(false)
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .tcp_nodelay(true)
        .dns_resolver(Arc::new(resolve::Resolver::new()))
        .pool_idle_timeout(config.idle_timeout)
        .pool_max_idle_per_host(if config.idle_timeout.is_zero() {
            0
        } else {
            config.max_in_flight
        })
        .connect_timeout(config.connect_timeout.min(config.upstream_timeout / 2))
        .timeout(config.upstream_timeout);
    if !config.url.is_https() {
        // Without TLS nobody should need the machine's certificates, which a small container may not have.
        builder = builder.tls_certs_only([]);
    }
    builder
        .build()
        .map_err(|error| Error::Client(failure::chain(&error.without_url())))
}

#[cfg(test)]
mod tests;
