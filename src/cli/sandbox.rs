//! `sandbox`: a fake SurveyLab to try things on.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use clap::Args;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::{
    Exit,
    output::{fail, say},
};
use crate::{
    config::{address, duration_or_zero},
    rate::Rate,
    sandbox::{Config, FAULT_HELP, Fault, Limit, OnRepeat, Sandbox},
    shutdown,
};

/// Run a fake SurveyLab that can go wrong on demand and tells what it received.
#[derive(Args, Clone, Debug)]
pub struct SandboxArgs {
    /// Where to listen.
    #[arg(
        long,
        env = "SANDBOX_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8081",
        value_parser = address
    )]
    pub listen: SocketAddr,

    /// The token that requests must bear; without it, any.
    #[arg(long, env = "SANDBOX_API_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub api_token: Option<SecretString>,

    /// A collector that exists; may be given several times. Without it, all exist.
    #[arg(
        long = "collector",
        env = "SANDBOX_COLLECTORS",
        value_name = "ID",
        value_delimiter = ','
    )]
    pub collectors: Vec<String>,

    /// The rate of requests above which it answers 429, such as 5/s, 120/m or 1000/h; without it, none.
    #[arg(long, env = "SANDBOX_RATE")]
    pub rate: Option<Rate>,

    /// How many requests it takes at once after a rest, if there is a rate.
    #[arg(long, env = "SANDBOX_BURST", value_name = "COUNT", default_value = "5")]
    pub burst: NonZeroU32,

    /// Time before every answer, such as 50ms.
    #[arg(long, env = "SANDBOX_LATENCY", value_name = "TIME", default_value = "0s")]
    #[arg(value_parser = duration_or_zero)]
    pub latency: Duration,

    /// What to do with a crk that its collector already has.
    #[arg(long, env = "SANDBOX_ON_REPEAT", value_enum, default_value_t)]
    pub on_repeat: OnRepeat,

    /// A fault to put on, such as status=503,times=3 or hang,crk=abc; may be given several times. See --help.
    #[arg(long = "fault", value_name = "RULE", long_help = FAULT_HELP)]
    pub faults: Vec<Fault>,

    /// How many requests to remember in full, the latest.
    #[arg(long, env = "SANDBOX_LOG_REQUESTS", value_name = "COUNT", default_value = "10000")]
    pub log_requests: usize,
}

impl From<SandboxArgs> for Config {
    fn from(args: SandboxArgs) -> Self {
        let burst = args.burst;
        Self {
            listen: args.listen,
            api_token: args.api_token,
            collectors: args.collectors,
            limit: args.rate.map(|rate| Limit { rate, burst }),
            latency: args.latency,
            faults: args.faults,
            on_repeat: args.on_repeat,
            log_requests: args.log_requests,
            ..Self::default()
        }
    }
}

/// Runs until a signal.
pub async fn run(args: SandboxArgs) -> Exit {
    match shutdown::on_signal() {
        Ok(shutdown) => until(shutdown, args).await,
        Err(error) => fail(Exit::TryAgain, &format!("can't handle signals: {error}")),
    }
}

/// Runs until `shutdown`, then prints what was received.
async fn until(shutdown: CancellationToken, args: SandboxArgs) -> Exit {
    let address = args.listen;
    let sandbox = match Sandbox::start(args.into()).await {
        Ok(sandbox) => sandbox,
        Err(error) => return fail(Exit::TryAgain, &format!("--listen: can't listen on {address}: {error}")),
    };
    say(format_args!(
        "SurveyLab's sandbox: {} (see http://{}/sandbox: report, requests, faults, reset)",
        sandbox.url(),
        sandbox.address()
    ));
    shutdown.cancelled().await;
    let report = sandbox.report();
    sandbox.stop().await;
    say(format_args!("{report}"));
    Exit::Ok
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use secrecy::ExposeSecret;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: SandboxArgs,
    }

    fn parse(flags: &[&str]) -> Result<SandboxArgs, clap::Error> {
        Cli::try_parse_from([&["sandbox"], flags].concat()).map(|cli| cli.args)
    }

    #[test]
    fn flags_become_a_config() {
        Cli::command().debug_assert();
        let args = parse(&[
            "--listen=127.0.0.1:0",
            "--api-token=secret",
            "--collector=a",
            "--collector=b",
            "--rate=100/s",
            "--burst=7",
            "--latency=50ms",
            "--on-repeat=send-again",
            "--fault=status=503,times=3",
            "--fault=hang,crk=abc",
            "--log-requests=0",
        ])
        .unwrap();
        assert!(!format!("{args:?}").contains("secret"));
        let config = Config::from(args);
        assert_eq!(config.api_token.unwrap().expose_secret(), "secret");
        assert_eq!(config.collectors, ["a", "b"]);
        let limit = config.limit.unwrap();
        assert_eq!((limit.rate.to_string().as_str(), limit.burst.get()), ("100/s", 7));
        assert_eq!(
            (config.latency, config.on_repeat),
            (Duration::from_millis(50), OnRepeat::SendAgain)
        );
        assert_eq!((config.faults.len(), config.log_requests), (2, 0));
    }

    #[test]
    fn a_wrong_flag_is_named() {
        for (flag, wrong) in [
            ("--rate=fast", "expected a number per s, m or h, such as 2/s or 120/m"),
            ("--fault=explode", "there is no fault \"explode\""),
            ("--burst=0", "--burst"),
        ] {
            let message = parse(&[flag]).unwrap_err().to_string();
            assert!(message.contains(wrong), "{message}");
        }
    }

    #[tokio::test]
    async fn runs_until_shutdown_and_not_on_a_taken_port() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let exit = until(shutdown.clone(), parse(&["--listen=127.0.0.1:0"]).unwrap()).await;
        assert_eq!(exit, Exit::Ok);
        let sandbox = Sandbox::start(Config::default()).await.unwrap();
        let taken = format!("--listen={}", sandbox.address());
        let exit = until(shutdown, parse(&[&taken]).unwrap()).await;
        assert_eq!(exit, Exit::TryAgain);
    }
}
