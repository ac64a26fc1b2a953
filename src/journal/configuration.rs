//! Customers' configurations: what the provider said of one is an observation, and is remembered by it.

use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::configuration::{Configuration, REMEMBERED_FOR};
use crate::domain::state::Purpose;
use crate::journal::error::JournalError;
use crate::journal::handle::Journal;
use crate::journal::history::chain::Observation;
use crate::journal::pool::{run, run_tx};
use crate::journal::statements::claim::Claim;
use crate::journal::statements::history::add_observation;

impl Journal {
    /// The customer's configuration, where any replica was told it within [`REMEMBERED_FOR`]; and the
    /// database's time.
    pub async fn remembered_configuration(
        &self,
        customer_id: Uuid,
    ) -> Result<(OffsetDateTime, Option<Configuration>), JournalError> {
        let row = run("remembered_configuration", &self.pool, async |connection| {
            sqlx::query!(
                r#"-- remembered_configuration
                select
                    now() as "now!",
                    (
                        select o.document_types from observation o
                        where o.customer_id = $1 and o.purpose = 'configuration' and o.document_types is not null
                            and o.at > now() - make_interval(secs => $2) and o.at <= now()
                        order by o.at desc
                        limit 1
                    ) as document_types"#,
                customer_id,
                REMEMBERED_FOR.as_secs_f64(),
            )
            .fetch_one(connection)
            .await
        })
        .await?;
        Ok((row.now, row.document_types.as_deref().map(Configuration::of_listed)))
    }

    /// Writes down what the provider said of the customer's configuration before an attempt, and moves
    /// the claim's head on. `at` and `read_at` are the times before it was asked, by the database's clock
    /// and by this replica's.
    pub async fn record_configuration(
        &self,
        claim: &mut Claim,
        at: OffsetDateTime,
        read_at: Moment,
        configuration: &Configuration,
    ) -> Result<(), JournalError> {
        let (subject, listed) = (claim.subject(), configuration.listed());
        let observation = Observation {
            at,
            purpose: Purpose::Configuration.name(),
            status: None,
            failure_reason: None,
            error: configuration.error_code(),
            conclusion: None,
            document_types: listed.as_deref(),
        };
        let head = run_tx("record_configuration", &self.pool, async |tx| {
            add_observation(tx, &self.fingerprinter, subject, &observation, read_at.wall, None).await
        })
        .await?;
        *claim = claim.at(head);
        Ok(())
    }
}
