//! Ended jobs go to files and leave the tables: nothing is lost or there twice, whenever the archive dies,
//! and what comes later is decided as if they were here.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use kyc_worker::failpoint::Point;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, job_body, world_with};
use crate::verification::{FOLLOWING, world_that_verifies_in};

/// The latest that `--before` takes.
pub(crate) fn a_day_ago() -> String {
    (OffsetDateTime::now_utc() - time::Duration::DAY).format(&Rfc3339).expect("a time")
}

/// How long ago `let_a_day_pass` makes it.
static DAYS_BACK: LazyLock<i32> = LazyLock::new(|| i32::from(OffsetDateTime::now_utc().day()) + 10);

/// What `archive` is run with, to write to `to`.
fn archive(to: &str) -> [String; 6] {
    ["archive", "--before", &a_day_ago(), "--to", to, "--json"].map(str::to_owned)
}

impl World {
    /// A job whose verification has ended, and the worker that has followed it.
    async fn verify_a_job(&self) -> (WorkerProcess, Uuid) {
        let worker = self.start_worker_with(&FOLLOWING);
        self.declare_topology().await;
        let job_id = self.publish_job().await;
        self.wait_for_end_of_verification(job_id).await;
        (worker, job_id)
    }

    /// Dates back what has ended, to a day in the middle of a month.
    async fn let_a_day_pass(&self) {
        let mut tx = self.pool.begin().await.expect("a transaction");
        let replica = "set local session_replication_role = replica";
        sqlx::query(replica).execute(&mut *tx).await.expect("no trigger");
        let dated_back = "update submission
            set received_at = received_at - $1 * interval '1 day', ended_at = ended_at - $1 * interval '1 day'
            where ended_at > now() - interval '1 day'";
        sqlx::query(dated_back).bind(*DAYS_BACK).execute(&mut *tx).await.expect("the rows");
        tx.commit().await.expect("it commits");
    }

    /// Adds jobs that ended before all others, each of a customer of its own.
    async fn add_ended_jobs(&self, count: i32) {
        self.add_jobs_that_ended(count, *DAYS_BACK).await;
    }

    async fn add_jobs_that_ended(&self, count: i32, days_ago: i32) {
        self.is_tampered_with();
        let added = "insert into submission (
                job_id, customer_id, state, document_type, content_hmac, requested_at, received_at, ended_at
            )
            select gen_random_uuid(), gen_random_uuid(), 'superseded', 'PASSPORT', '\\x00', at, at, at
            from generate_series(1, $1) nth
            cross join lateral (select now() - $2 * interval '1 day' - nth * interval '1 s' as at) dated";
        sqlx::query(added).bind(count).bind(days_ago).execute(&self.pool).await.expect("the rows");
    }

    /// An archive that stays, and archives each second what ended a day ago.
    fn start_archive(&self, to: &str, settings: &[(&str, &str)]) -> WorkerProcess {
        let mut command = self.command();
        command.args(["archive", "--after", "1d", "--every", "1s", "--to", to]);
        command.envs(settings.iter().copied());
        self.spawn(command)
    }

    async fn wait_until_all_is_archived(&self) {
        let is_empty = async || (self.count_submissions().await == 0).then_some(());
        self.wait_for("the archive of all jobs", is_empty).await;
    }

    /// Sees to it that the archive is whole and holds so many jobs, each once.
    async fn check_archived(&self, to: &str, count: usize) {
        let (verified, is_clean) = self.ask(&["audit", "--archive", to]).await;
        assert!(is_clean && verified["jobs"] == count, "{verified}");
        assert_eq!(self.export_all(to).await.len(), count);
        assert_eq!(self.count_submissions().await, 0);
    }

    /// Archives what may go, and returns what the command says.
    pub(crate) async fn archive(&self, to: &str) -> Value {
        self.archive_with(to, &[]).await
    }

    async fn archive_with(&self, to: &str, others: &[&str]) -> Value {
        self.let_a_day_pass().await;
        let arguments = archive(to);
        let arguments: Vec<&str> =
            arguments.iter().map(String::as_str).chain(others.iter().copied()).collect();
        let output = self.run(&arguments, &[]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// How often each job is told of by tables and archive together.
    async fn export_all(&self, to: &str) -> BTreeMap<Uuid, Value> {
        let text = self.say(&["export", "--since", "2026-01-01", "--archive", to]).await;
        let mut jobs = BTreeMap::new();
        for line in text.lines() {
            let job: Value = serde_json::from_str(line).expect("JSON");
            let job_id = job["job_id"].as_str().and_then(|id| id.parse().ok()).expect("a job_id");
            assert!(jobs.insert(job_id, job).is_none(), "{job_id} is there twice");
        }
        jobs
    }

    /// What the records say that each customer has spent.
    async fn budgets(&self) -> Vec<(Uuid, i64, i64, i64, Option<OffsetDateTime>)> {
        sqlx::query_as(
            "select customer_id, spent, accepted_here, in_doubt_here, last_spent_at from customer_budget
            order by customer_id",
        )
        .fetch_all(&self.pool)
        .await
        .expect("the database answers")
    }

    async fn count_submissions(&self) -> i64 {
        self.count("select count(*) from submission").await
    }

    /// Publishes jobs of each kind that may be archived, and waits until nothing changes any more.
    async fn publish_to_archive(&self) -> Vec<Uuid> {
        self.declare_topology().await;
        let mut jobs = self.publish_jobs(3).await;
        // One whose attempt has an unknown outcome, and two of one customer.
        let lost = Uuid::new_v4();
        self.break_job_once(lost, json!({ "apply": "now", "answer": { "kind": "reset" } })).await;
        self.publish_job_named(Uuid::new_v4(), lost).await;
        let customer_id = Uuid::new_v4();
        let newer = self.publish_job_asked(customer_id, 10).await;
        jobs.extend([lost, newer]);
        for job_id in &jobs {
            self.wait_for_end_of_verification(*job_id).await;
        }
        let older = self.publish_job_asked(customer_id, 3_600).await;
        let ended = self.wait_for_state(older, &["superseded"]).await;
        assert!(ended.reason.is_some_and(|reason| reason.contains(&newer.to_string())));
        jobs.push(older);
        self.let_a_day_pass().await;
        jobs
    }
}

/// A world in which verifications end, and no sooner than `READ_BACK_WINDOW`.
pub(crate) fn world_to_archive<F: Future<Output = ()>>(test: impl FnOnce(Arc<World>) -> F) {
    world_with(world_that_verifies_in(10_000), test);
}

#[test]
fn archived_jobs_leave_the_tables_and_are_told_of_as_before() {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        let jobs = world.publish_to_archive().await;
        // One that is no job stays for as long as its dead letter's row does.
        world.publish(Some(Uuid::new_v4()), b"{}").await;
        world.wait_for_ended(jobs.len() + 1).await;
        let to = world.directory("archive");
        world.let_a_day_pass().await;
        let told = async |job_id: &Uuid| {
            let (story, is_told) = world.ask(&["show", &job_id.to_string(), "--archive", &to]).await;
            assert!(is_told, "{story}");
            story
        };
        fs::create_dir(&to).expect("a directory");
        let (budgets, exported) = (world.budgets().await, world.export_all(&to).await);
        let mut stories = Vec::new();
        for job_id in &jobs {
            stories.push(told(job_id).await);
        }

        let found = world.archive_with(&to, &["--dry-run"]).await;
        assert_eq!((&found["archived"], &found["staying"]), (&json!(jobs.len()), &json!(1)), "{found}");
        assert_eq!(fs::read_dir(&to).expect("a directory").count(), 0, "a dry run writes nothing");
        let done = world.archive(&to).await;
        assert_eq!((&done["archived"], &done["staying"]), (&json!(jobs.len()), &json!(1)), "{done}");
        assert_eq!(world.count_submissions().await, 1);
        for table in ["select count(*) from attempt", "select count(*) from observation"] {
            assert_eq!(world.count(table).await, 0, "{table}");
        }

        assert_eq!(world.budgets().await, budgets);
        assert_eq!(world.export_all(&to).await, exported);
        for (job_id, mut before) in jobs.iter().zip(stories) {
            let complaint = world.refuse(&["show", &job_id.to_string()]).await;
            assert!(complaint.contains("is archived in 2"), "{complaint}");
            let after = told(job_id).await;
            before["archived_in"] = after["archived_in"].clone();
            assert!(after["archived_in"].is_string());
            assert_eq!(after, before);
        }
        let (audited, is_clean) = world.ask(&["audit"]).await;
        assert!(is_clean, "{audited}");
        let (verified, is_clean) = world.ask(&["audit", "--archive", &to]).await;
        assert!(is_clean && verified["jobs"] == jobs.len() && verified["head"] == done["head"], "{verified}");
        assert_eq!(world.archive(&to).await["archived"], 0, "there is nothing left to do");
    });
}

