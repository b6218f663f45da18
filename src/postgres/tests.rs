use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::{
    testing::{self, Server},
    *,
};

fn no_environment(_: &str) -> Option<String> {
    None
}

fn parsed(url: &str) -> Result<Settings, SettingsError> {
    Settings::parse(url, no_environment)
}

/// One question over a new connection.
async fn ask(settings: &Settings, sql: &str) -> Result<String, Error> {
    let (client, driver) = connect(settings, "test").await?;
    let driving = tokio::spawn(driver.run(|_| {}));
    let row = client.query_one(sql, &[]).await.expect("answers");
    drop(client);
    driving.await.expect("ends").expect("ends well");
    Ok(row.get(0))
}

#[tokio::test]
async fn it_connects_over_tcp_with_a_password_and_over_a_socket_without() {
    let database = testing::shared().database();
    for url in [database.url(), database.socket_url()] {
        let settings = parsed(&url).expect("is one");
        let name = ask(&settings, "SELECT current_database()::text")
            .await
            .expect("connects");
        assert_eq!(name, database.name);
        let name = ask(&settings, "SELECT current_setting('application_name')").await;
        assert_eq!(name.expect("connects"), "test");
    }
}

#[tokio::test]
async fn its_session_is_bounded_and_durable() {
    let database = testing::shared().database();
    database.sql(&format!(
        "ALTER DATABASE {} SET synchronous_commit = off",
        database.name
    ));
    let settings = parsed(&database.url()).expect("is one");
    for (setting, value) in [
        ("statement_timeout", "10s"),
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("synchronous_commit", "on"),
    ] {
        let set = ask(&settings, &format!("SELECT current_setting('{setting}')")).await;
        assert_eq!(set.expect("connects"), value, "{setting}");
    }
    // What is stricter is left as it is.
    database.sql(&format!(
        "ALTER DATABASE {} SET synchronous_commit = remote_apply",
        database.name
    ));
    let set = ask(&settings, "SELECT current_setting('synchronous_commit')").await;
    assert_eq!(set.expect("connects"), "remote_apply");
}

#[tokio::test]
async fn of_several_hosts_the_first_that_takes_writes_is_used() {
    let database = testing::shared().database();
    let standby = testing::shared().database();
    // A port at which nobody listens, and a server that takes a connection and says nothing.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let closed = nobody.local_addr().expect("has one");
    drop(nobody);
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let silent_at = silent.local_addr().expect("has one");
    let good = format!("127.0.0.1:{}", database.server.port);
    let url = database.url_by(&format!("{closed},{silent_at},{good}"));
    let settings = parsed(&format!("{url}?connect_timeout=1")).expect("is one");
    let name = ask(&settings, "SELECT current_database()::text")
        .await
        .expect("connects");
    assert_eq!(name, database.name);

    standby.sql(&format!(
        "ALTER DATABASE {} SET default_transaction_read_only = on",
        standby.name
    ));
    let settings = parsed(&standby.url()).expect("is one");
    let Err(Error::Unreachable(why)) = ask(&settings, "SELECT ''").await else {
        panic!("a server that takes no writes was used")
    };
    assert!(why.contains("does not allow writes"), "{why}");
}

#[tokio::test]
async fn a_wrong_password_or_database_is_a_refusal_and_a_closed_port_is_not() {
    let database = testing::shared().database();
    let url = database.url().replace("p%40ss", "another");
    let settings = parsed(&url).expect("is one");
    let Err(Error::Refused(why)) = ask(&settings, "SELECT ''").await else {
        panic!("not refused")
    };
    assert!(why.contains("28P01") && !why.contains("another"), "{why}");

    let url = format!("{}_not", database.url());
    let Err(Error::Refused(why)) = ask(&parsed(&url).expect("is one"), "SELECT ''").await else {
        panic!("not refused")
    };
    assert!(why.contains("3D000"), "{why}");

    let settings = parsed("postgres://u@127.0.0.1:1/d").expect("is one");
    assert!(matches!(ask(&settings, "SELECT ''").await, Err(Error::Unreachable(_))));
}

