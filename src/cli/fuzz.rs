//! Targets of [`crate::fuzz`]: flags and settings. What an environment variable holds goes through the parser of its flag.

use std::{ffi::OsStr, iter, os::unix::ffi::OsStrExt as _, time::Duration};

use clap::{CommandFactory as _, Parser as _};
use secrecy::ExposeSecret as _;

use super::{Cli, Command, client::Target, field::Field, usage};
use crate::{
    config::{self, Config, LedgerUrl, ServeArgs, Upstream, duration},
    limiter,
    rate::Rate,
    sandbox,
    surveylab::http::Endpoint,
    token,
};

const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of these the value may be a secret, or have one in it.
const HIDDEN: [&str; 6] = [
    "--api-token-file",
    "--surveylab-url",
    "--ledger",
    "--api-token",
    "--token-file",
    "--token",
];
const SECRET: &str = "s3cret";

/// A command's arguments, one a line: either settings that are valid by themselves and with each other, or one line that
/// says what is wrong and shows no secret.
pub fn settings(data: &[u8]) {
    let arguments: Vec<&OsStr> = data.split(|b| *b == b'\n').map(OsStr::from_bytes).collect();
    let program = OsStr::new("surveylab-gateway");
    match Cli::try_parse_from(iter::once(program).chain(arguments.iter().copied())) {
        Ok(cli) => match cli.command {
            Command::Serve(args) => serve(*args),
            Command::Sandbox(args) => {
                let config = sandbox::Config::from(args);
                config.limit.into_iter().for_each(sandbox::fuzz::limits);
            }
            Command::Add(args) => assert!(args.custom.iter().all(|(field, _)| Field::CUSTOM.contains(field))),
            Command::Import(args) => assert!(!args.patience.is_zero() && args.patience <= LONGEST),
            Command::Invitations(_)
            | Command::Caller(_)
            | Command::Ledger(_)
            | Command::MigrateLedger(_)
            | Command::Status(_)
            | Command::Healthcheck(_)
            | Command::Generate(_) => {}
        },
        Err(error) => {
            let subcommand = arguments.first().and_then(|first| first.to_str());
            let Some(line) = usage::line(&error, &Cli::command(), subcommand) else {
                return;
            };
            assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
            assert!(!line.contains(SECRET) || !is_hidden(&arguments), "{line:?}");
        }
    }
}

/// Whether the secret is in the values of hidden flags alone. clap drops control characters from what it shows, so that
/// some other argument may come to show it.
fn is_hidden(arguments: &[&OsStr]) -> bool {
    let texts: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
    texts.iter().enumerate().all(|(at, text)| {
        let (flag, value) = text.split_once('=').unwrap_or((text, ""));
        let is_value = at > 0 && HIDDEN.contains(&&*texts[at - 1]) && !text.starts_with('-');
        let shows_none = !text.contains(SECRET) && !text.contains(char::is_control);
        shows_none || is_value || (HIDDEN.contains(&flag) && value.contains(SECRET))
    })
}

fn serve(mut args: ServeArgs) {
    for (count, most) in [
        (args.burst, 1_000_000),
        (args.max_in_flight, 10_000),
        (args.max_attempts, 1_000),
        (args.max_queue, 10_000_000),
        (args.stream_window, 100_000),
    ] {
        assert!(count.get() <= most);
    }
    for time in [args.max_wait, args.upstream_timeout, args.drain_timeout] {
        assert!(!time.is_zero() && time <= LONGEST);
    }
    limiter::fuzz::is_usable(limiter::Settings {
        rate: args.rate,
        burst: args.burst.get(),
        rested: std::time::Duration::MAX,
        max_in_flight: args.max_in_flight.get() as usize,
        max_queue: args.max_queue.get() as usize,
    });
    // No target reads files.
    args.api_token_file = None;
    let sandbox = args.sandbox;
    match Config::try_from(args.clone()) {
        Ok(config) => {
            assert_eq!(matches!(config.upstream, Upstream::Sandbox), sandbox);
            let ledger = args.ledger.unwrap_or(config.ledger.clone());
            assert_eq!(ledger.to_string(), config.ledger.to_string());
        }
        Err(config::Error::Protection(_)) => {}
        Err(_) => assert!(!sandbox, "a sandbox needs no token"),
    }
}

/// One setting's text, for each of the small parsers: what is accepted says the same once it is written out again.
pub fn setting(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(rate) = text.parse::<Rate>() {
        let written = rate.to_string();
        assert_eq!(
            text.split_whitespace().collect::<String>().trim_start_matches('0'),
            written
        );
        assert_eq!(written.parse(), Ok(rate));
        // Never faster than it says, and at most a nanosecond slower a request.
        let paced = rate.period() * rate.count();
        assert!(rate.per() <= paced && paced <= rate.per() + Duration::from_nanos(rate.count().into()));
    }
    if let Ok(time) = duration(text) {
        assert!(!time.is_zero() && time <= LONGEST);
        assert_eq!(duration(&humantime::format_duration(time).to_string()), Ok(time));
    }
    match text.parse() {
        // Its own tests hold that to showing no password.
        Ok(LedgerUrl::Postgres(_)) | Err(_) => {}
        Ok(ledger) => assert_eq!(ledger.to_string(), text),
    }
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        let written = endpoint.to_string();
        assert!(!written.contains(['?', '#', ' ', '\t', '\n']), "{written}");
        let scheme = if endpoint.is_https() { "https://" } else { "http://" };
        let rest = written.strip_prefix(scheme);
        let host = rest.and_then(|rest| rest.split_once('/')).map_or("", |(host, _)| host);
        assert!(!host.is_empty() && !host.contains('@'), "{written}");
        assert_eq!(written.parse(), Ok(endpoint));
    }
    if let Some(token) = token::of(text) {
        let token = token.expose_secret();
        assert_eq!(token, text.trim());
        assert!(matches!(token.len(), 1..=1024) && token.bytes().all(|b| (b'!'..=b'~').contains(&b)));
    }
    // A target is what tonic makes of it.
    let _ = text.parse::<Target>();
}
