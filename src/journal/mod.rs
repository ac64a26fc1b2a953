//! What Postgres keeps of every job.

pub mod seal;
