use super::*;

/// A hash that nothing was hashed to.
fn hash(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

fn wrong(text: &str) -> Vec<String> {
    match read(text) {
        Err(Error::Wrong(wrong)) => wrong.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

fn credentials(token: Option<&Token>, names: &[&str]) -> Credentials {
    Credentials {
        token: token.map_or(Presented::Nothing, |token| Presented::Token(token.hash())),
        names: (!names.is_empty()).then(|| names.iter().map(ToString::to_string).collect()),
    }
}

#[test]
fn a_file_says_who_may_do_what() {
    let text = format!(
        r#"
        # Who is it?
        [[caller]]
        name = "billing"
        tokens = ["{}", # the old one
                  "{}"]
        names = ["Billing.Internal", "spiffe://company/Billing"]
        collectors = ["8379821739721", "other"]
        methods = ["AddRespondent"]
        share = "20%"

        [[caller]]
        name = "night.watch-2"
        names = ["ops"]
        operator = true
        "#,
        hash('a'),
        hash('B'),
    );
    let entries = read(&text).unwrap();
    let billing = Entry {
        name: "billing".into(),
        tokens: ['a', 'b'].map(|digit| TokenHash::parse(&hash(digit)).unwrap()).into(),
        names: vec!["billing.internal".into(), "spiffe://company/Billing".into()],
        collectors: Some(vec!["8379821739721".into(), "other".into()]),
        methods: [Method::Add].into_iter().collect(),
        share: Share::parse("20%"),
    };
    let watch = Entry {
        name: "night.watch-2".into(),
        tokens: Vec::new(),
        names: vec!["ops".into()],
        collectors: None,
        methods: Method::ALL.into_iter().collect(),
        share: None,
    };
    assert_eq!(entries, [billing, watch]);

    let callers = Callers::of(&text).unwrap();
    let billing = callers.authenticate(&credentials(None, &["billing.internal"])).unwrap();
    assert!(billing.may_call(Method::Add) && !billing.may_call(Method::StreamAdd));
    assert!(billing.may_use("other") && billing.may_use("8379821739721"));
    // No collector stands for all of them.
    assert!(!billing.may_use("another") && !billing.may_use(""));
    let watch = callers.authenticate(&credentials(None, &["ops"])).unwrap();
    assert!(watch.may_use("another") && watch.may_use("") && watch.may_call(Method::Resolve));
}

#[test]
fn what_a_caller_may_do_by_default_is_all_but_what_operators_may() {
    let entries = read(&format!("[[caller]]\nname = \"a\"\ntokens = [\"{}\"]", hash('0'))).unwrap();
    assert_eq!(entries[0].methods, Methods::of_callers());
    assert!(entries[0].collectors.is_none() && entries[0].share.is_none());
    let text = format!(
        "[[caller]]\nname = \"a\"\ntokens = [\"{}\"]\noperator = true\nmethods = [\"GetStatus\"]",
        hash('0')
    );
    let names: Vec<_> = read(&text).unwrap()[0].methods.iter().map(Method::name).collect();
    assert_eq!(names, ["ListInvitations", "ResolveInvitation", "GetStatus"]);
}

#[test]
fn all_that_is_wrong_is_told_at_once_with_its_lines() {
    let text = format!(
        r#"
[[caller]]
name = "bil ling"
tokens = ["sha256:12", "slg_{token}"]
collector = ["a"]
[[caller]]
tokens = "{hash}"
names = ["*.internal", "a b"]
collectors = ["a/b"]
methods = ["AddRespondents", "ListInvitations"]
operator = "yes"
share = 20
[[caller]]
name = "a"
"#,
        token = "A".repeat(43),
        hash = hash('a'),
    );
    let wrong = wrong(&text);
    let beginnings = [
        "line 3: name must be 1 to 64 characters",
        "line 4: tokens: must be sha256:",
        "line 4: tokens: must be a token's hash, not the token itself",
        "line 5: unknown key 'collector'",
        "line 6: the caller has no name",
        "line 7: tokens must be a list",
        "line 8: names: must not have a '*'",
        "line 8: names: must be a DNS name or a URI",
        "line 9: collectors: must be 1 to 64 characters",
        "line 10: methods: must be of the contract: AddRespondent,",
        "line 10: methods: ListInvitations is an operator's right",
        "line 11: operator must be true or false",
        "line 12: share must be a text",
        "line 13: the caller has no credential",
    ];
    assert_eq!(wrong.len(), beginnings.len(), "{wrong:#?}");
    for (wrong, beginning) in wrong.iter().zip(beginnings) {
        assert!(wrong.starts_with(beginning), "{wrong}: {beginning}");
    }
}

#[test]
fn the_same_credential_or_name_is_refused_and_so_are_shares_of_more_than_all() {
    let text = format!(
        r#"
[[caller]]
name = "a"
tokens = ["{hash}"]
names = ["a.internal"]
share = "60%"
[[caller]]
name = "a"
tokens = ["{}", "{hash}"]
names = ["A.internal"]
share = "40.01%"
"#,
        hash('b'),
        hash = hash('a'),
    );
    assert_eq!(
        wrong(&text),
        [
            "line 8: this name is in line 3 already",
            "line 9: this token's hash is in line 4 already",
            "line 10: this certificate's name is in line 5 already",
            "line 11: with this share all shares together are more than 100%",
        ]
    );
}

#[test]
fn what_is_no_callers_file_is_refused() {
    for (text, beginning) in [
        ("", "line 1: there is no caller in it"),
        ("# nobody\n", "line 1: there is no caller in it"),
        ("caller = []", "line 1: each caller must be a [[caller]]"),
        ("\n[caller]\nname = \"a\"", "line 2: each caller must be a [[caller]]"),
        ("[[callers]]\nname = \"a\"", "line 1: unknown key 'callers'"),
        ("[[caller]]\nname = \"a\"\nname = \"b\"", "line 3: it is not TOML"),
        ("[[caller]]\nname = 'a", "line 2: it is not TOML"),
        (
            "[[caller]]\nname = \"a\"\nnames = []",
            "line 3: names must not be empty",
        ),
    ] {
        let wrong = wrong(text);
        assert!(wrong[0].starts_with(beginning), "{text}: {wrong:?}");
    }
    assert!(matches!(super::text(b"\xff"), Err(Error::NotText)));
}

#[test]
fn a_token_in_the_wrong_place_is_not_repeated() {
    let token = Token::generate().unwrap();
    let token = token.expose();
    for text in [
        token.to_string(),
        format!("{token} = 1"),
        format!("[[{token}]]"),
        format!("[[caller]]\n{token} = true"),
        format!("[[caller]]\n\"{token}\" = true\n{token} = 1\n{token} = 2"),
        format!("[[caller]]\nname = \"{token}\""),
        format!("[[caller]]\nname = \"a\"\nname = \"{token}\""),
        format!("[[caller]]\nname = {token}"),
        format!("[[caller]]\ntokens = \"{token}\""),
        format!("[[caller]]\ntokens = [\"{token}\", {token}]"),
        format!("[[caller]]\nnames = [\"{token} \"]\ncollectors = [\"{token}.\"]\nmethods = [\"{token}\"]"),
        format!("[[caller]]\noperator = \"{token}\"\nshare = \"{token}\""),
        format!("[[caller]]\noperator = {token}"),
    ] {
        let told = read(&text).unwrap_err().to_string();
        assert!(!told.contains(&token[4..]), "{told}");
    }
}

#[test]
fn a_caller_is_known_by_any_of_its_credentials_and_by_no_others() {
    let tokens = [(); 4].map(|()| Token::generate().unwrap());
    let [old, new, other, nobodys] = &tokens;
    let text = format!(
        r#"
        [[caller]]
        name = "billing"
        tokens = ["{}", "{}"]
        names = ["billing.internal", "spiffe://company/billing"]
        [[caller]]
        name = "other"
        tokens = ["{}"]
        names = ["other.internal"]
        "#,
        old.hash(),
        new.hash(),
        other.hash()
    );
    let callers = Callers::of(&text).unwrap();
    let who = |token, names: &[&str]| {
        let caller = callers.authenticate(&credentials(token, names));
        caller.map(|caller| caller.name.as_str())
    };
    assert_eq!(who(Some(old), &[]), Ok("billing"));
    assert_eq!(who(Some(new), &[]), Ok("billing"));
    assert_eq!(who(Some(other), &[]), Ok("other"));
    assert_eq!(who(Some(nobodys), &[]), Err(Failure::Token));
    assert_eq!(who(None, &[]), Err(Failure::Missing));

    assert_eq!(who(None, &["BILLING.internal"]), Ok("billing"));
    assert_eq!(who(None, &["unknown", "spiffe://company/billing"]), Ok("billing"));
    assert_eq!(
        who(None, &["billing.internal", "spiffe://company/billing"]),
        Ok("billing")
    );
    assert_eq!(who(None, &["spiffe://company/Billing"]), Err(Failure::Certificate));
    assert_eq!(
        who(None, &["billing.internal", "other.internal"]),
        Err(Failure::Mismatch)
    );

    assert_eq!(who(Some(new), &["billing.internal"]), Ok("billing"));
    assert_eq!(who(Some(other), &["billing.internal"]), Err(Failure::Mismatch));
    assert_eq!(who(Some(new), &["unknown"]), Err(Failure::Mismatch));
    // It never falls back to the certificate.
    assert_eq!(who(Some(nobodys), &["billing.internal"]), Err(Failure::Token));
    let unreadable = Credentials {
        token: Presented::Unreadable,
        ..credentials(None, &["billing.internal"])
    };
    assert_eq!(callers.authenticate(&unreadable).unwrap_err(), Failure::Token);
}

#[test]
fn a_caller_keeps_its_number_whatever_becomes_of_the_others() {
    let ids = Ids::default();
    let numbers = |names: &[&str]| {
        let blocks = names
            .iter()
            .map(|name| format!("[[caller]]\nname = \"{name}\"\nnames = [\"{name}\"]\n"));
        let callers = Callers::new(read(&blocks.collect::<String>()).unwrap(), &ids);
        callers.callers.iter().map(|caller| caller.id.0).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&["a", "b"]), [0, 1]);
    assert_eq!(numbers(&["c", "b"]), [2, 1]);
    assert_eq!(numbers(&["b", "a"]), [1, 0]);
}

#[test]
fn a_file_is_added_to_without_losing_a_word() {
    let [first, second, third] = [(); 3].map(|()| Token::generate().unwrap().hash());
    let billing = Draft {
        name: "billing".into(),
        names: vec!["billing.internal".into()],
        collectors: vec!["c1".into(), "c2".into()],
        methods: vec!["AddRespondent".into()],
        is_operator: false,
        share: Some("20%".into()),
    };
    let comments = "# Ours.\n\n";
    let one = add(comments, &billing, &first).unwrap();
    let block = format!(
        "[[caller]]\nname = \"billing\"\ntokens = [\"{first}\"]\nnames = [\"billing.internal\"]\n\
         collectors = [\"c1\", \"c2\"]\nmethods = [\"AddRespondent\"]\nshare = \"20%\"\n"
    );
    assert_eq!(one, format!("# Ours.\n\n{block}"));
    let operator = Draft {
        name: "ops".into(),
        is_operator: true,
        ..Draft::default()
    };
    let commented = format!("{one}# The end.");
    let two = add(&commented, &operator, &second).unwrap();
    let block = format!("[[caller]]\nname = \"ops\"\ntokens = [\"{second}\"]\noperator = true\n");
    assert_eq!(two, format!("{commented}\n\n{block}"));

    assert!(matches!(add(&two, &operator, &third), Err(Error::Taken(name)) if name == "ops"));
    let greedy = Draft {
        share: Some("81%".into()),
        ..operator.clone()
    };
    let greedy = Draft {
        name: "greedy".into(),
        ..greedy
    };
    assert!(matches!(add(&two, &greedy, &third), Err(Error::Wrong(_))));
    assert!(matches!(add("[[caller", &operator, &third), Err(Error::Wrong(_))));
    let quoting = Draft {
        collectors: vec!["a\"]\nname = \"b".into()],
        ..operator
    };
    assert!(matches!(quoting.block(&third), Err(Error::Wrong(_))));
}

#[test]
fn a_further_token_leaves_the_file_as_it_is_otherwise() {
    let [first, second, third] = [(); 3].map(|()| Token::generate().unwrap().hash());
    let text = format!(
        "# Ours.\n[[caller]]\nname   = 'a' # first\ntokens = [\n  \"{first}\", # since June\n]\n\n[[caller]] # no tokens\n\
         name = \"b\"\nnames = [ 'b.internal' ]\n# The end.\n"
    );
    let a = rotate(&text, "a", &second).unwrap();
    let added: Vec<_> = a.lines().filter(|line| !text.lines().any(|old| old == *line)).collect();
    assert!(added.len() == 1 && added[0].contains(&second.to_string()), "{a}");
    assert_eq!(read(&a).unwrap()[0].tokens, [first, second]);
    let b = rotate(&text, "b", &third).unwrap();
    assert_eq!(
        b,
        text.replace("'b.internal' ]\n", &format!("'b.internal' ]\ntokens = [\"{third}\"]\n"))
    );
    assert!(matches!(rotate(&text, "c", &third), Err(Error::Unknown)));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in r#"(\[\[caller\]\]|name|tokens|share|methods|[ =\[\]{}"'.,\n#a-z%0-9]){0,40}"#) {
        if let Err(error) = read(&text) {
            assert!(!error.to_string().is_empty());
        }
    }
}
