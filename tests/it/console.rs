//! The console: who is let in, what they may do, what is kept of it, and what is never shown.

use std::collections::BTreeSet;

use kyc_worker::console::ROUTES;
use kyc_worker::domain::permission::{Permission, Role};
use reqwest::Method;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use crate::harness::console::{
    AUDITOR, Answer, Console, OPERATOR, Person, REVIEWER, SECRET, VIEWER, headers_of,
};
use crate::harness::{WorkerProcess, World, world};

const PEOPLE: [(Role, Person); 4] = [
    (Role::Viewer, VIEWER),
    (Role::Operator, OPERATOR),
    (Role::Reviewer, REVIEWER),
    (Role::Auditor, AUDITOR),
];

/// Jobs at every end that the pages tell of differently, without a worker.
async fn fill(world: &World) -> Vec<Uuid> {
    sqlx::raw_sql(include_str!("rows/0001_baseline.sql")).execute(&world.pool).await.expect("rows");
    // Rows that nobody worked for have no history to verify.
    world.is_tampered_with();
    sqlx::query_scalar("select job_id from submission order by job_id")
        .fetch_all(&world.pool)
        .await
        .expect("the database answers")
}

/// The address of a route about this job, this customer and this proposal.
fn path_of(route: &str, job: Uuid, customer: Uuid) -> String {
    let path = match route {
        path if path.starts_with("/customers") => path.replace("{id}", &customer.to_string()),
        path if path.starts_with("/proposals") => path.replace("{id}", "1"),
        path => path.replace("{id}", &job.to_string()),
    };
    match route {
        "/jobs/{id}/resolve" => format!("{path}?as=rejected"),
        "/customers/{id}/budget" => format!("{path}?used=1"),
        "/find" => format!("{path}?q={job}"),
        _ => path,
    }
}

#[test]
fn each_route_is_answered_to_whoever_may_and_to_nobody_else() {
    world(async |world| {
        fill(&world).await;
        let console = world.start_console().await;
        let job: Uuid = "00000000-0000-0000-0000-000000000008".parse().expect("a UUID");
        let customer: Uuid = "00000000-0000-0000-0001-000000000008".parse().expect("a UUID");
        for route in ROUTES {
            let method: Method = route.method.to_uppercase().parse().expect("a method");
            let path = path_of(route.path, job, customer);
            let ask = async |headers: &[(&str, &str)]| {
                let headers = [headers, &[("sec-fetch-site", "same-origin")]].concat();
                // Without a note nothing is done.
                console
                    .send(
                        method.clone(),
                        &path,
                        &headers,
                        &[("used", "1"), ("as", "rejected"), ("version", "1"), ("jobs", "")],
                    )
                    .await
            };
            for (role, person) in PEOPLE {
                let status = ask(&headers_of(person)).await.status;
                let may = route.permission.roles().contains(&role);
                let refused = [401, 403].contains(&status);
                assert_eq!(may, !refused, "{} {path} as {}: {status}", route.method, role.name());
                assert!(status < 500, "{} {path} as {}: {status}", route.method, role.name());
                let [_, user, groups] = headers_of(person);
                for wrong in [
                    &[user, groups][..],
                    &[("x-console-secret", "guessed"), user, groups],
                    &[("x-console-secret", SECRET), ("x-console-secret", SECRET), user, groups],
                ] {
                    assert_eq!(ask(wrong).await.status, 401, "{path} with {wrong:?}");
                }
            }
            let strange = Person { name: "eve@example.com", groups: "staff,kyc-viewers" };
            assert_eq!(ask(&headers_of(strange)).await.status, 403, "{path} without a role");
            let nobody = [("x-console-secret", SECRET), ("x-forwarded-groups", "kyc-operator")];
            assert_eq!(ask(&nobody).await.status, 401, "{path} without a name");
        }
        assert_eq!(world.count("select count(*) from intervention where by like '%@example.com'").await, 0);
    });
}

