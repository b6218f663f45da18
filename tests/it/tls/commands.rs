//! The commands that call a gateway over TLS: what they trust, what they show, and what they say if it goes wrong.

use std::{fs, path::Path};

use tokio::sync::mpsc;
use tonic::{
    Request, Status,
    service::interceptor::InterceptedService,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use super::with_tls;
use crate::support::{
    Gateway, Options,
    certificates::{Authority, HERE, Pair},
    gateway::{run, surveylab},
    watch::soon,
};

const SECRET: &str = "c4llers-t0ken";

async fn healthcheck(flags: &[String], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (code, stdout, stderr) = soon(run(&[&["healthcheck"], &flags[..]].concat(), env)).await;
    assert!(!stderr.contains(SECRET) && !stdout.contains(SECRET), "{stderr}{stdout}");
    (code, stdout + &stderr)
}

/// The one line of a command that can't be answered.
async fn fails(flags: &[String]) -> String {
    let (code, line) = healthcheck(flags, &[]).await;
    assert_eq!((code, line.lines().count()), (Some(1), 1), "{flags:?}: {line}");
    line
}

/// The one line of a command whose settings are wrong.
async fn refused(flags: &[String], env: &[(&str, &str)]) -> String {
    let (code, line) = healthcheck(flags, env).await;
    assert_eq!((code, line.lines().count()), (Some(2), 1), "{flags:?}: {line}");
    line
}

fn ca(path: &Path) -> String {
    format!("--ca-file={}", path.display())
}

fn identity(pair: &Pair) -> [String; 2] {
    [
        format!("--client-cert={}", pair.cert.display()),
        format!("--client-key={}", pair.key.display()),
    ]
}

#[tokio::test]
async fn the_right_certificates_are_accepted_by_flag_and_environment() {
    let sandbox = surveylab().await;
    let [authority, clients] = [(); 2].map(|()| Authority::new());
    let options = with_tls(&authority.issue("gateway", HERE)).flag("--tls-client-ca", clients.ca().display());
    let gateway = Gateway::with(options, &sandbox).await;
    let pair = clients.issue("caller", "DNS:caller.example");
    for host in ["localhost", "127.0.0.1"] {
        let target = format!("https://{host}:{}", gateway.grpc.port());
        let flags = [
            vec![format!("--target={target}"), ca(&authority.ca())],
            identity(&pair).to_vec(),
        ]
        .concat();
        assert_eq!(healthcheck(&flags, &[]).await, (Some(0), "serving\n".into()));
        let [ca, cert, key] = [&authority.ca(), &pair.cert, &pair.key].map(|path| path.display().to_string());
        let env = [
            ("GATEWAY_TARGET", target.as_str()),
            ("GATEWAY_CA_FILE", &ca),
            ("GATEWAY_CLIENT_CERT", &cert),
            ("GATEWAY_CLIENT_KEY", &key),
        ];
        assert_eq!(healthcheck(&[], &env).await, (Some(0), "serving\n".into()));
        // The system's CAs are a file of one's own, too.
        let env = [("GATEWAY_TARGET", target.as_str()), ("SSL_CERT_FILE", &ca)];
        assert_eq!(healthcheck(&identity(&pair), &env).await, (Some(0), "serving\n".into()));

        let common = [format!("--target={target}"), format!("--ca-file={ca}")];
        let common: Vec<&str> = common.iter().map(String::as_str).collect();
        let rest = [("GATEWAY_CLIENT_CERT", cert.as_str()), ("GATEWAY_CLIENT_KEY", &key)];
        let crk = format!("--crk={host}");
        let add = ["add", "--collector=c", "--email=a@example.com", &crk];
        for command in [&add[..], &["status"], &["invitations", "list"]] {
            let (code, _, stderr) = soon(run(&[command, &common[..]].concat(), &rest)).await;
            assert_eq!(code, Some(0), "{command:?}: {stderr}");
        }
        let list = gateway.path(&format!("{host}.csv"));
        fs::write(
            &list,
            format!("collector_id,crk,email\nc,import-{host},a@example.com\n"),
        )
        .unwrap();
        let import = ["import", list.to_str().unwrap()];
        let (code, _, stderr) = soon(run(&[&import, &common[..]].concat(), &rest)).await;
        assert_eq!(code, Some(0), "{stderr}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_gateway_is_told_in_one_line() {
    let sandbox = surveylab().await;
    let [authority, other] = [(); 2].map(|()| Authority::new());
    let trusted = ca(&authority.ca());
    let at = |gateway: &Gateway| format!("--target=https://{}", gateway.grpc);

    for (pair, why) in [
        (authority.issue_expired("expired", HERE), "has expired"),
        (other.issue("other", HERE), "not signed by a CA that is trusted here"),
        (authority.issue("name", "DNS:other.example"), "for another name"),
    ] {
        let gateway = Gateway::with(with_tls(&pair), &sandbox).await;
        let line = fails(&[at(&gateway), trusted.clone()]).await;
        assert!(line.contains(why) && line.contains(&gateway.grpc.to_string()), "{line}");
    }
    let gateway = Gateway::with(with_tls(&authority.issue("right", HERE)), &sandbox).await;
    // What the system trusts knows nothing of this CA.
    let line = fails(&[at(&gateway)]).await;
    assert!(line.contains("no gateway at"), "{line}");
    // Without TLS there is no telling why the other side does not speak HTTP/2.
    fails(&[format!("--target=http://{}", gateway.grpc)]).await;
    let plain = Gateway::with(Options::new(), &sandbox).await;
    let line = fails(&[at(&plain), trusted.clone()]).await;
    assert!(line.contains("http://"), "{line}");

    let options = with_tls(&authority.issue("mutual", HERE)).flag("--tls-client-ca", authority.ca().display());
    let gateway = Gateway::with(options, &sandbox).await;
    let expired = authority.issue_expired("caller", "DNS:caller.example");
    let strange = other.issue("caller", "DNS:caller.example");
    for (identity, alert) in [
        (vec![], "CertificateRequired"),
        (identity(&expired).to_vec(), "CertificateExpired"),
        (identity(&strange).to_vec(), "UnknownCA"),
    ] {
        let line = fails(&[vec![at(&gateway), trusted.clone()], identity].concat()).await;
        // hyper tells of the alert or not, as it comes.
        assert!(line.contains(alert) || line.contains("--client-cert"), "{line}");
    }
}

#[tokio::test]
async fn wrong_settings_are_told_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let authority = Authority::new();
    let [pair, other] = ["a", "b"].map(|name| authority.issue(name, HERE));
    let [cert, key] = identity(&pair);
    let [_, other_key] = identity(&other);
    let https = "--target=https://127.0.0.1:1".to_string();
    let elsewhere = "--target=http://192.0.2.1:1".to_string();
    let token = format!("--token-file={}", file("token", &format!("{SECRET}\n")));
    let two_lines = format!("--token-file={}", file("two-lines", &format!("{SECRET}\n{SECRET}\n")));
    let missing = directory.path().join("missing").display().to_string();
    let empty = file("empty", "");
    let in_environment = [("GATEWAY_TOKEN", SECRET)];

    let cases = [
        (vec![https.clone(), cert.clone()], &[][..], "--client-key"),
        (vec![https.clone(), key.clone()], &[], "--client-cert"),
        (vec![https.clone(), cert.clone(), other_key], &[], "--client-cert"),
        (vec![https.clone(), format!("--ca-file={missing}")], &[], "--ca-file"),
        (vec![https.clone(), format!("--ca-file={empty}")], &[], "--ca-file"),
        (
            vec![https.clone(), format!("--ca-file={}", pair.key.display())],
            &[],
            "--ca-file",
        ),
        (vec![ca(&authority.ca())], &[], "https://"),
        (vec![cert, key], &[], "https://"),
        (vec![elsewhere.clone(), token.clone()], &[], "--token-in-plain-text"),
        (vec![elsewhere], &in_environment, "--token-in-plain-text"),
        (vec![https.clone(), token], &in_environment, "keep one"),
        (vec![https.clone(), two_lines], &[], "--token-file"),
        (
            vec![https.clone(), format!("--token-file={missing}")],
            &[],
            "--token-file",
        ),
        (
            vec![https.clone()],
            &[("GATEWAY_TOKEN", "c4llers-t0ken twice")],
            "GATEWAY_TOKEN",
        ),
        (vec![https, format!("--token={SECRET}")], &[], "--token"),
        (vec!["--target=ftp://localhost".into()], &[], "--target"),
    ];
    for (flags, env, why) in cases {
        let line = refused(&flags, env).await;
        assert!(line.contains(why), "{flags:?}: {line}");
        assert!(!line.contains(&missing) || line.contains("ca-file"), "{line}");
    }
}

#[tokio::test]
async fn the_token_is_sent_with_the_call() {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = format!("--target=http://{}", incoming.local_addr().unwrap());
    let (sender, mut seen) = mpsc::unbounded_channel();
    let look = move |request: Request<()>| -> Result<Request<()>, Status> {
        let values = request.metadata().get_all("authorization").iter();
        let values = values.map(|value| value.to_str().unwrap().to_string());
        sender.send(values.collect::<Vec<_>>()).unwrap();
        Ok(request)
    };
    let health = HealthServer::new(HealthService::from_health_reporter(HealthReporter::new()));
    let server = Server::builder().add_service(InterceptedService::new(health, look));
    let server = tokio::spawn(server.serve_with_incoming(incoming));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    fs::write(&path, format!("{SECRET}\r\n")).unwrap();
    let path = path.display().to_string();
    let wanted = vec![format!("Bearer {SECRET}")];
    for (flags, env, wanted) in [
        (vec![target.clone(), format!("--token-file={path}")], &[][..], &wanted),
        (vec![target.clone()], &[("GATEWAY_TOKEN_FILE", path.as_str())], &wanted),
        (vec![target.clone()], &[("GATEWAY_TOKEN", SECRET)], &wanted),
        (vec![target], &[], &vec![]),
    ] {
        assert_eq!(healthcheck(&flags, env).await.0, Some(0), "{flags:?}");
        assert_eq!(seen.recv().await.as_ref(), Some(wanted), "{flags:?}");
    }
    server.abort();
}
