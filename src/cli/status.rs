//! `status`: how a running gateway stands, once or again each second.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, SystemTime},
};

use clap::Args;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use super::{
    Exit,
    client::{Client, ClientArgs, Output, error_json, error_text, report, time_text, wrong},
    figures::{grouped, rates, span_text},
    output::{fail, say},
};
use crate::{
    proto::{
        GetStatusRequest, GetStatusResponse, OpenBreaker, ServingState,
        invitation_service_client::InvitationServiceClient,
    },
    shutdown,
};

/// Tell how a running gateway stands: its rate, a pause, what waits and for how long.
///
/// Exit codes: 0 it answered, whatever it said (`healthcheck` tells by its exit code whether it serves), or Ctrl-C ended
/// --watch; 1 no answer now; 2 wrong flags; 3 the gateway has no such call.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Look again each second, until Ctrl-C; also while the gateway is away.
    #[arg(long)]
    pub watch: bool,

    /// Print JSON, with --watch one line each time.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub client: ClientArgs,
}

/// Time from one look to the next.
const EVERY: Duration = Duration::from_secs(1);
/// What is on the screen must not be much older than this, even if the gateway hangs.
const STALE: Duration = Duration::from_secs(5);

/// Asks, and prints the answer.
pub async fn run(args: StatusArgs) -> Exit {
    let output = Output::from_flag(args.json);
    let mut gateway = match args.client.open() {
        Ok(client) => Gateway::new(client),
        Err(error) => return wrong(&error),
    };
    if args.watch {
        gateway.client.timeout = gateway.client.timeout.min(STALE);
        return match shutdown::on_signal() {
            Ok(stop) => watch(gateway, output, stop).await,
            Err(error) => fail(Exit::TryAgain, &format!("can't handle signals: {error}")),
        };
    }
    match gateway.status().await {
        Ok(status) => {
            say(format_args!("{}", text(&status, output)));
            Exit::Ok
        }
        Err(error) => report(&error, output),
    }
}

/// Ends with `stop`, when nobody reads any more, or at an error that stays.
async fn watch(mut gateway: Gateway, output: Output, stop: CancellationToken) -> Exit {
    let mut screen = Screen::new(output);
    let mut looks = interval(EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let look = async {
            looks.tick().await;
            gateway.status().await
        };
        let text = match stop.run_until_cancelled(look).await {
            None => return Exit::Ok,
            Some(Ok(status)) => text(&status, output),
            // A gateway that is away for a moment is what people watch for.
            Some(Err(error)) if Exit::of(&error) == Exit::TryAgain => match output {
                Output::Json => json!({ "error": error_json(&error) }).to_string(),
                Output::Human => error_text(&error),
            },
            Some(Err(error)) => return report(&error, output),
        };
        if screen.show(&text).is_err() {
            return Exit::Ok;
        }
    }
}

/// A gateway to be asked again and again, on one connection for as long as that lasts.
struct Gateway {
    client: Client,
    connected: Option<InvitationServiceClient<Channel>>,
}

impl Gateway {
    fn new(client: Client) -> Self {
        Self {
            client,
            connected: None,
        }
    }

    async fn status(&mut self) -> Result<GetStatusResponse, Status> {
        let mut connected = match self.connected.take() {
            Some(connected) => connected,
            None => self.client.invitations().await?,
        };
        let request = self.client.request(GetStatusRequest {});
        let status = connected.get_status(request).await?.into_inner();
        // After an error the next look makes a connection of its own, which says best what is wrong.
        self.connected = Some(connected);
        Ok(status)
    }
}

/// Where the looks are shown: on a terminal each in the place of the one before it.
struct Screen {
    redraws: bool,
    /// Of the last look.
    lines: usize,
}

impl Screen {
    fn new(output: Output) -> Self {
        Self {
            redraws: output == Output::Human && io::stdout().is_terminal(),
            lines: 0,
        }
    }

    fn show(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let frame = self.frame(text);
        out.write_all(frame.as_bytes())?;
        out.flush()
    }

