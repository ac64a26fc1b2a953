//! Inspects the database for `check`: whether a worker could work there. Changes nothing.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Error};
use tokio::time::timeout;

use crate::config::Secret;
use crate::finding::Finding;
use crate::journal::error::advice;
use crate::journal::fingerprint_key::{KeyMatch, match_key};
use crate::journal::lineage::{Lineage, UNTOLD};
use crate::journal::schema::{needed_version, schema_version};
use crate::journal::session::{
    MAKE_SAFE, POOLED, RECODE, Session, UNPOOL, UNSAFE, connect_options, encoding, is_durable,
    is_pooled_by_transaction, reach, silent_ways, ways_in, wrong_encoding,
};
use crate::seal::Fingerprinter;

/// A server that has not answered by then does not.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// How far back recent acceptances go.
const RECENT_DAYS: i32 = 7;

/// What a worker does with our tables. Columns may be enough: a job's identity never changes.
const NEEDED_RIGHTS: [(&str, &[&str]); 17] = [
    ("_sqlx_migrations", &["select"]),
    ("approval_policy", &["select"]),
    ("archived_customer", &["select"]),
    ("archived_job", &["select", "update"]),
    ("attempt", &["select", "insert", "update"]),
    ("customer", &["select", "insert", "update"]),
    ("dead_lettered_delivery", &["select", "insert"]),
    ("event_publishing", &["select", "update"]),
    ("fingerprint_key", &["select", "insert"]),
    ("intervention", &["select", "insert"]),
    ("lost_commit", &["select", "insert"]),
    ("observation", &["select", "insert"]),
    ("outcome_event", &["select", "insert", "delete"]),
    ("proposal", &["select", "insert", "update"]),
    // A valid body takes an invalid one's place.
    ("submission", &["select", "insert", "update", "delete"]),
    ("verification_pace", &["select", "update"]),
    ("worker", &["select", "insert", "update", "delete"]),
];

/// What an operator may have set for a server, a role or a database, and our sessions set otherwise.
const SET_BY_US: [(&str, &[&str]); 6] = [
    ("default_transaction_isolation", &["read committed"]),
    ("synchronous_commit", &["on", "remote_apply", "remote_write"]),
    ("default_transaction_deferrable", &["off"]),
    ("search_path", &["public", "\"$user\", public"]),
    ("standard_conforming_strings", &["on"]),
    ("idle_session_timeout", &["0"]),
];

/// Inspects everything that a worker needs of the database, over `connections`. A server that may lose what
/// it has committed is wrong unless `allow_unsafe`. Without the key of fingerprints, that alone is not
/// inspected.
pub async fn inspect(
    url: &Secret,
    connections: u32,
    allow_unsafe: bool,
    fingerprinter: Option<&Fingerprinter>,
) -> Vec<Finding> {
    let (hosts, place) = match connect_options(url) {
        Ok(hosts) => hosts,
        Err(error) => {
            return vec![Finding::wrong(error.to_string(), "see `kyc-worker run --help` for its form")];
        }
    };
    let ways = ways_in(hosts).await;
    let mut findings: Vec<Finding> = silent_ways(&ways)
        .await
        .into_iter()
        .map(|silent| {
            Finding::note(
                format!("DATABASE_URL: {silent}, one way of several to Postgres, takes no connection"),
                "is it up? where it is one address of a name, take it out; with sslmode=verify-full the others \
                 are reached only after it",
            )
        })
        .collect();
    let inspecting = async {
        let options = reach(ways).await?;
        // As the server, the role and the database would have it.
        let mut connection = PgConnection::connect_with(&options).await?;
        if is_pooled_by_transaction(&mut connection, &options).await? {
            findings.push(Finding::wrong(POOLED, UNPOOL));
            return Ok(findings);
        }
        let defaults = inspect_defaults(&mut connection, allow_unsafe).await?;
        Session::Command.set_up(&mut connection).await?;
        let inspected = inspect_over(&mut connection, &place, fingerprinter, &mut findings).await;
        findings.extend(defaults);
        if inspected.is_ok() {
            findings.extend(inspect_room(&mut connection, connections).await?);
        }
        connection.close().await.ok();
        inspected.map(|()| findings)
    };
    match timeout(ANSWER_TIME_MAX, inspecting).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![fault(&place, &error)],
        Err(_elapsed) => vec![Finding::wrong(
            format!("DATABASE_URL: Postgres at {place} does not answer within {ANSWER_TIME_MAX:?}"),
            "is it up, and does a firewall let us through?",
        )],
    }
}

