//! The broker, as publishers and operators see it.

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Queue};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{WorkerProcess, World, answer, management_url, open_channel};

/// The queue of jobs.
pub const JOBS: &str = "kyc.document-updates";

impl World {
    /// Declares the topology as the worker does, so that publishing has somewhere to go.
    pub async fn declare_topology(&self) {
        let enqueued = self.run(&["enqueue", "/dev/null"], &[]).await;
        let complaint = String::from_utf8_lossy(&enqueued.stderr);
        // A connection's own thread may outlive the command's work, and must end as quietly.
        assert!(enqueued.status.success() && !complaint.contains("panicked"), "{complaint}");
    }

    /// Publishes `body` as any AMQP client would, and waits for the confirmation.
    pub async fn publish(&self, message_id: Option<Uuid>, body: &[u8]) {
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if let Some(id) = message_id {
            properties = properties.with_message_id(id.to_string().into());
        }
        self.publish_with(properties, body).await;
    }

    pub async fn publish_with(&self, properties: BasicProperties, body: &[u8]) {
        self.publish_to("document-update", properties, body).await;
    }

    /// Publishes a message of any kind.
    pub async fn publish_to(&self, routing_key: &str, properties: BasicProperties, body: &[u8]) {
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publishing =
            self.channel.basic_publish("kyc".into(), routing_key.into(), mandatory, body, properties);
        let publishing = answer("a place for a message", publishing).await;
        let confirm = answer("a confirmation", publishing.expect("the broker takes a message")).await;
        let confirm = confirm.expect("the broker confirms it");
        assert!(confirm.is_ack() && confirm.take_message().is_none(), "the message found no queue");
    }

    /// How many messages are ready in a queue.
    pub async fn count_ready(&self, queue: &str) -> u32 {
        self.look_at(queue).await.message_count()
    }

    /// How many consumers the queue of jobs has.
    pub async fn count_consumers(&self) -> u32 {
        self.look_at(JOBS).await.consumer_count()
    }

    async fn look_at(&self, queue: &str) -> Queue {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let declaring = self.channel.queue_declare(queue.into(), passive, FieldTable::default());
        answer("a look at a queue", declaring).await.expect("the queue exists")
    }

    /// Whether the broker has a queue of that name.
    pub async fn queue_exists(&self, queue: &str) -> bool {
        let url = format!("{}/api/queues/{}/{queue}", management_url(), self.name);
        let answer = self.http.get(url).send().await.expect("the management API answers");
        answer.status().is_success()
    }

    /// Deletes the queue of jobs.
    pub async fn delete_queue(&self) {
        self.channel
            .queue_delete(JOBS.into(), QueueDeleteOptions::default())
            .await
            .expect("it can be deleted");
    }

    /// Deletes the queue of jobs, and declares it as no worker would.
    pub async fn declare_otherwise(&self, options: QueueDeclareOptions, arguments: FieldTable) {
        self.declare_anew(JOBS, options, arguments).await.expect("it can be declared");
    }

    /// Deletes a queue, and declares it so where the broker lets us.
    pub async fn declare_anew(
        &self,
        queue: &str,
        options: QueueDeclareOptions,
        arguments: FieldTable,
    ) -> lapin::Result<()> {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        // A refusal may end the connection.
        let (connection, channel) = open_channel(&self.amqp_url).await;
        channel.queue_declare(queue.into(), options, arguments).await?;
        connection.close(200, "done".into()).await
    }

    /// Declares a queue that is bound to the exchange of jobs.
    pub async fn bind_queue(&self, queue: &str, key: &str) {
        let (options, none) = (QueueDeclareOptions::durable(), FieldTable::default());
        self.channel.queue_declare(queue.into(), options, none.clone()).await.expect("it can be declared");
        let binding =
            self.channel.queue_bind(queue.into(), "kyc".into(), key.into(), Default::default(), none);
        binding.await.expect("it can be bound");
    }

    /// Closes every worker's connection, as an operator can.
    pub async fn close_connections_of_workers(&self) {
        let names = self
            .wait_for("connections of workers", async || {
                Some(self.connections_of_workers().await).filter(|names| !names.is_empty())
            })
            .await;
        for name in names {
            let mut url: url::Url = management_url().parse().expect("a URL");
            url.path_segments_mut().expect("a base").extend(["api", "connections", &name]);
            let closed = self.http.delete(url).send().await.expect("the management API answers");
            assert!(closed.status().is_success(), "{}", closed.status());
        }
    }

    /// How many connections workers have. The management API's numbers are some seconds old.
    pub async fn count_connections_of_workers(&self) -> usize {
        self.connections_of_workers().await.len()
    }

    async fn connections_of_workers(&self) -> Vec<String> {
        let url = format!("{}/api/vhosts/{}/connections", management_url(), self.name);
        let answer = self.http.get(url).send().await.expect("the management API answers");
        #[expect(clippy::disallowed_methods, reason = "the broker is ours")]
        let connections: Vec<Value> = answer.json().await.expect("JSON");
        let is_workers = |connection: &&Value| {
            let name = connection["client_properties"]["connection_name"].as_str();
            name.is_some_and(|name| name.starts_with("kyc-worker"))
        };
        let name_of = |connection: &Value| connection["name"].as_str().map(str::to_owned);
        connections.iter().filter(is_workers).filter_map(name_of).collect()
    }

