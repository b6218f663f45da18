//! Where the list comes from.

use std::{
    fs::File,
    io::{self, Seek as _},
    path::PathBuf,
};

use super::{Failure, ImportArgs, blocking, list::Source};

pub enum Origin {
    File(PathBuf),
    /// Standard input, kept in a file without a name, as it is read more than once.
    Kept(File),
    Stdin,
}

impl Origin {
    pub async fn of(args: &ImportArgs) -> Result<Self, Failure> {
        if !args.is_stdin() {
            return Ok(Self::File(args.file.clone()));
        }
        if args.no_check {
            if args.failed.is_some() {
                return Err(Failure::usage(
                    "--failed reads the list again: not with --no-check from standard input",
                ));
            }
            return Ok(Self::Stdin);
        }
        let kept = blocking(|| {
            let mut kept = tempfile::tempfile()?;
            io::copy(&mut io::stdin().lock(), &mut kept)?;
            Ok::<_, io::Error>(kept)
        });
        let kept = kept.await?;
        kept.map(Self::Kept)
            .map_err(|error| Failure::try_again(format!("standard input can't be kept for its check: {error}")))
    }

    /// The list from its beginning.
    pub fn source(&self) -> Result<Source, Failure> {
        Ok(match self {
            Self::File(path) => Source::File(path.clone()),
            Self::Kept(file) => {
                let again = |mut file: File| file.rewind().map(|()| file);
                let file = file.try_clone().and_then(again);
                Source::Spooled(file.map_err(|error| Failure::try_again(format!("standard input: {error}")))?)
            }
            Self::Stdin => Source::Stream(Box::new(io::stdin())),
        })
    }
}
