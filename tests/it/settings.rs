//! Wrong settings are told in one line before anything is bound; right ones come by flag or environment alike.

use std::{collections::HashMap, fs, net::TcpListener};

use surveylab_gateway::proto::Outcome;

use crate::support::{
    Gateway, Options, added,
    gateway::{TOKEN, run, surveylab},
    process::Process,
    request,
    watch::{metric, soon},
};

/// Flag, environment variable, default and a wrong value of each setting.
const SETTINGS: [(&str, &str, Option<&str>, &str); 31] = [
    ("api-token-file", "SURVEYLAB_API_TOKEN_FILE", None, "/nowhere/token"),
    (
        "surveylab-url",
        "SURVEYLAB_URL",
        Some("https://app.surveylab.com/api.php"),
        "ftp://example.com/api.php",
    ),
    ("listen", "GATEWAY_LISTEN", Some("127.0.0.1:50051"), "nowhere"),
    (
        "admin-listen",
        "GATEWAY_ADMIN_LISTEN",
        Some("127.0.0.1:9464"),
        "127.0.0.1",
    ),
    ("callers", "GATEWAY_CALLERS", None, "/nowhere/callers.toml"),
    ("reflection", "GATEWAY_REFLECTION", Some("on"), "maybe"),
    ("tls-cert", "GATEWAY_TLS_CERT", None, "/nowhere/cert.pem"),
    ("tls-key", "GATEWAY_TLS_KEY", None, "/nowhere/key.pem"),
    ("tls-client-ca", "GATEWAY_TLS_CLIENT_CA", None, "/nowhere/ca.pem"),
    ("insecure", "GATEWAY_INSECURE", None, "perhaps"),
    ("insecure-admin", "GATEWAY_INSECURE_ADMIN", None, "perhaps"),
    ("max-connections", "GATEWAY_MAX_CONNECTIONS", Some("1024"), "0"),
    ("max-streams", "GATEWAY_MAX_STREAMS", Some("1024"), "100001"),
    ("receive-timeout", "GATEWAY_RECEIVE_TIMEOUT", Some("20s"), "20"),
    (
        "ledger",
        "GATEWAY_LEDGER",
        Some("sqlite:surveylab-gateway.db"),
        "mysql://host/db",
    ),
    ("rate", "GATEWAY_RATE", Some("2/s"), "0/s"),
    ("burst", "GATEWAY_BURST", Some("5"), "0"),
    ("max-in-flight", "GATEWAY_MAX_IN_FLIGHT", Some("32"), "-1"),
    ("max-attempts", "GATEWAY_MAX_ATTEMPTS", Some("5"), "many"),
    ("max-wait", "GATEWAY_MAX_WAIT", Some("60s"), "60"),
    ("max-queue", "GATEWAY_MAX_QUEUE", Some("100000"), "10000001"),
    ("stream-window", "GATEWAY_STREAM_WINDOW", Some("256"), "0"),
    ("replica-lease", "GATEWAY_REPLICA_LEASE", Some("10s"), "1s"),
    (
        "upstream-idle-timeout",
        "GATEWAY_UPSTREAM_IDLE_TIMEOUT",
        Some("4s"),
        "soon",
    ),
    ("upstream-timeout", "GATEWAY_UPSTREAM_TIMEOUT", Some("30s"), "0s"),
    ("on-server-error", "GATEWAY_ON_SERVER_ERROR", Some("retry"), "ignore"),
    ("breaker-after", "GATEWAY_BREAKER_AFTER", Some("20"), "many"),
    ("drain-timeout", "GATEWAY_DRAIN_TIMEOUT", Some("25s"), "8days"),
    ("sandbox", "GATEWAY_SANDBOX", None, "perhaps"),
    ("log-format", "GATEWAY_LOG_FORMAT", None, "xml"),
    ("access-log", "GATEWAY_ACCESS_LOG", Some("off"), "perhaps"),
];

