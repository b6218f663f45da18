//! `~/.pgpass`: passwords by host, port, database and user, as libpq reads them.

use std::{fs, path::Path};

/// Where a connection goes.
pub(super) struct Target<'a> {
    /// A name, an address, or `localhost` for a socket.
    pub host: &'a str,
    pub port: u16,
    pub database: &'a str,
    pub user: &'a str,
}

/// The password of the first line that matches. None where there is no such file, as with libpq; a file that others can
/// read is refused, which libpq does with a warning.
pub(super) fn password(file: &Path, target: &Target<'_>) -> Result<Option<String>, String> {
    let Ok(metadata) = fs::metadata(file) else {
        return Ok(None);
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(format!("{}: others may read it; chmod 600", file.display()));
        }
    }
    let _ = metadata;
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(text.lines().find_map(|line| of_line(line, target)))
}

fn of_line(line: &str, target: &Target<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let fields = fields(line);
    let [host, port, database, user, password] = fields.as_slice() else {
        return None;
    };
    let port_asked = target.port.to_string();
    let matches = [
        (host, target.host),
        (port, &port_asked),
        (database, target.database),
        (user, target.user),
    ]
    .iter()
    .all(|(field, asked)| *field == "*" || field == asked);
    matches.then(|| password.clone())
}

/// The fields between colons; a backslash takes the meaning from a colon or a backslash.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields[last].extend(chars.next()),
            c => fields[last].push(c),
        }
    }
    fields
}
