//! Connections that can be broken on purpose: after how many bytes of the answer, and by what.
//! It knows sockets and nothing of what they carry.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// How a broken connection looks to the client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// FIN: the end of the stream.
    Close,
    /// RST: `connection reset by peer`.
    Reset,
}

#[derive(Clone, Copy)]
struct Cut {
    bytes_left: usize,
    ending: Ending,
}

/// A handler's hold on the connection its request came over.
#[derive(Clone, Default)]
pub(super) struct Shears(Arc<Mutex<Option<Cut>>>);

impl Shears {
    /// Lets `bytes` more bytes out, heads included, then ends the connection.
    pub(super) fn cut_after(&self, bytes: usize, ending: Ending) {
        self.set(Some(Cut { bytes_left: bytes, ending }));
    }

    fn get(&self) -> Option<Cut> {
        *self.0.lock()
    }

    fn set(&self, cut: Option<Cut>) {
        *self.0.lock() = cut;
    }
}

impl Connected<IncomingStream<'_, Listener>> for Shears {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().shears.clone()
    }
}

pub(super) struct Listener(pub(super) TcpListener);

impl axum::serve::Listener for Listener {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        let (tcp, peer) = axum::serve::Listener::accept(&mut self.0).await;
        // Bytes let out before a reset must have left: what the kernel still holds, it discards.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY refused");
        }
        (Wire { tcp, shears: Shears::default() }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// The server's end of one connection.
pub(super) struct Wire {
    tcp: TcpStream,
    shears: Shears,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    /// Fails once a cut is due; the server then drops the socket, which ends it as was asked.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(cut) = self.shears.get() else {
            return Pin::new(&mut self.tcp).poll_write(cx, buf);
        };
        if cut.bytes_left == 0 {
            if cut.ending == Ending::Reset {
                self.tcp.set_zero_linger()?;
            }
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let allowed = &buf[..buf.len().min(cut.bytes_left)];
        let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, allowed))?;
        self.shears.set(Some(Cut { bytes_left: cut.bytes_left - written, ..cut }));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    /// An answer shorter than its cut ends here. A FIN before the RST would hide it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.shears.get() {
            Some(Cut { ending: Ending::Reset, .. }) => Poll::Ready(self.tcp.set_zero_linger()),
            _ => Pin::new(&mut self.tcp).poll_shutdown(cx),
        }
    }
}
