//! What one person proposes, another approves: the database holds whoever acts by hand to its policy.

use std::os::unix::process::ExitStatusExt as _;
use std::str::FromStr as _;
use std::time::Duration;

use kyc_worker::desk::budget::set_budget;
use kyc_worker::desk::interventions::Attribution;
use kyc_worker::desk::replay::{Intent, ReplayRules, replay};
use kyc_worker::desk::resolve::{Finding, preview, resolve};
use kyc_worker::desk::version::Version;
use kyc_worker::failpoint::Point;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

use crate::archive::world_to_archive;
use crate::dead_letters::wait_for_letters;
use crate::harness::{World, world};
use crate::replay::{IMPATIENT, exhaust};
use crate::verification::FOLLOWING;

const RESTRICT: &str = "23001";
const CHECK: &str = "23514";
const TAKEN: &str = "23505";

const ANA: [&str; 4] = ["--by", "ana", "--note", "the provider is mended"];
const BEN: [&str; 4] = ["--by", "ben", "--note", "so it is"];

/// What `replay` decides by, as its settings are by default.
const RULES: ReplayRules = ReplayRules { customer_updates: 3, read_back_window: Duration::from_mins(1) };

/// Who acts alone, as a form does.
const ALONE: Attribution<'static> = Attribution { by: "ana", note: "by hand", proposal: None };

impl World {
    /// Sets the policy, as the tables' owner.
    async fn demand(&self, demands: &str) {
        let done = sqlx::query("update approval_policy set demands = $1").bind(demands).execute(&self.pool);
        done.await.expect("the policy");
    }

    /// A job that stands so, of a customer of its own. No worker runs that would take it up.
    pub async fn add_job(&self, state: &str, reason_code: &str) -> (Uuid, Uuid) {
        self.is_tampered_with();
        let (job_id, customer_id) = (Uuid::new_v4(), Uuid::new_v4());
        sqlx::query(
            "insert into submission (
                job_id, customer_id, state, reason_code, sealed_payload, requested_at, received_at, ended_at
            )
            values ($1, $2, $3, $4, '\\x00', now(), now(), now())",
        )
        .bind(job_id)
        .bind(customer_id)
        .bind(state)
        .bind(reason_code)
        .execute(&self.pool)
        .await
        .expect("a job");
        (job_id, customer_id)
    }

    async fn add_exhausted(&self) -> String {
        self.add_job("exhausted", "attempts").await.0.to_string()
    }

    /// Proposes as Ana, and returns the proposal's id.
    async fn propose(&self, what: &[&str]) -> String {
        let (said, is_done) = self.ask(&[&["propose"], what, &ANA].concat()).await;
        assert!(is_done, "{said}");
        said["proposed"][0]["id"].to_string()
    }

    async fn approve(&self, id: &str) -> String {
        self.say(&[&["approve", id][..], &BEN].concat()).await
    }

    async fn refuse_to_approve(&self, id: &str) -> String {
        self.refuse(&[&["approve", id][..], &BEN].concat()).await
    }

    async fn decision(&self, id: &str) -> Option<String> {
        let id: i64 = id.parse().expect("an id");
        let found = sqlx::query_scalar("select decision from proposal where id = $1").bind(id);
        found.fetch_one(&self.pool).await.expect("a proposal")
    }

    async fn state(&self, job_id: &str) -> String {
        self.submission(job_id.parse().expect("an id")).await.expect("a job").state
    }
}

/// The SQLSTATE that a statement is refused with.
async fn refusal(pool: &PgPool, statement: &str) -> String {
    let error = sqlx::raw_sql(statement).execute(pool).await.err();
    let error = error.unwrap_or_else(|| panic!("{statement:?} was done"));
    error.as_database_error().and_then(|error| error.code()).expect("a code").into_owned()
}

/// What each policy refuses to one person alone.
const POLICIES: [(&str, &[&str]); 3] = [
    ("none", &[]),
    ("spending", &["budget", "replay", "resolve"]),
    ("all", &["budget", "replay", "resolve", "forget", "requeue", "resume"]),
];