async fn inspect_over(
    connection: &mut PgConnection,
    place: &str,
    fingerprinter: Option<&Fingerprinter>,
    findings: &mut Vec<Finding>,
) -> sqlx::Result<()> {
    let server = sqlx::query!(
        r#"-- describe_server
        select current_user::text as "role!", current_database()::text as "database!",
            current_setting('server_version') as "version!",
            pg_is_in_recovery() as "is_standby!",
            current_setting('transaction_read_only')::boolean as "is_read_only!",
            coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false) as "is_encrypted!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    let encrypted = if server.is_encrypted { "with TLS" } else { "without TLS" };
    findings.push(Finding::ok(format!(
        "Postgres {} at {place} lets {} into database {}, {encrypted}",
        server.version, server.role, server.database
    )));
    let encoding = encoding(&mut *connection).await?;
    if encoding != "UTF8" {
        findings.push(Finding::wrong(wrong_encoding(&encoding), RECODE));
    }
    if server.is_standby {
        findings.push(Finding::wrong(
            format!("DATABASE_URL: Postgres at {place} is a standby: nothing can be written"),
            "name the primary's host",
        ));
    } else if server.is_read_only {
        findings.push(Finding::wrong(
            format!("DATABASE_URL: database {} is read-only for {}", server.database, server.role),
            format!(
                "from another database, or after `set default_transaction_read_only = off`: \
                 alter database {} (or role {}) set default_transaction_read_only = off; is the disk full?",
                server.database, server.role
            ),
        ));
    }
    inspect_schema(connection, &server.role, fingerprinter, findings).await
}

/// What the server, the role and the database have for defaults. Those that our sessions set
/// otherwise are worth knowing; what they cannot set is wrong.
async fn inspect_defaults(connection: &mut PgConnection, allow_unsafe: bool) -> sqlx::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let names = SET_BY_US.map(|(name, _)| name);
    let found = sqlx::query!(
        r#"-- session_defaults
        select name as "name!", setting as "setting!", source as "source!"
        from pg_settings where name = any($1)"#,
        &names as &[&str]
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in found {
        let as_needed = SET_BY_US.iter().find(|(name, _)| *name == row.name);
        if as_needed.is_some_and(|(_, settings)| !settings.contains(&row.setting.as_str())) {
            findings.push(Finding::note(
                format!("DATABASE_URL: {} is {} by default ({})", row.name, row.setting, row.source),
                "the worker sets it as it needs it for its own sessions; other programs have what is there",
            ));
        }
    }
    if !is_durable(&mut *connection).await? {
        findings.push(match allow_unsafe {
            true => Finding::note(UNSAFE, MAKE_SAFE),
            false => Finding::wrong(UNSAFE, MAKE_SAFE),
        });
    }
    findings.extend(inspect_standbys(&mut *connection).await?);
    let replication_role = sqlx::query_scalar!(
        r#"-- replication_role
        select current_setting('session_replication_role') as "replication_role!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if replication_role != "origin" {
        findings.push(Finding::wrong(
            format!(
                "DATABASE_URL: session_replication_role is {replication_role}: no trigger keeps the history"
            ),
            "reset it for this role and database: alter role … reset session_replication_role",
        ));
    }
    Ok(findings)
}

