//! `import`: lists through the real binary, a real gateway and the sandbox.

mod kills;
mod run;

use std::fs;

use surveylab_gateway::{
    proto::{Outcome, Resolution},
    sandbox::{Fault, OnRepeat},
};

use crate::support::{
    Gateway, Options,
    call::{add, added, request, resolve},
    gateway::{surveylab, surveylab_with},
    relay::Relay,
};
use crate::token::{NEXT_TOKEN, TokenFile, accept, until_read_again};
use run::{Import, Run};

/// A list of so many rows with a crk of each: k0, k1 …
fn list(rows: usize) -> String {
    let mut list = String::from("crk,email\n");
    for row in 0..rows {
        list.push_str(&format!("k{row},person{row}@example.com\n"));
    }
    list
}

#[tokio::test]
async fn every_row_gets_one_result_and_is_sent_once() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let mut before = request("k7");
    before.email = "person7@example.com".into();
    assert_eq!(added(&client, before).await, Outcome::Added);

    let import = Import::of(&list(500));
    let run = import.run(gateway.grpc, &[]).await;
    run.ended(0);
    assert!(
        run.stdout
            .contains("500 of 500 rows have a result: 499 added, 1 duplicate, 0 failed, 0 in doubt")
    );
    let results = import.results();
    assert_eq!(results.len(), 500);
    assert_eq!(results[0].join(","), "2,k0,added,OK,,yes,Action processed correctly");
    assert_eq!(results[7][2..6], ["duplicate", "OK", "", "no"]);
    assert_eq!(sandbox.report().requests, 500);

    // Again: nothing is asked, not even whether there is a gateway.
    let again = import.run("127.0.0.1:1".parse().unwrap(), &[]).await;
    again.ended(0);
    assert_eq!(again.stdout, run.stdout);
    assert_eq!(import.results(), results);
    assert_eq!(sandbox.report().requests, 500);
}

#[tokio::test]
async fn each_outcome_has_its_line_and_its_exit_code_and_can_be_seen_to() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(400).for_crk("k1").times(1));
    sandbox.add_fault(Fault::status(404).for_crk("k2"));
    sandbox.add_fault(Fault::half_body().for_crk("k3").times(1));
    let gateway = Gateway::start(&sandbox).await;
    let import = Import::of(&list(5));
    let run = import.run(gateway.grpc, &["--failed", "failed.csv"]).await;
    run.ended(4);
    let columns = |row: usize| import.results()[row][1..6].join(",");
    assert_eq!(columns(1), "k1,failed,INVALID_ARGUMENT,SURVEYLAB_BAD_REQUEST,yes");
    assert_eq!(columns(2), "k2,failed,NOT_FOUND,SURVEYLAB_NOT_FOUND,yes");
    assert_eq!(columns(3), "k3,in_doubt,FAILED_PRECONDITION,OUTCOME_IN_DOUBT,unknown");
    assert!(
        run.stdout.contains("  1 failed: SURVEYLAB_BAD_REQUEST\n"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("2 rows that failed: failed.csv"), "{}", run.stdout);
    assert_eq!(
        fs::read_to_string(import.path("failed.csv")).unwrap(),
        "crk,email\nk1,person1@example.com\nk2,person2@example.com\n"
    );

    // What failed can be asked about again; the doubt stays.
    import.run(gateway.grpc, &["--retry-failed"]).await.ended(4);
    assert_eq!(columns(1), "k1,added,OK,,yes");
    assert_eq!(columns(2), "k2,failed,NOT_FOUND,SURVEYLAB_NOT_FOUND,yes");
    import.run(gateway.grpc, &["--retry-in-doubt"]).await.ended(4);
    assert_eq!(columns(3), "k3,in_doubt,FAILED_PRECONDITION,OUTCOME_IN_DOUBT,unknown");
    resolve(&gateway.client().await, "k3", Resolution::Added).await.unwrap();
    import.run(gateway.grpc, &["--retry-in-doubt"]).await.ended(3);
    assert_eq!(columns(3), "k3,duplicate,OK,,no");
    assert_eq!(import.results().len(), 5);

    sandbox.clear_faults();
    fs::rename(import.path("failed.csv"), import.path("list.csv")).unwrap();
    import.run(gateway.grpc, &["--results", "others.csv"]).await.ended(0);
    assert_eq!(sandbox.report().duplicates.len(), 0);
}

