use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;
use crate::invitation::Respondent;

const NOW: u64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT, RFC 9110's own example

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn status(http_status: u16) -> Option<Answer> {
    let head = Head {
        http_status,
        retry_after: None,
    };
    by_status(&head, now())
}

fn body(bytes: &[u8]) -> Answer {
    let respondent = Respondent {
        email: "jan@example.com".into(),
        ..Respondent::default()
    };
    let secrets = Secrets::of("the-token", &respondent);
    by_body(200, Body::Complete(bytes.to_vec()), &secrets)
}

fn is_in_doubt(answer: &Answer) -> bool {
    matches!(answer, Answer::InDoubt { .. })
}

#[test]
fn every_answer_has_its_name_among_all_names() {
    let notification = String::new();
    let cause = String::new();
    let answers = [
        Answer::Added {
            notification: notification.clone(),
        },
        Answer::ActionFailed {
            http_status: 200,
            notification,
        },
        Answer::BadRequest,
        Answer::Unauthorized,
        Answer::Forbidden,
        Answer::NotFound,
        Answer::RateLimited { retry_after: None },
        Answer::InternalError,
        Answer::Unavailable { retry_after: None },
        Answer::UnexpectedStatus { http_status: 302 },
        Answer::Unreachable { cause: cause.clone() },
        Answer::InDoubt {
            http_status: None,
            cause,
        },
    ];
    assert_eq!(answers.map(|answer| answer.name()), Answer::NAMES);
}

#[test]
fn every_status_has_its_row() {
    for http_status in 0..=u16::MAX {
        let answer = status(http_status);
        match http_status {
            200..=299 => assert_eq!(answer, None),
            400 => assert_eq!(answer, Some(Answer::BadRequest)),
            401 => assert_eq!(answer, Some(Answer::Unauthorized)),
            403 => assert_eq!(answer, Some(Answer::Forbidden)),
            404 => assert_eq!(answer, Some(Answer::NotFound)),
            429 => assert_eq!(answer, Some(Answer::RateLimited { retry_after: None })),
            500 => assert_eq!(answer, Some(Answer::InternalError)),
            503 => assert_eq!(answer, Some(Answer::Unavailable { retry_after: None })),
            300..=499 => assert_eq!(answer, Some(Answer::UnexpectedStatus { http_status })),
            _ => match answer {
                Some(Answer::InDoubt {
                    http_status: Some(kept),
                    ..
                }) => assert_eq!(kept, http_status),
                other => panic!("{http_status}: {other:?}"),
            },
        }
    }
}

