//! The wire format of the DollarPe KYC API: how a body is printed, and how it is signed. The worker
//! signs by it, and the simulated provider verifies by it.

pub mod canonical_json;
pub mod signature;