#[tokio::test]
async fn nothing_is_sent_of_a_list_with_bad_rows_unless_they_are_to_be_skipped() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let import = Import::of(
        "crk,email\nk0,a@example.com\nk1,not an address\nk2,c@example.com\nk2,d@example.com\n,e@example.com\n",
    );
    let run = import.run(gateway.grpc, &[]).await;
    run.ended(3);
    for line in ["line 3", "line 5", "line 6", "nothing was sent"] {
        assert!(run.stderr.contains(line), "no {line:?} in\n{}", run.stderr);
    }
    assert!(
        !run.stderr.contains("not an address") && !run.stderr.contains("example.com"),
        "{}",
        run.stderr
    );
    assert_eq!(sandbox.report().requests, 0);
    assert_eq!(import.results().len(), 0);

    import.run(gateway.grpc, &["--skip-bad"]).await.ended(3);
    let results = import.results();
    assert_eq!(results.len(), 5);
    assert_eq!(
        results[1][..6].join(","),
        "3,k1,failed,INVALID_ARGUMENT,INVALID_REQUEST,no"
    );
    let of_k2 = [results[2][2].as_str(), results[3][4].as_str()];
    let other = [results[2][4].as_str(), results[3][2].as_str()];
    assert!(
        of_k2 == ["added", "CRK_REUSED"] || other == ["CRK_REUSED", "added"],
        "{results:?}"
    );
    assert_eq!(sandbox.report().requests, 2);
}

#[tokio::test]
async fn a_bad_row_whose_crk_spans_lines_is_known_again() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let import = Import::of("crk,email\nk0,a@example.com\n\"two\nlines\",b@example.com\n\"a\ttab\",c@example.com\n");
    import.run(gateway.grpc, &["--skip-bad"]).await.ended(3);
    let results = import.results();
    assert_eq!(
        results.iter().map(|row| row[1].as_str()).collect::<Vec<_>>(),
        ["k0", "two lines", "a tab"]
    );
    import.run(gateway.grpc, &["--skip-bad"]).await.ended(3);
    assert_eq!(import.results(), results);
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_dry_run_sends_nothing_and_tells_how_long_it_takes() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::half_body().for_crk("k3"));
    let options = Options::new().flag("--rate", "2/s").flag("--burst", 5);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    for row in [2, 3] {
        let mut request = request(&format!("k{row}"));
        request.email = format!("person{row}@example.com");
        let _either = add(&client, request).await;
    }
    let import = Import::of(&list(102));
    let run = import.run(gateway.grpc, &["--dry-run"]).await;
    run.ended(4);
    assert!(
        run.stdout
            .contains("100 would be added, 1 are duplicates, 1 in doubt, 0 would fail; nothing was sent"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("that takes 50 s at 2/s"), "{}", run.stdout);
    assert_eq!(sandbox.report().requests, 2);
    assert!(!import.path("list.csv.results.csv").exists());
}

#[tokio::test]
async fn an_interrupted_import_finishes_what_is_on_the_wire_and_the_next_one_goes_on() {
    let sandbox = surveylab().await;
    let options = Options::new().flag("--rate", "300/s").flag("--burst", 10);
    let gateway = Gateway::with(options, &sandbox).await;
    let import = Import::of(&list(1_000));
    let running = import.spawn(gateway.grpc, &[]);
    sandbox.wait_for_effects(100).await;
    running.signal("INT");
    let run = Run::from(running.end().await);
    run.ended(1);
    assert!(
        run.stderr.contains("interrupted: the same command goes on from here"),
        "{}",
        run.stderr
    );
    let early = import.results().len();
    assert!((100..1_000).contains(&early), "{early} results");

    import.run(gateway.grpc, &[]).await.ended(0);
    assert_eq!(import.results().len(), 1_000);
    let report = sandbox.report();
    assert_eq!(
        (report.requests, report.effects, report.duplicates.len()),
        (1_000, 1_000, 0)
    );
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::hang());
    let gateway = Gateway::start(&sandbox).await;
    let import = Import::of(&list(3));
    let mut running = import.spawn(gateway.grpc, &[]);
    sandbox.wait_for_requests(3).await;
    running.signal("INT");
    running.line_with("waiting for what may be on the wire").await;
    running.signal("INT");
    Run::from(running.end().await).ended(130);
}

/// Refused requests at most: those that trip the breaker, what is on the wire by then, and some probes.
const REFUSED: u64 = 20 + 32 + 8;