#[test]
fn bodies_that_say_something() {
    let added = |notification: &str| Answer::Added {
        notification: notification.into(),
    };
    let failed = |notification: &str| Answer::ActionFailed {
        http_status: 200,
        notification: notification.into(),
    };
    for (bytes, wanted) in [
        (
            r#"{"status":true,"notification":"Action processed correctly"}"#,
            added("Action processed correctly"),
        ),
        (
            r#"{"status":false,"notification":"Action failed"}"#,
            failed("Action failed"),
        ),
        // The words decide nothing.
        (
            r#"{"status":false,"notification":"Action processed correctly"}"#,
            failed("Action processed correctly"),
        ),
        (
            r#"{"notification":"status: false","status":true,"more":[1,{"status":false}]}"#,
            added("status: false"),
        ),
        (r#"{"status":true}"#, added("")),
        (r#"{"status":true,"notification":null}"#, added("")),
        (r#"{"status":false,"notification":{"code":7}}"#, failed(r#"{"code":7}"#)),
        (
            r#"{"status":false,"notification":{"the-token":["\"jan@example.com\"",7]}}"#,
            failed(r#"{"[redacted]":["\"[redacted]\"",7]}"#),
        ),
        ("\u{feff} \r\n{\"status\":true}\n\n\u{a0}", added("")),
        (" \n\u{feff}{\"status\":true}", added("")),
        (
            "{„status”:true,„notification”:„Action processed correctly”}",
            added("Action processed correctly"),
        ),
        (
            "{“status”:false,“notification”:“Action failed”}",
            failed("Action failed"),
        ),
        ("{»status«:true}", added("")),
        // Strict JSON is taken as it is.
        ("{\"status\":true,\"notification\":\"„ok”\"}", added("„ok”")),
        (
            r#"{"status":true,"notification":"a\u0000b\nc jan@EXAMPLE.com the-token"}"#,
            added("abc [redacted] [redacted]"),
        ),
    ] {
        assert_eq!(body(bytes.as_bytes()), wanted, "{bytes}");
    }
    // ISO 8859-2, as the notification of an older Polish server might be.
    let Answer::Added { notification } = body(b"{\"status\":true,\"notification\":\"za\xbf\xf3\xb3\xe6!\"}") else {
        panic!("the status is as clear as ever");
    };
    assert!(notification.starts_with("za\u{fffd}") && notification.ends_with('!'));
}

#[test]
fn bodies_that_say_nothing() {
    for bytes in [
        "",
        " ",
        "\u{feff}",
        "true",
        "null",
        "[]",
        r#"[true,"Action processed correctly"]"#,
        r#"[{"status":true}]"#,
        "{}",
        r#"{"notification":"Action processed correctly"}"#,
        r#"{"Status":true}"#,
        r#"{"status":"true"}"#,
        r#"{"status":1}"#,
        r#"{"status":null}"#,
        r#"{"status":true"#,
        r#"{"status":true} {"status":false}"#,
        r#"{"status":true,"status":false}"#,
        "{„status”:true,„notification”:„x”,„status”:false}",
        "{'status':true}",
        "<html>OK</html>",
        r#"<br />Warning: …{"status":true}"#,
    ] {
        assert!(is_in_doubt(&body(bytes.as_bytes())), "{bytes}");
    }
    assert!(is_in_doubt(&body(b"\x1f\x8b\x08\x00\x00\x00\x00\x00")));
    let nested = format!("{{\"status\":true,\"x\":{}", "[".repeat(60_000));
    assert!(is_in_doubt(&body(nested.as_bytes())));
}

#[test]
fn typographic_quotes_within_json_begin_and_end_nothing() {
    for bytes in [
        "{\"a„:1,„status„:true,„b\":1}",
        "{\"status\":1,\"a„:1,„status„:true,„b\":1}",
        "{\"status\":true,\"status\":true,\"a„:„b\":1}",
    ] {
        assert!(is_in_doubt(&body(bytes.as_bytes())), "{bytes}");
    }
}

#[test]
fn bodies_that_were_not_read_to_their_end() {
    let broken = Body::Broken { cause: "reset".into() };
    for (body, wanted) in [
        (Body::TooLong, "the body is longer than 65536 bytes"),
        (broken, "reset"),
    ] {
        let answer = by_body(206, body, &Secrets::of("the-token", &Respondent::default()));
        let wanted = Answer::InDoubt {
            http_status: Some(206),
            cause: wanted.into(),
        };
        assert_eq!(answer, wanted);
    }
}

#[test]
fn retry_after_in_every_form() {
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    for (value, wanted) in [
        ("0", seconds(0)),
        ("7", seconds(7)),
        (" 120 ", seconds(120)),
        ("0000000000000000000000000030", seconds(30)),
        ("86401", seconds(86_400)),
        ("18446744073709551616", seconds(86_400)),
        ("99999999999999999999999999999999", seconds(86_400)),
        ("Sun, 06 Nov 1994 08:50:07 GMT", seconds(30)),
        ("Sunday, 06-Nov-94 08:50:07 GMT", seconds(30)),
        ("Sun Nov  6 08:50:07 1994", seconds(30)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", seconds(86_400)),
        ("Sun, 06 Nov 1994 08:49:36 GMT", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e9", None),
        ("soon", None),
        ("١٢", None),
    ] {
        assert_eq!(retry_after(value.as_bytes(), now()), wanted, "{value}");
    }
    assert_eq!(retry_after(b"\xff\xfe", now()), None);
}

#[test]
fn retry_after_belongs_to_429_and_503() {
    for http_status in [429, 503, 500, 400] {
        let head = Head {
            http_status,
            retry_after: Some(b"9"),
        };
        let retry_after = Some(Duration::from_secs(9));
        let wanted = match http_status {
            429 => Answer::RateLimited { retry_after },
            503 => Answer::Unavailable { retry_after },
            500 => Answer::InternalError,
            _ => Answer::BadRequest,
        };
        assert_eq!(by_status(&head, now()), Some(wanted));
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in any::<Vec<u8>>(), seconds in 0..=u32::MAX) {
        let now = UNIX_EPOCH + Duration::from_secs(seconds.into());
        body(&bytes);
        if let Some(after) = retry_after(&bytes, now) {
            prop_assert!(after <= MAX_RETRY_AFTER);
        }
    }

    #[test]
    fn nothing_but_a_boolean_status_adds(text in "[\\[\\]{}:,\"„”“a-z0-9 \\\\]{0,60}") {
        if let Answer::Added { .. } = body(text.as_bytes()) {
            prop_assert!(text.contains("status") && text.contains("true"));
        }
    }

    #[test]
    fn any_notification_comes_through_clean(notification in any::<String>(), status in any::<bool>()) {
        let bytes = serde_json::to_vec(&serde_json::json!({"status": status, "notification": notification})).unwrap();
        let kept = match body(&bytes) {
            Answer::Added { notification } if status => notification,
            Answer::ActionFailed { notification, .. } if !status => notification,
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert!(kept.chars().count() <= MAX_NOTIFICATION_CHARS);
        prop_assert!(!kept.chars().any(char::is_control));
    }
}