#[test]
fn one_person_alone_is_refused_what_the_policy_demands_two_for() {
    world(async |world| {
        world.declare_topology().await;
        for (policy, refused) in POLICIES {
            world.demand(policy).await;
            world.publish_dead_letter(policy.as_bytes()).await;
            let replayed = world.add_exhausted().await;
            let resolved = world.add_job("needs_review", "newer_fate_unknown").await.0.to_string();
            let customer = Uuid::new_v4().to_string();
            for (action, command) in [
                ("pause", &["pause"][..]),
                ("budget", &["budget", "set", "--customer", &customer, "--used", "1"]),
                ("replay", &["replay", &replayed, "--yes"]),
                ("resolve", &["resolve", &resolved, "--as", "rejected"]),
                ("forget", &["forget", "--customer", &customer]),
                ("requeue", &["dead-letters", "requeue", "--all"]),
                ("resume", &["resume"]),
            ] {
                let count = "select count(*) from intervention";
                let before = world.count(count).await;
                let command = [command, &ANA].concat();
                if refused.contains(&action) {
                    let said = world.refuse(&command).await;
                    let demand = format!(
                        "kyc-worker: approval_policy demands a second person for {action}: propose it with \
                         `kyc-worker propose {action} …`, and have somebody else approve it with `kyc-worker \
                         approve ID`\n"
                    );
                    assert!(said.ends_with(&demand) && !said.contains("database"), "{policy}: {said}");
                    assert_eq!(world.count(count).await, before, "{policy}: {action}");
                } else {
                    world.say(&command).await;
                    assert_eq!(world.count(count).await, before + 1, "{policy}: {action}");
                }
            }
            let is_refused = |action| refused.contains(&action);
            assert_eq!(world.state(&replayed).await == "exhausted", is_refused("replay"));
            assert_eq!(world.state(&resolved).await == "needs_review", is_refused("resolve"));
            let said = world.say(&["proposals"]).await;
            let listed = if refused.is_empty() { "nothing" } else { "replay, resolve, budget" };
            let told = format!("approval_policy is {policy}: a second person must approve {listed}");
            assert!(said.contains(&told) && said.contains("no proposal waits"), "{said}");
            let checked = world.run(&["check"], &[]).await;
            let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
            // Here one role owns the tables and runs the commands.
            let is_loose = checked.contains(", and postgres, who runs the commands, may change it");
            assert!(checked.contains(&told) && is_loose != refused.is_empty(), "{checked}");
        }
        // A policy that was removed demands the most.
        world.tamper("delete from approval_policy").await;
        let said = world.refuse(&[&["resume"][..], &ANA].concat()).await;
        assert!(said.contains("demands a second person for resume"), "{said}");
    });
}

#[test]
fn an_approval_does_the_very_thing_and_the_story_names_both() {
    world(async |world| {
        world.demand("all").await;
        world.declare_topology().await;
        let settings = [&IMPATIENT[..], &[("READ_BACK_DEADLINE", "10s")]].concat();
        let _worker = world.start_worker_with(&settings);
        let customer_id = Uuid::new_v4();
        let replayed = exhaust(&world, customer_id).await;
        let resolved = world.publish_unsettled().await.0;
        world.wait_for_state(resolved, &["needs_review"]).await;
        let (replayed_id, resolved_id) = (replayed.to_string(), resolved.to_string());
        let customer = customer_id.to_string();
        let replay = world.propose(&["replay", &replayed_id]).await;
        let resolve = world.propose(&["resolve", &resolved_id, "--as", "accepted"]).await;
        let said = world.say(&["proposals"]).await;
        for part in [
            format!("{replay}  replay job {replayed}\n  by ana, "),
            "sent again; may spend 1 of the customer's 3 updates left".to_owned(),
            format!("{resolve}  resolve job {resolved} as accepted\n  by ana, "),
            "ends as accepted; declares its update spent".to_owned(),
        ] {
            assert!(said.contains(&part), "no {part:?} in {said}");
        }
        let said = world.say(&["report"]).await;
        assert!(said.contains("proposals that wait for a second person: 2, the oldest since "), "{said}");
        assert_eq!(world.count("select count(*) from intervention").await, 0, "nothing is done before");

        let said = world.approve(&replay).await;
        assert_eq!(said, format!("proposal {replay} approved and done: replay job {replayed}\n"));
        world.approve(&resolve).await;
        for job_id in [replayed, resolved] {
            world.wait_for_state(job_id, &["accepted"]).await;
        }
        let budget = world.propose(&["budget", "--customer", &customer, "--used", "1"]).await;
        world.approve(&budget).await;

        let story = world.say(&["show", &replayed_id]).await;
        let told = "replay by ana, approved by ben (was exhausted (attempts)): the provider is mended";
        assert!(story.contains(told), "{story}");
        let (story, _) = world.ask(&["show", &resolved_id]).await;
        let done = &story["interventions"][0];
        assert_eq!((&done["by"], &done["approved_by"]), (&json!("ana"), &json!("ben")), "{done}");
        assert_eq!(done["proposal_id"].to_string(), resolve);
        let story = world.say(&["show", "--customer", &customer]).await;
        assert!(story.contains("spent elsewhere: 1 (says ana, approved by ben, "), "{story}");

        for id in [&replay, &budget] {
            let said = world.refuse_to_approve(id).await;
            assert_eq!(said, format!("proposal {id} is approved already, by ben\n"));
        }
        assert_eq!(world.count("select count(*) from intervention").await, 3);
    });
}