#[test]
fn a_form_that_is_not_ours_does_nothing() {
    world(async |world| {
        let console = world.start_console().await;
        let ours = console.url.clone();
        let other = "https://elsewhere.example.com";
        // Sec-Fetch-Site, Origin, and whether it is done.
        let table: [(Option<&str>, Option<&str>, bool); 14] = [
            (Some("same-origin"), None, true),
            (Some("same-origin"), Some(&ours), true),
            (None, Some(&ours), true),
            (Some("same-site"), Some(&ours), false),
            (Some("cross-site"), Some(&ours), false),
            (Some("none"), None, false),
            (Some(""), Some(&ours), false),
            (None, Some(other), false),
            (None, Some("null"), false),
            (None, Some(""), false),
            (None, None, false),
            (Some("cross-site"), Some(other), false),
            (Some("same-origin"), Some(other), false),
            (Some("same-origin"), Some("null"), true),
        ];
        let mut done = 0;
        for (site, origin, is_done) in table {
            let mut headers = headers_of(OPERATOR).to_vec();
            headers.extend(site.map(|site| ("sec-fetch-site", site)));
            headers.extend(origin.map(|origin| ("origin", origin)));
            let response = console.send(Method::POST, "/pause", &headers, &[("note", "a drill")]).await;
            let expected = if is_done { 303 } else { 403 };
            assert_eq!(response.status, expected, "{site:?} {origin:?}");
            done += i64::from(is_done);
            let pauses = world.count("select count(*) from intervention where action = 'pause'").await;
            assert_eq!(pauses, done, "{site:?} {origin:?}");
        }
        let doubled = [
            &headers_of(OPERATOR)[..],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        ];
        let answer = console.send(Method::POST, "/pause", &doubled.concat(), &[("note", "a drill")]).await;
        assert_eq!(answer.status, 403, "no browser says it twice");
        let by: Vec<String> = sqlx::query_scalar("select distinct by from intervention")
            .fetch_all(&world.pool)
            .await
            .expect("the database answers");
        assert_eq!(by, [OPERATOR.name], "who is logged in, and nobody else");
        let forged = [("note", "a drill"), ("by", "somebody else")];
        assert_eq!(console.post(OPERATOR, "/pause", &forged).await.status, 303);
        assert_eq!(world.count("select count(*) from intervention where by = 'somebody else'").await, 0);
        // A name that leads to us is none of ours.
        for (host, is_ours) in [
            ("127.0.0.1:1", true),
            ("localhost", true),
            ("rebound.example.com", false),
            ("", false),
            ("127.0.0.1.example.com", false),
        ] {
            let headers = [&headers_of(VIEWER)[..], &[("host", host)]].concat();
            let status = console.send(Method::GET, "/", &headers, &[]).await.status;
            assert_eq!(status == 200, is_ours, "Host: {host}: {status}");
        }
    });
}

#[test]
fn every_answer_has_its_headers_and_leaves_nothing_behind() {
    world(async |world| {
        fill(&world).await;
        let console = world.start_console().await;
        let css = console.page(VIEWER, "/").await;
        let css = css
            .split("href=\"")
            .find_map(|rest| rest.split('"').next().filter(|path| path.ends_with(".css")));
        let css = css.expect("a stylesheet").to_owned();
        let job = "/jobs/00000000-0000-0000-0000-000000000008";
        for (path, kept) in
            [("/", false), (job, false), ("/nothing", false), ("/access", false), (css.as_str(), true)]
        {
            let response = console.get(VIEWER, path).await;
            let header = |name: &str| response.header(name).map(str::to_owned);
            let policy = header("content-security-policy").expect("a policy");
            assert!(
                policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
                "{path}: {policy}"
            );
            assert_eq!(header("x-content-type-options").as_deref(), Some("nosniff"), "{path}");
            assert_eq!(header("referrer-policy").as_deref(), Some("no-referrer"), "{path}");
            assert_eq!(header("cross-origin-opener-policy").as_deref(), Some("same-origin"), "{path}");
            let cache = header("cache-control").expect("a rule");
            assert_eq!(cache.contains("immutable"), kept, "{path}: {cache}");
            assert_eq!(cache == "no-store", !kept, "{path}: {cache}");
            assert_eq!(header("set-cookie"), None, "{path}");
        }
        // Nobody need be let in to be told whether it lives.
        for path in ["/livez", "/readyz"] {
            assert_eq!(console.send(Method::GET, path, &[], &[]).await.status, 200, "{path}");
        }
        assert_eq!(console.send(Method::GET, "/", &[], &[]).await.status, 401);
    });
}

/// Every page that is got, with an id where it wants one.
pub fn pages(job: Uuid, customer: Uuid) -> Vec<String> {
    let gets = ROUTES.iter().filter(|route| route.method == "get" && route.path != "/");
    gets.map(|route| path_of(route.path, job, customer)).collect()
}