/// What a failover would lose, and whether it would be noticed.
async fn inspect_standbys(connection: &mut PgConnection) -> sqlx::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let replication = sqlx::query!(
        r#"-- replication
        select
            (select count(*) from pg_stat_replication) as "standbys!",
            current_setting('synchronous_standby_names') = '' as "waits_for_none!",
            current_setting('wal_level') = 'minimal' as "has_no_standby!",
            pg_is_in_recovery() as "is_standby!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if replication.standbys > 0 && replication.waits_for_none {
        findings.push(Finding::note(
            format!(
                "DATABASE_URL: {} standbys stream and no commit waits for one: a failover loses the last commits, \
                 and what no replica lives to remember is lost without a trace",
                replication.standbys
            ),
            "set synchronous_standby_names, which costs each commit the way to a standby and back",
        ));
    }
    if replication.has_no_standby {
        findings.push(Finding::note(
            "DATABASE_URL: wal_level is minimal: the server can have no standby, and no backup of a point in time",
            "set wal_level to replica",
        ));
    }
    if !replication.is_standby && Lineage::of(connection).await?.is_none() {
        let functions = "pg_control_system(), pg_walfile_name(pg_lsn), pg_current_wal_lsn()";
        findings.push(Finding::note(
            format!("DATABASE_URL: {UNTOLD}"),
            format!("grant execute on function {functions} to the worker's role; a service without them may lose no commits"),
        ));
    }
    Ok(findings)
}

/// Whether the server, the role and the database allow as many connections as the pool wants.
async fn inspect_room(connection: &mut PgConnection, wanted: u32) -> sqlx::Result<Option<Finding>> {
    let allowed = sqlx::query_scalar!(
        r#"-- allowed_connections
        select least(
            current_setting('max_connections')::integer
                - current_setting('superuser_reserved_connections')::integer,
            (select nullif(rolconnlimit, -1) from pg_roles where rolname = current_user),
            (select nullif(datconnlimit, -1) from pg_database where datname = current_database())
        ) as "allowed!""#
    )
    .fetch_one(connection)
    .await?;
    Ok((i64::from(allowed) < i64::from(wanted)).then(|| {
        Finding::wrong(
            format!(
                "DATABASE_CONNECTIONS: a replica wants {wanted} connections, and {allowed} are allowed in all"
            ),
            "raise max_connections, or the limit of the role or the database; or lower DATABASE_CONNECTIONS",
        )
    }))
}

async fn inspect_schema(
    connection: &mut PgConnection,
    role: &str,
    fingerprinter: Option<&Fingerprinter>,
    findings: &mut Vec<Finding>,
) -> sqlx::Result<()> {
    let missing = missing_rights(connection).await?;
    if !missing.is_empty() {
        findings.push(Finding::wrong(
            format!("DATABASE_URL: {role} lacks {}", missing.join(", ")),
            format!(
                "as the tables' owner: grant select, insert, update, delete on all tables in schema public to {role}"
            ),
        ));
        return Ok(());
    }
    let needed = needed_version();
    let remedy = "run `kyc-worker migrate`, or `kyc-worker run --migrate`";
    match schema_version(connection).await? {
        None => {
            findings.push(Finding::wrong("DATABASE_URL: the database has no tables of ours", remedy));
            return Ok(());
        }
        Some(version) if version < needed => {
            findings.push(Finding::wrong(
                format!("DATABASE_URL: the schema is at version {version}, this worker needs {needed}"),
                remedy,
            ));
            return Ok(());
        }
        Some(version) if version > needed => findings.push(Finding::ok(format!(
            "the schema is at version {version}, newer than this worker's {needed}, which is fine during an upgrade"
        ))),
        Some(version) => findings.push(Finding::ok(format!("the schema is at version {version}"))),
    }
    findings.push(Finding::ok(format!("{role} may read and write our tables")));
    if let Some(fingerprinter) = fingerprinter {
        findings.push(match match_key(connection, fingerprinter).await? {
            KeyMatch::Same => Finding::ok("FINGERPRINT_KEY is the one that this database was written with"),
            KeyMatch::FirstUse => {
                Finding::ok("no worker has started here yet: FINGERPRINT_KEY will be the one to keep")
            }
            KeyMatch::Another => Finding::wrong(
                "FINGERPRINT_KEY is another than the one that this database was written with",
                "give every replica the first one: it is never rotated",
            ),
        });
    }
    findings.push(inspect_policy(connection, role).await?);
    findings.extend(count_acceptances(connection).await?);
    Ok(())
}

