//! The history of every job: its entries, the chain over them, and whether both are what was written.

pub mod audit;
pub mod chain;
mod examine;