/// A page's address, and those of its other forms.
pub fn forms_of(path: &str) -> [String; 3] {
    ["", ".json", ".csv"].map(|suffix| in_form(path, suffix))
}

/// A page's address in another form.
fn in_form(path: &str, suffix: &str) -> String {
    match path.split_once('?') {
        Some((path, query)) => format!("{path}{suffix}?{query}"),
        None => format!("{path}{suffix}"),
    }
}

#[test]
fn each_page_is_json_too_and_its_tables_are_csv() {
    world(async |world| {
        fill(&world).await;
        let console = world.start_console().await;
        let job: Uuid = "00000000-0000-0000-0000-000000000008".parse().expect("a UUID");
        let customer: Uuid = "00000000-0000-0000-0001-000000000009".parse().expect("a UUID");
        let mut tables = BTreeSet::new();
        for path in pages(job, customer) {
            let route = ROUTES
                .iter()
                .find(|route| route.method == "get" && path_of(route.path, job, customer) == path);
            let permission = route.expect("its route").permission;
            let (_, person) =
                PEOPLE.into_iter().find(|(role, _)| permission.roles().contains(role)).expect("one");
            if path.starts_with("/proposals/") {
                continue;
            }
            let html = console.get(person, &path).await;
            let json = console.get(person, &in_form(&path, ".json")).await;
            assert_eq!(json.status, html.status, "{path}");
            if html.status == 303 {
                continue;
            }
            assert_eq!(html.status, 200, "{path}");
            assert_eq!(json.header("content-type"), Some("application/json"), "{path}");
            let said = json.json();
            assert!(said.is_object(), "{path}: {said}");
            let html = html.text;
            assert!(html.contains("<main id=\"main\"") && html.contains("<h1"), "{path}: {html}");
            let csv = console.get(person, &in_form(&path, ".csv")).await;
            match csv.status {
                200 => {
                    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"), "{path}");
                    tables.insert(path);
                }
                404 => assert!(!html.contains("<table"), "{path} has a table and no CSV"),
                other => panic!("{path}: {other}"),
            }
        }
        assert!(tables.len() > 8, "{tables:?}");
    });
}

#[test]
fn who_sees_a_customer_is_written_down_before_they_see_them() {
    world(async |world| {
        fill(&world).await;
        let console = world.start_console().await;
        let job = "00000000-0000-0000-0000-000000000008";
        let customer = "00000000-0000-0000-0001-000000000008";
        let mut seen = 0;
        for path in [
            format!("/jobs/{job}"),
            format!("/jobs/{job}.json"),
            format!("/jobs/{job}.csv"),
            format!("/customers/{customer}"),
            format!("/review/{job}"),
        ] {
            console.page(VIEWER, &path).await;
            seen += 1;
            assert_eq!(world.count("select count(*) from access_record").await, seen, "{path}");
        }
        let of_customer = "select count(*) from access_record
            where customer_id = '00000000-0000-0000-0001-000000000008' and by = 'vic@example.com'";
        assert_eq!(world.count(of_customer).await, seen);
        let records = console.page(AUDITOR, &format!("/access.json?customer={customer}")).await;
        let records: Value = serde_json::from_str(&records).expect("JSON");
        assert_eq!(records["records"].as_array().map(Vec::len), Some(5), "{records}");
        assert_eq!(records["records"][0]["page"], "/review/{id}");

        // What cannot be written down is not shown.
        world
            .tamper("alter table access_record add constraint full_up check (page = 'never') not valid")
            .await;
        for path in [format!("/jobs/{job}"), format!("/customers/{customer}.json"), format!("/review/{job}")]
        {
            let response = console.get(VIEWER, &path).await;
            assert_eq!(response.status, 503, "{path}");
            let text = response.text;
            assert!(!text.contains("needs_review"), "{path}: {text}");
        }
        assert_eq!(world.count("select count(*) from access_record").await, seen);
    });
}

/// A worker, a console, and a job that waits for a reviewer, with its customer.
async fn with_a_review(world: &World) -> (WorkerProcess, Console, [Uuid; 2]) {
    world.declare_topology().await;
    let worker = world.start_worker_with(&[("BREAKER_FAILURES", "1000"), ("READ_BACK_DEADLINE", "10s")]);
    let console = world.start_console().await;
    let (job, customer) = world.publish_unsettled().await;
    world.wait_for_state(job, &["needs_review"]).await;
    (worker, console, [job, customer])
}

