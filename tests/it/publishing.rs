//! The examples of docs/publishing.md publish what the worker takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::harness::{World, job_body, world};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The code in blocks of a language, in order; those that follow a trace, or the others.
fn examples(language: &str, is_traced: bool) -> Vec<String> {
    let document = fs::read_to_string(Path::new(ROOT).join("docs/publishing.md")).expect("the document");
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

/// Every example of that kind, with the program that runs it.
pub fn programs(is_traced: bool) -> Vec<(Command, String)> {
    let python = examples("python", is_traced).into_iter();
    let python = python.map(|example| (Command::new(libraries().join("venv/bin/python")), example));
    let javascript = examples("javascript", is_traced).into_iter().map(|example| {
        let mut node = Command::new("node");
        node.env("NODE_PATH", libraries().join("node_modules"));
        (node, example)
    });
    python.chain(javascript).collect()
}

/// Runs an example beside a job of its own, and waits until that was applied. Returns the job's
/// name in its links.
pub async fn publishes(world: &World, mut program: Command, example: &str) -> Uuid {
    let job_id = Uuid::new_v4();
    world.write_file("job.json", job_body(Uuid::new_v4(), job_id).to_string().as_bytes());
    let path = world.write_file("example", example.as_bytes());
    program.arg(&path).current_dir(Path::new(&path).parent().expect("a directory"));
    program.env("AMQP_URL", world.amqp_url());
    let output = spawn_blocking(move || program.output()).await.expect("no panic").expect("the example runs");
    assert!(output.status.success(), "{example}\n{}", String::from_utf8_lossy(&output.stderr));
    world.wait_for("its update", async || (world.count_updates(job_id).await == 1).then_some(())).await;
    job_id
}

#[test]
fn the_examples_in_python_and_nodejs_publish_jobs_that_are_accepted() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let programs = programs(false);
        assert_eq!(programs.len(), 3, "pika and kombu; amqplib");
        for (program, example) in programs {
            publishes(&world, program, &example).await;
        }
        world.wait_for_ended(3).await;
        assert_eq!(world.count("select count(*) from submission where state = 'accepted'").await, 3);
    });
}
