//! What may be bound where, and settings that don't go together: one line, exit code 2, nothing bound.

use std::{fs, net::TcpListener};

use super::pem_lines;
use crate::support::{
    certificates::{Authority, HERE},
    gateway::run,
    process::Process,
    watch::soon,
};

const SANDBOX: [&str; 3] = ["serve", "--sandbox", "--ledger=memory:"];

/// The one line of a `serve` that must not begin. Its ports are taken: to bind them would fail in another way.
async fn refused(flags: &[&str], env: &[(&str, &str)]) -> String {
    let (code, stdout, stderr) = soon(run(&[&SANDBOX, flags].concat(), env)).await;
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{flags:?} {env:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{flags:?} {env:?}: {stderr}");
    stderr
}

#[tokio::test]
async fn other_machines_reach_nothing_that_is_not_protected() {
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let authority = Authority::new();
    let pair = authority.issue("gateway", HERE);
    let cert = format!("--tls-cert={}", pair.cert.display());
    let key = format!("--tls-key={}", pair.key.display());
    for address in [
        format!("0.0.0.0:{port}"),
        format!("[::]:{port}"),
        format!("192.0.2.1:{port}"),
    ] {
        let (listen, admin) = (format!("--listen={address}"), format!("--admin-listen={address}"));
        for (flags, missing) in [
            (&[listen.as_str()][..], "--tls-cert, --tls-key) and callers"),
            (&[&listen, &cert, &key], "--callers or --tls-client-ca"),
            (&[&listen, "--insecure-admin"], "--tls-client-ca"),
        ] {
            let line = refused(flags, &[]).await;
            for named in ["--listen", "GATEWAY_LISTEN", &address, missing, "--insecure"] {
                assert!(line.contains(named), "{named}: {line}");
            }
        }
        let line = refused(&[&admin], &[]).await;
        for named in ["--admin-listen", "GATEWAY_ADMIN_LISTEN", &address, "--insecure-admin"] {
            assert!(line.contains(named), "{named}: {line}");
        }
    }
    let (listen, everywhere) = ("GATEWAY_LISTEN", format!("0.0.0.0:{port}"));
    let line = refused(&[], &[(listen, &everywhere)]).await;
    assert!(line.contains(listen), "{line}");
}

#[tokio::test]
async fn other_machines_reach_what_is_protected_or_allowed() {
    let [authority, clients] = [(); 2].map(|()| Authority::new());
    let pair = authority.issue("gateway", HERE);
    let [cert, key, ca] = [&pair.cert, &pair.key, &clients.ca()].map(|path| path.display().to_string());
    let tls = [
        ("GATEWAY_TLS_CERT", cert.as_str()),
        ("GATEWAY_TLS_KEY", &key),
        ("GATEWAY_TLS_CLIENT_CA", &ca),
    ];
    let everywhere = ["--listen=0.0.0.0:0", "--admin-listen=0.0.0.0:0"];
    let here = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
    for (flags, env) in [
        (&[everywhere[0], here[1]], &tls[..]),
        (&[here[0], everywhere[1]], &[("GATEWAY_INSECURE_ADMIN", "true")]),
        (&everywhere, &[&tls[..], &[("GATEWAY_INSECURE_ADMIN", "1")]].concat()),
        (&everywhere, &[("GATEWAY_INSECURE", "1")]),
        (&["--listen=[::ffff:127.0.0.1]:0", "--admin-listen=[::1]:0"], &[]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut gateway = Process::spawn(&[&SANDBOX[..], flags].concat(), env, directory.path());
        gateway.line_with("listening").await;
        assert_eq!(gateway.terminate().await.0, Some(0));
    }
}

#[tokio::test]
async fn files_that_do_not_go_together_are_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--listen={}", taken.local_addr().unwrap());
    let [authority, other] = [(); 2].map(|()| Authority::new());
    let [pair, other_pair] = [&authority, &other].map(|authority| authority.issue("gateway", HERE));
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let garbage = file(
        "garbage",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let empty = file("empty", "");
    let missing = directory.path().join("missing");
    let cert = |path: &std::path::Path| format!("--tls-cert={}", path.display());
    let key = |path: &std::path::Path| format!("--tls-key={}", path.display());
    let ca = |path: &std::path::Path| format!("--tls-client-ca={}", path.display());

    let good = [cert(&pair.cert), key(&pair.key)];
    let cases = [
        (vec![good[0].clone()], ["--tls-cert", "--tls-key"]),
        (vec![good[1].clone()], ["--tls-key", "--tls-cert"]),
        (vec![ca(&other.ca())], ["--tls-client-ca", "--tls-cert"]),
        (
            vec![good[0].clone(), key(&other_pair.key)],
            ["--tls-key", "not the key"],
        ),
        (vec![cert(&missing), good[1].clone()], ["--tls-cert", "can't be read"]),
        (vec![good[0].clone(), key(&missing)], ["--tls-key", "can't be read"]),
        (vec![cert(&empty), good[1].clone()], ["--tls-cert", "no certificates"]),
        (vec![cert(&garbage), good[1].clone()], ["--tls-", "GATEWAY_TLS"]),
        (vec![good[0].clone(), key(&pair.cert)], ["--tls-key", "no private key"]),
        (
            vec![cert(&pair.key), good[1].clone()],
            ["--tls-cert", "no certificates"],
        ),
        (
            [&good[..], &[ca(&empty)]].concat(),
            ["--tls-client-ca", "no certificates"],
        ),
        ([&good[..], &[ca(&garbage)]].concat(), ["--tls-client-ca", ""]),
        (
            [&good[..], &[ca(&missing)]].concat(),
            ["--tls-client-ca", "can't be read"],
        ),
    ];
    let secrets = pem_lines(&pair.key);
    for (flags, named) in cases {
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain([listen.as_str()]).collect();
        let line = refused(&flags, &[]).await;
        for named in named {
            assert!(line.contains(named), "{flags:?}: {named}: {line}");
        }
        assert!(secrets.iter().all(|secret| !line.contains(secret)), "{line}");
    }
}