/// Asks for what a form says, and sends it with a note.
async fn act(console: &Console, person: Person, path: &str, query: &str, form: &[(&str, &str)]) -> Answer {
    let asked = format!("{path}{query}");
    let version = console.field(person, &asked, "version").await;
    let mode = console.field(person, &asked, "mode").await;
    let said = [("version", version.as_str()), ("mode", mode.as_str()), ("note", "seen in the dashboard")];
    console.post(person, path, &[form, &said].concat()).await
}

#[test]
fn a_reviewer_settles_a_job_and_an_operator_sends_it_again() {
    world(async |world| {
        let (_worker, console, [job, customer]) = with_a_review(&world).await;

        let review = console.page(REVIEWER, &format!("/review/{job}")).await;
        for part in [
            "nobody knows whether it was made",
            "It proves",
            "not-applied…",
            "refused: may have been applied",
        ] {
            assert!(review.contains(part), "{part}: {review}");
        }
        let viewer = console.page(VIEWER, &format!("/review/{job}")).await;
        assert!(!viewer.contains("not-applied…") && viewer.contains("a reviewer may"), "{viewer}");

        let settled = act(
            &console,
            REVIEWER,
            &format!("/jobs/{job}/resolve"),
            "?as=not-applied",
            &[("as", "not-applied")],
        )
        .await;
        assert_eq!(settled.status, 303);
        assert_eq!(settled.location(), format!("/jobs/{job}"));
        world.wait_for_state(job, &["exhausted"]).await;
        assert_eq!(world.count_patches(job).await, 1, "a resolution sends nothing");

        // The customer's budget leaves two: one, once another is counted.
        let customer_path = format!("/customers/{customer}/budget");
        let set = act(&console, REVIEWER, &customer_path, "?used=1", &[("used", "1")]).await;
        assert_eq!(set.status, 303);
        let refused = console.page(OPERATOR, &format!("/jobs/{job}/replay")).await;
        assert!(refused.contains("a resend might take the customer"), "{refused}");
        let forced = console
            .post(OPERATOR, &format!("/jobs/{job}/replay"), &[("version", "x"), ("note", "now")])
            .await;
        assert!([409, 422].contains(&forced.status), "{}", forced.status);
        let set = act(&console, REVIEWER, &customer_path, "?used=0", &[("used", "0")]).await;
        assert_eq!(set.status, 303);

        let sent = act(&console, OPERATOR, &format!("/jobs/{job}/replay"), "", &[]).await;
        assert_eq!(sent.status, 303, "{}", sent.text);
        world.wait_for_state(job, &["accepted"]).await;
        assert_eq!(world.count_patches(job).await, 2);
        assert_eq!(world.count_updates(job).await, 1);
        let story = console.page(VIEWER, &format!("/jobs/{job}")).await;
        for part in ["resolve by rae@example.com", "replay by ona@example.com", "seen in the dashboard"] {
            assert!(story.contains(part), "{part}: {story}");
        }
        let done = console.page(AUDITOR, "/interventions.json").await;
        let done: Value = serde_json::from_str(&done).expect("JSON");
        let actions: Vec<&str> = done["interventions"]
            .as_array()
            .expect("rows")
            .iter()
            .filter_map(|row| row["action"].as_str())
            .collect();
        assert_eq!(actions, ["replay", "budget", "budget", "resolve"]);
    });
}

