//! Servers of a test's own, which need not outlive the machine.

pub use kyc_lab::services::{Disk, OwnPostgres, OwnRabbit, free_port, in_place_of_root, program};

/// Makes a cluster and starts it with `settings`, each `name=value`.
pub fn own_postgres(disk: Disk, settings: &[&str]) -> OwnPostgres {
    OwnPostgres::start(disk, &[settings, &["fsync=off"]].concat()).expect("a cluster of the test's own")
}

/// Starts a node whose application `rabbit` is configured so, in Erlang's words.
pub fn own_rabbit(configuration: &str) -> OwnRabbit {
    OwnRabbit::start(configuration).expect("a broker of the test's own")
}
