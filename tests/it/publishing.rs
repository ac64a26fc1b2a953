//! The examples of docs/publishing.md publish what the worker takes, and those of docs/consuming.md handle
//! what it tells.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::harness::{World, job_body, world};
use crate::outcome_events::TOLD;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The code in a document's blocks of a language, in order; those that follow a trace, or the others.
fn examples(document: &str, language: &str, is_traced: bool) -> Vec<String> {
    let document = fs::read_to_string(Path::new(ROOT).join(document)).expect("the document");
    let blocks = document.split("\n```").skip(1).step_by(2);
    let begin = format!("{language}\n");
    let blocks = blocks.filter_map(|block| block.strip_prefix(begin.as_str()).map(str::to_owned));
    blocks.filter(|block| block.contains("opentelemetry") == is_traced).collect()
}

/// Where `scripts/publishers.sh` puts the libraries.
fn libraries() -> PathBuf {
    let path = Path::new(ROOT).join("target/publishers");
    assert!(path.join("installed").exists(), "the libraries are missing; scripts/publishers.sh brings them");
    path
}

/// Every example of that kind in a document, with the program that runs it.
pub fn programs(document: &str, is_traced: bool) -> Vec<(Command, String)> {
    let python = examples(document, "python", is_traced).into_iter();
    let python = python.map(|example| (Command::new(libraries().join("venv/bin/python")), example));
    let javascript = examples(document, "javascript", is_traced).into_iter().map(|example| {
        let mut node = Command::new("node");
        node.env("NODE_PATH", libraries().join("node_modules"));
        (node, example)
    });
    python.chain(javascript).collect()
}

/// Runs an example in this world's directory, with the variables that it reads.
async fn runs(world: &World, mut program: Command, example: &str) {
    let path = world.write_file("example", example.as_bytes());
    program.arg(&path).current_dir(Path::new(&path).parent().expect("a directory"));
    program.env("AMQP_URL", world.amqp_url()).env("OUTCOMES_DATABASE_URL", world.database_url());
    program.env("STOP_WHEN_EMPTY", "1");
    let output = spawn_blocking(move || program.output()).await.expect("no panic").expect("the example runs");
    assert!(output.status.success(), "{example}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs an example beside a job of its own, and waits until that was applied. Returns the job's
/// name in its links.
pub async fn publishes(world: &World, program: Command, example: &str) -> Uuid {
    let job_id = Uuid::new_v4();
    world.write_file("job.json", job_body(Uuid::new_v4(), job_id).to_string().as_bytes());
    runs(world, program, example).await;
    world.wait_for("its update", async || (world.count_updates(job_id).await == 1).then_some(())).await;
    job_id
}

#[test]
fn the_examples_in_python_and_nodejs_publish_jobs_that_are_accepted() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let programs = programs("docs/publishing.md", false);
        assert_eq!(programs.len(), 3, "pika and kombu; amqplib");
        for (program, example) in programs {
            publishes(&world, program, &example).await;
        }
        world.wait_for_ended(3).await;
        assert_eq!(world.count("select count(*) from submission where state = 'accepted'").await, 3);
    });
}

/// Every event twice, each consumer started twice.
#[test]
fn the_consumers_in_python_and_nodejs_handle_each_event_once() {
    world(async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let _worker = world.start_worker_with(&[TOLD]);
        let programs = programs("docs/consuming.md", false);
        assert_eq!(programs.len(), 2, "pika; amqplib");
        // Declares the consumers' queue.
        let [python, node] = programs.try_into().expect("two");
        runs(&world, again(&python.0), &python.1).await;
        let jobs = world.publish_jobs(5).await;
        upstream.wait_for_implied(&world, &jobs).await;
        for (program, example) in [&python, &node] {
            for _ in 0..2 {
                let told = world.say(&["events", "replay", "--since", "2026-01-01"]).await;
                assert_eq!(told.trim(), "told again: 5 events of 5 jobs");
                runs(&world, again(program), example).await;
            }
        }
        let handled = "select count(*) from customer_outcome where kind = 'job.accepted'";
        assert_eq!(world.count(handled).await, 5, "by the consumer in Node.js");
        let count = "import sqlite3\ncount = 'select count(*) from customer_outcome'\n\
                     assert sqlite3.connect('outcomes.sqlite').execute(count).fetchone() == (5,)";
        runs(&world, again(&python.0), count).await;
    });
}

/// The same program, to be run once more.
fn again(program: &Command) -> Command {
    let mut again = Command::new(program.get_program());
    again.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    again
}
