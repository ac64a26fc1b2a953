//! Asks the broker for one thing after the other, on a channel that is opened anew after a refusal,
//! which closes it; and writes the arguments of what is asked for.

use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};
use tracing::debug;

use super::answer::answer;

pub(super) struct Asking<'a> {
    connection: &'a Connection,
    channel: Channel,
}

impl<'a> Asking<'a> {
    pub async fn new(connection: &'a Connection) -> anyhow::Result<Self> {
        Ok(Self { connection, channel: answer(connection.create_channel()).await? })
    }

    pub async fn channel(&mut self) -> anyhow::Result<&Channel> {
        if !self.channel.status().connected() {
            self.channel = answer(self.connection.create_channel()).await?;
        }
        Ok(&self.channel)
    }

    /// Closing is a courtesy: the connection's end closes the channel, too.
    pub async fn done(self) {
        if let Err(error) = answer(self.channel.close(200, "asked".into())).await {
            debug!(%error, "a channel did not close cleanly");
        }
    }
}

pub(super) fn arguments<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
