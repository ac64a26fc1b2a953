//! A TCP relay between two processes that can fail as networks do: stall one way or both,
//! slow down, end or reset what is connected, refuse what would connect. It knows sockets
//! and nothing of what they carry.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// How long a peer may take to answer a FIN with its own.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// What is connected, from here to the target, and what may go wrong with it.
pub struct Relay {
    address: SocketAddr,
    control: watch::Sender<Control>,
    is_listening: watch::Receiver<bool>,
    acceptor: JoinHandle<()>,
    /// Bound and never listening: keeps the port ours while connections are refused.
    _port: TcpSocket,
}

#[derive(Clone, Copy, Default)]
struct Control {
    stalls_to_target: bool,
    stalls_to_client: bool,
    refuses: bool,
    /// Each piece waits as long before it goes on.
    delay: Duration,
    /// How often everything connected was ended, and how the last time.
    endings: u64,
    resets: bool,
    /// How often everything connected was frozen.
    freezes: u64,
}

#[derive(Clone, Copy)]
enum Direction {
    ToTarget,
    ToClient,
}

impl Control {
    /// For a connection made while things stood as `before`. What was ended or frozen since then
    /// carries nothing any more, even if a stall is over by the time that its task hears of both.
    fn stalls(&self, direction: Direction, before: &Control) -> bool {
        let is_stalled = match direction {
            Direction::ToTarget => self.stalls_to_target,
            Direction::ToClient => self.stalls_to_client,
        };
        is_stalled || self.freezes != before.freezes || self.endings != before.endings
    }
}

impl Relay {
    /// Relays connections to `target`, whether or not anybody listens there yet.
    pub async fn start(target: SocketAddr) -> Self {
        let port = socket(([127, 0, 0, 1], 0).into());
        let address = port.local_addr().expect("a bound socket has an address");
        let control = watch::Sender::new(Control::default());
        let (listening, mut is_listening) = watch::channel(false);
        let acceptor = tokio::spawn(accept(address, target, control.subscribe(), listening));
        is_listening.wait_for(|is| *is).await.expect("the acceptor lives");
        Self { address, control, is_listening, acceptor, _port: port }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds back what clients send. Connections stay, and their windows fill up.
    pub fn stall_to_target(&self) {
        self.control.send_modify(|control| control.stalls_to_target = true);
    }

    /// Holds back what the target sends.
    pub fn stall_to_client(&self) {
        self.control.send_modify(|control| control.stalls_to_client = true);
    }

    /// Lets nothing more through on what is connected, for ever and without a word, as a
    /// network does that forgot a connection. New connections are as good as ever.
    pub fn freeze(&self) {
        self.control.send_modify(|control| control.freezes += 1);
    }

    /// Makes each piece, either way, wait as long.
    pub fn delay(&self, delay: Duration) {
        self.control.send_modify(|control| control.delay = delay);
    }

    /// Ends stalls and delays; what was held back goes on.
    pub fn resume(&self) {
        self.control.send_modify(|control| {
            control.stalls_to_target = false;
            control.stalls_to_client = false;
            control.delay = Duration::ZERO;
        });
    }

    /// Ends every connection both ways by a FIN.
    pub fn cut(&self) {
        self.end(false);
    }

    /// Ends every connection both ways by an RST.
    pub fn reset(&self) {
        self.end(true);
    }

    fn end(&self, resets: bool) {
        self.control.send_modify(|control| {
            control.endings += 1;
            control.resets = resets;
        });
    }

    /// Refuses new connections, as a port does that nobody listens on.
    pub async fn refuse(&self) {
        self.set_refusing(true).await;
    }

    /// Accepts new connections again.
    pub async fn accept(&self) {
        self.set_refusing(false).await;
    }

    async fn set_refusing(&self, refuses: bool) {
        self.control.send_modify(|control| control.refuses = refuses);
        let mut is_listening = self.is_listening.clone();
        is_listening.wait_for(|is| *is != refuses).await.expect("the acceptor lives");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("SO_REUSEADDR");
    socket.bind(address).expect("the port is ours");
    socket
}

async fn accept(
    address: SocketAddr,
    target: SocketAddr,
    mut control: watch::Receiver<Control>,
    listening: watch::Sender<bool>,
) {
    let mut connections = JoinSet::new();
    while control.wait_for(|control| !control.refuses).await.is_ok() {
        let listener = socket(address).listen(128).expect("the port is ours");
        listening.send_replace(true);
        take_connections(&listener, target, &mut control, &mut connections).await;
        drop(listener);
        listening.send_replace(false);
    }
}

async fn take_connections(
    listener: &TcpListener,
    target: SocketAddr,
    control: &mut watch::Receiver<Control>,
    connections: &mut JoinSet<()>,
) {
    loop {
        // A connection made while everything is ended belongs to what comes after.
        let (own, before) = (control.clone(), *control.borrow());
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.expect("a connection");
                connections.spawn(relay(client, target, own, before));
            }
            Some(_) = connections.join_next() => {}
            changed = control.changed() => {
                if changed.is_err() || control.borrow_and_update().refuses {
                    break;
                }
            }
        }
    }
    // The kernel has accepted these already: their clients were not refused.
    while let Some(Ok((client, _))) = listener.accept().now_or_never() {
        let (own, before) = (control.clone(), *control.borrow());
        connections.spawn(relay(client, target, own, before));
    }
}