#[test]
fn a_copy_of_an_archived_job_is_known_and_its_siblings_order_stands() {
    world_to_archive(async |world| {
        let worker = world.start_worker_with(&FOLLOWING);
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let archived = Uuid::new_v4();
        let mut body = job_body(customer_id, archived);
        let asked = OffsetDateTime::now_utc() - time::Duration::MINUTE;
        body["requested_at"] = json!(asked.format(&Rfc3339).expect("a time"));
        world.publish(Some(archived), body.to_string().as_bytes()).await;
        world.wait_for_end_of_verification(archived).await;
        let to = world.directory("archive");
        assert_eq!(world.archive(&to).await["archived"], 1);

        // The same again, and another content under its id.
        world.publish(Some(archived), body.to_string().as_bytes()).await;
        let deliveries = "select deliveries::bigint from archived_job";
        world.wait_for("the copy", async || (world.count(deliveries).await == 2).then_some(())).await;
        let mut other = body.clone();
        other["full_address"] = json!("1 Residency Road");
        world.publish(Some(archived), other.to_string().as_bytes()).await;
        let conflicts = "select count(*) from dead_lettered_delivery where reason_code = 'conflict'";
        world.wait_for("the conflict", async || (world.count(conflicts).await == 1).then_some(())).await;
        assert_eq!(world.count_submissions().await, 0);

        // One that was asked for before it, and one after it.
        let older = world.publish_job_asked(customer_id, 3_600).await;
        let ended = world.wait_for_state(older, &["superseded"]).await;
        assert!(ended.reason.is_some_and(|reason| reason.contains(&archived.to_string())));
        let newer = world.publish_job_asked(customer_id, 0).await;
        world.wait_for_end_of_verification(newer).await;
        let (story, _) = world.ask(&["show", "--customer", &customer_id.to_string()]).await;
        assert_eq!((&story["spent"]["here"], story["files"].as_array().map(Vec::len)), (&json!(2), Some(1)));
        assert_eq!(world.count_patches(archived).await, 1);
        let (audited, is_clean) = world.ask(&["audit"]).await;
        assert!(is_clean, "{audited}");

        // The rest of the customer goes to the next file. The conflict's row names an archived job.
        assert_eq!(world.archive(&to).await["archived"], 2);
        assert_eq!(world.budgets().await[0].1, 2);
        assert!(!worker.log().contains("ERROR"), "{}", worker.log());
    });
}

