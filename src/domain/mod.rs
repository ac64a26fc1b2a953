//! The rules, pure: no clock, no network, no database, no logging. What they need to
//! know of the world comes in as arguments.

pub mod address_rule;
pub mod budget;
pub mod clock_skew;
pub mod configuration;
pub mod customer_event;
pub mod foreign_text;
pub mod history;
pub mod invisible;
pub mod job;
pub mod link_check;
pub mod message;
pub mod outcome;
pub mod outcome_event;
pub mod permission;
pub mod plain_words;
pub mod precedence;
pub mod proof;
pub mod read_back;
pub mod reconciliation;
pub mod refusal_run;
pub mod retry;
pub mod schema;
pub mod state;
pub mod suspicion;
pub mod trace_context;
pub mod verdict;
pub mod verification;
