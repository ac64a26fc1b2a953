//! What runs beside the flow until the worker stops, a loop each.

pub mod customer_events;
pub mod heartbeat;
pub mod scheduler;
pub mod tracker;