    /// Up to where the last look began, and all below it cleared (ECMA-48: CUU, ED). Long lines are cut off meanwhile
    /// (DECAWM), so that a line of text is one of the screen.
    fn frame(&mut self, text: &str) -> String {
        if !self.redraws {
            return format!("{text}\n");
        }
        let up = match self.lines {
            0 => String::new(),
            lines => format!("\x1b[{lines}A"),
        };
        self.lines = text.lines().count();
        format!("{up}\r\x1b[J\x1b[?7l{text}\n\x1b[?7h")
    }
}

fn text(status: &GetStatusResponse, output: Output) -> String {
    match output {
        Output::Json => status_json(status).to_string(),
        Output::Human => lines(status, SystemTime::now()).join("\n"),
    }
}

/// As protobuf's JSON mapping has it, but for spans of time, which are numbers, as in all of this program's JSON.
fn status_json(status: &GetStatusResponse) -> Value {
    json!({
        "version": status.version,
        "state": status.state().as_str_name(),
        "stateReason": status.state_reason,
        "startedAt": time_text(status.started_at),
        "configuredRate": status.configured_rate,
        "learnedRate": status.learned_rate,
        "burst": status.burst,
        "pauseSeconds": span(status.pause).as_secs_f64(),
        "tokensAvailable": status.tokens_available,
        "waitingUnary": status.waiting_unary,
        "waitingStreams": status.waiting_streams,
        "maxQueue": status.max_queue,
        "inFlight": status.in_flight,
        "maxInFlight": status.max_in_flight,
        "openStreams": status.open_streams,
        "unaryWaitSeconds": span(status.unary_wait).as_secs_f64(),
        "streamWaitSeconds": span(status.stream_wait).as_secs_f64(),
        "ledger": status.ledger,
        "sandbox": status.sandbox,
        "breaker": status.breaker.as_ref().map(breaker_json),
    })
}

fn breaker_json(breaker: &OpenBreaker) -> Value {
    json!({
        "reason": breaker.reason,
        "refusals": breaker.refusals,
        "collectorId": breaker.collector_id,
        "since": time_text(breaker.since),
        "nextProbeSeconds": span(breaker.next_probe).as_secs_f64(),
    })
}

/// What a person on call looks for comes first.
fn lines(status: &GetStatusResponse, now: SystemTime) -> Vec<String> {
    let why = &status.state_reason;
    let mut lines = vec![match status.state() {
        ServingState::Serving => "serving".into(),
        ServingState::Draining => format!("draining: {why}"),
        ServingState::LedgerUnavailable => format!("nothing is sent: {why}"),
        ServingState::Unspecified => format!("in a state that this version does not know: {why}"),
    }];
    if status.sandbox {
        lines.push("sandbox: no request reaches SurveyLab, no e-mail is sent".into());
    }
    if let Some(breaker) = &status.breaker {
        lines.push(refusals(breaker));
    }
    let pause = span(status.pause);
    if !pause.is_zero() {
        lines.push(format!("paused for {}: SurveyLab answered 429", span_text(pause)));
    }
    lines.push(format!(
        "{}; {} of {} tokens available",
        rates(status.configured_rate, status.learned_rate),
        status.tokens_available.floor(),
        status.burst
    ));
    lines.push(format!(
        "waiting: {} unary, {} from streams; at most {}",
        grouped(status.waiting_unary),
        grouped(status.waiting_streams),
        grouped(status.max_queue)
    ));
    lines.push(format!(
        "wait by the rate: {} for a unary call, {} for an item of a new stream",
        span_text(span(status.unary_wait)),
        span_text(span(status.stream_wait))
    ));
    lines.push(format!("in flight: {} of {}", status.in_flight, status.max_in_flight));
    lines.push(format!("open streams: {}", status.open_streams));
    let started: Option<SystemTime> = status.started_at.and_then(|at| at.try_into().ok());
    // Two clocks: the gateway's may be ahead of this one.
    let up = started.map(|at| now.duration_since(at).unwrap_or_default());
    lines.push(format!(
        "version {}, ledger {}, up {}",
        status.version,
        status.ledger,
        up.map_or_else(|| "for an unknown time".into(), span_text)
    ));
    lines
}

