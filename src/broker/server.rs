//! Connections: framing, and one request after the other on each, answered in order.
//!
//! Invariant: a connection's requests are served one at a time, as Kafka does, so pipelined requests of a
//! producer stay in order; connections do not wait for each other.
//! Invariant: a frame that is too long or can't be read closes its connection and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::cluster::Cluster;
use super::dispatch;

/// The longest request that is read.
const FRAME_BYTES_MAX: usize = 100 << 20;
/// Memory for a frame grows with what arrives, in steps of this, not with what its length promises.
const FRAME_STEP_BYTES: usize = 1 << 20;
const READ_BUFFER_BYTES: usize = 32 << 10;

/// Why a connection was closed by the broker.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("a frame of {0} bytes; at most {FRAME_BYTES_MAX} are read")]
    FrameLength(i32),
    #[error("a request that cannot be read: {0}")]
    Malformed(String),
    #[error("request type {key} version {version} is not served; use a client that asks for versions first")]
    NotServed { key: i16, version: i16 },
    #[error("an answer that cannot be written: {0}")]
    Answer(String),
}

/// One end of a connection; told to handlers because the advertised address is the one the client used.
#[derive(Clone, Copy)]
pub struct Ends {
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// What the client sends, seen by handlers that wait: they stop waiting when it says more, or hangs up.
pub struct Incoming {
    reader: BufReader<OwnedReadHalf>,
}

impl Incoming {
    /// Resolves when more has arrived (`true`) or nothing more will (`false`).
    pub async fn more(&mut self) -> bool {
        matches!(self.reader.fill_buf().await, Ok(bytes) if !bytes.is_empty())
    }

    /// The next frame; `None`: the client hung up.
    async fn frame(&mut self) -> Result<Option<Bytes>, ConnectionError> {
        if !self.more().await {
            return Ok(None);
        }
        let length = self.reader.read_i32().await?;
        let wanted = usize::try_from(length).ok().filter(|length| *length <= FRAME_BYTES_MAX);
        let wanted = wanted.ok_or(ConnectionError::FrameLength(length))?;
        let mut frame = BytesMut::with_capacity(wanted.min(FRAME_STEP_BYTES));
        let mut rest = (&mut self.reader).take(wanted as u64);
        while frame.len() < wanted {
            frame.reserve((wanted - frame.len()).min(FRAME_STEP_BYTES));
            if rest.read_buf(&mut frame).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(Some(frame.freeze()))
    }
}

/// Accepts connections until told to stop. The listener does not block.
pub async fn serve(
    cluster: Arc<Cluster>,
    listener: std::net::TcpListener,
    mut stopped: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => return Ok(()),
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors, most likely: others must close first.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let cluster = cluster.clone();
        tokio::spawn(async move {
            if let Err(error) = connection(&cluster, stream, peer).await {
                tracing::debug!(%peer, %error, "closed a connection");
            }
        });
    }
}

async fn connection(
    cluster: &Arc<Cluster>,
    stream: TcpStream,
    peer: SocketAddr,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let ends = Ends { local: stream.local_addr()?, peer };
    let (read, mut write) = stream.into_split();
    let mut incoming = Incoming { reader: BufReader::with_capacity(READ_BUFFER_BYTES, read) };
    while let Some(frame) = incoming.frame().await? {
        let Some(answer) = dispatch::answer(cluster, frame, ends, &mut incoming).await? else { continue };
        write.write_all(&answer).await?;
    }
    Ok(())
}