/// Runs `serve` on ports that are taken: a bind would fail with another message and another exit code. Its one line.
async fn refused(flags: &[&str], env: &[(&str, &str)]) -> String {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut env = env.to_vec();
    for variable in ["GATEWAY_LISTEN", "GATEWAY_ADMIN_LISTEN"] {
        if !env.iter().any(|(name, _)| *name == variable) {
            env.push((variable, &address));
        }
    }
    let arguments = [&["serve"], flags].concat();
    let (code, stdout, stderr) = soon(run(&arguments, &env)).await;
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{flags:?} {env:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{flags:?} {env:?}: {stderr}");
    stderr
}

#[tokio::test]
async fn a_wrong_value_is_told_in_one_line_that_names_flag_and_variable() {
    for (flag, variable, _, wrong) in SETTINGS {
        let by_flag = format!("--{flag}={wrong}");
        // What a token file holds is looked at when all else is right, so it must be the only source.
        let token: &[(&str, &str)] = match flag {
            "api-token-file" => &[],
            _ => &[("SURVEYLAB_API_TOKEN", TOKEN)],
        };
        let lines = [
            refused(&[&by_flag], token).await,
            refused(&[], &[token, &[(variable, wrong)]].concat()).await,
        ];
        for line in lines {
            assert!(line.contains(&format!("--{flag}")), "{flag}: {line}");
            assert!(line.contains(variable), "{variable}: {line}");
            assert!(!line.contains(TOKEN), "{line}");
        }
    }
}

#[tokio::test]
async fn the_token_is_required_has_one_source_and_is_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        format!("--api-token-file={}", path.display())
    };
    let good = file("good", &format!("{TOKEN}\n"));
    let empty = file("empty", "\n");
    let two_lines = file("two-lines", &format!("{TOKEN}\n{TOKEN}\n"));
    // Flags, environment, and what the line tells.
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 7] = [
        (&[], &[], "no API token"),
        (&[], &[("SURVEYLAB_API_TOKEN", "")], "no API token"),
        (
            &[],
            &[("SURVEYLAB_API_TOKEN", &format!("{TOKEN} {TOKEN}"))],
            "SURVEYLAB_API_TOKEN",
        ),
        (&[&good], &[("SURVEYLAB_API_TOKEN", TOKEN)], "keep one"),
        (&[&empty], &[], "--api-token-file"),
        (&[&two_lines], &[], "--api-token-file"),
        (&["--api-token", TOKEN], &[], "--api-token"),
    ];
    for (flags, env, why) in cases {
        let line = refused(flags, env).await;
        assert!(line.contains(why), "{flags:?}: {line}");
        assert!(!line.contains(TOKEN), "{line}");
    }
    let missing = directory.path().join("missing").display().to_string();
    let line = refused(&["--api-token-file", &missing], &[]).await;
    // Without the path, which may be a token that was pasted in the wrong place.
    assert!(!line.contains(&missing) && line.contains("--api-token-file"), "{line}");
    let pasted = format!("https://app.surveylab.com/api.php?apiToken={TOKEN}");
    for (flags, env) in [
        (vec!["--surveylab-url", &pasted], vec![]),
        (vec![], vec![("SURVEYLAB_URL", pasted.as_str())]),
    ] {
        let line = refused(&flags, &env).await;
        assert!(line.contains("--surveylab-url") && !line.contains(TOKEN), "{line}");
    }
    let line = refused(&[&format!("--api-token={TOKEN}")], &[]).await;
    assert!(!line.contains(TOKEN), "{line}");
}

#[tokio::test]
async fn the_token_of_a_file_reaches_surveylab_without_its_line_end() {
    let sandbox = surveylab().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    fs::write(&path, format!("{TOKEN}\r\n")).unwrap();
    let options = Options::new()
        .flag("--api-token-file", path.display())
        // The support gives the token in the environment; an empty one is none.
        .env("SURVEYLAB_API_TOKEN", "");
    let gateway = Gateway::with(options, &sandbox).await;
    assert_eq!(added(&gateway.client().await, request("k")).await, Outcome::Added);
}