#[test]
fn forget_names_the_files_and_a_copy_is_still_known() {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let (job_id, body) = world.publish_job_for(customer_id).await;
        world.wait_for_end_of_verification(job_id).await;
        let to = world.directory("archive");
        let file = world.archive(&to).await["files"][0].clone();
        let customer = customer_id.to_string();
        let (forgotten, is_all) =
            world.ask(&["forget", "--customer", &customer, "--by", "ana", "--note", "4711"]).await;
        assert_eq!((&forgotten["files"], is_all), (&json!([file]), false), "{forgotten}");
        assert_eq!(world.count("select count(content_hmac) from archived_job").await, 0);
        world.publish(Some(job_id), body.to_string().as_bytes()).await;
        let deliveries = "select deliveries::bigint from archived_job";
        world.wait_for("the copy", async || (world.count(deliveries).await == 2).then_some(())).await;
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

#[test]
fn ids_that_were_kept_long_enough_are_known_no_more() {
    world_to_archive(async |world| {
        let (_worker, job_id) = world.verify_a_job().await;
        let to = world.directory("archive");
        assert_eq!(world.archive(&to).await["forgotten_ids"], 0);
        let spent = world.budgets().await;
        let (swept, is_done) = world
            .ask(&["archive", "--before", &a_day_ago(), "--to", &to, "--deduplication-kept", "1ms"])
            .await;
        assert!(is_done && swept["forgotten_ids"] == 1, "{swept}");
        assert_eq!(world.budgets().await, spent, "what was spent is kept for ever");
        let complaint = world.refuse(&["show", &job_id.to_string()]).await;
        assert!(complaint.contains("no job"), "{complaint}");
        let (story, is_found) = world.ask(&["show", &job_id.to_string(), "--archive", &to]).await;
        assert!(is_found && story["submission"]["state"] == "accepted", "{story}");
    });
}

#[test]
fn a_job_that_somebody_holds_stays_for_the_next_run() {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        let jobs = world.publish_to_archive().await;
        let to = world.directory("archive");
        let mut holder = world.pool.begin().await.expect("a transaction");
        let held = "select job_id from submission where job_id = $1 for update";
        sqlx::query(held).bind(jobs[0]).execute(&mut *holder).await.expect("a lock");
        let done = world.archive(&to).await;
        let rest = jobs.len() - 1;
        assert_eq!((&done["archived"], &done["changed"]), (&json!(rest), &json!(1)), "{done}");
        holder.rollback().await.expect("the lock is free");
        assert_eq!(world.export_all(&to).await.len(), jobs.len());
        let known = "select count(*) from archived_job";
        assert_eq!(usize::try_from(world.count(known).await), Ok(rest), "it is not told to be archived");
        assert_eq!(world.archive(&to).await["archived"], 1);
        assert_eq!(world.export_all(&to).await.len(), jobs.len());
    });
}

/// What people do, and what comes, while jobs are written and not removed yet.
#[test]
fn what_changes_after_it_was_written_stays_and_leaves_the_file() {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        world.declare_topology().await;
        let customers = [(); 4].map(|()| Uuid::new_v4());
        let mut jobs = Vec::new();
        for customer_id in customers {
            jobs.push(world.publish_job_for(customer_id).await);
        }
        for (job_id, _) in &jobs {
            world.wait_for_end_of_verification(*job_id).await;
        }
        world.let_a_day_pass().await;
        let to = world.directory("archive");
        let mut command = world.command();
        command.args(archive(&to)).env("KYC_FAILPOINT", "archive-named=stop");
        let mut archiving = world.spawn(command);
        world.wait_for("a stopped archive", async || archiving.is_stopped().then_some(())).await;
        let [forgotten, copied, served, _] = customers.map(|customer_id| customer_id.to_string());
        let forget = ["forget", "--customer", &forgotten, "--by", "ana", "--note", "4711"];
        world.say(&forget).await;
        let (job_id, body) = &jobs[1];
        world.publish(Some(*job_id), body.to_string().as_bytes()).await;
        let is_copied = async || world.submission(*job_id).await.filter(|job| job.deliveries == 2);
        world.wait_for("the copy", is_copied).await;
        let newer = world.publish_job_asked(customers[2], 0).await;
        world.wait_for_state(newer, &["accepted"]).await;
        let budgets = world.budgets().await;
        archiving.signal("CONT");
        assert_eq!(archiving.exit().await.code(), Some(0), "{}", archiving.log());
        let done: Value = serde_json::from_str(&archiving.log()).expect("JSON");
        assert_eq!((&done["archived"], &done["changed"]), (&json!(1), &json!(3)), "{done}");
        world.let_a_day_pass().await;
        let told = world.export_all(&to).await;
        assert_eq!(told.len(), jobs.len() + 1);
        assert_eq!(world.budgets().await, budgets);
        // What stays is dated back, and `audit` sees that.
        world.is_tampered_with();
        // None of the three is told to be archived, and the next run takes those that are over.
        assert_eq!(world.count("select count(*) from archived_job").await, 1);
        for customer in [&forgotten, &copied, &served] {
            let (story, _) = world.ask(&["show", "--customer", customer]).await;
            assert_eq!(story["files"], json!([]), "{story}");
        }
        let done = world.archive(&to).await;
        assert_eq!((&done["archived"], &done["staying"]), (&json!(2), &json!(2)), "{done}");
        assert_eq!(world.export_all(&to).await, told);
        assert_eq!(told[&jobs[0].0]["document_number_last4"], Value::Null);
    });
}

