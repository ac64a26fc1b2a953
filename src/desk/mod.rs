//! What people ask of the records, and do to them. Nothing here takes part in the flow of a job.

pub mod access;
pub mod archive;
pub mod budget;
pub mod dead_letters;
pub mod errors;
pub mod events;
pub mod export;
pub mod figures;
pub mod find;
pub mod forget;
pub mod interventions;
mod job_row;
pub mod list;
pub mod proposals;
pub mod reconcile;
pub mod replay;
pub mod report;
pub mod resolve;
pub mod review;
pub mod story;
pub mod verifications;
pub mod version;
