//! The way to a broker: each of its addresses is tried, TLS is spoken where the URL says so, and
//! what the broker sends passes the filter before lapin reads it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::io::{AsyncRead, AsyncWrite};
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use lapin::uri::AMQPUri;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead as TokioRead, AsyncWrite as TokioWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::AbortOnDropHandle;

use super::filter::Filter;

/// The next address is tried beside the last one after this (RFC 8305, "Happy Eyeballs").
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// How much is read at once.
const READ_SIZE: usize = 64 * 1024;

/// After so much lapin gets to send and to handle what it has read.
const READS_MAX: usize = 16;

/// A heartbeat that says to lapin that the broker is heard, where nothing else of it passes.
const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xce];

/// Bytes to and from the broker, in the clear or by TLS.
trait Wire: TokioRead + TokioWrite + Send + Unpin {}

impl<T: TokioRead + TokioWrite + Send + Unpin> Wire for T {}

/// The runtime that lapin is to use: tokio's, with our transport.
pub(super) fn runtime() -> Runtime<RuntimeParts<Tokio, Network>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Network(Tokio::current())))
}

/// A connection to the broker, whose bytes from there pass a filter.
pub(super) struct Transport {
    wire: Box<dyn Wire>,
    filter: Filter,
    /// Where bytes are read to.
    read: Box<[u8]>,
    /// What lapin is to read, from `taken` on.
    passed: Vec<u8>,
    taken: usize,
    /// How often was read since lapin last had a pause.
    reads: usize,
    heard_at: Arc<Mutex<Instant>>,
    abandoned: Pin<Box<WaitForCancellationFutureOwned>>,
    _watch: AbortOnDropHandle<()>,
}

impl Transport {
    /// Connects to the first of the host's addresses that answers. Each `turn` begins with another: a
    /// server that hangs takes connections all the same. Once `abandoned` is cancelled, or the broker is
    /// silent for `silence_max`, reading fails, which ends lapin's thread.
    ///
    /// # Errors
    /// When no address answers, or TLS fails.
    pub async fn connect(
        uri: &AMQPUri,
        turn: usize,
        tls: Option<ClientConfig>,
        filter: Filter,
        silence_max: Duration,
        abandoned: CancellationToken,
    ) -> io::Result<Self> {
        let host = uri.authority.host.as_str();
        let mut addresses: Vec<SocketAddr> = lookup_host((host, uri.authority.port)).await?.collect();
        let first = turn % addresses.len().max(1);
        addresses.rotate_left(first);
        let socket = connect_to_any(addresses.into_iter()).await?;
        socket.set_nodelay(true)?;
        let wire: Box<dyn Wire> = match tls {
            None => Box::new(socket),
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                Box::new(TlsConnector::from(Arc::new(tls)).connect(name, socket).await?)
            }
        };
        let heard_at = Arc::new(Mutex::new(Instant::now()));
        let watch = watch_silence(Arc::clone(&heard_at), silence_max, abandoned.clone());
        Ok(Self {
            wire,
            filter,
            read: vec![0; READ_SIZE].into_boxed_slice(),
            passed: Vec::new(),
            taken: 0,
            reads: 0,
            heard_at,
            abandoned: Box::pin(abandoned.cancelled_owned()),
            _watch: AbortOnDropHandle::new(tokio::spawn(watch)),
        })
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.abandoned.as_mut().poll(context));
        let silent_for = self.heard_at.lock().elapsed();
        let reason = format!("the connection was given up; the broker had said nothing for {silent_for:.0?}");
        Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, reason))
    }
}

/// Abandons a connection whose broker is silent for too long: lapin has such a limit only while it
/// is connected. A task of its own, as lapin's thread may outlive the runtime, whose timers then
/// panic.
async fn watch_silence(heard_at: Arc<Mutex<Instant>>, silence_max: Duration, abandoned: CancellationToken) {
    loop {
        let end = *heard_at.lock() + silence_max;
        if end <= Instant::now() {
            return abandoned.cancel();
        }
        sleep_until(end).await;
    }
}

/// Tries every address, each a moment after the one before it or as soon as that has failed.
async fn connect_to_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.peekable();
    let mut attempts = FuturesUnordered::new();
    let mut failure = None;
    loop {
        attempts.extend(addresses.next().map(TcpStream::connect));
        tokio::select! {
            Some(attempted) = attempts.next() => match attempted {
                Ok(socket) => return Ok(socket),
                Err(error) => failure = Some(error),
            },
            () = sleep(NEXT_ADDRESS_AFTER), if addresses.peek().is_some() => {}
            else => break,
        }
    }
    Err(failure.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address")))
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.taken == this.passed.len() {
            if this.reads == READS_MAX {
                this.reads = 0;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut read = ReadBuf::new(&mut this.read);
            let length = match TokioRead::poll_read(Pin::new(&mut this.wire), context, &mut read) {
                Poll::Ready(done) => done.map(|()| read.filled().len())?,
                Poll::Pending => {
                    this.reads = 0;
                    return this.poll_end(context).map(Err);
                }
            };
            if length == 0 {
                return Poll::Ready(Ok(0));
            }
            this.reads += 1;
            *this.heard_at.lock() = Instant::now();
            this.passed.clear();
            this.taken = 0;
            this.filter.feed(&this.read[..length], &mut this.passed);
            if this.passed.is_empty() {
                this.passed.extend_from_slice(&HEARTBEAT);
            }
        }
        let passed = &this.passed[this.taken..];
        let length = passed.len().min(buffer.len());
        buffer[..length].copy_from_slice(&passed[..length]);
        this.taken += length;
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        TokioWrite::poll_write(Pin::new(&mut self.wire), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        TokioWrite::poll_flush(Pin::new(&mut self.wire), context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        TokioWrite::poll_shutdown(Pin::new(&mut self.wire), context)
    }
}

/// Names the transport to lapin, and keeps tokio's time.
#[derive(Clone, Debug)]
pub(super) struct Network(Tokio);

impl Reactor for Network {
    type TcpStream = Transport;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Transport, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = std::time::Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// Connections are made before lapin asks for one.
    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_connection_is_given_up_once_its_broker_is_silent() {
        let (heard_at, abandoned) = (Arc::new(Mutex::new(Instant::now())), CancellationToken::new());
        let silence_max = Duration::from_millis(20);
        watch_silence(Arc::clone(&heard_at), silence_max, abandoned.clone()).await;
        assert!(abandoned.is_cancelled() && heard_at.lock().elapsed() >= silence_max);
    }

    const LONG: Duration = Duration::from_secs(20);

    /// An address that answers no connection any more: its queue of them is full.
    async fn swallowing() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let listener = socket.listen(1).expect("it listens");
        let (address, mut waiting) = (listener.local_addr().expect("an address"), Vec::new());
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            waiting.push(stream.expect("a connection"));
        }
        (address, listener, waiting)
    }

    #[tokio::test]
    async fn an_address_that_swallows_packets_does_not_hide_the_next() {
        let (silent, _listener, _waiting) = swallowing().await;
        let good = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addresses = [silent, good.local_addr().expect("an address")];
        let connected = timeout(LONG, connect_to_any(addresses.into_iter())).await.expect("it is in time");
        assert_eq!(connected.expect("it connects").peer_addr().expect("an address"), addresses[1]);
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_told_where_no_other_answers() {
        let port = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = port.local_addr().expect("an address");
        drop(port);
        let failure = connect_to_any([address, address].into_iter()).await.expect_err("nobody listens");
        assert_eq!(failure.kind(), io::ErrorKind::ConnectionRefused);
        assert!(connect_to_any([].into_iter()).await.is_err());
    }
}