#[test]
fn what_has_changed_since_it_was_shown_is_left_alone() {
    world(async |world| {
        let (_worker, console, [job, customer]) = with_a_review(&world).await;
        let resolve = format!("/jobs/{job}/resolve");
        let shown = console.field(REVIEWER, &format!("{resolve}?as=accepted"), "version").await;
        let budget = format!("/customers/{customer}/budget");
        let counted = console.field(REVIEWER, &format!("{budget}?used=2"), "version").await;

        for note in ["", "   "] {
            let form = [("as", "accepted"), ("version", shown.as_str()), ("note", note)];
            let response = console.post(REVIEWER, &resolve, &form).await;
            assert_eq!(response.status, 400, "without a reason nothing is done");
        }
        let id = job.to_string();
        world.say(&["resolve", &id, "--as", "not-applied", "--by", "ana", "--note", "by command"]).await;
        world
            .say(&[
                "budget",
                "set",
                "--customer",
                &customer.to_string(),
                "--used",
                "1",
                "--by",
                "ana",
                "--note",
                "by command",
            ])
            .await;
        for (path, form) in [
            (&resolve, [("as", "accepted"), ("version", shown.as_str()), ("mode", "do"), ("note", "late")]),
            (&budget, [("used", "2"), ("version", counted.as_str()), ("mode", "do"), ("note", "late")]),
        ] {
            let response = console.post(REVIEWER, path, &form).await;
            assert_eq!(response.status, 409, "{path}");
            let text = response.text;
            assert!(text.contains("was") && text.contains("nothing was done"), "{text}");
        }
        assert_eq!(world.count("select count(*) from intervention where note = 'late'").await, 0);
        assert_eq!(world.submission(job).await.expect("a row").state, "exhausted");

        let pause = async |by| world.say(&["pause", "--by", by, "--note", "a drill"]).await;
        let resume = async |version: &str| {
            let form = [("version", version), ("mode", "do"), ("note", "it is over")];
            console.post(OPERATOR, "/resume", &form).await.status
        };
        pause("ana").await;
        let shown = console.field(OPERATOR, "/resume", "version").await;
        pause("ben").await;
        assert_eq!(resume(&shown).await, 409, "another's pause");
        assert_eq!(resume(&console.field(OPERATOR, "/resume", "version").await).await, 303);
    });
}

#[test]
fn a_second_person_approves_what_the_policy_demands_of_two() {
    world(async |world| {
        let (_worker, console, [job, _]) = with_a_review(&world).await;
        world.tamper("update approval_policy set demands = 'spending'").await;
        let resolve = format!("/jobs/{job}/resolve");
        let asked = console.page(REVIEWER, &format!("{resolve}?as=not-applied")).await;
        assert!(asked.contains("A second person must approve this"), "{asked}");
        let proposed = act(&console, REVIEWER, &resolve, "?as=not-applied", &[("as", "not-applied")]).await;
        assert_eq!(proposed.status, 303);
        let proposal = proposed.location().to_owned();
        assert_eq!(
            world.submission(job).await.expect("a row").state,
            "needs_review",
            "nothing is done before"
        );

        let note = [("note", "I see the same")];
        let approve = format!("{proposal}/approve");
        let own = console.post(REVIEWER, &approve, &note).await;
        assert_eq!(own.status, 422, "nobody approves what they propose");
        assert_eq!(console.post(OPERATOR, &approve, &note).await.status, 422, "it is a reviewer's");
        assert_eq!(console.post(VIEWER, &approve, &note).await.status, 403);
        let second = Person { name: "ben@example.com", groups: "kyc-reviewer" };
        assert_eq!(console.post(second, &approve, &note).await.status, 303);
        world.wait_for_state(job, &["exhausted"]).await;
        assert_eq!(console.post(second, &approve, &note).await.status, 409, "once");
        let story = console.page(VIEWER, &format!("/jobs/{job}")).await;
        assert!(
            story.contains("rae@example.com") && story.contains("ben@example.com"),
            "both are named: {story}"
        );

        // A reviewer proposes what an operator approves.
        let replay = format!("/jobs/{job}/replay");
        let proposed = act(&console, REVIEWER, &replay, "", &[]).await;
        assert_eq!(proposed.status, 303);
        assert_eq!(
            console.post(second, &format!("{}/approve", proposed.location()), &note).await.status,
            422
        );
        assert_eq!(
            console.post(OPERATOR, &format!("{}/approve", proposed.location()), &note).await.status,
            303
        );
        world.wait_for_state(job, &["accepted"]).await;

        // What has changed meanwhile voids a proposal.
        let (other, _) = world.publish_unsettled().await;
        world.wait_for_state(other, &["needs_review"]).await;
        let resolve = format!("/jobs/{other}/resolve");
        let proposed = act(&console, REVIEWER, &resolve, "?as=not-applied", &[("as", "not-applied")]).await;
        world.tamper("update approval_policy set demands = 'none'").await;
        world.say(&["resolve", &other.to_string(), "--as", "rejected", "--by", "ana", "--note", "n"]).await;
        let void = console.post(second, &format!("{}/approve", proposed.location()), &note).await;
        assert_eq!(void.status, 409);
        assert!(void.text.contains("void"), "{}", void.text);
        assert_eq!(world.count_updates(job).await, 1);
    });
}

