//! `caller`: the file that says who may call.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{
    Exit,
    new_file::{self, Existing, NewFile},
    output::{complain, fail, say},
};
use crate::{
    callers::{self, Draft, Entry, Token, TokenHash, Wrong},
    method::Method,
};

/// Make tokens for callers, and check the file that knows them (`serve --callers`).
///
/// Exit codes: 0 done; 1 not done now, the same command again may help; 2 wrong flags, or a file that is wrong.
#[derive(Subcommand, Clone, Debug)]
pub enum CallerCommand {
    New(NewArgs),
    Check(CheckArgs),
}

/// Make a token for a new caller, or with --rotate a further one for a caller that is there.
///
/// Prints the token on stdout, once: it is kept nowhere, only its hash is. With --file the caller is added to the file,
/// which a running gateway reads again by itself; without, its block is printed on stderr.
#[derive(Args, Clone, Debug)]
pub struct NewArgs {
    /// The caller's name: it shows in logs and metrics.
    #[arg(value_name = "NAME")]
    pub name: String,

    /// The callers' file; made if it is not there.
    // Of both: a token may be pasted there.
    #[arg(long, env = "GATEWAY_CALLERS", value_name = "FILE", hide_env_values = true)]
    pub file: Option<PathBuf>,

    /// A further token for a caller of the file; its old ones stay until you take them out.
    #[arg(long, conflicts_with_all = ["operator", "collector", "method", "san", "share"])]
    pub rotate: bool,

    /// May list invitations, and resolve those in doubt.
    #[arg(long)]
    pub operator: bool,

    /// Only this collector; may be given several times. Without it: all.
    #[arg(long, value_name = "ID")]
    pub collector: Vec<String>,

    /// Only this method, such as AddRespondent; may be given several times. Without it: all but those of operators.
    #[arg(long, value_name = "METHOD")]
    pub method: Vec<String>,

    /// A name (DNS or URI) in the caller's client certificate, by which it is known as well; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub san: Vec<String>,

    /// Its part of the rate while others want it, too, such as 20%.
    #[arg(long, value_name = "PERCENT")]
    pub share: Option<String>,
}

/// Check a callers' file, and list the callers without their hashes.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    #[arg(value_name = "FILE", env = "GATEWAY_CALLERS", hide_env_values = true)]
    pub file: PathBuf,
}

