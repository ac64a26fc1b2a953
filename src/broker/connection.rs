//! Connects to the broker, as the settings say, and asks it what a worker asks now and then.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use lapin::options::QueueDeclareOptions;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::uri::{AMQPAuthority, AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::answer::{answer, close, refusal};
use super::filter::{Alterations, Appetite, Filter};
use super::topology::{Edge, set_up_topology};
use super::transport::{self, Transport};
use crate::config::{BrokerCertificates, BrokerSettings, ClientIdentity, Secret, parse_amqp_url};
use crate::tls::certificate_fault;

/// A broker that accepts TCP and never answers is given up after this. Several hosts share it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const HEARTBEAT_SECONDS: u16 = 10;

/// Where lapin does not look for heartbeats, as while a connection is closed, this ends it.
const SILENCE_MAX: Duration = Duration::from_secs(3 * HEARTBEAT_SECONDS as u64);

/// The broker as one worker uses it.
#[derive(Clone)]
pub struct Broker {
    /// One for each host; they differ in nothing else.
    uris: Vec<AMQPUri>,
    pub(super) settings: BrokerSettings,
    name: String,
    /// The host, and the address of each host, with which the next connection begins: after one that lets
    /// us in and then cannot serve us, as a node that is cut off from its cluster, another comes first.
    turn: Arc<AtomicUsize>,
    /// What the topology lacks that we can work without, as it was logged last.
    tolerated: Arc<Mutex<Vec<String>>>,
}

/// A connection that came about.
pub(super) struct Connected {
    pub connection: Connection,
    /// What is done to its messages, found by tag.
    pub alterations: Alterations,
    /// Which of the hosts let us in, for people.
    pub place: String,
}

impl Broker {
    /// `name` is what the broker's own tools show for our connections.
    ///
    /// # Errors
    /// When the URL is no AMQP URL, or two things have one name. Nothing is connected yet.
    pub fn new(settings: &BrokerSettings, url: &Secret, name: &str) -> anyhow::Result<Self> {
        if let Some(fault) = settings.name_faults().into_iter().next() {
            return Err(fault.into());
        }
        let mut uris = parse_amqp_url(url)?;
        for uri in &mut uris {
            uri.query.heartbeat = Some(HEARTBEAT_SECONDS);
        }
        // So that replicas spread.
        let turn = Arc::new(AtomicUsize::new(rand::random_range(0..1000)));
        let (settings, name) = (settings.clone(), name.to_owned());
        Ok(Self { uris, settings, name, turn, tolerated: Arc::default() })
    }

    /// The same, of each host alone.
    pub(super) fn hosts(&self) -> impl Iterator<Item = Self> {
        self.uris.iter().map(|uri| Self { uris: vec![uri.clone()], ..self.clone() })
    }

    pub(super) fn user(&self) -> &str {
        &self.uris[0].authority.userinfo.username
    }

    pub(super) fn vhost(&self) -> &str {
        &self.uris[0].vhost
    }

    /// Goes by what `AMQP_URL_FILE` says by now: its password may have been rotated.
    #[must_use]
    pub fn read_again(self) -> Self {
        if self.settings.amqp_url_file.is_none() {
            return self;
        }
        let url = self.settings.url().map_err(anyhow::Error::from);
        match url.and_then(|url| Self::new(&self.settings, &url, &self.name)) {
            Ok(again) if again.uris != self.uris => {
                info!("AMQP_URL read again from its file");
                again
            }
            Ok(_) => self,
            Err(error) => {
                debug!(error = format!("{error:#}"), "AMQP_URL cannot be read again");
                self
            }
        }
    }