/// A customer's next job ends, and is over for a day, while the walk is under way.
#[test]
fn a_customer_is_in_a_file_once_whatever_ends_meanwhile() {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        world.declare_topology().await;
        world.add_ended_jobs(999).await;
        let customer_id = Uuid::new_v4();
        let first = world.publish_job_asked(customer_id, 20).await;
        world.wait_for_end_of_verification(first).await;
        world.let_a_day_pass().await;
        let to = world.directory("archive");
        let mut command = world.command();
        command.args(archive(&to)).env("KYC_FAILPOINT", "archive-paged=stop");
        let mut archiving = world.spawn(command);
        world.wait_for("a stopped archive", async || archiving.is_stopped().then_some(())).await;
        // The end of the first page. The other job comes to the next.
        let second = world.publish_job_asked(customer_id, 10).await;
        world.wait_for_end_of_verification(second).await;
        world.let_a_day_pass().await;
        archiving.signal("CONT");
        assert_eq!(archiving.exit().await.code(), Some(0), "{}", archiving.log());
        let done: Value = serde_json::from_str(&archiving.log()).expect("JSON");
        assert_eq!((&done["archived"], &done["changed"]), (&json!(999), &json!(2)), "{done}");
        assert_eq!(world.export_all(&to).await.len(), 1_001);
        assert_eq!(world.archive(&to).await["archived"], 2);
        assert_eq!(world.export_all(&to).await.len(), 1_001);
    });
}

/// A file that has a customer twice, of which the one copy is old, loses nothing.
#[test]
fn what_a_later_step_removed_is_not_taken_out() {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        world.declare_topology().await;
        world.add_ended_jobs(999).await;
        let customer_id = Uuid::new_v4();
        let mut file = OsString::new();
        let mut lines = Vec::new();
        for (name, asked) in [("first", 20), ("second", 10)] {
            let job_id = world.publish_job_asked(customer_id, asked).await;
            world.wait_for_end_of_verification(job_id).await;
            world.let_a_day_pass().await;
            let to = world.directory(name);
            let arguments = archive(&to);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let killed = world.run(&arguments, &[("KYC_FAILPOINT", "archive-named=kill")]).await;
            assert_eq!(killed.status.signal(), Some(9));
            let mut entries = fs::read_dir(&to).expect("a directory");
            file = entries.next().expect("one").expect("a file").file_name();
            let bytes = fs::read(Path::new(&to).join(&file)).expect("a file");
            let text = String::from_utf8(zstd::decode_all(&*bytes).expect("zstd")).expect("UTF-8");
            let of_customer = |line: &&str| line.contains(&customer_id.to_string());
            let text: Vec<&str> = text.lines().collect();
            lines.extend(text.iter().copied().filter(of_customer).map(str::to_owned));
            if name == "first" {
                lines.extend(text.iter().copied().filter(|line| !of_customer(line)).map(str::to_owned));
            }
        }
        let to = world.directory("first");
        let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        fs::write(Path::new(&to).join(&file), zstd::encode_all(text.as_bytes(), 3).expect("zstd"))
            .expect("a file");
        world.archive(&to).await;
        let told = world.say(&["export", "--since", "2026-01-01", "--archive", &to]).await;
        let told: HashSet<&str> = told.lines().filter(|line| line.contains("job_id")).collect();
        assert_eq!(told.iter().filter(|line| line.contains(&customer_id.to_string())).count(), 2);
        assert_eq!(world.count_submissions().await, 0);
    });
}

/// What an open transaction may write by what it read before, is waited for.
#[test]
fn no_row_goes_while_a_statement_may_not_know_its_job_as_archived() {
    world_to_archive(async |world| {
        let (_worker, _) = world.verify_a_job().await;
        let mut opener = world.pool.begin().await.expect("a transaction");
        sqlx::query("delete from submission where false").execute(&mut *opener).await.expect("its lock");
        let to = world.directory("archive");
        world.let_a_day_pass().await;
        let mut command = world.command();
        command.args(archive(&to));
        let mut archiving = world.spawn(command);
        let marked = "select count(*) from archived_job";
        world.wait_for("the mark", async || (world.count(marked).await == 1).then_some(())).await;
        let asked = "select count(*) from pg_stat_activity
            where datname = current_database() and query like '%opener_left%' and pid <> pg_backend_pid()";
        world.wait_for("the question", async || (world.count(asked).await == 1).then_some(())).await;
        assert!(archiving.is_running(), "{}", archiving.log());
        assert_eq!(world.count_submissions().await, 1, "its row is there");
        opener.rollback().await.expect("it ends");
        assert_eq!(archiving.exit().await.code(), Some(0), "{}", archiving.log());
        assert_eq!(world.count_submissions().await, 0);
    });
}

#[test]
fn two_archives_of_one_database_do_not_run_at_once() {
    world_to_archive(async |world| {
        let mut other = world.pool.acquire().await.expect("a connection");
        sqlx::query("select pg_advisory_lock(hashtext('kyc-worker archive'))")
            .execute(&mut *other)
            .await
            .expect("the lock");
        let to = world.directory("archive");
        let complaint = world.refuse(&["archive", "--before", "2026-01-01", "--to", &to]).await;
        assert!(complaint.contains("another archive runs on this database"), "{complaint}");
        let complaint = world.refuse(&["export", "--since", "2026-01-01", "--archive", &to]).await;
        assert!(complaint.contains("an archive runs on this database"), "{complaint}");
        other.close().await.expect("the lock is free");
        for before in [OffsetDateTime::now_utc() - time::Duration::hours(23), OffsetDateTime::now_utc()] {
            let before = before.format(&Rfc3339).expect("a time");
            let complaint = world.refuse(&["archive", "--before", &before, "--to", &to]).await;
            assert!(
                complaint.contains("must lie a day back by the database's clock: give 20"),
                "{complaint}"
            );
        }
    });
}

