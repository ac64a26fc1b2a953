//! A publisher and reader that speaks AMQP in bytes: no client library lets a test send what is
//! not UTF-8, or nested without end, and some cannot even read it.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use super::World;

/// The body goes in frames of at most so many bytes.
const BODY_FRAME_MAX: usize = 128 * 1024 - 8;

/// A message's properties, as they are on the wire: flags and values.
#[derive(Clone)]
pub struct RawProperties {
    flags: u16,
    values: [Vec<u8>; 14],
}

/// In their order on the wire.
const NAMES: [&str; 14] = [
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
];

impl RawProperties {
    /// Those of a persistent message.
    pub fn persistent() -> Self {
        Self { flags: 0, values: Default::default() }.with("delivery_mode", vec![2])
    }

    /// Any bytes as a short string.
    pub fn with_text(self, name: &str, text: &[u8]) -> Self {
        self.with(name, short_string(text))
    }

    /// Any bytes as the entries of the headers' table.
    pub fn with_headers(self, entries: &[u8]) -> Self {
        self.with("headers", long_string(entries))
    }

    fn with(mut self, name: &str, value: Vec<u8>) -> Self {
        let place = NAMES.iter().position(|known| *known == name).expect("a property");
        self.flags |= 1 << (15 - place);
        self.values[place] = value;
        self
    }

    fn to_bytes(&self) -> Vec<u8> {
        [&self.flags.to_be_bytes()[..], &self.values.concat()].concat()
    }
}

/// One byte of length, and the text.
pub fn short_string(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("at most 255 bytes")], text].concat()
}

/// Four bytes of length, and the bytes.
pub fn long_string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).expect("not so many").to_be_bytes()[..], bytes].concat()
}

/// One connection with one channel, on which publishes are confirmed.
pub struct RawBroker {
    stream: TcpStream,
}

impl World {
    /// Speaks to the broker in bytes.
    pub async fn speak_amqp(&self) -> RawBroker {
        RawBroker::connect(self.amqp_url()).await
    }
}

impl RawBroker {
    /// Speaks to a broker in bytes.
    pub async fn connect(url: &str) -> Self {
        let url: Url = url.parse().expect("a URL");
        let place = (url.host_str().expect("a host"), url.port().unwrap_or(5672));
        let stream = TcpStream::connect(place).await.expect("the broker listens");
        let mut broker = RawBroker { stream };
        broker.stream.write_all(b"AMQP\0\0\x09\x01").await.expect("the broker reads");
        broker.wait_for((10, 10)).await;
        let login = format!("\0{}\0{}", url.username(), url.password().unwrap_or_default());
        let start_ok = [
            &long_string(b"")[..],
            &short_string(b"PLAIN"),
            &long_string(login.as_bytes()),
            &short_string(b"en_US"),
        ];
        broker.send(0, (10, 11), &start_ok.concat()).await;
        broker.wait_for((10, 30)).await;
        broker.send(0, (10, 31), &[0, 1, 0, 2, 0, 0, 0, 0]).await;
        let vhost = url.path().trim_start_matches('/').replace("%2f", "/");
        broker.send(0, (10, 40), &[&short_string(vhost.as_bytes())[..], &[0, 0]].concat()).await;
        broker.wait_for((10, 41)).await;
        broker.send(1, (20, 10), &[0]).await;
        broker.wait_for((20, 11)).await;
        broker.send(1, (85, 10), &[0]).await;
        broker.wait_for((85, 11)).await;
        broker
    }

    /// Publishes a job's message, and waits until the broker has it.
    pub async fn publish(&mut self, properties: &RawProperties, body: &[u8]) {
        self.publish_to(b"kyc", b"document-update", properties, body).await;
    }

    /// Publishes any message.
    pub async fn publish_to(&mut self, exchange: &[u8], key: &[u8], properties: &RawProperties, body: &[u8]) {
        let place = [&[0, 0][..], &short_string(exchange), &short_string(key), &[0]].concat();
        self.send(1, (60, 40), &place).await;
        let size = u64::try_from(body.len()).expect("a size").to_be_bytes();
        self.write(2, 1, &[&[0, 60, 0, 0][..], &size, &properties.to_bytes()].concat()).await;
        for part in body.chunks(BODY_FRAME_MAX) {
            self.write(3, 1, part).await;
        }
        self.wait_for((60, 80)).await;
    }

    /// Takes the next message off a queue: its properties and its body, byte for byte.
    pub async fn take(&mut self, queue: &str) -> Option<(Vec<u8>, Vec<u8>)> {
        let (tag, properties, body) = self.get(queue).await?;
        self.send(1, (60, 80), &[&tag[..], &[0]].concat()).await;
        Some((properties, body))
    }

    /// Has the next message of a queue handed over, and returns it.
    pub async fn hand_back(&mut self, queue: &str) {
        let (tag, ..) = self.get(queue).await.expect("a message");
        self.send(1, (60, 90), &[&tag[..], &[1]].concat()).await;
    }

    async fn get(&mut self, queue: &str) -> Option<([u8; 8], Vec<u8>, Vec<u8>)> {
        self.send(1, (60, 70), &[&[0, 0][..], &short_string(queue.as_bytes()), &[0]].concat()).await;
        let got = self.wait_for_any(&[(60, 71), (60, 72)]).await;
        if got[..4] == [0, 60, 0, 72] {
            return None;
        }
        let (_, header) = self.read().await;
        let size = u64::from_be_bytes(header[4..12].try_into().expect("eight bytes"));
        let mut body = Vec::new();
        while u64::try_from(body.len()).expect("a size") < size {
            body.extend(self.read().await.1);
        }
        Some((got[4..12].try_into().expect("eight bytes"), header[12..].to_vec(), body))
    }

    async fn send(&mut self, channel: u16, (class, method): (u16, u16), arguments: &[u8]) {
        self.write(1, channel, &[&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat()).await;
    }

    async fn write(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let frame = [&[kind][..], &channel.to_be_bytes(), &long_string(payload), &[0xce]].concat();
        super::answer("room for a frame", self.stream.write_all(&frame)).await.expect("the broker reads");
    }

    async fn wait_for(&mut self, method: (u16, u16)) -> Vec<u8> {
        self.wait_for_any(&[method]).await
    }

    async fn wait_for_any(&mut self, methods: &[(u16, u16)]) -> Vec<u8> {
        let (kind, payload) = self.read().await;
        let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
        let came = (kind == 1).then(|| (number(0), number(2)));
        let text = String::from_utf8_lossy(&payload);
        assert!(came.is_some_and(|came| methods.contains(&came)), "{came:?} in place of {methods:?}: {text}");
        payload
    }

    async fn read(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 7];
        self.read_exact(&mut head).await;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; usize::try_from(size).expect("a size") + 1];
        self.read_exact(&mut payload).await;
        payload.pop();
        (head[0], payload)
    }

    async fn read_exact(&mut self, bytes: &mut [u8]) {
        let reading = timeout(super::deadline(), self.stream.read_exact(bytes));
        reading.await.expect("the broker says something in time").expect("the broker says something");
    }
}
