//! The examples of docs/publishing.md publish what the worker takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use uuid::Uuid;

use crate::harness::{World, job_body, world};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The code in blocks of a language, in order.
fn examples(language: &str) -> Vec<String> {
    let document = fs::read_to_string(Path::new(ROOT).join("docs/publishing.md")).expect("the document");
    let blocks = document.split("\n```").skip(1).step_by(2);
    let begin = format!("{language}\n");
    blocks.filter_map(|block| block.strip_prefix(begin.as_str()).map(str::to_owned)).collect()
}

/// Where `scripts/publishers.sh` puts the libraries.
fn libraries() -> PathBuf {
    let path = Path::new(ROOT).join("target/publishers");
    assert!(path.join("installed").exists(), "the libraries are missing; scripts/publishers.sh brings them");
    path
}

/// Runs an example beside a job of its own, and waits until that was accepted.
async fn publishes(world: &World, mut program: Command, example: &str) {
    let job_id = Uuid::new_v4();
    world.write_file("job.json", job_body(Uuid::new_v4(), job_id).to_string().as_bytes());
    let path = world.write_file("example", example.as_bytes());
    let run = program.arg(&path).current_dir(Path::new(&path).parent().expect("a directory"));
    let output = run.env("AMQP_URL", world.amqp_url()).output().expect("the example runs");
    assert!(output.status.success(), "{example}\n{}", String::from_utf8_lossy(&output.stderr));
    world.wait_for("its update", async || (world.count_updates(job_id).await == 1).then_some(())).await;
}

#[test]
fn the_examples_in_python_and_nodejs_publish_jobs_that_are_accepted() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let (python, javascript) = (examples("python"), examples("javascript"));
        assert_eq!((python.len(), javascript.len()), (2, 1), "pika and kombu; amqplib");
        for example in python {
            publishes(&world, Command::new(libraries().join("venv/bin/python")), &example).await;
        }
        for example in javascript {
            let mut node = Command::new("node");
            node.env("NODE_PATH", libraries().join("node_modules"));
            publishes(&world, node, &example).await;
        }
        world.wait_for_ended(3).await;
        assert_eq!(world.count("select count(*) from submission where state = 'accepted'").await, 3);
    });
}