async fn relay(
    mut client: TcpStream,
    target: SocketAddr,
    mut control: watch::Receiver<Control>,
    before: Control,
) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        reset(&client);
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("TCP_NODELAY");
    }
    let ended = {
        let (client_in, client_out) = client.split();
        let (server_in, server_out) = server.split();
        let up = pump(client_in, server_out, control.clone(), Direction::ToTarget, before);
        let down = pump(server_in, client_out, control.clone(), Direction::ToClient, before);
        tokio::select! {
            // An end that was asked for goes before one that came by itself.
            biased;
            ended = control.wait_for(|control| control.endings != before.endings) => {
                if ended.is_ok_and(|control| !control.resets) { Ending::Cut } else { Ending::Reset }
            }
            done = async { tokio::try_join!(up, down) } => match done {
                Ok(_) => return,
                Err(_) => Ending::Reset,
            },
        }
    };
    match ended {
        Ending::Reset => [&client, &server].into_iter().for_each(reset),
        // Closing a socket that holds unread bytes would send an RST.
        Ending::Cut => {
            tokio::join!(say_farewell(&mut client), say_farewell(&mut server));
        }
    }
}

enum Ending {
    Cut,
    Reset,
}

fn reset(stream: &TcpStream) {
    stream.set_zero_linger().expect("SO_LINGER");
}

async fn say_farewell(stream: &mut TcpStream) {
    let farewell = async {
        stream.shutdown().await?;
        tokio::io::copy(stream, &mut tokio::io::sink()).await
    };
    let _gone_either_way = timeout(FAREWELL_MAX, farewell).await;
}

/// Carries bytes one way until they end, and passes their end on.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut control: watch::Receiver<Control>,
    direction: Direction,
    before: Control,
) -> io::Result<()> {
    let mut piece = vec![0; 64 * 1024];
    loop {
        flowing(&mut control, direction, &before).await;
        let length = from.read(&mut piece).await?;
        // It may have stalled while we waited for these bytes.
        let delay = flowing(&mut control, direction, &before).await;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..length]).await?;
    }
}

/// Waits until bytes may go this way. Returns how long each piece is delayed.
async fn flowing(control: &mut watch::Receiver<Control>, direction: Direction, before: &Control) -> Duration {
    let delay =
        control.wait_for(|control| !control.stalls(direction, before)).await.map(|control| control.delay);
    match delay {
        Ok(delay) => delay,
        // The relay is gone, and this task with it.
        Err(_) => std::future::pending().await,
    }
}
