//! The provider, simulated.
