//! `caller`: tokens that are shown once, and a file that keeps what people wrote into it.

use std::{fs, os::unix::fs::PermissionsExt};

use surveylab_gateway::{
    callers::TokenHash,
    proto::{GetStatusRequest, ListInvitationsRequest},
};
use tonic::{Code, Request};

use crate::support::{
    Gateway, Options,
    gateway::{run, surveylab},
    watch::soon,
};

/// The output of a command that must succeed.
async fn done(arguments: &[&str]) -> (String, String) {
    let (code, stdout, stderr) = soon(run(arguments, &[])).await;
    assert_eq!(code, Some(0), "{stderr}");
    (stdout, stderr)
}

/// The token that a command prints, which is all that it prints on stdout.
async fn token(arguments: &[&str]) -> String {
    let (stdout, stderr) = done(arguments).await;
    let token = stdout.strip_suffix('\n').unwrap().to_string();
    assert!(TokenHash::of(token.as_bytes()).is_some(), "{token}");
    assert!(!stderr.contains(&token), "{stderr}");
    token
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test]
async fn without_a_file_the_block_is_printed_beside_the_token() {
    let (stdout, stderr) = done(&[
        "caller",
        "new",
        "billing",
        "--collector=c1",
        "--collector=c2",
        "--method=AddRespondent",
        "--san=spiffe://company/billing",
        "--share=12.5%",
    ])
    .await;
    let hash = TokenHash::of(stdout.trim_end().as_bytes()).unwrap();
    let block = format!(
        "[[caller]]\nname = \"billing\"\ntokens = [\"{hash}\"]\nnames = [\"spiffe://company/billing\"]\n\
         collectors = [\"c1\", \"c2\"]\nmethods = [\"AddRespondent\"]\nshare = \"12.5%\"\n"
    );
    assert_eq!(stderr, block);
}

#[tokio::test]
async fn tokens_of_the_command_open_a_gateway_and_a_further_one_as_well() {
    let sandbox = surveylab().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("callers.toml");
    let file = format!("--file={}", path.display());
    let billing = token(&["caller", "new", "billing", &file]).await;
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let written = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("# Ask Ola before you change this.\n{written}")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let ops = token(&["caller", "new", "ops", "--operator", &file]).await;
    let further = token(&["caller", "new", "billing", "--rotate", &file]).await;
    let written = fs::read_to_string(&path).unwrap();
    assert!(
        written.starts_with("# Ask Ola before you change this.\n[[caller]]\n"),
        "{written}"
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    for token in [&billing, &ops, &further] {
        assert!(!written.contains(token), "{written}");
    }
    // Nothing is left beside it.
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

    let gateway = Gateway::with(Options::new().flag("--callers", path.display()), &sandbox).await;
    let mut client = gateway.client().await;
    for token in [&billing, &further, &ops] {
        client.get_status(with_token(token, GetStatusRequest {})).await.unwrap();
    }
    let all = ListInvitationsRequest::default;
    let refused = client.list_invitations(with_token(&billing, all())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    client.list_invitations(with_token(&ops, all())).await.unwrap();

    let (listed, _) = done(&["caller", "check", &path.display().to_string()]).await;
    assert_eq!(
        listed,
        "billing: 2 tokens; methods AddRespondent, StreamAddRespondent, GetInvitation, GetStatus; all collectors\n\
         ops: 1 token; methods AddRespondent, StreamAddRespondent, GetInvitation, ListInvitations, ResolveInvitation, \
         GetStatus; all collectors\n"
    );
}

#[tokio::test]
async fn what_would_make_a_wrong_file_leaves_it_as_it_was_and_prints_no_token() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("callers.toml");
    let file = format!("--file={}", path.display());
    token(&["caller", "new", "billing", "--share=60%", &file]).await;
    let before = fs::read_to_string(&path).unwrap();
    let wrong: [(&[&str], &str); 8] = [
        (
            &["billing", &file],
            "the caller 'billing' is there already; --rotate gives",
        ),
        (&["nobody", "--rotate", &file], "there is no caller with this name"),
        (
            &["greedy", "--share=41%", &file],
            "all shares together are more than 100%",
        ),
        (&["a b", &file], "name must be"),
        (&["a", "--method=ListInvitations", &file], "is an operator's right"),
        (&["a", "--collector=a/b", "--share=x", &file], "share must be"),
        (&["billing", "--rotate", "--operator", &file], "cannot be used with"),
        (&["billing", "--rotate"], "--rotate needs --file"),
    ];
    for (arguments, why) in wrong {
        let (code, stdout, stderr) = soon(run(&[&["caller", "new"], arguments].concat(), &[])).await;
        assert_eq!(
            (code, stdout.as_str(), stderr.lines().count()),
            (Some(2), "", 1),
            "{stderr}"
        );
        assert!(stderr.contains(why), "{stderr}");
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
    fs::write(&path, "[[caller]]\nname = \"a\"\nname = \"b\"\n").unwrap();
    let path = path.display().to_string();
    for arguments in [&["new", "c", &file][..], &["check", &path]] {
        let (code, stdout, stderr) = soon(run(&[&["caller"], arguments].concat(), &[])).await;
        assert_eq!(
            (code, stdout.as_str(), stderr.lines().count()),
            (Some(2), "", 1),
            "{stderr}"
        );
        assert!(stderr.contains("the callers' file: line 3: it is not TOML"), "{stderr}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn the_file_may_be_named_by_the_environment_and_be_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("real.toml");
    let link = directory.path().join("link.toml");
    fs::write(&path, "").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let env = [("GATEWAY_CALLERS", link.to_str().unwrap())];
    let (code, _, stderr) = soon(run(&["caller", "new", "billing"], &env)).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&path).unwrap().contains("billing"));
    let (code, listed, _) = soon(run(&["caller", "check"], &env)).await;
    assert!(code == Some(0) && listed.starts_with("billing: 1 token;"), "{listed}");
}