#[test]
fn the_password_is_told_nowhere() {
    let secret = "hunter2";
    for url in [
        "postgres://u:hunter2@h/d",
        "postgres://u@h/d?password=hunter2",
        // Wrong ones, of which the last two forgot to encode it.
        "postgres://u:hunter2@/d",
        "postgres://u:hunter2@h/d?sslmode=hunter2",
        "postgres://u:x?hunter2=y@h/d",
        "postgres://u:x/hunter2:y",
        "u:hunter2@h/d",
    ] {
        let told = match parsed(url) {
            Ok(settings) => format!("{settings} {settings:?} {settings:#?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!told.contains(secret), "{told}");
    }
}

#[test]
fn urls_are_read_as_libpq_reads_them() {
    let told = |url: &str| parsed(url).map(|settings| settings.to_string());
    for (url, expected) in [
        ("postgres://u@h/d", "postgres://u@h:5432/d"),
        ("postgresql://u@h", "postgres://u@h:5432/u"),
        ("postgres://u:p@a:1,b,[::1]:3/d", "postgres://u@a:1,b:5432,[::1]:3/d"),
        ("postgres:///d?host=/run/pg&user=u", "postgres://u@/run/pg:5432/d"),
        ("postgres://a%40b@%2Frun%2Fpg:7/d%2F", "postgres://a@b@/run/pg:7/d/"),
        (
            "postgres://u@h/d?target_session_attrs=read-write&sslmode=disable&connect_timeout=3",
            "postgres://u@h:5432/d",
        ),
    ] {
        assert_eq!(told(url).as_deref(), Ok(expected));
    }
    for url in [
        "mysql://u@h/d",
        "postgres://h/d",
        "postgres://u@/d",
        "postgres://u@h:70000/d",
        "postgres://u@h/d%FF",
        "postgres://u@h/d?sslmode=on",
        "postgres://u@h/d?sslmode=verify-ca",
        "postgres://u@h/d?sslrootcert=/nowhere&sslmode=verify-full",
        "postgres://u@h/d?connect_timeout=0",
        "postgres://u@h/d?target_session_attrs=any",
        "postgres://u@h/d?application_name=x",
    ] {
        assert!(told(url).is_err(), "{url}");
    }
}

#[test]
fn the_password_comes_from_the_url_the_environment_or_a_file() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("pass");
    let lines = "# none:*:*:*:here\nh:5432:d:other:1\nh:5432:d\\:x:u:2\nlocalhost:*:*:u:3\n*:*:*:u:a\\:b\\\\:c\n";
    fs::write(&file, lines).expect("writes");
    let chmod = |mode| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("changes");
    };
    chmod(0o600);
    let name = file.display().to_string();
    let passwords = |url: &str, environment: &[(&str, &str)]| {
        let look_up = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        };
        Settings::parse(url, look_up).map(|settings| {
            let of = |host: &settings::Host| host.config.get_password().map(|bytes| bytes.to_vec());
            settings
                .hosts
                .iter()
                .map(|host| String::from_utf8(of(host).unwrap_or_default()).expect("text"))
                .collect::<Vec<_>>()
        })
    };
    let by_file = [("PGPASSFILE", name.as_str())];
    let by_both = [("PGPASSWORD", "env"), by_file[0]];
    assert_eq!(passwords("postgres://u:url@h/d", &by_both).expect("is one"), ["url"]);
    assert_eq!(passwords("postgres://u@h/d", &by_both).expect("is one"), ["env"]);
    let hosts = passwords("postgres://u@h,%2Frun/d:x", &by_file).expect("is one");
    assert_eq!(hosts, ["2", "3"]);
    assert_eq!(passwords("postgres://u@g/d", &by_file).expect("is one"), ["a:b\\:c"]);
    assert_eq!(passwords("postgres://v@g/d", &by_file).expect("is one"), [""]);
    let by_parameter = format!("postgres://u@g/d?passfile={name}");
    assert_eq!(passwords(&by_parameter, &[]).expect("is one"), ["a:b\\:c"]);
    chmod(0o640);
    assert!(passwords("postgres://u@g/d", &by_file).is_err());
}

/// A server with a certificate for `name`, and the file of the authority that signed it.
fn tls_server(name: &str, directory: &TempDir) -> (Server, String) {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("signs");
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec![name.into()])
        .expect("parameters")
        .signed_by(&key, &authority)
        .expect("signs");
    let root = directory.path().join(format!("{name}.root.pem"));
    fs::write(&root, authority.pem()).expect("writes");
    let server = Server::start(&[]);
    server.secure(&certificate.pem(), &key.serialize_pem());
    (server, root.display().to_string())
}

#[tokio::test]
async fn tls_is_verified_as_far_as_sslmode_says() {
    let directory = TempDir::new().expect("a directory");
    let (server, root) = tls_server("localhost", &directory);
    let (_, stranger) = {
        let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("signs");
        let file = directory.path().join("stranger.pem");
        fs::write(&file, other.cert.pem()).expect("writes");
        (other, file.display().to_string())
    };
    let database = server.database();
    let used = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let by = |host: &str, parameters: &str| {
        let url = database.url_by(&format!("{host}:{}", server.port));
        parsed(&format!("{url}?{parameters}")).expect("is one")
    };
    for (host, parameters, expected) in [
        ("127.0.0.1", "sslmode=disable".to_string(), Some("false")),
        ("127.0.0.1", "sslmode=prefer".to_string(), Some("true")),
        ("127.0.0.1", "sslmode=require".to_string(), Some("true")),
        (
            "127.0.0.1",
            format!("sslmode=verify-ca&sslrootcert={root}"),
            Some("true"),
        ),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={stranger}"), None),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={stranger}"), None),
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={root}"),
            Some("true"),
        ),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={root}"), None),
        ("localhost", format!("sslmode=verify-full&sslrootcert={stranger}"), None),
        ("localhost", "sslmode=verify-full".to_string(), None),
    ] {
        let answer = ask(&by(host, &parameters), used).await;
        assert_eq!(answer.as_deref().ok(), expected, "{host} {parameters}: {answer:?}");
    }
    // One without TLS.
    let plain = testing::shared().database();
    assert_eq!(
        ask(&parsed(&plain.url()).expect("is one"), used)
            .await
            .expect("connects"),
        "false"
    );
    let settings = parsed(&format!("{}?sslmode=require", plain.url())).expect("is one");
    assert!(matches!(ask(&settings, used).await, Err(Error::Unreachable(_))));
}

#[tokio::test]
async fn an_error_tells_no_values() {
    let database = testing::shared().database();
    let settings = parsed(&database.url()).expect("is one");
    let (client, driver) = connect(&settings, "test").await.expect("connects");
    let _driving = tokio::spawn(driver.run(|_| {}));
    client
        .batch_execute("CREATE TABLE t (v text PRIMARY KEY); INSERT INTO t VALUES ('anna@example.com')")
        .await
        .expect("writes");
    let error = client
        .execute("INSERT INTO t VALUES ($1)", &[&"anna@example.com"])
        .await
        .expect_err("is there already");
    let told = describe(&error);
    assert!(told.contains("23505") && !told.contains("anna"), "{told}");
}