#[test]
fn a_file_of_the_archive_says_by_itself_who_approved() {
    world_to_archive(async |world| {
        world.demand("all").await;
        world.declare_topology().await;
        let worker = world.start_worker_with(&[&IMPATIENT[..], &FOLLOWING].concat());
        let job_id = exhaust(&world, Uuid::new_v4()).await;
        let id = job_id.to_string();
        let proposal = world.propose(&["replay", &id]).await;
        world.approve(&proposal).await;
        world.wait_for_end_of_verification(job_id).await;
        drop(worker);
        let (before, _) = world.ask(&["show", &id]).await;
        let to = world.directory("archive");
        assert_eq!(world.archive(&to).await["archived"], 1);
        let (after, _) = world.ask(&["show", &id, "--archive", &to]).await;
        assert_eq!(after["interventions"], before["interventions"]);
        assert_eq!(after["interventions"][0]["approved_by"], "ben");
        world.say(&["audit", "--archive", &to]).await;
        assert_eq!(world.decision(&proposal).await.as_deref(), Some("approved"), "it stays");
    });
}

#[test]
fn nobody_approves_what_they_propose_however_they_spell_their_name() {
    world(async |world| {
        let job = world.add_exhausted().await;
        let id = world.propose(&["replay", &job]).await;
        for name in ["ana", "Ana", " ANA "] {
            let said = world.refuse(&["approve", &id, "--by", name, "--note", "mine"]).await;
            assert!(said.ends_with("somebody else must approve it\n"), "{said}");
        }
        for name in ["ana", "ANA", "Ana ", "  aNa"] {
            let decided = format!(
                "update proposal set decision = 'approved', decided_by = '{name}', decided_at = now(), \
                 decision_note = 'mine'"
            );
            assert_eq!(refusal(&world.pool, &decided).await, CHECK, "{name:?}");
        }
        assert_eq!(world.decision(&id).await, None);
        // Nobody needs another to take back what they proposed.
        let said = world.say(&["decline", &id, "--by", "ana", "--note", "too early"]).await;
        assert_eq!(said, format!("proposal {id} declined: replay job {job}\n"));
        let said = world.refuse_to_approve(&id).await;
        assert_eq!(said, format!("proposal {id} is declined already, by ana\n"));
        assert_eq!(world.state(&job).await, "exhausted");
        assert!(world.refuse_to_approve("4711").await.contains("there is no proposal 4711"));
    });
}

#[test]
fn of_two_who_approve_at_once_one_does_it() {
    world(async |world| {
        world.demand("all").await;
        let customer = Uuid::new_v4().to_string();
        for used in 1..=3 {
            let id = world.propose(&["budget", "--customer", &customer, "--used", &used.to_string()]).await;
            let (ben, cy) = (
                ["approve", &id, "--by", "ben", "--note", "yes"],
                ["approve", &id, "--by", "cy", "--note", "yes"],
            );
            let (ben, cy) = tokio::join!(world.run(&ben, &[]), world.run(&cy, &[]));
            assert_ne!(ben.status.success(), cy.status.success(), "{ben:?} {cy:?}");
            let late = if ben.status.success() { cy } else { ben };
            let said = String::from_utf8([late.stdout, late.stderr].concat()).expect("UTF-8");
            assert!(said.contains(&format!("proposal {id} is approved already, by ")), "{said}");
        }
        assert_eq!(world.count("select count(*) from intervention").await, 3);
    });
}

