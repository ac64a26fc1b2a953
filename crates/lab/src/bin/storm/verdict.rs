//! What the storm did, and whether every promise was kept.

use std::collections::BTreeMap;
use std::fmt;

use sqlx::PgPool;

use crate::replicas::Replicas;
use crate::weather::Weather;
use crate::{CUSTOMER_READ_INTERVAL, FINGERPRINT_KEY};
use kyc_lab::books::{self, AtBroker, Check, Published};
use kyc_lab::upstream::{self, Taken};

/// How many differing cases of one check are shown.
const DISAGREEING_SHOWN: usize = 20;

/// What was done to everybody.
pub struct Deeds {
    pub replicas: Replicas,
    pub outages: BTreeMap<&'static str, u32>,
    pub weather: Weather,
    /// Whether everything came to its end in time.
    pub is_calm: bool,
    /// More than so many in a hundred jobs must not be left to a person.
    pub review_percent_max: f64,
}

/// The verdict, with all that it rests on.
pub struct Verdict {
    deeds: Deeds,
    checks: Vec<Check>,
    jobs: i64,
    /// Jobs by end, evidence and reason.
    ends: Vec<(String, String, i64)>,
    /// PATCHes and reads by the fault that they met.
    faults: BTreeMap<&'static str, usize>,
    /// Attempts of unknown outcome by cause.
    unknown: Vec<(String, i64)>,
    counts: Vec<(&'static str, i64)>,
}

/// Compares everything.
pub async fn reach(
    pool: &PgPool,
    admin_url: &str,
    published: Published,
    at_broker: AtBroker,
    told: &[Taken],
    deeds: Deeds,
) -> anyhow::Result<Verdict> {
    let evidence = books::gather(pool, admin_url, published, at_broker).await?;
    let histories = books::audit(pool, FINGERPRINT_KEY).await?;
    let events = upstream::compare(told, &upstream::implied(pool).await?);
    let ends = sqlx::query_as(
        "select state, coalesce(case when state = 'accepted' then evidence else reason_code end, ''), count(*)
        from submission where state <> 'invalid' group by 1, 2 order by 3 desc",
    );
    let ends: Vec<(String, String, i64)> = ends.fetch_all(pool).await?;
    let unknown = sqlx::query_as(
        "select coalesce(detail, ''), count(*) from attempt where verdict = 'unknown' group by 1 order by 2 desc",
    );
    let late: i64 = sqlx::query_scalar("select count(*) from attempt where late_verdict is not null")
        .fetch_one(pool)
        .await?;
    let attempts: i64 = sqlx::query_scalar("select count(*) from attempt").fetch_one(pool).await?;
    let reads: i64 = sqlx::query_scalar("select count(*) from observation").fetch_one(pool).await?;
    let resent: i64 = sqlx::query_scalar(
        "select count(*) from attempt a where exists (
            select from attempt b where b.job_id = a.job_id and b.number < a.number and b.verdict = 'unknown'
        )",
    )
    .fetch_one(pool)
    .await?;
    let met = evidence.faults_met();
    let mut faults = BTreeMap::new();
    for (rule, count) in met {
        let kind = deeds.weather.kinds.get(&rule).copied().unwrap_or("a fault nobody posted");
        *faults.entry(kind).or_default() += count;
    }
    let (patches, updates) = evidence.seen();
    Ok(Verdict {
        checks: [
            evidence.checks(),
            evidence.verification_checks(CUSTOMER_READ_INTERVAL),
            vec![histories, events],
        ]
        .concat(),
        jobs: ends.iter().map(|(_, _, count)| count).sum(),
        ends,
        faults,
        unknown: unknown.fetch_all(pool).await?,
        counts: vec![
            ("attempts", attempts),
            ("PATCHes that the provider saw", patches as i64),
            ("updates that it applied", updates as i64),
            ("reads of customers", reads),
            ("attempts after one of unknown outcome", resent),
            ("answers that came after their claim was lost", late),
            ("events that upstream was told, copies included", told.len() as i64),
        ],
        deeds,
    })
}

impl Verdict {
    /// Whether every promise was kept.
    pub fn is_good(&self) -> bool {
        self.deeds.is_calm
            && self.deeds.replicas.faults.is_empty()
            && self.checks.iter().all(Check::agrees)
            && self.review_percent() <= self.deeds.review_percent_max
    }

    fn review_percent(&self) -> f64 {
        let reviews = self.ends.iter().filter(|(state, ..)| state == "needs_review");
        let reviews: i64 = reviews.map(|(_, _, count)| count).sum();
        100.0 * reviews as f64 / self.jobs.max(1) as f64
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Deeds { replicas, outages, weather, is_calm, review_percent_max } = &self.deeds;
        writeln!(f, "\nDone to the replicas, the services and the provider:")?;
        for (what, count) in replicas.done.iter().chain(outages).chain(&weather.squalls) {
            writeln!(f, "{count:>8}  {what}")?;
        }
        writeln!(f, "\nPATCHes that met a fault:")?;
        for (what, count) in &self.faults {
            writeln!(f, "{count:>8}  {what}")?;
        }
        writeln!(f, "\nSent and seen:")?;
        for (what, count) in &self.counts {
            writeln!(f, "{count:>8}  {what}")?;
        }
        writeln!(f, "\nAttempts of unknown outcome:")?;
        for (cause, count) in &self.unknown {
            writeln!(f, "{count:>8}  {cause}")?;
        }
        writeln!(f, "\nJobs by end:")?;
        for (state, why, count) in &self.ends {
            writeln!(f, "{count:>8}  {state} {why}")?;
        }
        writeln!(f, "\nVerdict on {} jobs:", self.jobs)?;
        for check in &self.checks {
            let word = if check.agrees() { "ok" } else { "DISAGREES" };
            writeln!(f, "{:>8} of {:>6}  {}: {word}", check.found, check.expected, check.name)?;
            for case in check.disagreeing.iter().take(DISAGREEING_SHOWN) {
                writeln!(f, "{:20}{case}", "")?;
            }
        }
        let percent = self.review_percent();
        let word = if percent <= *review_percent_max { "ok" } else { "TOO MANY" };
        writeln!(f, "{percent:>7.2}% left to a person, at most {review_percent_max} %: {word}")?;
        for fault in &replicas.faults {
            writeln!(f, "WRONG: {fault}")?;
        }
        if !is_calm {
            writeln!(f, "WRONG: not everything had come to its end in time")?;
        }
        Ok(())
    }
}
