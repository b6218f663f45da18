use std::{
    fmt,
    io::{self, Write as _},
};

use super::Exit;

/// Prints a line for whoever runs the command. That nobody reads it any more is no reason to fail.
pub fn say(line: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    let _closed = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// The same on stderr.
pub fn complain(line: fmt::Arguments<'_>) {
    let _closed = writeln!(io::stderr(), "{line}");
}

/// Says in one line why a command fails.
pub fn fail(exit: Exit, line: &str) -> Exit {
    complain(format_args!("surveylab-gateway: {line}"));
    exit
}
