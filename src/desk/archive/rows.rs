//! What of the tables goes to the archive, as the lines that a file holds of it, and its removal.
//!
//! A customer's jobs go together, once all of them may: what is decided of a job that comes later then
//! depends on what `archived_customer` keeps, and not on which of the others are still here.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::postgres::PgQueryResult;
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::files::{Busy, WrittenJob};
use crate::domain::suspicion::Archivable;
use crate::journal::rows::column;
use crate::journal::statements::customers::read_customers;
use crate::journal::{LOCK_NOT_AVAILABLE, code_of};

/// How many jobs are inspected at once.
const PAGE: i64 = 1_000;

/// How long a job must have ended: longer than an answer may be late, and than what a failover of the
/// database lost is remembered.
pub const SETTLED: Duration = Duration::from_hours(24);

/// How often it is asked whether a statement has ended that began before, and for how long.
const OPENERS_POLL: Duration = Duration::from_millis(5);
const OPENERS_TIME_MAX: Duration = Duration::from_secs(60);

/// Where the walk over ended jobs stands: what ended no later was inspected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    pub ended_at: OffsetDateTime,
    pub job_id: Uuid,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { ended_at: OffsetDateTime::UNIX_EPOCH, job_id: Uuid::nil() }
    }
}

/// A job of the walk, in the order of their ends.
pub(super) struct Ended {
    job_id: Uuid,
    customer_id: Option<Uuid>,
    pub ended_at: OffsetDateTime,
}

impl Ended {
    pub fn cursor(&self) -> Cursor {
        Cursor { ended_at: self.ended_at, job_id: self.job_id }
    }
}

/// The jobs of one customer, or one that names none.
pub(super) struct Group {
    customer_id: Option<Uuid>,
    pub job_ids: Vec<Uuid>,
    /// The one that ended last: the group belongs to its place.
    last: Uuid,
    may_go: bool,
}

impl Group {
    /// Whose jobs these are: the customer's, or the job itself.
    pub fn owner(&self) -> Uuid {
        self.customer_id.unwrap_or(self.last)
    }
}

/// What goes to the archive of some jobs of the walk.
#[derive(Default)]
pub(super) struct Going {
    pub groups: Vec<Group>,
    /// How many jobs stay.
    pub staying: u64,
}

/// Readies a connection for the command: statements may take long, and times are written in UTC.
pub(super) async fn set_up(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql("set statement_timeout = 0; set timezone = 'UTC'").execute(connection).await?;
    Ok(())
}

/// Takes the right to archive this database, which the connection keeps for as long as it lives. False
/// where another has it, for longer than the server takes to find out that a process has died.
pub(super) async fn lock(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let locking = sqlx::query("-- lock_archive\nselect pg_advisory_lock(hashtext('kyc-worker archive'))");
    is_locked(locking.execute(connection).await)
}

/// The same beside others that only read: nothing is archived meanwhile.
pub(super) async fn lock_shared(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let locking =
        sqlx::query("-- lock_archive_shared\nselect pg_advisory_lock_shared(hashtext('kyc-worker archive'))");
    is_locked(locking.execute(connection).await)
}

/// Whether a lock was taken within the session's `lock_timeout`.
fn is_locked(locked: sqlx::Result<PgQueryResult>) -> sqlx::Result<bool> {
    match locked {
        Ok(_) => Ok(true),
        Err(error) if code_of(&error) == LOCK_NOT_AVAILABLE => Ok(false),
        Err(error) => Err(error),
    }
}

/// When it was so long ago, by the database's clock.
pub(super) async fn so_long_ago(
    connection: &mut PgConnection,
    time: Duration,
) -> sqlx::Result<OffsetDateTime> {
    sqlx::query_scalar!(
        r#"-- so_long_ago
        select now() - make_interval(secs => $1) as "then!""#,
        time.as_secs_f64(),
    )
    .fetch_one(connection)
    .await
}

