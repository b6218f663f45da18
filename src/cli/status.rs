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
    output::{fail, say},
};
use crate::{
    proto::{GetStatusRequest, GetStatusResponse, ServingState, invitation_service_client::InvitationServiceClient},
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
    let pause = span(status.pause);
    if !pause.is_zero() {
        lines.push(format!("paused for {}: SurveyLab answered 429", span_text(pause)));
    }
    lines.push(format!(
        "{}; {} of {} tokens there",
        rates(status.configured_rate, status.learned_rate),
        status.tokens_available.floor(),
        status.burst
    ));
    lines.push(format!(
        "waiting: {} unary, {} of streams; room for {}",
        status.waiting_unary, status.waiting_streams, status.max_queue
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

/// Both in the unit that suits the configured one.
fn rates(configured: f64, learned: f64) -> String {
    let (unit, per_unit) = if configured >= 1.0 {
        ("s", 1.0)
    } else if configured * 60.0 >= 1.0 {
        ("m", 60.0)
    } else {
        ("h", 3600.0)
    };
    let rate = |per_second: f64| format!("{}/{unit}", (per_second * per_unit * 100.0).round() / 100.0);
    let (configured, learned) = (rate(configured), rate(learned));
    if learned == configured {
        format!("rate {configured}")
    } else {
        format!("rate {configured}, learned {learned}")
    }
}

fn span(span: Option<prost_types::Duration>) -> Duration {
    span.and_then(|span| span.try_into().ok()).unwrap_or_default()
}

/// With as many digits as a person wants, rounded up: what is left is never told too short.
fn span_text(span: Duration) -> String {
    let tenths = span.as_millis().div_ceil(100);
    if tenths < 100 {
        return match (tenths / 10, tenths % 10) {
            (whole, 0) => format!("{whole} s"),
            (whole, tenth) => format!("{whole}.{tenth} s"),
        };
    }
    let seconds = span.as_millis().div_ceil(1000);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
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
                "rate 2/s; 4 of 5 tokens there",
                "waiting: 0 unary, 0 of streams; room for 1000",
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
            // A clock that is ahead.
            started_at: Some((now + Duration::from_secs(60)).into()),
            ..quiet(now)
        };
        let lines = lines(&status, now);
        assert_eq!(
            lines[..4],
            [
                "nothing is sent: the ledger is unavailable: disk full",
                "sandbox: no request reaches SurveyLab, no e-mail is sent",
                "paused for 12 s: SurveyLab answered 429",
                "rate 2/s, learned 1.4/s; 0 of 5 tokens there",
            ]
        );
        assert_eq!(
            lines.last().map(String::as_str),
            Some("version 1.2.3, ledger sqlite, up 0 s")
        );
    }

    #[test]
    fn rates_are_told_in_a_unit_that_suits_them() {
        for (configured, learned, text) in [
            (2.0, 2.0, "rate 2/s"),
            (3.0, 2.1, "rate 3/s, learned 2.1/s"),
            (1.0, 0.7, "rate 1/s, learned 0.7/s"),
            (0.5, 0.35, "rate 30/m, learned 21/m"),
            (1000.0 / 3600.0, 1000.0 / 3600.0, "rate 16.67/m"),
            (1.0 / 3600.0, 0.7 / 3600.0, "rate 1/h, learned 0.7/h"),
            (100_000.0, 100_000.0, "rate 100000/s"),
        ] {
            assert_eq!(rates(configured, learned), text);
        }
    }

    #[test]
    fn spans_are_told_with_few_digits_and_never_too_short() {
        for (millis, text) in [
            (0, "0 s"),
            (1, "0.1 s"),
            (4_500, "4.5 s"),
            (9_900, "9.9 s"),
            (9_901, "10 s"),
            (11_001, "12 s"),
            (59_001, "1 min 0 s"),
            (185_000, "3 min 5 s"),
            (7_380_000, "2 h 3 min"),
            (266_400_000, "3 d 2 h"),
        ] {
            assert_eq!(span_text(Duration::from_millis(millis)), text, "{millis}");
        }
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