/// What a second person must approve, and whether the one who runs the commands may change that.
async fn inspect_policy(connection: &mut PgConnection, role: &str) -> sqlx::Result<Finding> {
    let policy = approval_policy(connection).await?;
    let may_change = sqlx::query_scalar!(
        r#"-- may_change_policy
        select has_table_privilege('approval_policy', 'update') as "may_change!""#
    )
    .fetch_one(connection)
    .await?;
    Ok(match may_change && !policy.actions.is_empty() {
        true => Finding::note(
            format!("{policy}, and {role}, who runs the commands, may change it"),
            "let a member of kyc_worker run them (deploy/roles.sql): it does not own the tables",
        ),
        false => Finding::ok(policy.to_string()),
    })
}

/// What a second person must approve.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ApprovalPolicy {
    /// The policy's word.
    pub demands: String,
    /// The actions that it means.
    pub actions: Vec<String>,
}

impl fmt::Display for ApprovalPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actions = match self.actions.as_slice() {
            [] => "nothing".to_owned(),
            actions => actions.join(", "),
        };
        write!(f, "approval_policy is {}: a second person must approve {actions}", self.demands)
    }
}

/// The policy in force.
pub(crate) async fn approval_policy(connection: &mut PgConnection) -> sqlx::Result<ApprovalPolicy> {
    sqlx::query_as!(
        ApprovalPolicy,
        r#"-- approval_policy
        select
            coalesce((select demands from approval_policy), 'all') as "demands!",
            array(
                select action
                from unnest(array['replay', 'resolve', 'budget', 'resume', 'requeue', 'forget'])
                    with ordinality as known (action, place)
                where needs_approval(action)
                order by place
            ) as "actions!""#
    )
    .fetch_one(connection)
    .await
}

/// What the role may not do with our tables, and must.
async fn missing_rights(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    let needed = NEEDED_RIGHTS.iter().flat_map(|(table, rights)| rights.iter().map(|right| (*table, *right)));
    let (tables, rights): (Vec<&str>, Vec<&str>) = needed.unzip();
    sqlx::query_scalar!(
        r#"-- missing_rights
        select right_name || ' on ' || table_name as "missing!"
        from unnest($1::text[], $2::text[]) as needed (table_name, right_name)
        where to_regclass(table_name) is not null
            and not case right_name
                when 'delete' then has_table_privilege(table_name, right_name)
                else has_any_column_privilege(table_name, right_name)
            end"#,
        &tables as &[&str],
        &rights as &[&str]
    )
    .fetch_all(connection)
    .await
}

/// What acceptances answered of late, where nothing was learned since: it tells what
/// `READ_BACK_UNVERIFIED` should be.
async fn count_acceptances(connection: &mut PgConnection) -> sqlx::Result<Option<Finding>> {
    let answered = sqlx::query!(
        r#"-- recent_acceptances
        select coalesce(verification_status, 'no status') as "status!", count(*) as "count!"
        from submission
        where state = 'accepted' and evidence = 'response' and verification_seen_at is null
            and ended_at > now() - make_interval(days => $1)
        group by 1 order by 2 desc"#,
        RECENT_DAYS
    )
    .fetch_all(&mut *connection)
    .await?;
    if answered.is_empty() {
        return Ok(None);
    }
    let counts: Vec<String> = answered.iter().map(|row| format!("{} {}", row.count, row.status)).collect();
    Ok(Some(Finding::ok(format!(
        "acceptances of the last {RECENT_DAYS} days answered: {}",
        counts.join(", ")
    ))))
}

fn fault(place: &str, error: &Error) -> Finding {
    Finding::wrong(format!("DATABASE_URL: cannot use Postgres at {place}: {error}"), advice(error))
}
