//! Promises, each broken on purpose: the real binary against a real broker, a real
//! database and the sandbox over HTTP.
#![allow(clippy::expect_used, clippy::print_stdout, reason = "tests fail loudly")]

mod harness;
mod own_services;
mod relay;

mod acceptance;
mod alerts;
mod architecture;
mod audit;
mod backlog;
mod broker_outages;
mod budget;
mod check;
mod clocks;

mod commands;
mod crashes;
mod customer_events;
mod dashboards;
mod database_outages;
mod database_sessions;
mod dead_letters;
mod deployment;
mod documents;
mod duplicates;
mod export;
#[cfg(feature = "failpoints")]
mod failpoints;
mod forget;
mod gateways;
mod growth;
mod health;
mod keys;
mod late_updates;
mod layout;
mod log_catalogue;
mod lost_answers;
mod malformed;
mod many_jobs;
mod metrics;
mod migrating;
mod misconfigured;
mod model;
mod monitoring;
mod odd_machines;
mod one_customer;
mod outages;
mod outcome_events;
mod pausing;
mod poison;
mod privacy;
mod provider_outages;
mod proxy;
mod publishing;
mod read_back;
mod reconcile;
mod replay;
mod reports;
mod resolve;
mod retries;
mod roles;
mod settings;
mod shutdown;
mod states;
mod suspicion;
mod tls;
mod traces;
mod verdicts;
mod verification;
mod words;