#[test]
fn whatever_is_changed_in_an_archive_is_found_and_named() {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        world.declare_topology().await;
        let to = world.directory("archive");
        let path = Path::new(&to);
        let mut files = Vec::new();
        for _ in 0..3 {
            let job_id = world.publish_job().await;
            world.wait_for_end_of_verification(job_id).await;
            let done = world.archive(&to).await;
            files.push(done["files"][0].as_str().expect("a file").to_owned());
        }
        let manifest = path.join("manifest.jsonl");
        let text = fs::read_to_string(&manifest).expect("a manifest");
        let lines: Vec<&str> = text.lines().collect();
        let first = path.join(&files[0]);
        let bytes = fs::read(&first).expect("a file");

        let find = async |expected: &str| {
            let (verified, is_clean) = world.ask(&["audit", "--archive", &to]).await;
            assert!(!is_clean, "{expected}: {verified}");
            let findings = verified["findings"].to_string();
            assert!(findings.contains(expected), "{expected}: {findings}");
        };
        for place in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            fs::write(&first, &flipped).expect("a file");
            find(&files[0]).await;
        }
        fs::remove_file(&first).expect("it was there");
        find("is missing").await;
        fs::write(&first, fs::read(path.join(&files[1])).expect("a file")).expect("a file");
        find(&files[0]).await;
        fs::write(&first, &bytes).expect("a file");
        fs::write(path.join("2026-01-0001.jsonl.zst"), &bytes).expect("a file");
        find("2026-01-0001.jsonl.zst").await;
        fs::remove_file(path.join("2026-01-0001.jsonl.zst")).expect("it was there");
        for (edited, expected) in [
            (format!("{}\n{}\n{}\n", lines[1], lines[0], lines[2]), "does not follow the one before"),
            (format!("{}\n{}\n", lines[0], lines[2]), "does not follow the one before"),
            (format!("{}\n{}\n", lines[0], lines[1]), "is not in manifest.jsonl"),
            (text.replace("\"jobs\":1", "\"jobs\":2"), "tells of 2 jobs"),
            (format!("{}\n{}\n{} \n", lines[0], lines[1], lines[2]), "is not as it was written"),
            (format!("{text}{{}}\n"), "is no entry"),
        ] {
            fs::write(&manifest, &edited).expect("a manifest");
            find(expected).await;
        }
        let complaint = world.refuse(&["archive", "--before", &a_day_ago(), "--to", &to]).await;
        assert!(complaint.contains("manifest.jsonl"), "{complaint}");
        fs::write(&manifest, &text).expect("a manifest");
        let (verified, is_clean) = world.ask(&["audit", "--archive", &to]).await;
        assert!(is_clean && verified["files"] == 3, "{verified}");
    });
}

/// A file of another database's archive is no ground to remove anything, or to tell that it is archived.
#[test]
fn a_file_of_jobs_that_the_database_does_not_know_is_refused() {
    world_to_archive(async |world| {
        let (_worker, _) = world.verify_a_job().await;
        let to = world.directory("archive");
        let file = world.archive(&to).await["files"][0].as_str().expect("a file").to_owned();
        let other = world.directory("other");
        fs::create_dir(&other).expect("a directory");
        fs::copy(Path::new(&to).join(&file), Path::new(&other).join("2026-01-0001.jsonl.zst"))
            .expect("a copy");
        world.tamper("delete from archived_file").await;
        world.tamper("delete from archived_job").await;
        let complaint = world.refuse(&["archive", "--before", &a_day_ago(), "--to", &other]).await;
        assert!(complaint.contains("which this database does not know"), "{complaint}");
    });
}

/// The database tells its own archive, whole and of its time, from all others.
#[test]
fn a_directory_that_is_not_the_databases_own_is_refused() {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        world.declare_topology().await;
        let to = world.directory("archive");
        let mut jobs = Vec::new();
        for _ in 0..2 {
            let job_id = world.publish_job().await;
            world.wait_for_end_of_verification(job_id).await;
            world.archive(&to).await;
            jobs.push(job_id.to_string());
        }
        let refuse = async |directory: &str, expected: &str| {
            for command in [
                &["archive", "--before", &a_day_ago(), "--to", directory] as &[&str],
                &["export", "--since", "2026-01-01", "--archive", directory],
                &["show", &jobs[0], "--archive", directory],
            ] {
                let complaint = world.refuse(command).await;
                assert!(complaint.contains(expected), "{command:?}: {complaint}");
            }
        };
        let empty = world.directory("empty");
        fs::create_dir(&empty).expect("a directory");
        refuse(&empty, "is the volume mounted").await;
        let manifest = Path::new(&to).join("manifest.jsonl");
        let text = fs::read_to_string(&manifest).expect("a manifest");
        let lines: Vec<&str> = text.lines().collect();
        fs::write(&manifest, text.replacen("\"jobs\":1", "\"jobs\":2", 1).lines().next().expect("a line"))
            .expect("a manifest");
        refuse(&to, "says of").await;
        fs::write(&manifest, &text).expect("a manifest");

        // A failover to before the last commit that wrote of the second file.
        world.tamper("delete from archived_file where file like '%-0002.jsonl.zst'").await;
        refuse(&to, "failed over to before that run").await;
        // What the runbook says: the file is an unfinished run's again.
        fs::write(&manifest, format!("{}\n", lines[0])).expect("a manifest");
        world.archive(&to).await;
        assert_eq!(fs::read_to_string(&manifest).expect("a manifest"), text);
        assert_eq!(world.export_all(&to).await.len(), 2);
        assert_eq!(world.count("select count(*) from archived_file").await, 2);
    });
}

