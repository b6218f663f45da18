//! The rules of listings.

use super::*;

pub(super) async fn a_listing_is_in_bytewise_order_of_keys(backend: impl Backend) {
    let ledger = backend.ledger();
    // In UTF-16, or by a locale, or without case, each of these would stand elsewhere.
    let crks = [
        "10",
        "2",
        "Z",
        "a",
        "aa",
        "z",
        "ä",
        "ł",
        "\u{e000}",
        "\u{ffff}",
        "\u{10348}",
    ];
    for crk in crks.iter().rev() {
        put(ledger, &Key::new("é", *crk), added(), 1).await;
        ledger.claim(a_claim(&Key::new("Z", *crk), 1)).await.expect("claims");
    }
    let keys: Vec<_> = all(ledger).await.into_iter().map(|record| record.key).collect();
    let expected: Vec<_> = ["Z", "é"]
        .iter()
        .flat_map(|id| crks.map(|crk| Key::new(*id, crk)))
        .collect();
    assert_eq!(keys, expected);
}

pub(super) async fn a_listing_shows_a_claim_instead_of_what_was(backend: impl Backend) {
    let ledger = backend.ledger();
    put(ledger, &key("1"), failed(), 1).await;
    ledger.claim(a_claim(&key("1"), 3)).await.expect("claims");
    let listed = all(ledger).await;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].state, listed[0].attempts), (State::Pending, 2));
    let query = Query {
        state: Some(State::Failed),
        limit: 9,
        ..Query::default()
    };
    assert_eq!(ledger.list(query).await.expect("lists"), []);
}

pub(super) async fn a_listing_is_filtered(backend: impl Backend) {
    let ledger = backend.ledger();
    for id in ["a", "b", "c"] {
        put(ledger, &Key::new(id, "added"), added(), 1).await;
        put(ledger, &Key::new(id, "doubt"), in_doubt(), 1).await;
        put(ledger, &Key::new(id, "failed"), failed(), 1).await;
        ledger
            .claim(a_claim(&Key::new(id, "pending"), 1))
            .await
            .expect("claims");
    }
    let everything = all(ledger).await;
    let collectors = [None, Some("a"), Some("b"), Some("c"), Some("d")];
    let states = [
        None,
        Some(State::Pending),
        Some(State::Added),
        Some(State::Failed),
        Some(State::InDoubt),
    ];
    let afters = ["", "a/doubt", "b/", "b/doubt", "b/pending", "bb/x", "c/pending"];
    for (id, state, after) in collectors
        .iter()
        .flat_map(|id| states.map(|state| afters.map(|after| (*id, state, after))))
        .flatten()
    {
        let after = after.split_once('/').map(|(id, crk)| Key::new(id, crk));
        let query = Query {
            collector_id: id.map(Into::into),
            state,
            after,
            limit: 5,
        };
        assert_eq!(
            ledger.list(query.clone()).await.expect("lists"),
            matching(&everything, &query),
            "{query:?}"
        );
    }
}

pub(super) fn matching<'a>(records: impl IntoIterator<Item = &'a Record>, query: &Query) -> Vec<Record> {
    records
        .into_iter()
        .filter(|record| {
            query
                .collector_id
                .as_deref()
                .is_none_or(|id| id == record.key.collector_id())
        })
        .filter(|record| query.state.is_none_or(|state| state == record.state))
        .filter(|record| query.after.as_ref().is_none_or(|after| record.key > *after))
        .take(query.limit)
        .cloned()
        .collect()
}

pub(super) async fn a_page_of_nothing_is_empty(backend: impl Backend) {
    put(backend.ledger(), &key("1"), added(), 1).await;
    assert_eq!(backend.ledger().list(Query::default()).await.expect("lists"), []);
}

pub(super) async fn paging_survives_inserts(backend: impl Backend) {
    let ledger = backend.ledger();
    let even: Vec<_> = (0..40).step_by(2).map(|n| key(&format!("{n:02}"))).collect();
    for key in &even {
        put(ledger, key, added(), 1).await;
    }
    let mut seen = Vec::new();
    let mut query = Query {
        limit: 3,
        ..Query::default()
    };
    for n in (1..).step_by(4) {
        let page = ledger.list(query.clone()).await.expect("lists");
        let Some(last) = page.last() else { break };
        query.after = Some(last.key.clone());
        seen.extend(page.into_iter().map(|record| record.key));
        put(ledger, &key(&format!("{n:02}")), added(), 2).await;
        ledger
            .claim(a_claim(&key(&format!("{:02}", n + 2)), 2))
            .await
            .expect("claims");
    }
    assert!(seen.is_sorted_by(|one, other| one < other), "{seen:?}");
    assert!(even.iter().all(|key| seen.contains(key)), "{seen:?}");
}
