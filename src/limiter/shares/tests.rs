use std::collections::HashMap;

use proptest::prelude::*;

use super::{super::lanes::StreamId, *};

/// A caller's id, and its share in hundredths if it has one.
type Caller = (u32, Option<u32>);

fn payers(callers: &[Caller]) -> Vec<Payer> {
    let share = |hundredths: u32| f64::from(hundredths) / 100.0;
    let all = callers.iter().filter_map(|(_, own)| own.map(share)).sum();
    callers
        .iter()
        .map(|(id, own)| Payer::new(*id, own.map(share), all))
        .collect()
}

fn unary(payer: Payer) -> Queue {
    Queue {
        payer,
        lane: Lane::Unary,
    }
}

fn item(payer: Payer, stream: u64) -> Queue {
    Queue {
        payer,
        lane: Lane::Stream(StreamId(stream)),
    }
}

fn fill<W: Copy>(shares: &mut Shares<W>, queue: Queue, waiter: W, count: usize) {
    for _ in 0..count {
        shares.push(queue, waiter);
    }
}

fn served<W>(shares: &mut Shares<W>, count: usize) -> Vec<W> {
    (0..count).map_while(|_| shares.pop()).collect()
}

fn count<W: PartialEq>(served: &[W], waiter: W) -> usize {
    served.iter().filter(|other| **other == waiter).count()
}

/// What happens to the queues, in numbers that stand for anything.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push { payer: usize, lane: u64 },
    Pop,
    Withdraw(usize),
}

fn steps(longest: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (any::<usize>(), 0..4_u64).prop_map(|(payer, lane)| Step::Push { payer, lane }),
        2 => Just(Step::Pop),
        1 => any::<usize>().prop_map(Step::Withdraw),
    ];
    prop::collection::vec(step, 0..longest)
}

fn lane(number: u64) -> Lane {
    match number {
        0 => Lane::Unary,
        stream => Lane::Stream(StreamId(stream)),
    }
}

/// Up to five callers, some of them with a share. All shares together may be more than the whole.
fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let share = prop_oneof![1 => Just(None), 3 => (1..=100_u32).prop_map(Some)];
    prop::collection::vec(share, 1..=5).prop_map(|shares| (0..).zip(shares).collect())
}

#[test]
fn without_shares_all_callers_are_one_group() {
    let [a, b] = [(1, None), (2, None)].map(|caller| payers(&[caller])[0]);
    let mut shares = Shares::new();
    for (queue, waiter) in [
        (item(a, 1), "a1"),
        (item(a, 1), "a2"),
        (unary(b), "bu"),
        (item(b, 2), "b1"),
        (unary(a), "au"),
    ] {
        shares.push(queue, waiter);
    }
    assert_eq!(served(&mut shares, 5), ["bu", "au", "a1", "b1", "a2"]);
}

#[test]
fn a_share_is_what_a_caller_gets_while_others_wait() {
    let callers = payers(&[(1, Some(20)), (2, Some(30)), (3, None)]);
    let (batch, team, other) = (callers[0], callers[1], callers[2]);
    let mut shares = Shares::new();
    fill(&mut shares, item(batch, 1), "batch", 1_000);
    // Alone it gets all.
    assert_eq!(count(&served(&mut shares, 100), "batch"), 100);
    fill(&mut shares, unary(other), "other", 1_000);
    // 20 to 50, as the third one does not call.
    let two = count(&served(&mut shares, 700), "batch");
    assert!((199..=201).contains(&two), "{two}");
    fill(&mut shares, unary(team), "team", 1_000);
    let three = served(&mut shares, 100);
    for (caller, expected) in [("batch", 20_usize), ("team", 30), ("other", 50)] {
        assert!(count(&three, caller).abs_diff(expected) <= 1, "{caller}: {three:?}");
    }
}

