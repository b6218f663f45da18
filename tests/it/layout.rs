//! The map of the source holds: imports point one way, each outside crate has its place, nothing panics by accident.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A source file without its tests and comments: its path below `src/`, and its lines with their numbers.
struct Source {
    path: String,
    lines: Vec<Line>,
}

struct Line {
    number: usize,
    code: String,
    /// The comment lines right above it, and the one behind it.
    comment: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let is_test = path.ends_with("tests.rs") || path.contains("/tests/") || path.contains("/conformance");
        if !is_test {
            let lines = code(&fs::read_to_string(&file).unwrap());
            sources.push(Source { path, lines });
        }
    }
    assert!(sources.len() > 30, "the source was not found");
    sources
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The lines of code. Goes by rustfmt's form: an item ends at a line that closes it with its own indentation.
fn code(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut comment = String::new();
    let mut texts = text.lines().enumerate();
    while let Some((index, text)) = texts.next() {
        let trimmed = text.trim_start();
        if trimmed.starts_with("#[cfg(test)]") {
            let indentation = &text[..text.len() - trimmed.len()];
            let closing = format!("{indentation}}}");
            let mut opened = false;
            for (_, text) in texts.by_ref() {
                opened |= text.trim_end().ends_with('{');
                if (!opened && text.trim_end().ends_with(';')) || text.trim_end() == closing {
                    break;
                }
            }
        } else if trimmed.starts_with("//") {
            comment.push_str(trimmed);
            comment.push('\n');
        } else if trimmed.is_empty() {
            comment.clear();
        } else {
            let (code, behind) = trimmed.split_once(" // ").unwrap_or((trimmed, ""));
            // A comment speaks for the whole statement or function below it.
            lines.push(Line {
                number: index + 1,
                code: code.to_string(),
                comment: format!("{comment}{behind}"),
            });
            if code.ends_with(';') || trimmed == "}" {
                comment.clear();
            }
        }
    }
    lines
}

/// Whether `code` names `word`, and not only a longer one.
fn names(code: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// Where lines break a rule: `path:number: code`.
fn breaches(breaks: impl Fn(&str, &Line) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources() {
        for line in &source.lines {
            if breaks(&source.path, line) {
                found.push(format!("{}:{}: {}", source.path, line.number, line.code));
            }
        }
    }
    found
}

fn is_in(path: &str, places: &[&str]) -> bool {
    places
        .iter()
        .any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)))
}

#[test]
fn each_outside_crate_has_its_place() {
    for (krate, places) in [
        ("tonic", &["grpc/", "cli/", "app.rs", "lib.rs"][..]),
        // opentelemetry-otlp calls tonic's own types so.
        ("tonic_types", &["grpc/", "cli/", "telemetry/export.rs"]),
        ("tonic_health", &["grpc/", "cli/"]),
        ("prost", &["grpc/", "cli/"]),
        ("opentelemetry", &["trace.rs", "telemetry/"]),
        ("opentelemetry_sdk", &["trace.rs", "telemetry/"]),
        ("opentelemetry_otlp", &["telemetry/"]),
        ("reqwest", &["surveylab/"]),
        ("rustls", &["surveylab/", "postgres/", "grpc/", "cli/client/"]),
        ("tokio_rustls", &["postgres/", "grpc/"]),
        ("webpki", &["grpc/"]),
        ("tokio_postgres", &["postgres/", "ledger/postgres/", "limiter/shared/"]),
        ("rusqlite", &["ledger/"]),
        ("axum", &["admin/", "app.rs"]),
        (
            "clap",
            &[
                "cli/",
                "config.rs",
                "config/",
                "main.rs",
                "dispatch/verdict.rs",
                "grpc/mod.rs",
                "sandbox/",
                "telemetry/mod.rs",
            ],
        ),
        ("governor", &["limiter/", "sandbox/"]),
        ("metrics_exporter_prometheus", &["metrics.rs"]),
        ("metrics_process", &["metrics.rs"]),
        ("toml_edit", &["callers/"]),
        ("subtle", &["callers/"]),
        ("csv_core", &["cli/import/"]),
        ("clap_complete", &["cli/generate.rs"]),
        ("clap_mangen", &["cli/generate.rs"]),
        ("sd_notify", &["supervisor.rs"]),
        ("encoding_rs", &["cli/import/", "cli/import.rs"]),
    ] {
        let found = breaches(|path, line| names(&line.code, krate) && !is_in(path, places));
        assert!(
            found.is_empty(),
            "{krate} is for {places:?} alone:\n{}",
            found.join("\n")
        );
    }
}

