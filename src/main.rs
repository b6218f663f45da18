use std::env;

use clap::{CommandFactory as _, Parser as _};
use surveylab_gateway::{
    app,
    cli::{self, Cli, Command, Exit, usage},
    config::{Config, ServeArgs},
    metrics, shutdown, telemetry,
};

fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => match usage::line(&error, &Cli::command(), env::args().nth(1).as_deref()) {
            Some(line) => return fail(Exit::Usage, &line),
            None => error.exit(),
        },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(cli.command)),
        Err(error) => fail(Exit::TryAgain, &format!("can't start: {error}")),
    }
}

async fn run(command: Command) -> Exit {
    match command {
        Command::Serve(args) => serve(*args).await,
        Command::Sandbox(args) => sandbox(args).await,
        Command::Add(args) => cli::add::run(args).await,
        Command::Invitations(command) => cli::invitations::run(command).await,
        Command::Healthcheck(args) => cli::healthcheck::run(args).await,
    }
}

async fn serve(args: ServeArgs) -> Exit {
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => return fail(Exit::Usage, &error.to_string()),
    };
    telemetry::init(config.args.log.log_format);
    let shutdown = match shutdown::on_signal() {
        Ok(shutdown) => shutdown,
        Err(error) => return fail(Exit::TryAgain, &format!("can't handle signals: {error}")),
    };
    if let Err(error) = metrics::install() {
        return fail(Exit::TryAgain, &format!("can't record metrics: {error}"));
    }
    match app::run(config, shutdown).await {
        Ok(()) => Exit::Ok,
        Err(error) => fail(Exit::TryAgain, &error.to_string()),
    }
}

async fn sandbox(args: cli::sandbox::SandboxArgs) -> Exit {
    let shutdown = match shutdown::on_signal() {
        Ok(shutdown) => shutdown,
        Err(error) => return fail(Exit::TryAgain, &format!("can't handle signals: {error}")),
    };
    match cli::sandbox::run(args, shutdown).await {
        Ok(()) => Exit::Ok,
        Err(error) => fail(Exit::TryAgain, &error.to_string()),
    }
}

fn fail(exit: Exit, line: &str) -> Exit {
    eprintln!("surveylab-gateway: {line}");
    exit
}