/// An approver that is killed before the commit has decided nothing, and done nothing.
pub(crate) fn check_approval_killed_at(point: Point) {
    world(async |world| {
        let job = world.add_exhausted().await;
        let id = world.propose(&["replay", &job]).await;
        let failpoint = format!("{}=kill", point.name());
        let approve = [&["approve", &id][..], &BEN].concat();
        let killed = world.run(&approve, &[("KYC_FAILPOINT", &failpoint)]).await;
        assert_eq!(killed.status.signal(), Some(9));
        assert_eq!(world.decision(&id).await, None);
        assert_eq!(world.state(&job).await, "exhausted");
        assert_eq!(world.count("select count(*) from intervention").await, 0);
        world.approve(&id).await;
        assert_eq!(world.state(&job).await, "waiting");
    });
}

#[test]
fn a_proposal_of_what_has_changed_is_void_and_says_what_changed() {
    world(async |world| {
        let job = world.add_exhausted().await;
        let replay = world.propose(&["replay", &job]).await;
        let customer = Uuid::new_v4().to_string();
        let budget = world.propose(&["budget", "--customer", &customer, "--used", "2"]).await;
        world.say(&[&["pause"][..], &ANA].concat()).await;
        let resume = world.propose(&["resume"]).await;

        world.tamper("update submission set claim_token = claim_token + 1").await;
        world.say(&[&["budget", "set", "--customer", &customer, "--used", "1"][..], &ANA].concat()).await;
        world.say(&["pause", "--by", "cy", "--note", "the books are wrong, too"]).await;
        let (listed, _) = world.ask(&["proposals"]).await;
        for (place, (id, changed)) in [
            (
                &replay,
                "changed meanwhile: was exhausted, claim 0, 0 entries; 0 spent here, 0 elsewhere, \
                 is exhausted, claim 1, 0 entries; 0 spent here, 0 elsewhere",
            ),
            (&budget, "changed meanwhile: was 0 spent here, 0 elsewhere, is 0 spent here, 1 elsewhere"),
            (&resume, "changed meanwhile: was paused by ana at "),
        ]
        .into_iter()
        .enumerate()
        {
            let foreseen = listed["pending"][place]["refusal"].as_str().expect("a refusal");
            assert!(foreseen.starts_with(changed), "{foreseen}");
            let said = world.refuse_to_approve(id).await;
            assert!(said.contains(&format!("proposal {id} is void: it {changed}")), "{said}");
            assert_eq!(world.decision(id).await.as_deref(), Some("void"));
            assert!(world.refuse_to_approve(id).await.contains("is void already, by ben"));
        }
        assert_eq!(world.state(&job).await, "exhausted");
        let (listed, _) = world.ask(&["proposals"]).await;
        assert_eq!(listed["pending"], json!([]));
    });
}

#[test]
fn what_the_rules_refuse_now_is_not_proposed_and_a_proposal_stays() {
    world(async |world| {
        for refused in [
            &["replay", &Uuid::new_v4().to_string()][..],
            &["resolve", &world.add_exhausted().await, "--as", "rejected"],
            &["resume"],
        ] {
            let said = world.refuse(&[&["propose"], refused, &ANA].concat()).await;
            assert!(said.starts_with("not proposed: cannot "), "{said}");
        }
        assert_eq!(world.count("select count(*) from proposal").await, 0);

        let (job_id, _) = world.add_job("exhausted", "attempts").await;
        let job = job_id.to_string();
        let id = world.propose(&["replay", &job]).await;
        let expire = |at: &'static str| format!("update submission set expires_at = now() {at}");
        sqlx::query(&expire("- interval '1 hour'")).execute(&world.pool).await.expect("it expires");
        let said = world.refuse_to_approve(&id).await;
        assert!(
            said.starts_with(&format!("proposal {id} was not carried out, and stays: it has expired")),
            "{said}"
        );
        assert_eq!(world.decision(&id).await, None);
        sqlx::query(&expire("+ interval '1 hour'")).execute(&world.pool).await.expect("it does not");
        world.approve(&id).await;
        assert_eq!(world.state(&job).await, "waiting");
    });
}