    /// How many messages are ready in the queue.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn count_ready(&self) -> anyhow::Result<u32> {
        self.with_channel(async |channel| count_in(channel, "QUEUE", &self.settings.queue).await).await
    }

    /// How many messages are ready in the dead-letter queue.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn count_dead_letters(&self) -> anyhow::Result<u32> {
        let queue = &self.settings.dead_letter_queue;
        self.with_channel(async |channel| count_in(channel, "DEAD_LETTER_QUEUE", queue).await).await
    }

    /// Declares or verifies what an edge needs. A fault that it can work with is
    /// logged once.
    pub(super) async fn set_up_topology(&self, connection: &Connection, edge: Edge) -> anyhow::Result<()> {
        let tolerated = set_up_topology(connection, &self.settings, edge).await?;
        let tolerated: Vec<String> = tolerated.iter().map(|fault| format!("{fault:#}")).collect();
        let mut logged = self.tolerated.lock();
        for fault in tolerated.iter().filter(|fault| !logged.contains(fault)) {
            error!(
                error = fault,
                "dead letters are kept as the broker has it declared, and jobs go on; fix this"
            );
        }
        *logged = tolerated;
        Ok(())
    }

    async fn with_channel<T>(
        &self,
        work: impl AsyncFnOnce(&Channel) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let connection = self.connect().await?;
        let channel = answer(connection.create_channel()).await.context("AMQP_URL: cannot open a channel")?;
        let done = work(&channel).await;
        close(&connection).await;
        done
    }

    /// Connects, for messages that are taken whole.
    pub(super) async fn connect(&self) -> anyhow::Result<Connection> {
        self.connect_for(Appetite::WHOLE).await.map(|connected| connected.connection)
    }

    /// Connects, for messages of which `appetite` is taken. Every host is tried, each with its share of
    /// the time, until one lets us in.
    pub(super) async fn connect_for(&self, appetite: Appetite) -> anyhow::Result<Connected> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.uris.len();
        let share = CONNECT_TIMEOUT / u32::try_from(count).unwrap_or(u32::MAX);
        let mut failures = Vec::new();
        for at in (0..count).map(|next| (turn % count + next) % count) {
            let uri = &self.uris[at];
            // lapin ignores the connection_timeout of the URI.
            let connected = timeout(share, self.try_to_connect(uri, turn, appetite)).await;
            match connected.unwrap_or_else(|_elapsed| Err(anyhow!("no answer within {share:.0?}"))) {
                Ok((connection, alterations)) => {
                    return Ok(Connected { connection, alterations, place: self.place(at) });
                }
                Err(error) => failures.push((at, error)),
            }
        }
        // In one order, whoever came first, so that one outage has one text. What a host says tells more
        // than that others say nothing.
        failures.sort_by_key(|(at, error)| (refusal(error).is_none(), *at));
        let mut failures = failures.into_iter().map(|(at, error)| (self.place(at), error));
        let (place, error) = failures.next().context("AMQP_URL: names no host")?;
        let others: String = failures.map(|(place, error)| format!(" (nor {place}: {error:#})")).collect();
        let advice = self.connect_advice(&error);
        Err(error.context(format!("AMQP_URL: cannot use {place}{others}; {advice}")))
    }

    async fn try_to_connect(
        &self,
        uri: &AMQPUri,
        turn: usize,
        appetite: Appetite,
    ) -> anyhow::Result<(Connection, Alterations)> {
        let alterations = Alterations::default();
        let frame_max = uri.query.frame_max.unwrap_or_default();
        let filter = Filter::new(appetite, frame_max, alterations.clone());
        // If this future is dropped, lapin's thread would wait for the broker for ever.
        let abandoned = CancellationToken::new();
        let abandons = abandoned.clone().drop_guard();
        let tls = (uri.scheme == AMQPScheme::AMQPS).then(|| self.tls_config()).transpose()?;
        let transport = Transport::connect(uri, turn, tls, filter, SILENCE_MAX, abandoned).await?;
        let transport = Mutex::new(Some(transport));
        let hand_over = move |_uri, _runtime| {
            let transport = transport.lock().take();
            async move {
                transport
                    .map(AsyncTcpStream::Plain)
                    .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
            }
        };
        let properties = ConnectionProperties::default().with_connection_name(self.name.as_str().into());
        let connection =
            Connection::connector(uri.clone(), transport::runtime(), hand_over, properties).await?;
        abandons.disarm();
        Ok((connection, alterations))
    }

    /// Where RabbitMQ is: the host of that number.
    pub(super) fn place(&self, at: usize) -> String {
        let AMQPAuthority { host, port, .. } = &self.uris[at].authority;
        let is_ipv6 = host.contains(':');
        if is_ipv6 { format!("RabbitMQ at [{host}]:{port}") } else { format!("RabbitMQ at {host}:{port}") }
    }

    /// What to do about a connection that did not come about.
    pub(super) fn connect_advice(&self, error: &anyhow::Error) -> String {
        if let Some(fault) = certificate_fault(error.as_ref(), "AMQP_CA_FILE") {
            return fault;
        }
        let advice = match refusal(error) {
            // RabbitMQ answers so to a user and a password that do not go together.
            Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => {
                "it refuses the user or the password; special characters in them are written %XX"
            }
            Some(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)) => {
                "it does not let this user into that vhost; `rabbitmqctl list_vhosts` lists them, `rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'` opens one, and the vhost / is written %2f"
            }
            // Often a reset is all that is left of the server's reason.
            _ if self.uris[0].scheme == AMQPScheme::AMQPS => {
                "is it running, are host and port right, and does it want another client certificate (AMQP_CERT_FILE, AMQP_KEY_FILE)?"
            }
            _ => "is it running, and are host and port right?",
        };
        advice.to_owned()
    }

    /// TLS that trusts the platform's store and AMQP_CA_FILE. Files are read for every connection.
    fn tls_config(&self) -> anyhow::Result<ClientConfig> {
        let BrokerCertificates { authorities, identity } = self.settings.certificates()?;
        let mut trusted = RootCertStore::empty();
        trusted.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        trusted.add_parsable_certificates(certificates(&authorities.unwrap_or_default())?);
        let tls = ClientConfig::builder().with_root_certificates(trusted);
        Ok(match identity {
            None => tls.with_no_client_auth(),
            Some(ClientIdentity { certificate, key }) => {
                let fault = "AMQP_CERT_FILE, AMQP_KEY_FILE: cannot be used together";
                let key = PrivateKeyDer::from_pem_slice(&key).context(fault)?;
                tls.with_client_auth_cert(certificates(&certificate)?, key).context(fault)?
            }
        })
    }
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read: Result<_, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.context("AMQP_CA_FILE, AMQP_CERT_FILE: a certificate cannot be read")
}

pub(super) async fn count_in(channel: &Channel, setting: &str, queue: &str) -> anyhow::Result<u32> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let declared = answer(channel.queue_declare(queue.into(), passive, FieldTable::default()))
        .await
        .with_context(|| format!("{setting}: cannot inspect {queue}"))?;
    Ok(declared.message_count())
}
