//! Reads every history for `audit`, page by page, in one snapshot: memory does not grow with the
//! number of jobs, and what is written meanwhile changes nothing.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use sqlx::{PgPool, PgTransaction};
use uuid::Uuid;

use crate::domain::history::{Attempt, History, Intervention, Observation, Sibling, Submission};
use crate::domain::outcome::named_job;
use crate::journal::history::archived_in;
pub use crate::journal::history::examine::Finding;
use crate::journal::history::examine::{Examined, examine};
use crate::seal::Fingerprinter;

/// How many histories are in memory at once.
const PAGE: i64 = 2_000;

/// Nothing is written, and everything is as of one moment. The search for orphans reads whole tables, and
/// whoever reads what is found, in a pager perhaps, takes the time that it takes.
const BEGIN: &str = "begin isolation level repeatable read read only; set local statement_timeout = 0; \
     set local idle_in_transaction_session_timeout = 0";

pub struct Audit {
    tx: PgTransaction<'static>,
    fingerprinter: Fingerprinter,
    /// Where the next page begins; none after the last.
    next: Option<Uuid>,
}

/// What a page of histories came to.
#[derive(Debug, Default)]
pub struct Page {
    /// How many submissions there were.
    pub submissions: u64,
    /// How many entries their chains had.
    pub entries: u64,
    /// How many chains are what was written.
    pub verified: u64,
    /// How many are not, though no part of them is missing.
    pub broken: u64,
    /// The jobs whose histories are in the archive, each with its file.
    pub archived: Vec<(Uuid, String)>,
    pub findings: Vec<Finding>,
}

impl Audit {
    /// Begins an audit of what is there now.
    pub async fn begin(pool: &PgPool, fingerprinter: Fingerprinter) -> sqlx::Result<Self> {
        let tx = pool.begin_with(BEGIN).await?;
        Ok(Self { tx, fingerprinter, next: Some(Uuid::nil()) })
    }

    /// How many submissions there are.
    pub async fn count(&mut self) -> sqlx::Result<i64> {
        sqlx::query_scalar!(
            r#"-- count_audited
            select count(*) as "count!" from submission"#
        )
        .fetch_one(&mut *self.tx)
        .await
    }