/// Why calls fail without a request.
fn refusals(breaker: &OpenBreaker) -> String {
    let of = match &*breaker.collector_id {
        "" => String::new(),
        id => format!(" for collector {id}"),
    };
    format!(
        "nothing but probes is sent{of}: SurveyLab refused {} requests in a row, {}; next probe in {}",
        grouped(breaker.refusals.into()),
        breaker.reason,
        span_text(span(breaker.next_probe))
    )
}

fn span(span: Option<prost_types::Duration>) -> Duration {
    span.and_then(|span| span.try_into().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proto_span(span: Duration) -> Option<prost_types::Duration> {
        Some(span.try_into().unwrap())
    }

    fn quiet(now: SystemTime) -> GetStatusResponse {
        GetStatusResponse {
            version: "1.2.3".into(),
            state: ServingState::Serving.into(),
            started_at: Some((now - Duration::from_secs(3 * 3600 + 120)).into()),
            configured_rate: 2.0,
            learned_rate: 2.0,
            burst: 5,
            tokens_available: 4.96,
            max_queue: 1000,
            max_in_flight: 32,
            ledger: "sqlite".into(),
            ..GetStatusResponse::default()
        }
    }

    #[test]
    fn a_quiet_gateway_is_told_in_a_few_lines() {
        let now = SystemTime::now();
        assert_eq!(
            lines(&quiet(now), now),
            [
                "serving",
                "rate 2/s; 4 of 5 tokens available",
                "waiting: 0 unary, 0 from streams; at most 1 000",
                "wait by the rate: 0 s for a unary call, 0 s for an item of a new stream",
                "in flight: 0 of 32",
                "open streams: 0",
                "version 1.2.3, ledger sqlite, up 3 h 2 min",
            ]
        );
    }

    #[test]
    fn what_is_wrong_comes_first() {
        let now = SystemTime::now();
        let status = GetStatusResponse {
            state: ServingState::LedgerUnavailable.into(),
            state_reason: "the ledger is unavailable: disk full".into(),
            sandbox: true,
            pause: proto_span(Duration::from_millis(11_200)),
            learned_rate: 1.4,
            tokens_available: 0.0,
            breaker: Some(OpenBreaker {
                reason: "SURVEYLAB_BAD_REQUEST".into(),
                refusals: 21,
                collector_id: "8379".into(),
                since: Some(now.into()),
                next_probe: proto_span(Duration::from_millis(4_300)),
            }),
            // A clock that is ahead.
            started_at: Some((now + Duration::from_secs(60)).into()),
            ..quiet(now)
        };
        let lines = lines(&status, now);
        assert_eq!(
            lines[..5],
            [
                "nothing is sent: the ledger is unavailable: disk full",
                "sandbox: no request reaches SurveyLab, no e-mail is sent",
                "nothing but probes is sent for collector 8379: SurveyLab refused 21 requests in a row, SURVEYLAB_BAD_REQUEST; next probe in 4.3 s",
                "paused for 12 s: SurveyLab answered 429",
                "rate 2/s, learned 1.4/s; 0 of 5 tokens available",
            ]
        );
        assert_eq!(
            lines.last().map(String::as_str),
            Some("version 1.2.3, ledger sqlite, up 0 s")
        );
    }

    #[test]
    fn a_terminal_shows_each_look_in_the_place_of_the_one_before() {
        let mut screen = Screen {
            redraws: true,
            lines: 0,
        };
        assert_eq!(screen.frame("a\nb"), "\r\x1b[J\x1b[?7la\nb\n\x1b[?7h");
        assert_eq!(screen.frame("c"), "\x1b[2A\r\x1b[J\x1b[?7lc\n\x1b[?7h");
        assert_eq!(screen.frame("d"), "\x1b[1A\r\x1b[J\x1b[?7ld\n\x1b[?7h");
        let mut pipe = Screen {
            redraws: false,
            lines: 0,
        };
        assert_eq!(pipe.frame("a\nb"), "a\nb\n");
    }
}