#[tokio::test]
async fn an_account_that_refuses_everything_does_not_burn_the_list() {
    for (fault, said) in [
        (Some(Fault::status(401)), "UNAUTHENTICATED SURVEYLAB_UNAUTHORIZED"),
        // What SurveyLab says of a wrong token, too.
        (None, "INVALID_ARGUMENT SURVEYLAB_BAD_REQUEST"),
    ] {
        let sandbox = surveylab().await;
        accept(&sandbox, &[NEXT_TOKEN]);
        sandbox.set_faults(fault.into_iter().collect());
        let file = TokenFile::new();
        let gateway = Gateway::with(file.options(Options::new()), &sandbox).await;
        let import = Import::of(&list(2_000));
        let run = import.run(gateway.grpc, &[]).await;
        run.ended(1);
        let message = format!("SurveyLab refuses every request with {said}: see to that first.");
        assert!(run.stderr.contains(&message), "{}", run.stderr);
        let requests = sandbox.report().requests;
        assert!((20..=REFUSED).contains(&requests), "{requests} requests");
        // What was not sent has no result, nor has what was on the wire at the end.
        let results = import.results().len() as u64;
        assert!(
            (20..=requests).contains(&results),
            "{results} results of {requests} requests"
        );

        sandbox.clear_faults();
        file.replace(NEXT_TOKEN);
        until_read_again(&gateway, 1).await;
        import.run(gateway.grpc, &["--retry-failed"]).await.ended(0);
        let results = import.results();
        assert_eq!(results.len(), 2_000);
        assert!(results.iter().all(|row| row[2] == "added"));
        let report = sandbox.report();
        assert_eq!((report.effects, report.duplicates.len()), (2_000, 0));
        assert_eq!(report.requests, requests + 2_000);
    }
}

#[tokio::test]
async fn rows_that_fail_for_no_reason_of_theirs_end_the_import_without_a_breaker_too() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(401));
    let gateway = Gateway::with(Options::new().flag("--breaker-after", 0), &sandbox).await;
    let import = Import::of(&list(2_000));
    let run = import.run(gateway.grpc, &[]).await;
    run.ended(1);
    let message = "100 rows in a row ended with UNAUTHENTICATED SURVEYLAB_UNAUTHORIZED";
    assert!(run.stderr.contains(message), "{}", run.stderr);
    let refused = import.results().len();
    assert!(refused < 1_500, "{refused} rows were burnt");
}

#[tokio::test]
async fn a_list_whose_rows_are_bad_for_a_while_goes_on_after_them() {
    let sandbox = surveylab().await;
    for row in 50..72 {
        sandbox.add_fault(Fault::status(400).for_crk(format!("k{row}")));
    }
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 1), &sandbox).await;
    let import = Import::of(&list(400));
    import.run(gateway.grpc, &[]).await.ended(3);
    let results = import.results();
    let with = |outcome: &str| results.iter().filter(|row| row[2] == outcome).count();
    assert_eq!((with("failed"), with("added")), (22, 378));
    assert_eq!(sandbox.report().requests, 400);
    assert!(gateway.log().contains("refuses every request for a collector"));
}

#[tokio::test]
async fn rows_that_surveylab_puts_off_are_tried_again() {
    let sandbox = surveylab().await;
    // More than the gateway itself tries for one call.
    sandbox.add_fault(Fault::status(503).for_crk("k1").times(2));
    sandbox.add_fault(Fault::status(429).retry_after("1").for_crk("k2").times(1));
    let options = Options::new().flag("--max-attempts", 1);
    let gateway = Gateway::with(options, &sandbox).await;
    let import = Import::of(&list(4));
    import.run(gateway.grpc, &[]).await.ended(0);
    assert!(
        import.results().iter().all(|row| row[2] == "added"),
        "{:?}",
        import.results()
    );
    assert_eq!(sandbox.report().effects, 4);
}

