//! What every page has at hand.

use sqlx::PgPool;
use tokio::sync::Semaphore;

use crate::config::{CheckedConsole, ConsoleSettings, SettingSource};
use crate::desk::replay::ReplayRules;

pub(crate) struct Console {
    /// For pages: nothing can be changed over it.
    pub pages: PgPool,
    /// For what people do, and for the record of who saw whom.
    pub actions: PgPool,
    pub checked: CheckedConsole,
    pub settings: ConsoleSettings,
    pub rules: ReplayRules,
    /// The settings in force, secrets without their value.
    pub sources: Vec<SettingSource>,
    /// How many requests are answered at once.
    pub permits: Semaphore,
}
