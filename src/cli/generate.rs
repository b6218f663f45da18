//! `generate`: what a package puts beside the binary.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Command, CommandFactory as _, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, Exit, output::fail};

const NAME: &str = "surveylab-gateway";

/// Completions for a shell, or man pages, for packages.
#[derive(Subcommand, Clone, Debug)]
pub enum GenerateCommand {
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Print a shell's completions.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Write a man page for each command.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// A directory; it is made if it is not there. Pages that are there are replaced.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Prints or writes.
pub fn run(command: &GenerateCommand) -> Exit {
    match command {
        GenerateCommand::Completions(args) => completions(args.shell),
        GenerateCommand::Man(args) => man(&args.directory),
    }
}

fn completions(shell: Shell) -> Exit {
    // To memory: written straight to a closed pipe, it would panic.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    match io::stdout().write_all(&script) {
        Ok(()) => Exit::Ok,
        Err(error) => fail(Exit::TryAgain, &format!("can't print: {error}")),
    }
}

fn man(directory: &Path) -> Exit {
    let mut program = Cli::command();
    // Gives subcommands their full names.
    program.build();
    let written = fs::create_dir_all(directory).and_then(|()| pages(&program, directory));
    match written {
        Ok(()) => Exit::Ok,
        Err(error) => fail(
            Exit::TryAgain,
            &format!("can't write to {}: {error}", directory.display()),
        ),
    }
}

/// The page of a command and those of its subcommands: `surveylab-gateway-ledger-check.1`.
fn pages(command: &Command, directory: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(NAME);
    // Without a date: the pages say the same whenever they are made.
    let page = Man::new(command.clone())
        .title(name.to_uppercase())
        .source(format!("{NAME} {}", env!("CARGO_PKG_VERSION")))
        .manual("SurveyLab gateway");
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs::write(directory.join(format!("{name}.1")), text)?;
    for subcommand in command.get_subcommands().filter(|command| command.get_name() != "help") {
        pages(subcommand, directory)?;
    }
    Ok(())
}
