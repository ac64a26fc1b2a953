//! A broker of three nodes, of which one is killed, frozen, cut off or restarted under load: the jobs go
//! on at the others, and each is done once. The worker knows all three from its `AMQP_URL`.

use std::collections::BTreeSet;
use std::time::Instant;

use kyc_lab::upstream::{self, Upstream};
use serde_json::json;
use uuid::Uuid;

use crate::harness::{NARROW, WorkerProcess, World, world};
use crate::own_services::{OwnCluster, own_cluster};

const QUEUE: &str = "kyc.document-updates";

const LOST: &str = "the broker session is lost";

const OPENED: &str = "the broker session is open";

/// Three nodes on a small machine can starve a request for seconds.
const SETTINGS: [(&str, &str); 3] =
    [("REQUEST_TIMEOUT", "15s"), ("CLAIM_LEASE", "19s"), ("OUTCOME_EVENTS", "true")];

/// A cluster, two workers in the middle of their work there, and upstream, which is told.
struct Scene<'a> {
    world: &'a World,
    cluster: OwnCluster,
    workers: [WorkerProcess; 2],
    jobs: Vec<Uuid>,
}

impl Scene<'_> {
    async fn set(world: &World) -> Scene<'_> {
        let cluster = own_cluster();
        let amqp_url = cluster.url();
        let told = Upstream::listen(&amqp_url, "kyc.events", "upstream").await;
        drop(told.expect("the cluster takes a queue"));
        // No verification ends while what upstream was told is compared with the tables.
        world.set_provider(json!({ "latency_ms": 50, "verification_time_ms": 3_600_000 })).await;
        let jobs = world.enqueue_jobs(300, &[("AMQP_URL", &amqp_url)]).await;
        let settings = [&NARROW[..], &SETTINGS, &[("AMQP_URL", &amqp_url)]].concat();
        let workers = [world.start_worker_with(&settings), world.start_worker_with(&settings)];
        for worker in &workers {
            world.wait_for_log(worker, OPENED).await;
        }
        world.wait_for_accepted(40).await;
        Scene { world, cluster, workers, jobs }
    }

    fn leader(&self) -> usize {
        self.cluster.leader_of(QUEUE).expect("the queue has a leader")
    }

    /// The node at which the first worker has its session.
    fn host(&self) -> usize {
        let log = self.workers[0].log();
        let opened = log.lines().rfind(|line| line.contains(OPENED)).expect("it has a session");
        let is_there = |place: String| opened.contains(&format!("{place}\""));
        self.cluster.nodes.iter().position(|node| is_there(node.place())).expect("it is one of ours")
    }

    /// Publishes, as often as it takes until the broker has confirmed, and waits until most of it is
    /// accepted. Says how long the first took. Few may wait for more: what a lost leader had on its way to
    /// a consumer, RabbitMQ sends again with the consumer's next delivery.
    async fn go_on(&mut self, after: &str) {
        let (world, begun) = (self.world, Instant::now());
        let (more, file) = world.write_jobs(100);
        let amqp_url = self.cluster.url();
        let enqueue = async || world.run(&["enqueue", &file], &[("AMQP_URL", &amqp_url)]).await;
        world.wait_for("a confirm", async || enqueue().await.status.success().then_some(())).await;
        for count in [1, 80] {
            world
                .wait_for("jobs that were published since", async || {
                    let accepted =
                        "select count(*) from submission where state = 'accepted' and job_id = any($1)";
                    let accepted = sqlx::query_scalar(accepted).bind(&more).fetch_one(&world.pool).await;
                    (accepted.unwrap_or(0_i64) >= count).then_some(())
                })
                .await;
            println!(
                "{after}: {count} of the jobs published since are accepted after {:.1?}",
                begun.elapsed()
            );
        }
        self.jobs.extend(more);
    }

    async fn wait_until_up(&self) {
        self.world.wait_for("every node", async || self.cluster.is_up().then_some(())).await;
    }

    /// Every job was done once, and upstream was told of each.
    async fn check(self) {
        let Self { world, jobs, workers, .. } = &self;
        for worker in workers {
            let log = worker.log();
            // What passes by itself wakes nobody.
            assert_eq!(log.lines().find(|line| line.contains(r#""level":"ERROR""#)), None);
        }
        world.check_nothing_lost_or_spent_twice(jobs).await;
        assert_eq!(world.oracle("patches").await.len(), jobs.len(), "no attempt had an unknown outcome");
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
        let untold = "select count(*) from outcome_event";
        world.wait_for("every event told", async || (world.count(untold).await == 0).then_some(())).await;
        let upstream = Upstream::connect(&self.cluster.url(), "kyc.events", "upstream").await;
        let told = upstream.expect("the cluster lets us in").take().await.expect("the cluster answers");
        let implied = upstream::implied(&world.pool).await.expect("the database answers");
        let events = upstream::compare(&told, &implied);
        assert!(events.agrees(), "{events:?}");
    }
}

#[test]
fn a_killed_leader_of_the_queue_costs_time_only() {
    world(async |world| {
        let mut scene = Scene::set(&world).await;
        let leader = scene.leader();
        scene.cluster.nodes[leader].kill().expect("it does");
        scene.go_on("the leader is killed").await;
        scene.cluster.nodes[leader].start_again().expect("it does");
        scene.go_on("it is back").await;
        scene.check().await;
    });
}

/// Its ports still take connections: only what does not answer tells. In the end it is killed, as by a
/// probe: RabbitMQ 3 takes nobody back whom the others have given up.
#[test]
fn a_frozen_node_is_left_for_another() {
    world(async |world| {
        let mut scene = Scene::set(&world).await;
        for at in BTreeSet::from([scene.leader(), scene.host()]) {
            let (host, sessions) = (scene.host(), scene.workers[0].log().matches(OPENED).count());
            scene.cluster.wait_until_spare(at).expect("it does");
            scene.cluster.nodes[at].freeze().expect("it does");
            scene.go_on("a node is frozen").await;
            if host == at {
                world.wait_for_logs(&scene.workers[0], OPENED, sessions + 1).await;
            }
            scene.cluster.nodes[at].kill().expect("it does");
            scene.cluster.nodes[at].start_again().expect("it does");
            scene.go_on("it is back").await;
        }
        scene.check().await;
    });
}

#[test]
fn a_leader_that_is_cut_off_from_the_others_costs_time_only() {
    world(async |world| {
        let mut scene = Scene::set(&world).await;
        for at in [scene.leader(), scene.host()] {
            scene.cluster.cut_off(at).expect("it does");
            scene.go_on("a node is cut off").await;
            scene.cluster.reconnect(at).expect("it does");
            scene.wait_until_up().await;
            scene.go_on("it is back").await;
        }
        scene.check().await;
    });
}

#[test]
fn nodes_that_are_restarted_one_by_one_cost_time_only() {
    world(async |world| {
        let mut scene = Scene::set(&world).await;
        for at in 0..3 {
            scene.cluster.wait_until_spare(at).expect("it does");
            scene.cluster.nodes[at].stop().expect("it does");
            scene.go_on("a node is stopped").await;
            scene.cluster.nodes[at].start_again().expect("it does");
            scene.go_on("it is back").await;
        }
        assert!(scene.workers.iter().all(|worker| worker.log().contains(LOST)), "each met its node's end");
        scene.check().await;
    });
}