#[test]
fn the_withdrawn_leave_no_turns() {
    let callers = payers(&[(1, Some(10)), (2, Some(10))]);
    let mut shares = Shares::new();
    fill(&mut shares, unary(callers[0]), "stays", 100);
    let tickets: Vec<_> = (0..50).map(|_| shares.push(unary(callers[1]), "leaves")).collect();
    for ticket in &tickets {
        assert_eq!(shares.remove(*ticket), Some("leaves"));
        assert_eq!(shares.remove(*ticket), None);
    }
    assert_eq!(served(&mut shares, 10), ["stays"; 10]);
    // And it owes nothing for them.
    fill(&mut shares, unary(callers[1]), "back", 50);
    assert_eq!(count(&served(&mut shares, 20), "back"), 10);
}

#[test]
fn an_old_ticket_is_nobody_elses() {
    let callers = payers(&[(1, Some(10)), (2, Some(10))]);
    let mut shares = Shares::new();
    let old = shares.push(unary(callers[0]), "old");
    assert_eq!(shares.pop(), Some("old"));
    // Its group is made anew.
    shares.push(unary(callers[0]), "new");
    assert_eq!(shares.remove(old), None);
    assert_eq!(shares.len(), 1);
}

#[test]
fn one_request_at_a_time_gets_its_share_and_no_more() {
    for own in [5, 20, 50] {
        let callers = payers(&[(1, Some(own)), (2, None)]);
        for (one, many, share) in [(callers[0], callers[1], own), (callers[1], callers[0], 100 - own)] {
            let mut shares = Shares::new();
            fill(&mut shares, unary(many), "many", 5_000);
            let mut got = 0;
            while got < 200 {
                shares.push(unary(one), "one");
                while shares.pop() != Some("one") {}
                got += 1;
                // Where its share leaves it time for that, it comes back a little later.
                served(&mut shares, usize::from(share < 50));
            }
            let others = 5_000 - (shares.len() as u32);
            let expected = got * (100 - share) / share;
            assert!(
                others.abs_diff(expected) <= 100 / share,
                "{others} instead of {expected}"
            );
        }
    }
}

#[test]
fn what_was_used_is_forgotten_when_nobody_waits_any_more() {
    for own in [1, 99] {
        let callers = payers(&[(1, Some(own)), (2, None)]);
        let mut shares = Shares::new();
        for round in 0..3 {
            fill(&mut shares, unary(callers[0]), "own", 3);
            fill(&mut shares, unary(callers[1]), "rest", 3);
            let order = served(&mut shares, 3);
            for caller in ["own", "rest"] {
                assert!(order.contains(&caller), "round {round}: {order:?}");
            }
            served(&mut shares, 3);
        }
    }
}

#[test]
fn the_newest_request_tells_the_share() {
    let before = payers(&[(1, Some(10)), (2, None)]);
    let after = payers(&[(1, Some(50)), (2, None)]);
    let mut shares = Shares::new();
    for callers in [&before, &after] {
        fill(&mut shares, unary(callers[0]), "own", 500);
        fill(&mut shares, unary(callers[1]), "rest", 500);
    }
    // What was paid at the old price is over by then.
    served(&mut shares, 20);
    assert!(count(&served(&mut shares, 100), "own").abs_diff(50) <= 1);
}

#[test]
fn it_is_known_who_waits() {
    let callers = payers(&[(1, Some(10)), (2, None)]);
    let mut shares = Shares::new();
    let ticket = shares.push(unary(callers[0]), 0);
    fill(&mut shares, item(callers[0], 1), 0, 2);
    fill(&mut shares, unary(callers[1]), 0, 2);
    shares.push(Lane::Unary.into(), 0);
    assert_eq!((shares.len(), shares.unary_len()), (6, 4));
    let sorted = |shares: &Shares<_>| {
        let mut waiting = shares.waiting();
        waiting.sort_unstable();
        waiting
    };
    assert_eq!(sorted(&shares), [(None, 1), (Some(1), 3), (Some(2), 2)]);
    shares.remove(ticket);
    assert_eq!(sorted(&shares), [(None, 1), (Some(1), 2), (Some(2), 2)]);
    assert_eq!(shares.retain(|_, _| false).len(), 5);
    assert_eq!(sorted(&shares), []);
}

