//! Connections: framing, and one request after the other on each, answered in order.
//!
//! Invariant: a connection's requests are served one at a time, as Kafka does, so pipelined requests of a
//! producer stay in order; connections do not wait for each other.
//! Invariant: a frame that is too long or can't be read closes its connection and nothing else.
//! Invariant: what clients can make the broker hold is bounded ([`Limits`]): connections by their number, frames and
//! answers by their bytes together, and each by the time that it may take; none of it waits without end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::cluster::Cluster;
use super::dispatch;

/// The longest request that is read.
const FRAME_BYTES_MAX: usize = 100 << 20;
/// Memory for a frame grows with what arrives, in steps of this, not with what its length promises.
const FRAME_STEP_BYTES: usize = 1 << 20;
/// Frames and answers up to this are not counted: there is at most one a connection.
const SMALL_BYTES: usize = 128 << 10;
const READ_BUFFER_BYTES: usize = 16 << 10;
/// The slowest that a frame or an answer may move, once it is counted in seconds.
const BYTES_PER_SECOND_MIN: usize = 1 << 20;
/// Budgets are counted in units of this.
const UNIT_BYTES: usize = 1 << 10;

/// What clients can make the broker hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    /// Of large frames that are being received and served, all connections together.
    pub frames_bytes: usize,
    /// Of large answers that are being sent.
    pub answers_bytes: usize,
    /// A connection that asks nothing for so long is closed, as Kafka does it.
    pub idle: Duration,
    /// What has begun, a frame or an answer, may stand still for so long.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1_000,
            frames_bytes: 256 << 20,
            answers_bytes: 256 << 20,
            idle: Duration::from_secs(10 * 60),
            stall: Duration::from_secs(30),
        }
    }
}

impl Limits {
    fn patience(&self, bytes: usize) -> Duration {
        self.stall + Duration::from_secs((bytes / BYTES_PER_SECOND_MIN) as u64)
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX)
}

/// Why a connection was closed by the broker.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("a frame of {0} bytes; at most {FRAME_BYTES_MAX} are read")]
    FrameLength(i32),
    #[error("it asked nothing for {0:?}")]
    Idle(Duration),
    #[error("a request or an answer stood still for {0:?}")]
    Stalled(Duration),
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
    limits: Limits,
    frames: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    /// What the request that is being served takes of the budgets.
    held: Vec<OwnedSemaphorePermit>,
}

impl Incoming {
    /// Resolves when more has arrived (`true`) or nothing more will (`false`).
    pub async fn more(&mut self) -> bool {
        matches!(self.reader.fill_buf().await, Ok(bytes) if !bytes.is_empty())
    }

    /// Resolves when the client has hung up, although it had said more before.
    pub async fn hung_up(&mut self) {
        if !matches!(self.reader.get_mut().peek(&mut [0]).await, Ok(0) | Err(_)) {
            // It says more than the buffer holds: that it hangs up is seen when that is read.
            std::future::pending::<()>().await;
        }
    }

    /// How many of the bytes that an answer would like to hold it may.
    pub fn reserve(&mut self, bytes: usize) -> usize {
        let mut granted = bytes;
        while granted > SMALL_BYTES {
            if let Ok(permit) = self.answers.clone().try_acquire_many_owned(units(granted)) {
                self.held.push(permit);
                break;
            }
            granted /= 2;
        }
        granted
    }

    /// The next frame; `None`: the client hung up.
    async fn frame(&mut self) -> Result<Option<Bytes>, ConnectionError> {
        let Limits { idle, stall, .. } = self.limits;
        if !timeout(idle, self.more()).await.map_err(|_| ConnectionError::Idle(idle))? {
            return Ok(None);
        }
        let stalled = |_| ConnectionError::Stalled(stall);
        let length = timeout(stall, self.reader.read_i32()).await.map_err(stalled)??;
        let wanted = usize::try_from(length).ok().filter(|length| *length <= FRAME_BYTES_MAX);
        let wanted = wanted.ok_or(ConnectionError::FrameLength(length))?;
        if wanted > SMALL_BYTES {
            let acquired = timeout(stall, self.frames.clone().acquire_many_owned(units(wanted))).await;
            self.held.extend(acquired.map_err(stalled)?.ok());
        }
        let received = timeout(self.limits.patience(wanted), self.receive(wanted)).await;
        received.map_err(stalled)?.map(Some)
    }

    async fn receive(&mut self, wanted: usize) -> Result<Bytes, ConnectionError> {
        let mut frame = BytesMut::with_capacity(wanted.min(SMALL_BYTES));
        let mut rest = (&mut self.reader).take(wanted as u64);
        while frame.len() < wanted {
            frame.reserve((wanted - frame.len()).min(FRAME_STEP_BYTES));
            if rest.read_buf(&mut frame).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(frame.freeze())
    }
}

/// Accepts connections until told to stop. The listener does not block.
pub async fn serve(
    cluster: Arc<Cluster>,
    listener: std::net::TcpListener,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let semaphore = |permits: usize| Arc::new(Semaphore::new(permits));
    let connections = semaphore(limits.connections);
    let frames = semaphore(units(limits.frames_bytes) as usize);
    let answers = semaphore(units(limits.answers_bytes) as usize);
    let mut crowded = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => return Ok(()),
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors, most likely: others must close first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = connections.clone().try_acquire_owned() else {
            if !std::mem::replace(&mut crowded, true) {
                tracing::warn!(
                    connections = limits.connections, %peer,
                    "the embedded broker has as many connections as it takes; it closes new ones at once"
                );
            }
            continue;
        };
        crowded = false;
        let (cluster, frames, answers) = (cluster.clone(), frames.clone(), answers.clone());
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection(&cluster, stream, peer, limits, frames, answers).await {
                tracing::debug!(%peer, %error, "closed a connection");
            }
        });
    }
}

async fn connection(
    cluster: &Arc<Cluster>,
    stream: TcpStream,
    peer: SocketAddr,
    limits: Limits,
    frames: Arc<Semaphore>,
    answers: Arc<Semaphore>,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let ends = Ends { local: stream.local_addr()?, peer };
    let (read, mut write) = stream.into_split();
    let reader = BufReader::with_capacity(READ_BUFFER_BYTES, read);
    let mut incoming = Incoming { reader, limits, frames, answers, held: Vec::new() };
    while let Some(frame) = incoming.frame().await? {
        let answer = dispatch::answer(cluster, frame, ends, &mut incoming).await?;
        if let Some(answer) = answer {
            let patience = limits.patience(answer.len());
            let written = timeout(patience, write.write_all(&answer)).await;
            written.map_err(|_| ConnectionError::Stalled(patience))??;
        }
        incoming.held.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
