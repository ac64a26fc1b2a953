//! A file a page: what it asks the desk, and the struct that is sent. The templates are beside.

mod ask;
mod boxes;
pub(super) mod budget;
pub(super) mod customer;
pub(super) mod dead_letters;
pub(super) mod errors;
pub(super) mod find;
pub(super) mod home;
pub(super) mod job;
pub(super) mod job_actions;
pub(super) mod pause;
pub(super) mod proposals;
pub(super) mod records;
pub(super) mod replay;
pub(super) mod review;
pub(super) mod settings;
pub(super) mod verifications;