#[test]
fn retain_tells_places_within_a_group() {
    let callers = payers(&[(1, Some(10)), (2, None)]);
    let mut shares = Shares::new();
    for waiter in ["a1", "a2", "a3"] {
        shares.push(unary(callers[0]), waiter);
    }
    fill(&mut shares, unary(callers[1]), "b", 1);
    let mut places = Vec::new();
    let out = shares.retain(|place, waiter| {
        places.push((*waiter, place));
        *waiter != "a1"
    });
    assert_eq!(out, ["a1"]);
    places.sort_unstable();
    assert_eq!(places, [("a1", 0), ("a2", 0), ("a3", 1), ("b", 0)]);
    assert_eq!(shares.len(), 3);
}

/// Shares to which this has happened; the waiters are what `waiter` makes of their payers.
fn after<W>(steps: &[Step], payers: &[Payer], waiter: impl Fn(Payer) -> W) -> Shares<W> {
    let mut shares = Shares::new();
    let mut tickets = Vec::new();
    for step in steps {
        match *step {
            Step::Push { payer, lane: number } => {
                let payer = payers[payer % payers.len()];
                let lane = lane(number);
                tickets.push(shares.push(Queue { payer, lane }, waiter(payer)));
            }
            Step::Withdraw(which) if !tickets.is_empty() => {
                shares.remove(tickets[which % tickets.len()]);
            }
            Step::Withdraw(_) => {}
            Step::Pop => {
                shares.pop();
            }
        }
    }
    shares
}