/// A database that was set back to before a run archives its jobs again.
#[test]
fn a_job_that_stands_in_two_files_is_found() {
    world_to_archive(async |world| {
        world.add_ended_jobs(2).await;
        world.tamper("create table set_back as select * from submission").await;
        let to = world.directory("archive");
        world.archive(&to).await;
        world.tamper("insert into submission select * from set_back").await;
        world.archive(&to).await;
        let (verified, is_clean) = world.ask(&["audit", "--archive", &to]).await;
        let findings = verified["findings"].to_string();
        assert!(!is_clean && findings.contains("2 of its jobs stand twice"), "{verified}");
    });
}

/// However many dead letters and events wait.
#[test]
fn a_page_of_the_walk_does_not_read_every_dead_letter() {
    world_to_archive(async |world| {
        world.add_ended_jobs(10).await;
        world
            .tamper(
                "insert into dead_lettered_delivery (
                    job_id, received_at, size, body_sha256, reason_code, reason
                )
                select gen_random_uuid(), now(), 1, '\\x00', 'invalid', 'made up' from generate_series(1, 100000)",
            )
            .await;
        world.tamper("analyze dead_lettered_delivery").await;
        let to = world.directory("archive");
        assert_eq!(world.archive_with(&to, &["--dry-run"]).await["archived"], 10);
        let scans = "select seq_tup_read from pg_stat_user_tables where relname = 'dead_lettered_delivery'";
        let index =
            "select idx_scan from pg_stat_user_indexes where indexrelname = 'dead_lettered_delivery_job'";
        world.wait_for("the counts", async || (world.count(index).await > 0).then_some(())).await;
        assert!(world.count(scans).await < 100_000, "they were read one by one");
    });
}

#[test]
fn an_archive_that_is_interrupted_is_gone_on_with() {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        let jobs = world.publish_to_archive().await;
        let to = world.directory("archive");
        let mut command = world.command();
        command.args(archive(&to)).env("KYC_FAILPOINT", "archive-named=stop");
        let mut archiving = world.spawn(command);
        world.wait_for("a stopped archive", async || archiving.is_stopped().then_some(())).await;
        archiving.signal("INT");
        archiving.signal("CONT");
        assert_eq!(archiving.exit().await.code(), Some(1), "{}", archiving.log());
        assert!(archiving.log().contains("\"is_interrupted\": true"), "{}", archiving.log());
        world.archive(&to).await;
        assert_eq!(world.count_submissions().await, 0);
        assert_eq!(world.export_all(&to).await.len(), jobs.len());
    });
}

/// Each file is removed in steps, and belongs to a month.
#[test]
fn months_go_to_files_of_their_own_and_a_kill_between_two_steps_is_made_good() {
    world_to_archive(async |world| {
        world
            .tamper(
                "insert into submission (
                    job_id, customer_id, state, document_type, content_hmac, requested_at, received_at, ended_at
                )
                select gen_random_uuid(), gen_random_uuid(), 'superseded', 'PASSPORT', '\\x00', at, at, at
                from generate_series(1, 1500) nth
                cross join lateral (
                    select timestamptz '2026-02-01T00:00:00Z' + (nth - 1000.5) * interval '1 s' as at
                ) dated",
            )
            .await;
        let to = world.directory("archive");
        fs::create_dir(&to).expect("a directory");
        let exported = world.export_all(&to).await;
        let arguments = archive(&to);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let killed = world.run(&arguments, &[("KYC_FAILPOINT", "archive-removed=kill@2")]).await;
        assert_eq!(killed.status.signal(), Some(9));
        assert_eq!(world.count_submissions().await, 900, "two steps of 300 are gone");
        let complaint = world.refuse(&["export", "--since", "2026-01-01", "--archive", &to]).await;
        assert!(complaint.contains("2026-01-0001.jsonl.zst is not in manifest.jsonl"), "{complaint}");
        let unknown = Uuid::new_v4().to_string();
        let complaint = world.refuse(&["show", &unknown, "--archive", &to]).await;
        assert!(complaint.contains("an archive is unfinished"), "{complaint}");
        let gone = "select job_id from archived_job k
            where not exists (select from submission s where s.job_id = k.job_id) limit 1";
        let gone: Uuid = sqlx::query_scalar(gone).fetch_one(&world.pool).await.expect("one");
        let (story, is_told) = world.ask(&["show", &gone.to_string(), "--archive", &to]).await;
        assert!(is_told && story["archived_in"] == "2026-01-0001.jsonl.zst", "{story}");

        let done = world.archive(&to).await;
        assert_eq!(done["files"], json!(["2026-01-0001.jsonl.zst", "2026-02-0001.jsonl.zst"]));
        assert_eq!(done["archived"], 900, "{done}");
        assert_eq!(world.export_all(&to).await, exported);
        let (verified, is_clean) = world.ask(&["audit", "--archive", &to]).await;
        assert!(is_clean && verified["jobs"] == 1_500, "{verified}");
        let until = ["export", "--since", "2026-01-01", "--until", "2026-02-01", "--archive", &to];
        assert_eq!(world.say(&until).await.lines().count(), 1_000);
    });
}

