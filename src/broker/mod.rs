//! RabbitMQ: topology, a supervised session that hands out deliveries, and publishing.
//! Knows messages and acks, nothing of jobs. The only place that acks.

mod acks;
mod answer;
mod asking;
mod connection;
pub mod dead_letters;
mod declared;
mod delivery;
mod filter;
mod inspect;
mod letters;
mod properties;
mod publisher;
mod session;
mod topology;
mod transport;
mod wire;
mod x_death;

pub use self::connection::Broker;
pub use self::delivery::Delivery;
pub use self::publisher::{NotTaken, Publisher, Wait, is_refused};
pub use self::session::{SessionLiveness, Subscription};
pub use self::topology::{Edge, describe_job_arguments};
