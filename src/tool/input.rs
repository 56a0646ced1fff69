//! Standard input that a signal ends: a read from a terminal would otherwise wait for the next line.

use std::io::{Read, Result};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::Stop;

const LOOK_FOR_STOP: Duration = Duration::from_millis(50);
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks read ahead at most.
const CHUNKS: usize = 4;

/// A reader that reports the end of its input once it is told to stop.
pub struct StoppableInput {
    chunks: Receiver<Result<Vec<u8>>>,
    chunk: Vec<u8>,
    taken: usize,
    stop: Stop,
}

impl StoppableInput {
    pub fn new(mut input: impl Read + Send + 'static, stop: Stop) -> Self {
        let (sender, chunks) = sync_channel(CHUNKS);
        // Ends with the input, with this reader, or with the process.
        std::thread::spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = input.read(&mut chunk);
                let last = matches!(read, Ok(0) | Err(_));
                let sent = sender.send(read.map(|length| {
                    chunk.truncate(length);
                    chunk
                }));
                if last || sent.is_err() {
                    return;
                }
            }
        });
        Self { chunks, chunk: Vec::new(), taken: 0, stop }
    }
}

impl Read for StoppableInput {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        while self.taken == self.chunk.len() {
            match self.chunks.recv_timeout(LOOK_FOR_STOP) {
                Ok(chunk) => {
                    self.chunk = chunk?;
                    self.taken = 0;
                    if self.chunk.is_empty() {
                        return Ok(0);
                    }
                }
                Err(RecvTimeoutError::Timeout) if self.stop.is_set() => return Ok(0),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
        let length = into.len().min(self.chunk.len() - self.taken);
        into[..length].copy_from_slice(&self.chunk[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_the_input_is_read_and_a_silent_one_ends_when_stopped() {
        let text = "line\n".repeat(50_000);
        let mut read = String::new();
        let input = std::io::Cursor::new(text.clone());
        StoppableInput::new(input, Stop::default()).read_to_string(&mut read).expect("read");
        assert_eq!(read, text);

        let (silent, _writer) = std::io::pipe().expect("a pipe");
        let stop = Stop::default();
        stop.set();
        let mut input = StoppableInput::new(silent, stop);
        assert_eq!(input.read(&mut [0; 8]).expect("the end"), 0);
    }
}
