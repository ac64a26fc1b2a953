//! What is no job is dead-lettered whole, with a row that says all that is wrong, and
//! never stops the queue.

use lapin::BasicProperties;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{World, job_body, world};

/// Bodies that are no jobs, each with what its row must say.
fn bodies() -> Vec<(Vec<u8>, &'static [&'static str])> {
    let id = Uuid::new_v4();
    let valid = job_body(Uuid::new_v4(), id);
    let with = |pointer: &str, value: serde_json::Value| {
        let mut body = valid.clone();
        *body.pointer_mut(pointer).expect("a field") = value;
        body.to_string().into_bytes()
    };
    let mut extra = valid.clone();
    extra["document_details"]["unheard"] = json!(1);
    extra["unknown"] = json!("of");
    let mut utf8 = valid.to_string().into_bytes();
    let accent = utf8.iter().position(|byte| !byte.is_ascii()).expect("the address has an accent");
    utf8[accent] = 0xff;
    vec![
        (Vec::new(), &[]),
        (b"hello".to_vec(), &[]),
        (b"null".to_vec(), &["must be an object"]),
        (b"[]".to_vec(), &["must be an object"]),
        (valid.to_string().as_bytes()[..100].to_vec(), &[]),
        (utf8, &[]),
        (valid.to_string().replace("{}", "1e400").into_bytes(), &["/document_details/additional_data"]),
        (["[".repeat(10_000), "]".repeat(10_000)].concat().into_bytes(), &[]),
        (["{\"a\":".repeat(10_000), "1".to_owned(), "}".repeat(10_000)].concat().into_bytes(), &[]),
        (valid.to_string().replacen('{', "{\"full_address\":\"twice\",", 1).into_bytes(), &["/full_address"]),
        (vec![b' '; 16 << 20], &["64 KiB"]),
        (
            b"{}".to_vec(),
            &[
                "/customer_id",
                "/full_address",
                "/document_type",
                "/document_front_image_url",
                "/document_back_image_url",
                "/document_details",
            ],
        ),
        (extra.to_string().into_bytes(), &["/?7: is not a field", "/document_details/?7: is not a field"]),
        (with("/customer_id", json!("me")), &["/customer_id: must be a UUID"]),
        (with("/full_address", json!("  ")), &["/full_address: must not be blank"]),
        (with("/document_type", json!("LIBRARY_CARD")), &["/document_type: must be one of"]),
        (with("/document_front_image_url", json!("ftp://a/b.jpg")), &["/document_front_image_url"]),
        (with("/document_details/document_number", json!(7)), &["/document_details/document_number"]),
        (with("/document_details/additional_data", json!("none")), &["/document_details/additional_data"]),
    ]
}

#[test]
fn what_is_no_job_is_dead_lettered_byte_for_byte_with_all_its_faults() {
    world(async |world| {
        world.declare_topology().await;
        let bodies = bodies();
        let worker = world.start_worker();
        let mut ids = Vec::new();
        for (body, _) in &bodies {
            let id = Uuid::new_v4();
            world.publish(Some(id), body).await;
            ids.push(id);
        }
        let valid = world.publish_job().await;
        world.wait_for_state(valid, &["accepted"]).await;

        for (id, (body, faults)) in ids.iter().zip(&bodies) {
            let job = world.wait_for_state(*id, &["invalid"]).await;
            let reason = job.reason.unwrap_or_default();
            assert!(!reason.is_empty());
            for fault in *faults {
                assert!(reason.contains(fault), "{fault} in {reason}");
            }
            let size = i64::try_from(body.len()).expect("a small body");
            assert_eq!(count_letters(&world, *id, size).await, 1, "one row");
        }
        let mut expected: Vec<Vec<u8>> = bodies.into_iter().map(|(body, _)| body).collect();
        let mut letters = Vec::new();
        for _ in 0..expected.len() {
            letters.push(world.wait_for("a dead letter", async || world.take_dead_letter().await).await);
        }
        expected.sort();
        letters.sort();
        assert!(letters == expected, "the letters are not what was published");
        assert!(world.take_dead_letter().await.is_none());
        assert_eq!(world.oracle("patches").await.len(), 1);
        assert!(worker.memory_max_kib() < 300 * 1024, "{} KiB", worker.memory_max_kib());
    });
}

async fn count_letters(world: &World, message_id: Uuid, size: i64) -> i64 {
    sqlx::query_scalar(
        "select count(*) from dead_lettered_delivery
        where message_id = $1 and job_id = $1::uuid and size = $2 and reason_code = 'invalid'",
    )
    .bind(message_id.to_string())
    .bind(size)
    .fetch_one(&world.pool)
    .await
    .expect("the database answers")
}

#[test]
fn properties_that_cannot_be_stored_do_not_stop_the_queue() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&[("CONCURRENCY", "1"), ("PREFETCH", "1")]);
        let odd = |id: &str| {
            BasicProperties::default().with_message_id(id.into()).with_correlation_id("c\0d".into())
        };
        // Postgres keeps no NUL in a text.
        world.publish_with(odd("a\0b"), b"{}").await;
        world.publish_with(odd(&"x".repeat(255)), b"no job").await;
        world.publish_with(odd("\u{202e}é"), b"").await;
        let mut body = job_body(Uuid::new_v4(), Uuid::new_v4());
        let job_id = Uuid::new_v4();
        body["job_id"] = json!(job_id);
        world.publish_with(odd("not\0a uuid"), body.to_string().as_bytes()).await;
        world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 3);
        for _ in 0..3 {
            world.wait_for("a dead letter", async || world.take_dead_letter().await).await;
        }
    });
}

#[test]
fn two_job_ids_that_differ_are_no_job_and_take_no_id() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let mut body = job_body(Uuid::new_v4(), one);
        body["job_id"] = json!(other);
        world.publish(Some(one), body.to_string().as_bytes()).await;
        world
            .publish_with(BasicProperties::default(), job_body(Uuid::new_v4(), one).to_string().as_bytes())
            .await;
        for _ in 0..2 {
            world.wait_for("a dead letter", async || world.take_dead_letter().await).await;
        }
        assert_eq!(world.count("select count(*) from submission").await, 0);
        let rows =
            "select count(*) from dead_lettered_delivery where job_id is null and reason like '%/job_id%'";
        assert_eq!(world.count(rows).await, 2);
        assert_eq!(world.oracle("patches").await.len(), 0);
    });
}

#[test]
fn an_invalid_delivery_does_not_touch_the_job_whose_id_it_carries() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let job_id = world.publish_job().await;
        world.wait_for_state(job_id, &["accepted"]).await;
        world.publish(Some(job_id), b"{}").await;
        world.wait_for("a dead letter", async || world.take_dead_letter().await).await;
        let job = world.submission(job_id).await.expect("it is known");
        assert_eq!(job.state, "accepted");
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}