/// Why a command did not do what it was to do.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the callers' file: {0}")]
    File(callers::Error),
    /// Without the lines, which are of no file.
    #[error("{}", .0.iter().map(|wrong| wrong.what.as_str()).collect::<Vec<_>>().join("; "))]
    Draft(Vec<Wrong>),
    #[error("--rotate needs --file (GATEWAY_CALLERS)")]
    NoFile,
    /// Without the path: people paste a token there.
    #[error("the callers' file can't be read: {0}")]
    Read(io::Error),
    #[error("the callers' file belongs to somebody else, who could not read it any more: {0}")]
    Owner(io::Error),
    #[error(transparent)]
    Write(#[from] new_file::Error),
    #[error("the token can't be printed: {0}; if a caller was added, give it another one by --rotate")]
    Show(io::Error),
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

impl Error {
    fn exit(&self) -> Exit {
        match self {
            Self::File(_) | Self::Draft(_) | Self::NoFile | Self::Read(_) => Exit::Usage,
            Self::Write(error) if error.is_of_the_path() => Exit::Usage,
            Self::Owner(_) | Self::Write(_) | Self::Show(_) | Self::Random(_) => Exit::TryAgain,
        }
    }
}

impl From<callers::Error> for Error {
    fn from(error: callers::Error) -> Self {
        Self::File(error)
    }
}

/// Does it, and prints what came of it. Blocks: nothing else runs in the process.
pub fn run(command: CallerCommand) -> Exit {
    let done = match command {
        CallerCommand::New(args) => new(args),
        CallerCommand::Check(args) => check(&args.file),
    };
    match done {
        Ok(()) => Exit::Ok,
        Err(error) => fail(error.exit(), &error.to_string()),
    }
}

fn new(args: NewArgs) -> Result<(), Error> {
    let token = Token::generate().map_err(|error| Error::Random(error.to_string()))?;
    let hash = token.hash();
    let draft = Draft {
        name: args.name,
        names: args.san,
        collectors: args.collector,
        methods: args.method,
        is_operator: args.operator,
        share: args.share,
    };
    let done = match args.file {
        Some(file) if args.rotate => {
            change(&file, |text| callers::rotate(text, &draft.name, &hash))?;
            "it has a further token; take its old one out of the file once nobody uses it any more".into()
        }
        Some(file) => {
            block(&draft, &hash)?;
            change(&file, |text| callers::add(text, &draft, &hash))?;
            "it was added to the file".into()
        }
        None if args.rotate => return Err(Error::NoFile),
        None => block(&draft, &hash)?,
    };
    // Shown once, so it matters whether it was.
    let mut stdout = io::stdout().lock();
    let shown = writeln!(stdout, "{}", token.expose()).and_then(|()| stdout.flush());
    shown.map_err(Error::Show)?;
    complain(format_args!("{}", done.trim_end()));
    Ok(())
}

fn block(draft: &Draft, hash: &TokenHash) -> Result<String, Error> {
    draft.block(hash).map_err(|error| match error {
        callers::Error::Wrong(wrong) => Error::Draft(wrong),
        other => Error::File(other),
    })
}

/// Gives the file another text, all of it at once: a gateway that reads it meanwhile sees the one or the other.
fn change(file: &Path, change: impl Fn(&str) -> Result<String, callers::Error>) -> Result<(), Error> {
    // A link stays one.
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    // Before it is read: of two commands at once the second is told so, and neither loses what the other wrote.
    let new = NewFile::create(&target, Existing::Replace)?;
    let text = match fs::read(&target) {
        Ok(text) => {
            keep_owner_and_mode(&target, new.file())?;
            text
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::Read(error)),
    };
    let text = callers::text(&text).and_then(change)?;
    let written = new.file().write_all(text.as_bytes());
    written.map_err(|source| new_file::Error::Write {
        path: target.display().to_string(),
        source,
    })?;
    Ok(new.publish()?)
}

#[cfg(unix)]
fn keep_owner_and_mode(old: &Path, new: &File) -> Result<(), Error> {
    use std::os::unix::fs::{MetadataExt as _, fchown};
    let old = fs::metadata(old).map_err(Error::Read)?;
    let new_owner = new.metadata().map_err(Error::Read)?;
    if (old.uid(), old.gid()) != (new_owner.uid(), new_owner.gid()) {
        fchown(new, Some(old.uid()), Some(old.gid())).map_err(Error::Owner)?;
    }
    new.set_permissions(old.permissions()).map_err(Error::Owner)
}

#[cfg(not(unix))]
fn keep_owner_and_mode(_: &Path, _: &File) -> Result<(), Error> {
    Ok(())
}

fn check(file: &Path) -> Result<(), Error> {
    let text = fs::read(file).map_err(Error::Read)?;
    let callers = callers::text(&text).and_then(callers::read)?;
    for caller in callers {
        say(format_args!("{}", line(&caller)));
    }
    Ok(())
}

fn line(caller: &Entry) -> String {
    let list = |list: &[String]| list.join(", ");
    let mut parts = vec![format!("{}: {}", caller.name, tokens(caller.tokens.len()))];
    if !caller.names.is_empty() {
        parts.push(format!("certificates of {}", list(&caller.names)));
    }
    let methods: Vec<_> = caller.methods.iter().map(Method::name).collect();
    parts.push(format!("methods {}", methods.join(", ")));
    parts.push(match &caller.collectors {
        Some(collectors) => format!("collectors {}", list(collectors)),
        None => "all collectors".into(),
    });
    if let Some(share) = caller.share {
        let percent = f64::from(share.hundredths_of_a_percent()) / 100.0;
        parts.push(format!("share {percent}%"));
    }
    parts.join("; ")
}

fn tokens(count: usize) -> String {
    match count {
        0 => "no token".into(),
        1 => "1 token".into(),
        _ => format!("{count} tokens"),
    }
}
