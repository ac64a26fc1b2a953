//! The statements, as functions over a transaction: what a commit consists of. Who begins it, and over
//! which connection, is known above.

pub(crate) mod claim;
pub(crate) mod close;
pub(crate) mod customers;
pub(crate) mod events;
pub(crate) mod history;
pub(crate) mod move_on;
pub(crate) mod open;
pub(crate) mod wake;
