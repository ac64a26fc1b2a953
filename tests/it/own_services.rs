//! Servers of a test's own, which need not outlive the machine.

pub use kyc_lab::services::{Disk, OwnCluster, OwnPostgres, OwnRabbit, free_port, in_place_of_root, program};

/// Makes a cluster and starts it with `settings`, each `name=value`.
pub fn own_postgres(disk: Disk, settings: &[&str]) -> OwnPostgres {
    OwnPostgres::start(disk, &[settings, &["fsync=off"]].concat()).expect("a cluster of the test's own")
}

/// Makes a standby of `primary` that has received all that it has, and starts it.
pub fn own_standby(primary: &OwnPostgres) -> OwnPostgres {
    primary.start_standby(&["fsync=off"]).expect("a standby of the test's own")
}

/// Starts a node whose application `rabbit` is configured so, in Erlang's words.
pub fn own_rabbit(configuration: &str) -> OwnRabbit {
    OwnRabbit::start(configuration).expect("a broker of the test's own")
}

/// Starts three nodes that are one broker.
pub fn own_cluster() -> OwnCluster {
    OwnCluster::start(3).expect("a broker of the test's own")
}