/// How many jobs ended before.
pub async fn count(connection: &mut PgConnection, before: OffsetDateTime) -> sqlx::Result<u64> {
    let count = sqlx::query_scalar!(
        r#"-- count_archivable
        select count(*) as "count!" from submission where ended_at < $1"#,
        before,
    )
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// The next jobs that ended before, in the order of their ends.
pub(super) async fn page(
    connection: &mut PgConnection,
    from: Cursor,
    before: OffsetDateTime,
) -> sqlx::Result<Vec<Ended>> {
    sqlx::query_as!(
        Ended,
        r#"-- page_of_archivable
        select job_id, customer_id, ended_at as "ended_at!"
        from submission
        where ended_at >= $1 and ended_at < $2 and (ended_at, job_id) > ($1, $3)
        order by ended_at, job_id
        limit $4"#,
        from.ended_at,
        before,
        from.job_id,
        PAGE,
    )
    .fetch_all(connection)
    .await
}

/// What of the page goes: the groups whose last job is on it, as far as nothing can change them by itself
/// any more. Jobs of which a dead letter or an event is still there stay, and so does what a payload is
/// kept of.
pub(super) async fn going(
    connection: &mut PgConnection,
    page: &[Ended],
    before: OffsetDateTime,
    window: Duration,
) -> sqlx::Result<Going> {
    let customers: HashSet<Uuid> = page.iter().filter_map(|job| job.customer_id).collect();
    let customers: Vec<Uuid> = customers.into_iter().collect();
    let alone = page.iter().filter(|job| job.customer_id.is_none()).map(|job| job.job_id);
    let groups = sqlx::query_as!(
        Group,
        r#"-- groups_of_archivable
        with job as (
            select
                customer_id, job_id, ended_at, received_at,
                coalesce(ended_at < $3, false) and state <> 'needs_review' and sealed_payload is null
                    and verification_due_at is null as is_over
            from submission
            where customer_id = any($1)
            union all
            select null, job_id, ended_at, received_at, true
            from submission
            where job_id = any($2) and num_nulls(customer_id) = 1
        )
        select
            customer_id, array_agg(job_id order by received_at, job_id) as "job_ids!",
            (array_agg(job_id order by ended_at desc nulls last, job_id desc))[1] as "last!",
            bool_and(
                is_over
                and not exists (select from outcome_event e where e.job_id = job.job_id)
                and not exists (select from dead_lettered_delivery d where d.job_id = job.job_id)
            ) as "may_go!"
        from job
        group by customer_id, case when customer_id is null then job_id end"#,
        &customers,
        &alone.collect::<Vec<_>>(),
        before,
    )
    .fetch_all(&mut *connection)
    .await?;
    let asked = groups.iter().filter(|group| group.may_go).filter_map(|group| group.customer_id);
    let known = read_customers(connection, asked.map(|customer_id| (customer_id, None))).await?;
    let may_go = |group: &Group| {
        let customer = group.customer_id.and_then(|customer_id| known.get(&customer_id));
        group.may_go && customer.is_none_or(|customer| customer.archivable(window).is_some())
    };
    let mut groups: HashMap<Uuid, Group> = groups.into_iter().map(|group| (group.last, group)).collect();
    let mut going = Going::default();
    for job in page {
        let Some(group) = groups.remove(&job.job_id) else { continue };
        match may_go(&group) {
            true => going.groups.push(group),
            false => going.staying += group.job_ids.len() as u64,
        }
    }
    Ok(going)
}

/// Jobs with all that the tables have of them, but their contents' fingerprints and payloads: one line
/// each, in the order given. Whatever column a later release adds is in it.
pub(super) async fn lines(
    connection: &mut PgConnection,
    job_ids: &[Uuid],
) -> sqlx::Result<Vec<(Uuid, String)>> {
    let lines = sqlx::query!(
        r#"-- archive_lines
        select
            s.job_id,
            jsonb_build_object(
                'submission', to_jsonb(s) - array['sealed_payload', 'content_hmac'],
                'attempts', (
                    select coalesce(jsonb_agg(to_jsonb(a) order by a.number), '[]')
                    from attempt a where a.job_id = s.job_id
                ),
                'observations', (
                    select coalesce(jsonb_agg(to_jsonb(o) order by o.id), '[]')
                    from observation o where o.job_id = s.job_id
                ),
                'interventions', (
                    select coalesce(
                        -- Who approved it: the proposal stays, and the file says it by itself.
                        jsonb_agg(
                            to_jsonb(i) || coalesce(
                                (
                                    select jsonb_build_object('approved_by', p.decided_by)
                                    from proposal p where p.id = i.proposal_id
                                ),
                                '{}'
                            )
                            order by i.id
                        ),
                        '[]'
                    )
                    from intervention i where i.job_id = s.job_id
                )
            )::text as "text!"
        from unnest($1::uuid[]) with ordinality as asked (job_id, place)
        join submission s on s.job_id = asked.job_id
        order by asked.place"#,
        job_ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(lines.into_iter().map(|line| (line.job_id, line.text)).collect())
}

/// Writes down which file has these jobs, before any of their rows is removed. From then on no
/// statement that begins writes their ids anew.
pub(super) async fn mark(connection: &mut PgConnection, jobs: &[WrittenJob], file: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "-- mark_archived
        insert into archived_job (
            job_id, customer_id, document_type, content_hmac, state, holds_id, ended_at, deliveries, file
        )
        select
            job_id, customer_id, document_type, content_hmac, state, state <> 'invalid', ended_at, deliveries, $2
        from submission
        where job_id = any($1) and ended_at is not null
        on conflict (job_id) do update set
            customer_id = excluded.customer_id, document_type = excluded.document_type,
            content_hmac = excluded.content_hmac, state = excluded.state, holds_id = excluded.holds_id,
            ended_at = excluded.ended_at, deliveries = excluded.deliveries, file = excluded.file",
        &ids(jobs),
        file,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Waits for every transaction that may write `submission` by what it read before now. A statement that
/// does not see `archived_job`'s new rows finds the jobs' own then, which are still there, in the
/// unique index. The statement locks the table before it takes its snapshot, so its transaction is among
/// those that hold that lock now; `create index concurrently` waits in the same way. False where the run is to
/// stop meanwhile.
pub(super) async fn wait_for_openers(
    connection: &mut PgConnection,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let openers: Vec<String> = sqlx::query_scalar!(
        r#"-- openers
        select virtualtransaction as "opener!" from pg_locks
        where locktype = 'relation' and relation = 'submission'::regclass and mode = 'RowExclusiveLock'
            and database = (select oid from pg_database where datname = current_database())
            and pid <> pg_backend_pid()"#
    )
    .fetch_all(&mut *connection)
    .await?;
    let begun = Instant::now();
    loop {
        let pid = sqlx::query_scalar!(
            "-- opener_left
            select pid from pg_locks
            where locktype = 'relation' and relation = 'submission'::regclass and virtualtransaction = any($1)
            limit 1",
            &openers,
        )
        .fetch_optional(&mut *connection)
        .await?
        .flatten();
        let Some(pid) = pid else { return Ok(true) };
        if stop.is_cancelled() {
            return Ok(false);
        }
        anyhow::ensure!(
            begun.elapsed() < OPENERS_TIME_MAX,
            Busy(format!(
                "a transaction that writes submission has been open for {OPENERS_TIME_MAX:?}, and rows may not be \
                 removed beside it; end it (select * from pg_stat_activity where pid = {pid}), and run this \
                 command again"
            ))
        );
        sleep(OPENERS_POLL).await;
    }
}

/// What became of some jobs of a file.
#[derive(Default)]
pub(super) struct Removed {
    /// Those whose rows stay, or stayed: they are no more what the file has of them, or not all of the
    /// customer's.
    pub left: Vec<Uuid>,
    pub removed: Vec<Uuid>,
}

/// Removes the rows of whole groups, in one commit: where they are what the file has of them, and the
/// customer may go still. The commit also writes what is to be kept of the customers.
pub(super) async fn remove(
    connection: &mut PgConnection,
    jobs: &[WrittenJob],
    file: &str,
    window: Duration,
) -> anyhow::Result<Removed> {
    let mut tx = connection.begin().await?;
    // A row that somebody holds is about to change, or may be.
    let locked = sqlx::query_scalar!(
        "-- lock_archivable
        select job_id from submission where job_id = any($1) order by job_id for update skip locked",
        &ids(jobs),
    )
    .fetch_all(&mut *tx)
    .await?;
    let here: HashMap<Uuid, [u8; 32]> = lines(&mut tx, &locked)
        .await?
        .into_iter()
        .map(|(job_id, line)| (job_id, Sha256::digest(line).into()))
        .collect();
    let there = sqlx::query!(
        "-- archivable_left
        select job_id, customer_id from submission where job_id = any($1) or customer_id = any($2)",
        &ids(jobs),
        &jobs.iter().filter_map(|job| job.customer_id).collect::<Vec<_>>(),
    )
    .fetch_all(&mut *tx)
    .await?;
    let written: HashMap<Uuid, &WrittenJob> = jobs.iter().map(|job| (job.job_id, job)).collect();
    let is_as_written =
        |job_id: &Uuid| written.get(job_id).is_some_and(|job| here.get(job_id) == Some(&job.digest));
    // Of a customer, all or none: one row that is another makes all of them stay.
    let busy: HashSet<Uuid> = there
        .iter()
        .filter(|row| !is_as_written(&row.job_id))
        .map(|row| row.customer_id.unwrap_or(row.job_id))
        .collect();
    let customers: HashSet<Uuid> = there.iter().filter_map(|row| row.customer_id).collect();
    let asked = customers.iter().filter(|customer_id| !busy.contains(customer_id));
    let known = read_customers(&mut tx, asked.clone().map(|customer_id| (*customer_id, None))).await?;
    let kept = asked.map(|customer_id| match known.get(customer_id) {
        Some(customer) => (*customer_id, customer.archivable(window)),
        None => (*customer_id, Some(Archivable::default())),
    });
    let kept: HashMap<Uuid, Option<Archivable>> = kept.collect();
    let goes = |job_id: Uuid, customer_id: Option<Uuid>| match customer_id {
        Some(customer_id) => kept.get(&customer_id).is_some_and(Option::is_some),
        None => !busy.contains(&job_id),
    };
    let of_file = there.iter().filter(|row| written.contains_key(&row.job_id));
    let (going, left): (Vec<_>, Vec<_>) = of_file.partition(|row| goes(row.job_id, row.customer_id));
    let going: Vec<Uuid> = going.into_iter().map(|row| row.job_id).collect();
    let left: Vec<Uuid> = left.into_iter().map(|row| row.job_id).collect();
    let kept: Vec<(Uuid, Archivable)> =
        kept.into_iter().filter_map(|(customer_id, kept)| Some((customer_id, kept?))).collect();
    keep_customers(&mut tx, &kept, file).await?;
    delete(&mut tx, &going).await?;
    sqlx::query!("-- unmark_archived\ndelete from archived_job where job_id = any($1)", &left)
        .execute(&mut *tx)
        .await?;
    check_marked(&mut tx, jobs, &left, file).await?;
    tx.commit().await?;
    Ok(Removed { left, removed: going })
}

/// Checks that what has no row is known to be in the file: else the file is another database's.
async fn check_marked(
    tx: &mut PgConnection,
    jobs: &[WrittenJob],
    left: &[Uuid],
    file: &str,
) -> anyhow::Result<()> {
    let left: HashSet<Uuid> = left.iter().copied().collect();
    let gone: Vec<Uuid> = ids(jobs).into_iter().filter(|job_id| !left.contains(job_id)).collect();
    let unknown = sqlx::query_scalar!(
        r#"-- unknown_archived
        select gone.job_id as "job_id!" from unnest($1::uuid[]) as gone (job_id)
        where not exists (select from archived_job k where k.job_id = gone.job_id and k.file = $2)
        limit 1"#,
        &gone,
        file,
    )
    .fetch_optional(tx)
    .await?;
    match unknown {
        None => Ok(()),
        Some(job_id) => anyhow::bail!(
            "{file} holds job {job_id}, which this database does not know; is the directory another database's \
             archive, or was the database restored from a backup? Nothing was removed"
        ),
    }
}

async fn delete(tx: &mut PgConnection, job_ids: &[Uuid]) -> anyhow::Result<()> {
    sqlx::query!("-- remove_attempts\ndelete from attempt where job_id = any($1)", job_ids)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("-- remove_observations\ndelete from observation where job_id = any($1)", job_ids)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("-- remove_interventions\ndelete from intervention where job_id = any($1)", job_ids)
        .execute(&mut *tx)
        .await?;
    let removed = sqlx::query!(
        "-- remove_submissions
        delete from submission
        where job_id = any($1)
            and state in ('accepted', 'rejected', 'invalid', 'superseded', 'duplicate', 'exhausted')",
        job_ids,
    )
    .execute(tx)
    .await?;
    // Each is locked, and was seen to be one of these.
    anyhow::ensure!(removed.rows_affected() == job_ids.len() as u64, "a row that is locked has changed");
    Ok(())
}

async fn keep_customers(
    tx: &mut PgConnection,
    customers: &[(Uuid, Archivable)],
    file: &str,
) -> sqlx::Result<()> {
    let all: Vec<&(Uuid, Archivable)> = customers.iter().collect();
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    sqlx::query!(
        "-- keep_customers
        insert into archived_customer (
            customer_id, accepted, unknown_outcome, spent_at, newest_requested_at, newest_received_at, newest_job_id,
            applied_until, signed_until, word, word_at, word_read_at, word_dated_at, files
        )
        select new.*, array[$14]
        from unnest(
            $1::uuid[], $2::integer[], $3::integer[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[],
            $7::uuid[], $8::timestamptz[], $9::timestamptz[], $10::text[], $11::timestamptz[],
            $12::timestamptz[], $13::timestamptz[]
        ) as new (customer_id)
        order by new.customer_id
        on conflict (customer_id) do update set
            accepted = excluded.accepted, unknown_outcome = excluded.unknown_outcome, spent_at = excluded.spent_at,
            newest_requested_at = excluded.newest_requested_at,
            newest_received_at = excluded.newest_received_at, newest_job_id = excluded.newest_job_id,
            applied_until = excluded.applied_until, signed_until = excluded.signed_until,
            word = excluded.word, word_at = excluded.word_at, word_read_at = excluded.word_read_at,
            word_dated_at = excluded.word_dated_at,
            files = case
                when excluded.files <@ archived_customer.files then archived_customer.files
                else archived_customer.files || excluded.files
            end",
        &column(&all, |(customer_id, _)| *customer_id),
        &column(&all, |(_, kept)| count(kept.jobs.accepted)),
        &column(&all, |(_, kept)| count(kept.jobs.unknown)),
        &column(&all, |(_, kept)| kept.jobs.spent_at) as &[Option<OffsetDateTime>],
        &column(&all, |(_, kept)| kept.jobs.newest.map(|newest| newest.0)) as &[Option<OffsetDateTime>],
        &column(&all, |(_, kept)| kept.jobs.newest.map(|newest| newest.1)) as &[Option<OffsetDateTime>],
        &column(&all, |(_, kept)| kept.jobs.newest.map(|newest| newest.2)) as &[Option<Uuid>],
        &column(&all, |(_, kept)| kept.jobs.applied_until.map(|until| until.0))
            as &[Option<OffsetDateTime>],
        &column(&all, |(_, kept)| kept.jobs.applied_until.map(|until| until.1))
            as &[Option<OffsetDateTime>],
        &column(&all, |(_, kept)| kept.word.as_ref().and_then(|word| word.status.as_deref()))
            as &[Option<&str>],
        &column(&all, |(_, kept)| kept.word.as_ref().map(|word| word.at)) as &[Option<OffsetDateTime>],
        &column(&all, |(_, kept)| kept.word.as_ref().and_then(|word| word.read_at))
            as &[Option<OffsetDateTime>],
        &column(&all, |(_, kept)| kept.word.as_ref().and_then(|word| word.dated_at))
            as &[Option<OffsetDateTime>],
        file,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Removes some ids of jobs that ended longer than `kept` ago. Returns how many.
pub(super) async fn forget_ids(connection: &mut PgConnection, kept: Duration) -> sqlx::Result<u64> {
    let removed = sqlx::query!(
        "-- sweep_archived_ids
        with old as (
            select job_id from archived_job
            where ended_at < now() - make_interval(secs => $1)
            order by ended_at
            limit $2
        )
        delete from archived_job k using old where k.job_id = old.job_id",
        kept.as_secs_f64(),
        PAGE,
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}

/// The files that were archived, with the SHA-256 of their lines in the manifest.
pub(super) async fn files(connection: &mut PgConnection) -> sqlx::Result<HashMap<String, Vec<u8>>> {
    let files = sqlx::query!("-- archived_files\nselect file, entry_sha256 from archived_file")
        .fetch_all(connection)
        .await?;
    Ok(files.into_iter().map(|row| (row.file, row.entry_sha256)).collect())
}

/// Writes down that a file is finished. False where another line of it is known.
pub(super) async fn know_file(
    connection: &mut PgConnection,
    file: &str,
    entry: &[u8; 32],
) -> sqlx::Result<bool> {
    sqlx::query!(
        "-- know_file
        insert into archived_file (file, entry_sha256) values ($1, $2) on conflict (file) do nothing",
        file,
        entry,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query_scalar!(
        r#"-- is_file_known
        select entry_sha256 = $2 as "is_known!" from archived_file where file = $1"#,
        file,
        entry,
    )
    .fetch_one(connection)
    .await
}

fn ids(jobs: &[WrittenJob]) -> Vec<Uuid> {
    jobs.iter().map(|job| job.job_id).collect()
}