#[tokio::test]
async fn results_of_another_list_are_left_alone() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let import = Import::of(&list(3));
    import.run(gateway.grpc, &[]).await.ended(0);
    let results = fs::read(import.path("list.csv.results.csv")).unwrap();

    for (other, told) in [
        (
            "crk,email\nk0,person0@example.com\nother,o@example.com\nk2,person2@example.com\n",
            "line 3 of the list",
        ),
        (
            "crk,email\nk0,person0@example.com\n",
            "rows that the list does not have",
        ),
    ] {
        fs::write(import.path("list.csv"), other).unwrap();
        let run = import.run(gateway.grpc, &[]).await;
        run.ended(2);
        assert!(run.stderr.contains(told), "{}", run.stderr);
    }
    assert_eq!(fs::read(import.path("list.csv.results.csv")).unwrap(), results);

    fs::write(import.path("notes.txt"), "remember the milk\n").unwrap();
    let run = import.run(gateway.grpc, &["--results", "notes.txt"]).await;
    run.ended(2);
    assert!(run.stderr.contains("notes.txt is not a results file"), "{}", run.stderr);
    assert_eq!(
        fs::read_to_string(import.path("notes.txt")).unwrap(),
        "remember the milk\n"
    );
    assert_eq!(sandbox.report().requests, 3);
}

#[tokio::test]
async fn a_result_that_was_cut_short_is_asked_for_again() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let import = Import::of(&list(3));
    import.run(gateway.grpc, &[]).await.ended(0);
    let path = import.path("list.csv.results.csv");
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let run = import.run(gateway.grpc, &[]).await;
        assert_eq!(run.code, Some(0), "cut at {length}: {}", run.stderr);
        let results = import.results();
        assert_eq!(
            results.iter().map(|row| row[1].as_str()).collect::<Vec<_>>(),
            ["k0", "k1", "k2"]
        );
    }
    assert_eq!(sandbox.report().requests, 3);
}

#[tokio::test]
async fn two_imports_do_not_share_their_results() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::hang().times(1));
    let gateway = Gateway::start(&sandbox).await;
    let import = Import::of(&list(1));
    let first = import.spawn(gateway.grpc, &[]);
    sandbox.wait_for_requests(1).await;
    let second = import.run(gateway.grpc, &[]).await;
    second.ended(1);
    assert!(second.stderr.contains("belongs to another import"), "{}", second.stderr);
    drop(first);
}

#[tokio::test]
async fn what_can_not_begin_says_so_in_one_line() {
    let import = Import::of(&list(2));
    let nobody = "127.0.0.1:1".parse().unwrap();
    for (arguments, code, told) in [
        (&[][..], 1, "no gateway at http://127.0.0.1:1"),
        (&["--results", "list.csv"], 2, "--results names the list itself"),
        (&["--failed", "list.csv"], 2, "--failed names the list itself"),
        (&["--results", "no/such/place.csv"], 1, "no/such/place.csv"),
    ] {
        let run = import.run(nobody, arguments).await;
        run.ended(code);
        assert!(run.stderr.contains(told), "{arguments:?}: {}", run.stderr);
    }
    fs::remove_file(import.path("list.csv")).unwrap();
    let run = import.run(nobody, &[]).await;
    run.ended(2);
    assert!(run.stderr.contains("list.csv"), "{}", run.stderr);
}

#[tokio::test]
async fn standard_input_is_a_list_too() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let import = Import::of("");
    for (flags, prefix) in [(&["--no-check"][..], "a"), (&["--failed", "failed.csv"], "b")] {
        let rows = list(20).replace('k', prefix).replace(&format!("cr{prefix}"), "crk");
        let results = format!("{prefix}.csv");
        let arguments = [flags, &["--results", &results]].concat();
        let run = import.run_with_input(gateway.grpc, &arguments, &rows).await;
        run.ended(0);
        assert_eq!(fs::read_to_string(import.path(&results)).unwrap().lines().count(), 21);
    }
    assert_eq!(sandbox.report().effects, 40);
    let run = import.run_with_input(gateway.grpc, &[], "").await;
    run.ended(2);
    assert!(run.stderr.contains("--results is required"), "{}", run.stderr);
}

#[tokio::test]
async fn a_gateway_that_drains_and_comes_back_is_waited_for() {
    let sandbox = surveylab_with(|config| config.on_repeat = OnRepeat::SendAgain).await;
    let options = Options::new().flag("--rate", "500/s").flag("--burst", 20);
    let gateway = Gateway::with(options, &sandbox).await;
    let relay = Relay::to(gateway.grpc).await;
    let import = Import::of(&list(600));
    let running = import.spawn(relay.address, &[]);
    sandbox.wait_for_effects(100).await;
    gateway.signal("TERM");
    let gateway = gateway.restart_when_ended().await;
    relay.turn_to(gateway.grpc);
    Run::from(running.end().await).ended(0);
    assert_eq!(import.results().len(), 600);
    let report = sandbox.report();
    assert_eq!((report.effects, report.duplicates.len()), (600, 0));
}