proptest! {
    /// Whoever is served, within its group it is the one whose turn it is there; and somebody is served while anybody waits.
    #[test]
    fn shares_change_the_order_between_groups_alone(callers in callers(), steps in steps(300)) {
        let payers = payers(&callers);
        let mut shares = Shares::new();
        let mut groups: HashMap<Option<u32>, Lanes<usize>> = HashMap::new();
        let mut tickets = Vec::new();
        for step in steps {
            match step {
                Step::Push { payer, lane: number } => {
                    let payer = payers[payer % payers.len()];
                    let waiter = tickets.len();
                    let ticket = shares.push(Queue { payer, lane: lane(number) }, waiter);
                    let group = groups.entry(payer.own()).or_insert_with(Lanes::new);
                    group.push(ticket.lane, ticket.number, waiter);
                    tickets.push(ticket);
                }
                Step::Withdraw(which) if !tickets.is_empty() => {
                    let ticket = tickets[which % tickets.len()];
                    let group = groups.get_mut(&ticket.own).unwrap();
                    prop_assert_eq!(shares.remove(ticket), group.remove(ticket.lane, ticket.number));
                }
                Step::Withdraw(_) => {}
                Step::Pop => {
                    let anybody = groups.values().any(|group| group.len() > 0);
                    let next = shares.pop();
                    prop_assert_eq!(next.is_some(), anybody);
                    if let Some(waiter) = next {
                        let group = groups.get_mut(&tickets[waiter].own).unwrap();
                        prop_assert_eq!(group.pop(), Some(waiter));
                    }
                }
            }
            let waiting: usize = groups.values().map(Lanes::len).sum();
            prop_assert_eq!(shares.len(), waiting);
            prop_assert_eq!(shares.waiting().iter().map(|(_, count)| count).sum::<usize>(), waiting);
        }
    }

    /// Over any stretch in which two groups wait, what each was served times its price differs by a permit of each at most.
    #[test]
    fn who_waits_is_served_in_proportion_to_its_share(callers in callers(), before in steps(100)) {
        let payers = payers(&callers);
        let mut shares = after(&before, &payers, Payer::own);
        let permits = 400;
        for payer in &payers {
            fill(&mut shares, unary(*payer), payer.own(), permits);
        }
        let order = served(&mut shares, permits);
        for one in &payers {
            for other in &payers {
                let (mut ahead, mut lowest, mut highest) = (0_i128, 0, 0);
                for group in &order {
                    ahead += if *group == one.own() { i128::from(one.price()) } else { 0 };
                    ahead -= if *group == other.own() { i128::from(other.price()) } else { 0 };
                    (lowest, highest) = (ahead.min(lowest), ahead.max(highest));
                }
                let bound = i128::from(one.price()) + i128::from(other.price());
                prop_assert!(highest - lowest <= bound, "{} > {}", highest - lowest, bound);
            }
        }
    }

    /// It gets its first permit after one of each other group at most, and from then on its share.
    #[test]
    fn who_comes_back_gets_neither_a_burst_nor_a_wait(
        callers in callers(),
        away in 0..200_usize,
        used in 0..3_usize,
    ) {
        let payers = payers(&callers);
        let (back, others) = payers.split_last().unwrap();
        prop_assume!(others.iter().all(|other| other.own() != back.own()));
        let mut shares = Shares::new();
        // Used up what it wanted while the others waited, and then was away.
        for other in others {
            fill(&mut shares, unary(*other), false, 2_500);
        }
        fill(&mut shares, unary(*back), true, used);
        let mut left = used;
        while left > 0 {
            left -= usize::from(shares.pop() == Some(true));
        }
        // After what the others are owed for its last permit, it owes nothing.
        served(&mut shares, 600 + away);
        fill(&mut shares, unary(*back), true, 300);
        let wait = iter::from_fn(|| shares.pop()).take_while(|is_back| !is_back).count();
        prop_assert!(wait <= others.len(), "{wait} of others went first");
        let weight = |payer: &Payer| 1.0 / payer.price() as f64;
        let mut groups: Vec<&Payer> = payers.iter().collect();
        groups.sort_by_key(|payer| payer.own());
        groups.dedup_by_key(|payer| payer.own());
        let share = weight(back) / groups.into_iter().map(weight).sum::<f64>();
        let got = count(&served(&mut shares, 250), true) as f64;
        // A permit of its own, and of each other group one.
        let bound = 1.0 + share * payers.len() as f64;
        prop_assert!((got - 250.0 * share).abs() <= bound + 1.0, "{got} instead of {}", 250.0 * share);
    }

    #[test]
    fn a_newcomer_gets_its_permit_after_as_many_as_foretold(
        callers in callers(),
        before in steps(120),
        payer in any::<usize>(),
        is_unary in any::<bool>(),
    ) {
        let payers = payers(&callers);
        let payer = payers[payer % payers.len()];
        let mut shares = after(&before, &payers, |_| "before");
        let foretold = if is_unary {
            shares.ahead_of_new_unary(payer)
        } else {
            shares.ahead_of_new_stream(payer)
        };
        shares.push(if is_unary { unary(payer) } else { item(payer, 9) }, "newcomer");
        let ahead = iter::from_fn(|| shares.pop()).take_while(|waiter| *waiter == "before").count();
        prop_assert_eq!(ahead, foretold);
    }

    #[test]
    fn whoever_comes_later_a_newcomer_waits_for_as_many_as_foretold_at_least(
        callers in callers(),
        before in steps(120),
        later in steps(60),
        payer in any::<usize>(),
        number in 0..4_u64,
    ) {
        let payers = payers(&callers);
        let queue = Queue { payer: payers[payer % payers.len()], lane: lane(number) };
        let mut shares = after(&before, &payers, |_| "before");
        let foretold = shares.ahead(queue);
        shares.push(queue, "newcomer");
        let mut ahead = 0;
        let mut later = later.into_iter();
        loop {
            match later.next() {
                Some(Step::Push { payer, lane: number }) => {
                    let payer = payers[payer % payers.len()];
                    shares.push(Queue { payer, lane: lane(number) }, "later");
                }
                Some(Step::Withdraw(_)) => {}
                Some(Step::Pop) | None => match shares.pop() {
                    Some("newcomer") => break,
                    _ => ahead += 1,
                },
            }
        }
        prop_assert!(ahead >= foretold, "{ahead} instead of {foretold}");
    }
}
