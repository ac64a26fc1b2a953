//! Why the journal did not do what it was asked for: what the server's codes mean for whoever asked.

use std::borrow::Cow;
use std::time::Duration;

use crate::journal::session::UNPOOL;
use crate::tls::certificate_fault;

/// The server ends a statement after 10 s; this is for a server that says nothing at all.
pub(crate) const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);

/// Why a write or a read of the journal failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another worker has taken the job over: this one may write nothing more about it.
    #[error("the claim is no longer ours")]
    Fenced,
    /// The database did not do it.
    #[error("the database failed in {name}")]
    Database { name: &'static str, source: sqlx::Error },
    /// The pool got no further connection while those it has are answered: the server allows fewer
    /// than `DATABASE_CONNECTIONS`.
    #[error("the database allows no further connection for {name}")]
    Crowded { name: &'static str, source: sqlx::Error },
    /// The database can be read, and not written: after a failover, or where somebody set it so.
    #[error("the database is read-only, says {name}")]
    ReadOnly { name: &'static str },
    /// The database did not answer.
    #[error("the database did not answer {name} within {ANSWER_TIME_MAX:?}")]
    TimedOut { name: &'static str },
}

impl JournalError {
    /// What went wrong, whichever statement met it first: what a person must mend is told once.
    pub fn cause(&self) -> &(dyn std::error::Error + 'static) {
        match self {
            Self::Database { source, .. } | Self::Crowded { source, .. } => source,
            Self::Fenced | Self::ReadOnly { .. } | Self::TimedOut { .. } => self,
        }
    }

    /// What a person must do before the database does it, where trying again is of no use until then.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Database { source, .. } if needs_person(source) => Some(advice(source)),
            _ => None,
        }
    }

    /// Whether the database cannot hold a value that was to be written. It never will.
    pub fn is_of_a_value(&self) -> bool {
        let Self::Database { source: error, .. } = self else { return false };
        let code = code_of(error);
        ["22", "54"].iter().any(|class| code.starts_with(class))
    }

    /// Whether the database refuses what was to be written of a job: a value, or a constraint. No other
    /// job's writes are refused for that.
    pub(crate) fn is_of_a_job(&self) -> bool {
        let Self::Database { source: error, .. } = self else { return false };
        self.is_of_a_value() || code_of(error).starts_with("23")
    }

    /// Whether no connection was free, or came about, in time.
    pub fn is_of_the_pool(&self) -> bool {
        matches!(self, Self::Crowded { .. } | Self::Database { source: sqlx::Error::PoolTimedOut, .. })
    }

    /// Whether any other statement would fail as well: the database is away, or lets nobody in.
    pub fn is_everybodys(&self) -> bool {
        let Self::Database { source, .. } = self else { return self.is_outage() };
        let code = code_of(source);
        self.is_outage() || ["08P01", "28", "3D", NO_CONNECTIONS].iter().any(|class| code.starts_with(class))
    }

    /// Whether the database is away, or as good as away, and not this one statement's fault.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Fenced => false,
            Self::Crowded { .. } | Self::ReadOnly { .. } | Self::TimedOut { .. } => true,
            Self::Database { source, .. } => is_outage(source),
        }
    }
}

/// What the server calls an error.
pub(crate) fn code_of(error: &sqlx::Error) -> Cow<'_, str> {
    error.as_database_error().and_then(|error| error.code()).unwrap_or_default()
}

/// Whether the server or a pooler refuses us, or what our statements need is not there: refused
/// logins, unknown databases, missing rights, tables and columns, statements that are not prepared any
/// more, a database that takes no connections, data that is corrupted (PostgreSQL, "Error Codes").
/// PgBouncer says 08P01 whatever it refuses.
pub(crate) fn needs_person(error: &sqlx::Error) -> bool {
    let code = code_of(error);
    ["08P01", "26", "28", "3D", "42", NO_CONNECTIONS, "XX001", "XX002"]
        .iter()
        .any(|class| code.starts_with(class))
}

/// SQLSTATE `object_not_in_prerequisite_state`: of what we ask for, only a database whose
/// `allow_connections` is false says so.
const NO_CONNECTIONS: &str = "55000";

/// The constraint that stands for a customer's slot.
pub(crate) const ONE_CLAIM: &str = "submission_one_claim_per_customer";

/// The constraint that stands for a `job_id`.
pub(crate) const ONE_ROW: &str = "submission_pkey";

/// Whether a unique constraint, one of `constraints`, was violated. Any other violation is a fault.
pub(crate) fn is_taken(error: &sqlx::Error, constraints: &[&str]) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.is_unique_violation() && error.constraint().is_some_and(|name| constraints.contains(&name))
    })
}

/// Whether another replica was faster: it took the customer's slot, or waited for what we hold.
pub(crate) fn is_lost_race(error: &sqlx::Error) -> bool {
    is_taken(error, &[ONE_CLAIM]) || code_of(error) == DEADLOCK
}

pub(crate) fn is_outage(error: &sqlx::Error) -> bool {
    use sqlx::Error::{Database, Io, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed};
    match error {
        Io(_) | Tls(_) | Protocol(_) | PoolTimedOut | PoolClosed | WorkerCrashed => true,
        // Connection exceptions, resources, operator intervention, system errors, read-only, and
        // locks that took too long (PostgreSQL, "Error Codes").
        Database(error) => {
            let code = error.code().unwrap_or_default();
            ["08", "53", "57", "58", READ_ONLY, LOCK_NOT_AVAILABLE]
                .iter()
                .any(|class| code.starts_with(class))
        }
        _ => false,
    }
}

/// SQLSTATE `read_only_sql_transaction`: after a failover, or where somebody set it so. It
/// may hold for as long as the connection does.
pub(crate) const READ_ONLY: &str = "25006";

/// A lock was not to be had within `lock_timeout`.
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";

const DEADLOCK: &str = "40P01";

/// Whether an error only says that the database is away, so that trying again helps.
pub fn is_away(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(is_outage)
}

/// Whether a person must let us in, or give us rights, so that trying again helps after that.
pub fn is_refused(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(needs_person)
}

/// What to do about a database that cannot be used.
pub(crate) fn advice(error: &sqlx::Error) -> String {
    if let Some(fault) = certificate_fault(error, "sslrootcert, a parameter of DATABASE_URL") {
        return fault;
    }
    let advice = match code_of(error).as_ref() {
        "28P01" => "are user and password right? special characters in them are written %XX",
        "28000" => "does the role exist, and does pg_hba.conf let it in from this machine?",
        "3D000" => "name another database, or create it with createdb",
        "42501" => "grant the role its rights: select, insert, update and delete on our tables",
        "26000" | "42P05" => UNPOOL,
        code if code.starts_with("42") => {
            "run `kyc-worker migrate`; was something of ours dropped or renamed?"
        }
        "XX001" | "XX002" => "the server's data is corrupted: restore a backup, see docs/operations.md",
        NO_CONNECTIONS => "let the database take connections: alter database … allow_connections true",
        "53300" => "raise max_connections, or lower DATABASE_CONNECTIONS or the number of replicas",
        READ_ONLY => "make the database writable, or name the primary",
        _ => "is it running, and are host and port right?",
    };
    advice.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_hangs_up_is_away_and_one_without_our_tables_is_not() {
        let hung_up = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let error = anyhow::Error::new(sqlx::Error::Io(hung_up)).context("a migration failed");
        assert!(is_away(&error));
        assert!(!is_away(&anyhow::anyhow!("DATABASE_URL: the database has no tables of ours")));
        assert!(!is_away(&anyhow::Error::new(sqlx::Error::RowNotFound)));
    }
}
