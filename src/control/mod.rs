//! What decides whether and how much a replica works: the intake, the breaker, its slots, and
//! whether its loops move.

pub mod breaker;
pub mod intake;
pub mod liveness;
pub mod slots;