#[test]
fn a_row_that_is_written_by_hand_is_held_to_the_policy_too() {
    world(async |world| {
        world.demand("all").await;
        let (customer, other) = (Uuid::new_v4(), Uuid::new_v4());
        let id = world.propose(&["forget", "--customer", &customer.to_string()]).await;
        let row = |customer: Uuid, by: &str, proposal: &str| {
            format!(
                "insert into intervention (action, by, note, customer_id, proposal_id)
                values ('forget', '{by}', 'by hand', '{customer}', {proposal})"
            )
        };
        let alone = row(customer, "ana", "null");
        assert_eq!(refusal(&world.pool, &alone).await, RESTRICT);
        // Neither a table of the session's own nor its search_path is the policy.
        for shadow in [
            "create temp table approval_policy as select true as is_only, 'none' as demands",
            "create schema theirs; create table theirs.approval_policy as select true as is_only, 'none' as demands;
            set local search_path = theirs, public",
        ] {
            let mut tx = world.pool.begin().await.expect("a transaction");
            sqlx::raw_sql(shadow).execute(&mut *tx).await.expect("a shadow");
            let error = sqlx::raw_sql(&alone).execute(&mut *tx).await.expect_err("it is refused");
            let code = error.as_database_error().and_then(|error| error.code());
            assert_eq!(code.as_deref(), Some(RESTRICT), "{shadow}");
        }
        assert_eq!(refusal(&world.pool, &row(customer, "ana", &id)).await, RESTRICT, "it waits");
        world.approve(&id).await;
        assert_eq!(refusal(&world.pool, &row(other, "ana", &id)).await, RESTRICT, "of another customer");
        assert_eq!(refusal(&world.pool, &row(customer, "cy", &id)).await, RESTRICT, "by another");
        sqlx::raw_sql(&row(customer, "ana", &id)).execute(&world.pool).await.expect("it is allowed");
        assert_eq!(refusal(&world.pool, &row(customer, "ana", &id)).await, TAKEN, "it was used");
        let old = "insert into proposal (action, customer_id, used, note, proposed_by, version, decision, decided_by,
                decided_at, decision_note)
            select action, customer_id, used, note, proposed_by, version, decision, decided_by,
                decided_at - interval '25 hours', decision_note
            from proposal returning id";
        let old: i64 = sqlx::query_scalar(old).fetch_one(&world.pool).await.expect("a row");
        assert_eq!(
            refusal(&world.pool, &row(customer, "ana", &old.to_string())).await,
            RESTRICT,
            "it is old"
        );
        assert_eq!(world.count("select count(*) from intervention").await, 1);

        for rewritten in [
            "update proposal set customer_id = gen_random_uuid()",
            "update proposal set note = 'another'",
            "update proposal set version = 'another'",
            "update proposal set decided_by = 'cy'",
            "delete from proposal",
            "truncate proposal",
        ] {
            assert_eq!(refusal(&world.pool, rewritten).await, RESTRICT, "{rewritten}");
        }
        for odd in [
            "insert into proposal (action, note, proposed_by, version) values ('pause', 'a', 'b', 'c')",
            "insert into proposal (action, note, proposed_by, version) values ('replay', 'a', 'b', 'c')",
            "insert into proposal (action, note, proposed_by, version) values ('resume', 'a', ' ', 'c')",
            "insert into proposal (action, note, proposed_by, version, decision) values ('resume', 'a', 'b', 'c', 'void')",
        ] {
            assert_eq!(refusal(&world.pool, odd).await, CHECK, "{odd}");
        }
    });
}

#[test]
fn what_needs_the_broker_is_allowed_first_and_then_done_once() {
    world(async |world| {
        world.demand("all").await;
        world.declare_topology().await;
        world.publish_dead_letter(b"{}").await;
        world.publish_dead_letter(b"[]").await;
        wait_for_letters(&world, 2).await;
        let (listed, _) = world.ask(&["dead-letters", "list"]).await;
        let letter = listed[0]["id"].as_str().expect("an id").to_owned();
        let requeue = world.propose(&["requeue", &letter]).await;
        let customer = Uuid::new_v4().to_string();
        let forget = world.propose(&["forget", "--customer", &customer]).await;
        for (id, command) in
            [(&requeue, &["dead-letters", "requeue", "--proposal"][..]), (&forget, &["forget", "--proposal"])]
        {
            let command = [command, &[id]].concat();
            let said = world.refuse(&command).await;
            assert!(said.contains(&format!("proposal {id} does not allow ")), "{said}");
            assert!(said.ends_with("is not decided on\n"), "{said}");
            let said = world.approve(id).await;
            assert!(
                said.contains(&format!("do it within a day with `kyc-worker {}`", command.join(" "))),
                "{said}"
            );
            let before = world.count("select count(*) from intervention").await;
            world.say(&command).await;
            assert_eq!(world.count("select count(*) from intervention").await, before + 1);
            assert!(world.refuse(&command).await.ends_with("is carried out already\n"));
        }
        wait_for_letters(&world, 1).await;
        let another = world.refuse(&["forget", "--proposal", &requeue]).await;
        assert!(another.contains("does not allow `forget`: it is to requeue dead letter"), "{another}");
        assert_eq!(world.count("select count(*) from intervention where by = 'ana'").await, 2);
    });
}

