use std::{env, ffi::OsStr};

use clap::{CommandFactory as _, Parser as _};
use surveylab_gateway::{
    app,
    cli::{self, Cli, Command, Exit, output::fail, runtime::runtime, usage},
    config::{Config, ServeArgs},
    metrics, shutdown, telemetry,
};

fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => match usage::line(
            &error,
            &Cli::command(),
            env::args_os().nth(1).as_deref().and_then(OsStr::to_str),
        ) {
            Some(line) => return fail(Exit::Usage, &line),
            None => error.exit(),
        },
    };
    match runtime() {
        Ok(runtime) => {
            let exit = runtime.block_on(run(cli.command));
            // Does not wait for a name that is still being resolved.
            runtime.shutdown_background();
            exit
        }
        Err(error) => fail(Exit::TryAgain, &format!("can't start: {error}")),
    }
}

async fn run(command: Command) -> Exit {
    match command {
        Command::Serve(args) => serve(*args).await,
        Command::Sandbox(args) => cli::sandbox::run(args).await,
        Command::Add(args) => cli::add::run(args).await,
        Command::Import(args) => cli::import::run(*args).await,
        Command::Invitations(command) => cli::invitations::run(command).await,
        Command::Ledger(args) => cli::ledger::run(args),
        Command::Caller(command) => cli::caller::run(command),
        Command::MigrateLedger(args) => cli::migrate_ledger::run(args).await,
        Command::Status(args) => cli::status::run(args).await,
        Command::Healthcheck(args) => cli::healthcheck::run(args).await,
        Command::Generate(command) => cli::generate::run(&command),
    }
}

async fn serve(args: ServeArgs) -> Exit {
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => return fail(Exit::Usage, &error.to_string()),
    };
    let telemetry = match telemetry::init(config.args.log.log_format, config.args.access_log) {
        Ok(telemetry) => telemetry,
        Err(error) if error.is_of_a_setting() => return fail(Exit::Usage, &error.to_string()),
        Err(error) => return fail(Exit::TryAgain, &error.to_string()),
    };
    let shutdown = match shutdown::on_signal() {
        Ok(shutdown) => shutdown,
        Err(error) => return fail(Exit::TryAgain, &format!("can't handle signals: {error}")),
    };
    // A session's usual 1 024 are fewer than the connections of callers and to SurveyLab may be. Where the system allows no
    // more, connections wait.
    let _as_many_as_there_are = rlimit::increase_nofile_limit(u64::MAX);
    if let Err(error) = metrics::install() {
        return fail(Exit::TryAgain, &format!("can't record metrics: {error}"));
    }
    let ended = app::run(config, shutdown).await;
    telemetry.close().await;
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) if error.is_of_a_setting() => fail(Exit::Usage, &error.to_string()),
        Err(error) => fail(Exit::TryAgain, &error.to_string()),
    }
}