    /// Every connection in this world's vhost. The broker lists a user's connections as they are, and
    /// those of a vhost some seconds late.
    pub(super) async fn connections_by_user(&self) -> Vec<Value> {
        let admin: url::Url = self.amqp_url.parse().expect("a URL");
        let mut connections = Vec::new();
        for user in [admin.username(), &self.name] {
            let url = format!("{}/api/connections/username/{user}", management_url());
            let answer = self.http.get(url).send().await.expect("the management API answers");
            #[expect(clippy::disallowed_methods, reason = "the broker is ours")]
            let all: Vec<Value> = answer.json().await.unwrap_or_default();
            connections
                .extend(all.into_iter().filter(|connection| connection["vhost"] == self.name.as_str()));
        }
        connections
    }

    /// Unbinds the queue of jobs from its exchange.
    pub async fn unbind_queue(&self) {
        self.channel
            .queue_unbind(JOBS.into(), "kyc".into(), "document-update".into(), FieldTable::default())
            .await
            .expect("it can be unbound");
    }

    /// Waits until a worker consumes.
    pub async fn wait_for_consumers(&self, count: u32) {
        let what = format!("{count} consumers");
        self.wait_for(&what, async || (self.count_consumers().await == count).then_some(())).await;
    }

    /// Stops the workers and checks that every delivery was acked: one that was not would
    /// be back in the queue by then.
    pub async fn check_all_acked<const N: usize>(&self, workers: [&mut WorkerProcess; N]) {
        for worker in workers {
            worker.stop().await;
        }
        self.wait_for_consumers(0).await;
        assert_eq!(self.count_ready(JOBS).await, 0, "a delivery was not acked");
    }

    /// Waits until the broker waits for no ack and has nothing ready: every delivery was
    /// taken over, or given back by nobody.
    pub async fn wait_for_no_delivery(&self) {
        self.wait_for("a queue without messages, ready or unacknowledged", async || {
            (self.count_undelivered_or_unacked().await == Some(0)).then_some(())
        })
        .await;
    }

    /// What the management API says the queue of jobs holds, unacknowledged included. Its
    /// numbers are some seconds old.
    async fn count_undelivered_or_unacked(&self) -> Option<u64> {
        let url = format!("{}/api/queues/{}/{JOBS}", management_url(), self.name);
        let answer = self.http.get(url).send().await.expect("the management API answers");
        #[expect(clippy::disallowed_methods, reason = "the broker is ours")]
        let queue: Value = answer.json().await.expect("JSON");
        queue["messages"].as_u64()
    }

    /// The tags of the consumers of the queue of jobs, as the management API knows them.
    pub async fn consumer_tags(&self) -> Vec<String> {
        let url = format!("{}/api/consumers/{}", management_url(), self.name);
        let answer = self.http.get(url).send().await.expect("the management API answers");
        #[expect(clippy::disallowed_methods, reason = "the broker is ours")]
        let consumers: Vec<Value> = answer.json().await.expect("JSON");
        let of_jobs = consumers.iter().filter(|consumer| consumer["queue"]["name"] == JOBS);
        of_jobs.filter_map(|consumer| consumer["consumer_tag"].as_str().map(str::to_owned)).collect()
    }

    /// Puts a message among the dead letters that no worker put there.
    pub async fn publish_dead_letter(&self, body: &[u8]) {
        self.publish_dead_letter_with(BasicProperties::default(), body).await;
    }

    pub async fn publish_dead_letter_with(&self, properties: BasicProperties, body: &[u8]) {
        let (exchange, key) = ("kyc.dlx".into(), "kyc.dead-letters".into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publishing = self.channel.basic_publish(exchange, key, options, body, properties);
        let confirm = publishing.await.expect("the broker takes a message").await.expect("it confirms");
        assert!(confirm.is_ack() && confirm.take_message().is_none(), "the message found no queue");
    }

    /// Takes one message off the dead-letter queue.
    pub async fn take_dead_letter(&self) -> Option<Vec<u8>> {
        let got = self
            .channel
            .basic_get("kyc.dead-letters".into(), BasicGetOptions::default())
            .await
            .expect("the dead-letter queue exists")?;
        got.delivery.ack(BasicAckOptions::default()).await.expect("the ack goes out");
        Some(got.delivery.data)
    }

    /// Makes a user of the broker that may do anything in this world's vhost, and returns
    /// its `AMQP_URL`.
    pub async fn make_broker_user(&self, password: &str) -> String {
        self.set_broker_user(password, json!({ "configure": ".*", "write": ".*", "read": ".*" })).await
    }

    /// Lets a user of this world's own configure and write everything and read what `read`
    /// says. Returns the `AMQP_URL` in their name.
    pub async fn allow_user(&self, read: &str) -> String {
        self.allow_user_to(json!({ "configure": ".*", "write": ".*", "read": read })).await
    }

    /// The same, with any permissions.
    pub async fn allow_user_to(&self, permissions: Value) -> String {
        self.set_broker_user(&self.name, permissions).await
    }

    async fn set_broker_user(&self, password: &str, permissions: Value) -> String {
        let name = &self.name;
        let user = json!({ "password": password, "tags": "" });
        for (path, body) in
            [(format!("users/{name}"), user), (format!("permissions/{name}/{name}"), permissions)]
        {
            let url = format!("{}/api/{path}", management_url());
            let set = self.http.put(url).json(&body).send().await.expect("the management API answers");
            assert!(set.status().is_success(), "{path}: {}", set.status());
        }
        let mut url: url::Url = self.amqp_url.parse().expect("a URL");
        url.set_username(name).expect("a user");
        url.set_password(Some(password)).expect("a password");
        url.to_string()
    }
}