    /// Examines some more histories; `None` after the last.
    pub async fn next_page(&mut self) -> sqlx::Result<Option<Page>> {
        let Some(first) = self.next else { return Ok(None) };
        let job_ids = sqlx::query_scalar!(
            "-- page_of_submissions
            select job_id from submission where job_id >= $1 order by job_id limit $2",
            first,
            PAGE,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let Some(last) = job_ids.last() else {
            self.next = None;
            return Ok(None);
        };
        self.next = last.as_u128().checked_add(1).map(Uuid::from_u128);
        self.examine(&job_ids).await.map(Some)
    }

    /// Examines the histories of these jobs. One that is not known is a finding.
    pub async fn examine(&mut self, job_ids: &[Uuid]) -> sqlx::Result<Page> {
        let mut page = Page::default();
        let mut histories = self.histories(job_ids).await?;
        for job_id in job_ids {
            let Some(history) = histories.remove(job_id) else {
                match archived_in(&mut self.tx, *job_id).await? {
                    Some(file) => page.archived.push((*job_id, file)),
                    None => page.findings.push(Finding::unknown(*job_id)),
                }
                continue;
            };
            page.submissions += 1;
            page.entries += u64::try_from(history.submission.entries).unwrap_or_default();
            let Examined { findings, is_verified } = examine(&history, &self.fingerprinter);
            page.verified += u64::from(is_verified == Some(true));
            page.broken += u64::from(is_verified == Some(false));
            page.findings.extend(findings);
        }
        Ok(page)
    }

    async fn histories(&mut self, job_ids: &[Uuid]) -> sqlx::Result<HashMap<Uuid, History>> {
        let submissions = sqlx::query_as!(
            Submission,
            r#"-- audit_submissions
            select
                job_id, customer_id, state, reason_code, reason, evidence, provider_reference,
                verification_status, failure_reason, verification_seen_at is not null as "is_seen!",
                verification_due_at is not null as "is_followed!",
                document_type is not null and requested_at is not null
                    and (
                        content_hmac is not null
                        or exists (
                            select from intervention i
                            where i.customer_id = submission.customer_id and i.action = 'forget'
                        )
                    ) as "is_whole_job!",
                num_nonnulls(document_type, requested_at, content_hmac, expires_at) > 0 as "is_job!",
                received_at, expires_at, ended_at, attempts, retries, chain, entries
            from submission
            where job_id = any($1)"#,
            job_ids,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let mut histories: HashMap<Uuid, History> =
            submissions.into_iter().map(|row| (row.job_id, History::of(row))).collect();
        let attempts = sqlx::query_as!(
            Attempt,
            "-- audit_attempts
            select
                job_id, number, worker, begun_at, signed_at, ended_at, verdict, detail, late_verdict,
                http_status, provider_message, error, duration_ms, entry, late_entry
            from attempt
            where job_id = any($1)
            order by job_id, number",
            job_ids,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        for row in attempts {
            if let Some(history) = histories.get_mut(&row.job_id) {
                history.attempts.push(row);
            }
        }
        let observations = sqlx::query_as!(
            Observation,
            "-- audit_observations
            select
                id, job_id, customer_id, at, purpose, status, failure_reason, error, conclusion, document_types,
                entry
            from observation
            where job_id = any($1)
            order by job_id, id",
            job_ids,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        for row in observations {
            if let Some(history) = histories.get_mut(&row.job_id) {
                history.observations.push(row);
            }
        }
        let interventions = sqlx::query_as!(
            Intervention,
            r#"-- audit_interventions
            select job_id as "job_id!", at, action, detail, entries
            from intervention
            where job_id = any($1) and action in ('replay', 'resolve', 'review')
            order by id"#,
            job_ids,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        for row in interventions {
            if let Some(history) = histories.get_mut(&row.job_id) {
                history.interventions.push(row);
            }
        }
        self.add_siblings(&mut histories).await?;
        Ok(histories)
    }

    /// Adds the jobs that reasons name.
    async fn add_siblings(&mut self, histories: &mut HashMap<Uuid, History>) -> sqlx::Result<()> {
        let named = histories.values().filter_map(|History { submission, .. }| {
            Some((submission.job_id, named_job(submission.reason.as_deref()?)?))
        });
        let (job_ids, siblings): (Vec<Uuid>, Vec<Uuid>) = named.unzip();
        let rows = sqlx::query!(
            r#"-- audit_siblings
            select
                s.job_id as "of!", o.job_id as "job_id!",
                coalesce(
                    (o.requested_at, o.received_at, o.job_id) > (s.requested_at, s.received_at, s.job_id), false
                ) as "is_newer!",
                o.state = 'accepted' as "is_accepted!",
                (
                    exists (select from attempt a where a.job_id = o.job_id and a.verdict = 'unknown')
                    or exists (select from intervention i where i.job_id = o.job_id and i.action = 'review')
                ) as "was_unknown!",
                coalesce(o.content_hmac = s.content_hmac, true) as "has_same_content!"
            from unnest($1::uuid[], $2::uuid[]) as named (job_id, sibling)
            join submission s on s.job_id = named.job_id
            join submission o on o.job_id = named.sibling and o.customer_id = s.customer_id
            union all
            -- The customer's jobs were archived since: of them, the newest supersedes others.
            select
                s.job_id, gone.newest_job_id,
                coalesce(
                    (gone.newest_requested_at, gone.newest_received_at, gone.newest_job_id)
                        > (s.requested_at, s.received_at, s.job_id),
                    false
                ),
                true, false, true
            from unnest($1::uuid[], $2::uuid[]) as named (job_id, sibling)
            join submission s on s.job_id = named.job_id
            join archived_customer gone
                on gone.customer_id = s.customer_id and gone.newest_job_id = named.sibling"#,
            &job_ids,
            &siblings,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        for row in rows {
            if let Some(history) = histories.get_mut(&row.of) {
                history.sibling = Some(Sibling {
                    job_id: row.job_id,
                    is_newer: row.is_newer,
                    is_accepted: row.is_accepted,
                    was_unknown: row.was_unknown,
                    has_same_content: row.has_same_content,
                });
            }
        }
        Ok(())
    }

    /// Rows whose job has no submission, one finding a job, one by one as the reader takes them.
    pub fn orphans(&mut self) -> BoxStream<'_, sqlx::Result<Finding>> {
        sqlx::query!(
            r#"-- orphans
            select
                orphan.job_id as "job_id!",
                count(*) filter (where kind = 'attempt') as "attempts!",
                count(*) filter (where kind = 'observation') as "observations!",
                count(*) filter (where kind = 'intervention') as "interventions!"
            from (
                select job_id, 'attempt' as kind from attempt a
                where not exists (select from submission s where s.job_id = a.job_id)
                union all
                select job_id, 'observation' from observation o
                where not exists (select from submission s where s.job_id = o.job_id)
                union all
                select job_id, 'intervention' from intervention i
                where job_id is not null and not exists (select from submission s where s.job_id = i.job_id)
            ) orphan
            group by orphan.job_id"#
        )
        .fetch(&mut *self.tx)
        .map(|row| {
            let row = row?;
            Ok(Finding::orphans(row.job_id, row.attempts, row.observations, row.interventions))
        })
        .boxed()
    }
}