#[test]
fn sql_is_the_ledgers_alone() {
    let words = [
        "SELECT ",
        "INSERT INTO",
        "INSERT OR",
        "DELETE FROM",
        "CREATE TABLE",
        "PRAGMA ",
    ];
    let found = breaches(|path, line| {
        let is_sql = words.iter().any(|word| line.code.contains(word));
        // A session is set up by statements.
        is_sql && !is_in(path, &["ledger/", "limiter/shared/", "postgres/mod.rs"])
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The modules, lowest first, and which others each may use. Those at the top, `admin`, `app` and `cli`, may use all.
const MAP: [(&str, &str); 13] = [
    (
        "activity clock fail_point hex postgres proto rate reload shutdown socket supervisor token trace",
        "",
    ),
    ("invitation", "hex"),
    ("method", "proto"),
    ("callers", "invitation method reload"),
    ("sandbox", "clock hex rate socket"),
    ("surveylab", "clock invitation metrics reload token"),
    ("ledger", "clock fail_point hex invitation metrics postgres"),
    ("limiter", "clock metrics postgres rate"),
    (
        "dispatch",
        "activity clock fail_point invitation ledger limiter metrics surveylab trace",
    ),
    (
        "metrics",
        "callers clock dispatch invitation ledger limiter method proto surveylab",
    ),
    ("telemetry", "clock trace"),
    (
        "grpc",
        "activity callers clock dispatch invitation ledger limiter method metrics proto reload socket telemetry trace",
    ),
    ("config", "dispatch grpc postgres rate reload surveylab telemetry token"),
];

#[test]
fn imports_point_one_way() {
    let lists = |list: &str, word: &str| list.split(' ').any(|listed| listed == word);
    for (place, (modules, others)) in MAP.iter().enumerate() {
        // What is counted and what is logged is told from below.
        let above = others
            .split_terminator(' ')
            .filter(|other| !["metrics", "telemetry"].contains(other));
        let mut above = above.filter(|other| !MAP[..place].iter().any(|(below, _)| lists(below, other)));
        assert_eq!(above.next(), None, "{modules}");
    }
    for source in sources() {
        // What fuzzing calls is built for tests alone.
        if source.path.ends_with("fuzz.rs") {
            continue;
        }
        let module = source.path.split(['/', '.']).next().unwrap();
        let Some((_, others)) = MAP.iter().find(|(modules, _)| lists(modules, module)) else {
            continue;
        };
        let code: String = source.lines.iter().map(|line| format!("{} ", line.code)).collect();
        let mut used = crate_modules(&code);
        used.retain(|used| used != module && !lists(others, used));
        assert!(
            used.is_empty(),
            "{} uses {used:?}, which {module} is not to know",
            source.path
        );
    }
}

/// The modules behind `crate::`, alone or in a list of braces.
fn crate_modules(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let mut depth = 0;
        let mut word = String::new();
        let mut fresh = true;
        for c in rest.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if c.is_alphanumeric() || c == '_' {
                word.push(c);
                continue;
            }
            if !word.is_empty() && fresh {
                modules.push(std::mem::take(&mut word));
                fresh = false;
            }
            word.clear();
            // In a list of the crate's modules the next one comes behind a comma at the outermost depth.
            fresh |= c == ',' && depth == 1;
            if depth <= 0 {
                break;
            }
        }
    }
    modules
}

#[test]
fn the_words_behind_crate_are_found() {
    let code = "use crate::{ clock::{Clock, Instant}, invitation::Key, ledger, }; use crate::rate::Rate;";
    assert_eq!(crate_modules(code), ["clock", "invitation", "ledger", "rate"]);
}

#[test]
fn nothing_panics_but_where_a_comment_says_why_it_never_does() {
    let panics = [
        ".unwrap()",
        ".expect(",
        "panic!",
        "todo!",
        "unimplemented!",
        "unreachable!",
    ];
    let found = breaches(|_, line| {
        let may_panic = panics.iter().any(|panic| line.code.contains(panic));
        // A constant is computed by the compiler: it would not build.
        let is_const = line.code.starts_with("const ") || line.code.starts_with("pub const ");
        let comment = line.comment.to_lowercase();
        let is_explained = ["# panics", "never", "infallible", "always"]
            .iter()
            .any(|why| comment.contains(why));
        may_panic && !is_const && !is_explained
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn metrics_have_their_names_in_one_place() {
    let macros = ["counter!(", "gauge!(", "histogram!(", "\"surveylab_gateway_"];
    let places = ["metrics.rs", "metrics/names.rs"];
    let found = breaches(|path, line| !is_in(path, &places) && macros.iter().any(|name| line.code.contains(name)));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn nothing_prints_to_stdout_or_stderr_but_the_command_line() {
    let found = breaches(|path, line| {
        let prints = ["println!", "eprintln!", "dbg!"]
            .iter()
            .any(|print| names(&line.code, print.trim_end_matches('!')));
        prints && line.code.contains('!') && !is_in(path, &["cli/", "main.rs"])
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}