/// Whatever the moment at which it comes.
#[test]
fn a_copy_that_comes_while_its_job_is_archived_is_not_sent() {
    world_to_archive(async |world| {
        let worker = world.start_worker_with(&FOLLOWING);
        world.declare_topology().await;
        let mut jobs = Vec::new();
        for _ in 0..40 {
            jobs.push(world.publish_job_for(Uuid::new_v4()).await);
        }
        for (job_id, _) in &jobs {
            world.wait_for_end_of_verification(*job_id).await;
        }
        let to = world.directory("archive");
        let copies = async {
            for (job_id, body) in jobs.iter().chain(&jobs) {
                world.publish(Some(*job_id), body.to_string().as_bytes()).await;
            }
        };
        tokio::join!(world.archive(&to), copies);
        let known = "select coalesce(sum(deliveries), 0)::bigint from (
            select deliveries from submission union all
            select deliveries from archived_job k
            where not exists (select from submission s where s.job_id = k.job_id)
        ) each";
        world.wait_for("each copy", async || (world.count(known).await == 3 * 40).then_some(())).await;
        world.archive(&to).await;
        assert_eq!(world.export_all(&to).await.len(), jobs.len());
        assert_eq!(world.count_submissions().await, 0);
        for (job_id, _) in &jobs {
            assert_eq!(world.count_patches(*job_id).await, 1, "{job_id}");
        }
        assert!(!worker.log().contains("ERROR"), "{}", worker.log());
    });
}

#[test]
fn what_ended_longer_ago_than_after_is_archived_and_before_wins_over_the_environment() {
    world_to_archive(async |world| {
        world.add_jobs_that_ended(2, 12).await;
        world.add_jobs_that_ended(3, 4).await;
        let to = world.directory("archive");
        let (found, _) = world.ask(&["archive", "--after", "5d", "--to", &to, "--dry-run"]).await;
        assert_eq!((&found["archived"], world.count_submissions().await), (&json!(2), 5), "{found}");
        let (done, is_done) = world.ask(&["archive", "--after", "5d", "--to", &to]).await;
        assert!(is_done && done["archived"] == 2, "{done}");
        assert_eq!(world.count_submissions().await, 3);

        // It is one run, and of its own time.
        let environment = [("ARCHIVE_AFTER", "5d"), ("ARCHIVE_EVERY", "1s")];
        let output = world.run(&["archive", "--before", &a_day_ago(), "--to", &to], &environment).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        world.check_archived(&to, 5).await;
    });
}

#[test]
fn flags_that_do_not_fit_together_are_refused() {
    let refuse = |flags: &[&str], settings: &[(&str, &str)], expected: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_kyc-worker"))
            .args(["archive", "--to", "archive"])
            .args(flags)
            .env_clear()
            .env("DATABASE_URL", "postgres://127.0.0.1:1/kyc")
            .envs(settings.iter().copied())
            .current_dir(std::env::temp_dir())
            .output()
            .expect("it runs");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains(expected), "{flags:?}: {said}");
    };
    let (before, after) = (["--before", "2026-07-01"], ["--after", "90d"]);
    refuse(
        &[],
        &[],
        "ARCHIVE_AFTER: is not set; say which jobs are old enough, as with --after 90d or --before",
    );
    refuse(&[], &[("ARCHIVE_EVERY", "1d")], "ARCHIVE_AFTER: is not set");
    refuse(&[before, after].concat(), &[], "ARCHIVE_AFTER: is given beside --before; leave one of them out");
    for (flags, settings) in [
        (&["--after", "23h 59m"] as &[&str], &[] as &[(&str, &str)]),
        (&[], &[("ARCHIVE_AFTER", "86399s")]),
        (&["--after", "0s"], &[("ARCHIVE_AFTER", "90d")]),
    ] {
        refuse(flags, settings, "ARCHIVE_AFTER: ");
        refuse(flags, settings, "is too short: jobs must have been over for a day; write 1d or more");
    }
    refuse(&[&after[..], &["--every", "999ms"]].concat(), &[], "ARCHIVE_EVERY: ");
    let stays = ["--every", "1d"];
    for of_one_run in
        [&before[..], &[&after[..], &["--dry-run"]].concat(), &[&after[..], &["--json"]].concat()]
    {
        refuse(&[of_one_run, &stays].concat(), &[], "ARCHIVE_EVERY: is given beside");
    }
}

#[test]
fn an_archive_that_stays_takes_what_ends_later_and_outlives_an_outage() {
    world_to_archive(async |world| {
        let (relay, database_url) = world.relay_to_database().await;
        let to = world.directory("archive");
        world.add_ended_jobs(2).await;
        let settings = [("DATABASE_URL", &*database_url), ("KYC_FAILPOINT", "archive-marked=stop@2")];
        let mut archiving = world.start_archive(&to, &settings);
        world.wait_until_all_is_archived().await;

        // Its connection breaks in the middle of the second round.
        world.add_ended_jobs(3).await;
        world.wait_for("a stopped archive", async || archiving.is_stopped().then_some(())).await;
        relay.refuse().await;
        relay.reset();
        archiving.signal("CONT");
        let waits = "nothing is archived for now; it is tried again";
        world.wait_for_log(&archiving, waits).await;
        assert_eq!(world.count_submissions().await, 3);
        relay.accept().await;
        world.wait_until_all_is_archived().await;

        world.add_ended_jobs(4).await;
        world.wait_until_all_is_archived().await;
        archiving.stop().await;
        assert!(!archiving.log().contains("ERROR"), "{}", archiving.log());
        world.check_archived(&to, 9).await;
    });
}

