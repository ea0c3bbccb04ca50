//! The byte stream beneath the protocol: TCP, a Unix domain socket, or TLS over either.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::uri::Endpoint;
use crate::base::{Error, ErrorKind, Result};

/// The half that commands are written to.
pub(super) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;
/// The half that replies are read from.
pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;

/// A stream that is not encrypted.
#[derive(Debug)]
pub(super) enum Plain {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A stream, encrypted or not.
pub(super) enum Stream {
    Plain(Plain),
    Tls(Box<TlsStream<Plain>>),
}

impl Plain {
    /// Connects; the caller bounds the time.
    pub(super) async fn connect(endpoint: &Endpoint) -> Result<Self> {
        let connected = match endpoint {
            Endpoint::Tcp { host, port } => match TcpStream::connect((host.as_str(), *port)).await {
                // Requests are small and must not wait for one another.
                Ok(stream) => stream.set_nodelay(true).map(|()| Self::Tcp(stream)),
                Err(e) => Err(e),
            },
            Endpoint::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
        };
        connected.map_err(|e| Error::new(ErrorKind::Disconnected, "cannot connect").with_source(e))
    }
}

impl Stream {
    /// Two halves that are read and written by different tasks.
    pub(super) fn split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Plain(Plain::Tcp(stream)) => {
                let (read, write) = stream.into_split();
                (Box::new(read), Box::new(write))
            }
            Self::Plain(Plain::Unix(stream)) => {
                let (read, write) = stream.into_split();
                (Box::new(read), Box::new(write))
            }
            Self::Tls(stream) => {
                let (read, write) = tokio::io::split(*stream);
                (Box::new(read), Box::new(write))
            }
        }
    }
}

/// Passes each call on to whichever stream it is.
macro_rules! delegate {
    ($type:ident { $($variant:ident),* }) => {
        impl AsyncRead for $type {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $(Self::$variant(stream) => Pin::new(stream).poll_read(cx, buf)),* }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() { $(Self::$variant(stream) => Pin::new(stream).poll_write(cx, buf)),* }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $(Self::$variant(stream) => Pin::new(stream).poll_flush(cx)),* }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $(Self::$variant(stream) => Pin::new(stream).poll_shutdown(cx)),* }
            }
        }
    };
}
delegate!(Plain { Tcp, Unix });
delegate!(Stream { Plain, Tls });
