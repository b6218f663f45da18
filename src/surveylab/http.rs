// placeholder while the client is being written
use super::{Answer, Request, SurveyLab};
use crate::{
    clock::Clock,
    invitation::{Invitation, Violation},
};
use futures_util::future::BoxFuture;
use secrecy::SecretString;
use std::{str::FromStr, time::Duration};
#[derive(Clone, Debug)]
pub struct BaseUrl;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
impl FromStr for BaseUrl {
    type Err = Error;
    fn from_str(_: &str) -> Result<Self, Error> {
        Ok(Self)
    }
}
pub struct HttpConfig {
    pub url: BaseUrl,
    pub token: SecretString,
    pub upstream_timeout: Duration,
    pub max_in_flight: usize,
    pub clock: Clock,
}
pub struct HttpSurveyLab;
impl HttpSurveyLab {
    pub fn new(_: HttpConfig) -> Result<Self, Error> {
        Ok(Self)
    }
}
impl SurveyLab for HttpSurveyLab {
    fn encode(&self, _: Invitation) -> Result<Request, Violation> {
        Err(Violation::new("x", "y"))
    }
    fn send<'a>(&'a self, _: &'a Request) -> BoxFuture<'a, Answer> {
        Box::pin(async { Answer::BadRequest })
    }
}
