//! A queue worker between a company's onboarding services and the DollarPe KYC API.
//!
//! The provider lets a customer's KYC be updated three times, ever, and offers no
//! idempotency key: a send spends something that does not come back. So the worker
//! commits what it is about to do before it does it, and never sends again what may
//! have been applied.

pub mod domain;
pub mod journal;

#[cfg(feature = "sandbox")]
pub mod sandbox;