#[test]
fn what_a_form_said_must_still_hold_when_it_comes() {
    world(async |world| {
        let (_worker, console, [job, customer]) = with_a_review(&world).await;
        let resolve = format!("/jobs/{job}/resolve");
        act(&console, REVIEWER, &resolve, "?as=not-applied", &[("as", "not-applied")]).await;
        world.wait_for_state(job, &["exhausted"]).await;

        // The customer has fewer updates left than the page said.
        let replay = format!("/jobs/{job}/replay");
        let shown = console.field(OPERATOR, &replay, "version").await;
        let budget = ["budget", "set", "--customer", &customer.to_string(), "--by", "ana", "--note", "n"];
        world.say(&[&budget[..], &["--used", "1"]].concat()).await;
        let send = async |version: &str, mode: &str| {
            console.post(OPERATOR, &replay, &[("version", version), ("mode", mode), ("note", "n")]).await
        };
        assert_eq!(send(&shown, "do").await.status, 409, "an update less is left");
        world.say(&[&budget[..], &["--used", "0"]].concat()).await;

        // What the page said needs no second person, or one, is not done otherwise.
        let shown = console.field(OPERATOR, &replay, "version").await;
        assert_eq!(send(&shown, "propose").await.status, 409);
        world.tamper("update approval_policy set demands = 'all'").await;
        assert_eq!(send(&shown, "do").await.status, 409);
        assert_eq!(world.count_patches(job).await, 1, "nothing was sent by any of them");

        // Nobody proposes what is proposed; whose matter it is decides, and whoever proposed it takes it back.
        let proposed = send(&shown, "propose").await;
        assert_eq!(proposed.status, 303);
        assert_eq!(send(&shown, "propose").await.status, 422);
        let line = format!("{job} {shown}\n").repeat(100);
        let many = [("jobs", line.as_str()), ("mode", "propose"), ("note", "n")];
        assert_eq!(console.post(OPERATOR, "/replay", &many).await.status, 200);
        assert_eq!(world.count("select count(*) from proposal").await, 1);
        let decline = format!("{}/decline", proposed.location());
        assert_eq!(
            console.post(REVIEWER, &decline, &[("note", "n")]).await.status,
            422,
            "it is an operator's"
        );
        let page = console.page(VIEWER, proposed.location()).await;
        assert!(!page.contains("Decline it") && !page.contains("Approve it"), "{page}");
        assert!(console.page(VIEWER, "/").await.contains("proposals wait for a second person"));
        assert_eq!(console.post(OPERATOR, &decline, &[("note", "n")]).await.status, 303);
        // A note that nobody sees is none.
        let unseen = console.post(OPERATOR, "/pause", &[("note", "\u{200b}\u{2060}")]).await;
        assert_eq!(unseen.status, 400);
        let long = "क".repeat(500);
        assert_eq!(console.post(OPERATOR, "/pause", &[("note", &long)]).await.status, 303);
    });
}

#[test]
fn of_many_jobs_one_that_is_held_stops_none_of_the_others() {
    world(async |world| {
        let (held, free) =
            (world.add_job("exhausted", "attempts").await.0, world.add_job("exhausted", "attempts").await.0);
        let console = world.start_console().await;
        let mut lines = String::new();
        for job in [held, free] {
            let version = console.field(OPERATOR, &format!("/jobs/{job}/replay"), "version").await;
            lines += &format!("{job} {version}\n");
        }
        let mut holder = world.pool.begin().await.expect("a transaction");
        sqlx::query("select from submission where job_id = $1 for update")
            .bind(held)
            .execute(&mut *holder)
            .await
            .expect("its lock");
        let many = [("jobs", lines.as_str()), ("mode", "do"), ("note", "n")];
        let answer = console.post(OPERATOR, "/replay", &many).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(
            answer.text.contains("Sent again: 1; refused: 1") && answer.text.contains("Something else holds")
        );
        drop(holder);
        assert_eq!(world.submission(free).await.expect("a row").state, "waiting");
        assert_eq!(world.submission(held).await.expect("a row").state, "exhausted");
    });
}

