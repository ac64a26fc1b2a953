//! Keeps the fleet's figures fresh, and has them at hand for whoever scrapes this replica.

use std::sync::Arc;

use tokio::time::sleep;
use tracing::{debug, warn};

use crate::context::{Context, chain};
use crate::journal::JournalError;
use crate::journal::fleet::{Figure, Figures, READING_INTERVAL};
use crate::metrics::METRICS;

/// Reads the figures where it is this replica's turn, and takes them over, until the worker stops.
pub async fn follow(context: Arc<Context>) {
    let mut is_failing = false;
    loop {
        let failure = refresh(&context).await.err();
        match &failure {
            None => {}
            // An outage is everybody's, and the pause of the intake tells of it.
            Some(error) if is_failing || error.is_outage() => {
                debug!(error = chain(error), "the fleet's figures are not read");
            }
            Some(error) => warn!(
                error = chain(error),
                "the fleet's figures are not read, and metrics show old ones; all else goes on"
            ),
        }
        is_failing = failure.is_some_and(|error| is_failing || !error.is_outage());
        let pause = READING_INTERVAL.mul_f64(rand::random_range(0.8..1.2));
        if context.stopping.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
    }
}

async fn refresh(context: &Context) -> Result<(), JournalError> {
    context.journal.refresh_figures().await?;
    let Figures { figures, read_at, took } = context.journal.figures().await?;
    let figures = figures.iter().map(|Figure { figure, part, value }| (&**figure, &**part, *value));
    METRICS.take_fleet(figures, read_at.into(), took);
    Ok(())
}