#[test]
fn what_a_form_shows_locks_nothing_and_holds_only_while_it_is_so() {
    world(async |world| {
        let (job_id, customer_id) = world.add_job("needs_review", "newer_fate_unknown").await;
        sqlx::query(
            "insert into submission (
                job_id, customer_id, state, waiting_for, due_at, sealed_payload, requested_at, received_at
            )
            values (gen_random_uuid(), $1, 'waiting', 'customer', now(), '\\x00', now(), now())",
        )
        .bind(customer_id)
        .execute(&world.pool)
        .await
        .expect("a job");
        let reader = PgConnectOptions::from_str(world.database_url()).expect("a URL");
        let reader = PgPool::connect_with(reader.options([("default_transaction_read_only", "on")])).await;
        let reader = reader.expect("the database");
        let mut held = world.pool.begin().await.expect("a transaction");
        sqlx::query("select from submission for update").execute(&mut *held).await.expect("the locks");

        let shown = preview(&reader, job_id).await.expect("the database answers").expect("a job");
        let told: Value = serde_json::to_value(&shown).expect("JSON");
        assert_eq!((shown.counted, shown.waiting), (0, 1), "{told}");
        let refusals: Vec<bool> = shown.findings.iter().map(|one| one.refusal.is_some()).collect();
        assert_eq!(refusals, [true, false, false], "{told}");
        assert_eq!(told["findings"][2]["finding"], "not-applied");
        assert_eq!(told["findings"][2]["state"], "exhausted");
        let dry = replay(&reader, job_id, RULES, Intent::DryRun, None).await.expect("the database answers");
        let decided_by = dry.version.as_ref().map(Version::as_str).unwrap_or_default();
        assert_eq!(decided_by, format!("{}; 0 spent here, 0 elsewhere", shown.version));
        assert_eq!(dry.refusal, None);
        drop(held);

        sqlx::query("update submission set claim_token = 7 where job_id = $1")
            .bind(job_id)
            .execute(&world.pool)
            .await
            .expect("an update");
        let told =
            "changed meanwhile: was needs_review, claim 0, 0 entries, is needs_review, claim 7, 0 entries";
        let seen = Some(&shown.version);
        let late =
            resolve(&world.pool, job_id, Finding::Rejected, seen, ALONE).await.expect_err("it changed");
        assert_eq!(late.to_string(), format!("job {job_id} {told}"));
        let intent = Intent::Replay { attribution: ALONE, delay: Duration::ZERO };
        let seen_then = dry.version.as_ref();
        let late = replay(&world.pool, job_id, RULES, intent, seen_then).await.expect("the database answers");
        let told = "changed meanwhile: was needs_review, claim 0, 0 entries; 0 spent here, 0 elsewhere, \
                    is needs_review, claim 7, 0 entries; 0 spent here, 0 elsewhere";
        assert_eq!(late.refusal.expect("a refusal").to_string(), told);
        let late = set_budget(
            &world.pool,
            customer_id,
            1,
            Some(&"1 spent here, 0 elsewhere".to_owned().into()),
            ALONE,
        )
        .await;
        let late = late.expect_err("it is another").to_string();
        assert!(late.ends_with("was 1 spent here, 0 elsewhere, is 0 spent here, 0 elsewhere"), "{late}");
        let now = preview(&reader, job_id).await.expect("the database answers").expect("a job");
        resolve(&world.pool, job_id, Finding::Rejected, Some(&now.version), ALONE).await.expect("it is that");
        assert_eq!(world.count("select count(*) from intervention").await, 1);
    });
}