#[tokio::test]
async fn a_password_in_a_ledger_url_is_never_shown() {
    let url = "postgres://user:s3cret-canary@127.0.0.1:1/db";
    let flag = format!("--ledger={url}");
    let token = ("SURVEYLAB_API_TOKEN", TOKEN);
    let common = ["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
    let (by_flag, _, stderr) = soon(run(&[&common[..], &[flag.as_str()]].concat(), &[token])).await;
    let (by_env, _, stderr_env) = soon(run(&common, &[token, ("GATEWAY_LEDGER", url)])).await;
    for (code, stderr) in [(by_flag, stderr), (by_env, stderr_env)] {
        assert_ne!(code, Some(0));
        assert!(stderr.contains("--ledger") && !stderr.contains("canary"), "{stderr}");
    }
    let (_, help, _) = soon(run(&["serve", "--help"], &[("GATEWAY_LEDGER", url), token])).await;
    assert!(!help.contains("canary") && !help.contains(TOKEN), "{help}");
}

/// The help text of each flag.
fn flags(help: &str) -> HashMap<&str, String> {
    let mut flags: HashMap<&str, String> = HashMap::new();
    let mut current = "";
    for line in help.lines() {
        let trimmed = line.trim_start();
        if let Some(flag) = trimmed.strip_prefix("--") {
            current = flag.split([' ', '=']).next().unwrap();
        } else if trimmed.starts_with("-h") {
            current = "help";
        }
        let text = flags.entry(current).or_default();
        text.push_str(trimmed);
        text.push('\n');
    }
    flags
}

#[tokio::test]
async fn help_tells_every_setting_with_its_variable_and_default() {
    let (code, help, stderr) = soon(run(&["serve", "--help"], &[])).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let flags = flags(&help);
    for (flag, variable, default, _) in SETTINGS {
        let text = flags.get(flag).unwrap_or_else(|| panic!("--{flag} is not in the help"));
        assert!(text.contains(&format!("[env: {variable}")), "--{flag}: {text}");
        match default {
            Some(default) => assert!(text.contains(&format!("[default: {default}]")), "--{flag}: {text}"),
            None => assert!(!text.contains("[default: ") || flag == "log-format", "--{flag}: {text}"),
        }
    }
    // And no others: a new setting belongs into this table, and into the documentation.
    let mut known: Vec<&str> = SETTINGS.iter().map(|(flag, ..)| *flag).collect();
    known.extend(["", "help", "version"]);
    let unknown: Vec<_> = flags.keys().filter(|flag| !known.contains(flag)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[tokio::test]
async fn a_variable_works_in_place_of_its_flag() {
    let directory = tempfile::tempdir().unwrap();
    let env = [
        ("GATEWAY_LISTEN", "127.0.0.1:0"),
        ("GATEWAY_ADMIN_LISTEN", "127.0.0.1:0"),
        ("GATEWAY_LEDGER", "sqlite:by-env.db"),
        ("GATEWAY_RATE", "120/m"),
        ("GATEWAY_BURST", "7"),
        ("GATEWAY_SANDBOX", "true"),
        ("GATEWAY_LOG_FORMAT", "json"),
    ];
    let mut gateway = Process::spawn(&["serve"], &env, directory.path());
    let line = gateway.line_with("listening").await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    for (field, value) in [("ledger", "sqlite:by-env.db"), ("rate", "120/m")] {
        assert_eq!(line[field], value, "{line}");
    }
    assert_eq!(line["burst"].to_string().trim_matches('"'), "7");
    for port in ["grpc", "admin"] {
        let address: std::net::SocketAddr = line[port].as_str().unwrap().parse().unwrap();
        assert_ne!(address.port(), 0);
    }
    assert!(directory.path().join("by-env.db").exists());
    let (code, rest) = gateway.terminate().await;
    assert_eq!(code, Some(0));
    assert!(rest.iter().any(|line| line.contains("received 0 requests")), "{rest:?}");

    let mut gateway = Process::spawn(
        &["serve", "--log-format=text"],
        &[&env[..], &[("GATEWAY_SANDBOX", "1")]].concat(),
        directory.path(),
    );
    let line = gateway.line_with("listening").await;
    assert!(
        line.contains("rate=120/m") && !line.starts_with('{'),
        "the flag goes before the variable: {line}"
    );
    assert_eq!(gateway.terminate().await.0, Some(0));
}

#[tokio::test]
async fn a_flag_goes_before_its_variable() {
    let sandbox = surveylab().await;
    let options = Options::new().env("GATEWAY_RATE", "1/h").flag("--rate", "3/s");
    let gateway = Gateway::with(options, &sandbox).await;
    let rate = metric(&gateway, "rate_per_second", "configured").await;
    assert!((rate - 3.0).abs() < 1e-6, "{rate}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = format!("--ledger=sqlite:{}", directory.path().join("l.db").display());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (taken, free) in [("--listen", "--admin-listen"), ("--admin-listen", "--listen")] {
        let (taken, free) = (format!("{taken}={address}"), format!("{free}=127.0.0.1:0"));
        let (code, _, stderr) = soon(run(&["serve", "--sandbox", &ledger, &taken, &free], &[])).await;
        assert_eq!(code, Some(1), "{stderr}");
        let wanted = format!("{}: can't listen on {address}", taken.split('=').next().unwrap());
        assert!(stderr.contains(&wanted), "{stderr}");
    }
}

#[tokio::test]
async fn help_and_version_succeed_and_what_is_unknown_does_not() {
    let commands: [&[&str]; 10] = [
        &[],
        &["serve"],
        &["sandbox"],
        &["add"],
        &["invitations"],
        &["invitations", "list"],
        &["healthcheck"],
        &["caller"],
        &["caller", "new"],
        &["caller", "check"],
    ];
    for command in commands {
        let (code, stdout, stderr) = soon(run(&[command, &["--help"]].concat(), &[])).await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{command:?}");
        assert!(stdout.contains("Usage: surveylab-gateway"), "{stdout}");
        let (code, stdout, _) = soon(run(&[command, &["--version"]].concat(), &[])).await;
        assert_eq!(code, Some(0), "{command:?}");
        assert!(stdout.contains(env!("CARGO_PKG_VERSION")), "{stdout}");
        let (code, stdout, stderr) = soon(run(&[command, &["--no-such-flag"]].concat(), &[])).await;
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{command:?}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("--no-such-flag"), "{stderr}");
    }
    for command in [&["no-such-command"][..], &["invitations", "no-such-command"]] {
        let (code, _, stderr) = soon(run(command, &[])).await;
        assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains("no-such-command"), "{stderr}");
    }
    for command in [&[][..], &["invitations"]] {
        assert_eq!(soon(run(command, &[])).await.0, Some(2), "{command:?}");
    }
}

#[tokio::test]
async fn a_wrong_filter_of_the_log_is_told_like_any_setting() {
    for wrong in ["this=is=wrong", "info,[["] {
        let line = refused(&["--sandbox"], &[("RUST_LOG", wrong)]).await;
        assert!(line.contains("RUST_LOG: expected a filter such as info"), "{line}");
    }
}