#[test]
fn an_archive_that_stays_waits_for_another_and_ends_by_what_a_person_must_see_to() {
    world_to_archive(async |world| {
        let mut other = world.pool.acquire().await.expect("a connection");
        let lock = "select pg_advisory_lock(hashtext('kyc-worker archive'))";
        sqlx::query(lock).execute(&mut *other).await.expect("the lock");
        world.add_ended_jobs(2).await;
        let to = world.directory("archive");
        let mut archiving = world.start_archive(&to, &[]);
        world.wait_for_log(&archiving, "another archive runs on this database").await;
        other.close().await.expect("the lock is free");
        world.wait_until_all_is_archived().await;
        world.wait_for_log(&archiving, "\"head\"").await;

        let manifest = Path::new(&to).join("manifest.jsonl");
        let text = fs::read_to_string(&manifest).expect("a manifest");
        fs::write(&manifest, text.replace("\"jobs\":2", "\"jobs\":3")).expect("a manifest");
        assert_eq!(archiving.exit().await.code(), Some(1), "{}", archiving.log());
        assert!(archiving.log().contains("manifest.jsonl"), "{}", archiving.log());
        let empty = world.directory("empty");
        let mut archiving = world.start_archive(&empty, &[]);
        assert_eq!(archiving.exit().await.code(), Some(1), "{}", archiving.log());
        assert!(archiving.log().contains("is the volume mounted"), "{}", archiving.log());
    });
}

/// A signal that comes at each step ends it well, and the next round goes on from there.
#[test]
fn an_archive_that_stays_and_is_told_to_stop_in_a_round_loses_nothing() {
    world_to_archive(async |world| {
        let to = world.directory("archive");
        let points = [
            Point::ArchivePaged,
            Point::ArchiveWritten,
            Point::ArchiveNamed,
            Point::ArchiveMarked,
            Point::ArchiveRemoved,
            Point::ArchiveKnown,
            Point::ArchiveListed,
        ];
        for point in points {
            world.add_ended_jobs(2).await;
            let failpoint = format!("{}=stop", point.name());
            let mut archiving = world.start_archive(&to, &[("KYC_FAILPOINT", &failpoint)]);
            world.wait_for("a stopped archive", async || archiving.is_stopped().then_some(())).await;
            archiving.signal("TERM");
            archiving.signal("CONT");
            let status = archiving.exit().await;
            assert_eq!(status.code(), Some(0), "at {}: {}", point.name(), archiving.log());
        }
        let mut archiving = world.start_archive(&to, &[]);
        world.wait_for_log(&archiving, "\"head\"").await;
        archiving.stop().await;
        world.check_archived(&to, 2 * points.len()).await;
    });
}

/// A transaction that knows nothing of the archive keeps nobody from stopping it.
#[test]
fn an_archive_that_waits_for_a_statement_stops_when_it_is_told_to() {
    world_to_archive(async |world| {
        world.add_ended_jobs(2).await;
        let mut opener = world.pool.begin().await.expect("a transaction");
        sqlx::query("delete from submission where false").execute(&mut *opener).await.expect("its lock");
        let to = world.directory("archive");
        let mut archiving = world.start_archive(&to, &[]);
        let marked = "select count(*) from archived_job";
        world.wait_for("the mark", async || (world.count(marked).await == 2).then_some(())).await;
        archiving.stop().await;
        assert_eq!(world.count_submissions().await, 2, "their rows are there");
        opener.rollback().await.expect("it ends");
        world.archive(&to).await;
        world.check_archived(&to, 2).await;
    });
}

/// An archive that is killed loses nothing, and has nothing twice once it was run again.
pub(crate) fn check_archive_killed_at(point: Point) {
    world_to_archive(async |world| {
        let _worker = world.start_worker_with(&FOLLOWING);
        let jobs = world.publish_to_archive().await;
        let to = world.directory("archive");
        fs::create_dir(&to).expect("a directory");
        let (budgets, exported) = (world.budgets().await, world.export_all(&to).await);
        // A file is written anew where a job stays after all.
        let mut holder = world.pool.begin().await.expect("a transaction");
        if point == Point::ArchiveRewritten {
            let held = "select job_id from submission where job_id = $1 for update";
            sqlx::query(held).bind(jobs[0]).execute(&mut *holder).await.expect("a lock");
        }
        let failpoint = format!("{}=kill", point.name());
        let arguments = archive(&to);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let killed = world.run(&arguments, &[("KYC_FAILPOINT", &failpoint)]).await;
        assert_eq!(killed.status.signal(), Some(9), "killed at {}", point.name());
        holder.rollback().await.expect("the lock is free");
        assert_eq!(world.budgets().await, budgets, "killed at {}", point.name());

        world.archive(&to).await;
        assert_eq!(world.count_submissions().await, 0, "killed at {}", point.name());
        assert_eq!(world.export_all(&to).await, exported, "killed at {}", point.name());
        assert_eq!(world.budgets().await, budgets, "killed at {}", point.name());
        let (verified, is_clean) = world.ask(&["audit", "--archive", &to]).await;
        assert!(is_clean && verified["jobs"] == jobs.len(), "killed at {}: {verified}", point.name());
        for job_id in &jobs {
            assert!(world.count_patches(*job_id).await <= 1);
        }
    });
}