#[test]
fn whoever_is_found_by_a_name_that_several_have_is_written_down() {
    world(async |world| {
        fill(&world).await;
        world.tamper("update submission set correlation_id = 'order-1' where state = 'waiting'").await;
        let console = world.start_console().await;
        let found = console.page(VIEWER, "/find?q=order-1").await;
        let shown = found.matches("href=\"/jobs/").count();
        assert!(shown > 1, "{found}");
        let seen = "select count(*) from access_record where page = '/find'";
        assert_eq!(usize::try_from(world.count(seen).await), Ok(shown));
        for path in ["/review.json", "/review.csv", "/verifications.json"] {
            console.page(VIEWER, path).await;
        }
        let files = "select count(distinct page) from access_record where page like '%.%'";
        assert_eq!(world.count(files).await, 3, "what leaves as a file names customers");
        for path in ["/find?q=%00", "/review?reason=%00", "/customers/x/budget", "/jobs/x/resolve"] {
            let answer = console.get(REVIEWER, path).await;
            assert!(
                [400, 404].contains(&answer.status) && answer.text.contains("<main"),
                "{path}: {}",
                answer.text
            );
        }
    });
}

#[test]
fn probes_are_answered_whatever_others_do() {
    world(async |world| {
        let console = world.start_console().await;
        let address = console.url.trim_start_matches("http://").to_owned();
        // Forms whose bodies do not end, and heads that do not.
        let mut held = Vec::new();
        let [secret, user, groups] = headers_of(OPERATOR);
        let head = format!(
            "POST /pause HTTP/1.1\r\nhost: {address}\r\n{}: {}\r\n{}: {}\r\n{}: {}\r\n\
             sec-fetch-site: same-origin\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             content-length: 1000\r\n\r\nnote=",
            secret.0, secret.1, user.0, user.1, groups.0, groups.1
        );
        for text in std::iter::repeat_n(head.as_str(), 50).chain(std::iter::repeat_n("GET / HT", 50)) {
            let mut connection = tokio::net::TcpStream::connect(&address).await.expect("a connection");
            connection.write_all(text.as_bytes()).await.expect("it is taken");
            held.push(connection);
        }
        for path in ["/livez", "/readyz"] {
            assert_eq!(console.send(Method::GET, path, &[], &[]).await.status, 200, "{path}");
        }
        assert_eq!(console.get(VIEWER, "/").await.status, 200);
    });
}

#[test]
fn the_console_stops_at_once_when_it_is_told_to() {
    world(async |world| {
        let mut console = world.start_console().await;
        // A connection that is kept, and lies idle.
        console.page(VIEWER, "/").await;
        console.process.signal("TERM");
        let status = console.process.exit().await;
        assert!(status.success(), "{status}");
        assert!(console.process.log().contains("the console stops"));
    });
}

#[test]
fn a_database_that_is_away_is_said_and_come_back_to() {
    world(async |world| {
        fill(&world).await;
        let (relay, database_url) = world.relay_to_database().await;
        let settings = [
            ("DATABASE_URL", database_url.as_str()),
            ("CONSOLE_LOGIN", "proxy"),
            ("CONSOLE_PROXY_SECRET", SECRET),
        ];
        let console = world.start_console_with(&settings).await;
        console.page(VIEWER, "/").await;
        relay.refuse().await;
        relay.cut();
        let response = console.get(VIEWER, "/").await;
        assert_eq!(response.status, 503);
        assert_eq!(console.send(Method::GET, "/readyz", &[], &[]).await.status, 503);
        assert_eq!(console.send(Method::GET, "/livez", &[], &[]).await.status, 200);
        relay.accept().await;
        world
            .wait_for("the pages", async || (console.get(VIEWER, "/").await.status == 200).then_some(()))
            .await;
    });
}

#[test]
fn each_permission_is_somebodys_and_none_to_change_things_is_everybodys() {
    for permission in [
        Permission::View,
        Permission::Pause,
        Permission::Replay,
        Permission::Decide,
        Permission::Approve,
        Permission::Audit,
    ] {
        assert!(!permission.roles().is_empty(), "{permission:?}");
    }
    for route in ROUTES {
        let changes = route.method != "get";
        let is_for_all = route.permission == Permission::View;
        assert!(
            !(changes && is_for_all),
            "{} {} changes something, and everybody may",
            route.method,
            route.path
        );
    }
}
