use std::{
    fmt,
    io::{self, Write as _},
};

/// Prints a line for whoever runs the command. That nobody reads it any more is no reason to fail.
pub fn say(line: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    let _closed = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// The same on stderr.
pub fn complain(line: fmt::Arguments<'_>) {
    let _closed = writeln!(io::stderr(), "{line}");
}
