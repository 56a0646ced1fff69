//! LeaveGroup for a static member, spoken by hand: librdkafka never sends it, and without it the group waits
//! for the session to time out before it gives the partitions to others.
//!
//! The two requests are written after Kafka's protocol guide: FindCoordinator v0 and LeaveGroup v3, both of
//! the versions before flexible fields. Only plain connections; the caller knows.
//!
//! Invariant: it ends within a few seconds whatever the broker does.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::log::{LogError, Result};

const TIMEOUT: Duration = Duration::from_secs(5);
const FIND_COORDINATOR: (i16, i16) = (10, 0);
const LEAVE_GROUP: (i16, i16) = (13, 3);
/// The member is gone already, or was fenced by its successor.
const UNKNOWN_MEMBER_ID: i16 = 25;
const FENCED_INSTANCE_ID: i16 = 82;
const LARGEST_ANSWER: usize = 1 << 20;

pub(super) fn leave_group(brokers: &str, group: &str, instance: &str) -> Result<()> {
    let mut last = String::from("no broker is named");
    for broker in brokers.split(',') {
        match leave_through(broker.trim(), group, instance) {
            Ok(0 | UNKNOWN_MEMBER_ID | FENCED_INSTANCE_ID) => return Ok(()),
            Ok(code) => last = format!("the coordinator answered with error {code}"),
            Err(error) => last = error.to_string(),
        }
    }
    Err(LogError::Other {
        what: format!("leave group '{group}' as '{instance}'"),
        detail: format!("{last}; the group goes on without it when its session times out"),
    })
}

fn leave_through(broker: &str, group: &str, instance: &str) -> std::io::Result<i16> {
    let mut question = Vec::new();
    put_text(&mut question, group);
    let mut answer = Answer(ask(broker, FIND_COORDINATOR, &question)?);
    let code = answer.i16()?;
    if code != 0 {
        return Ok(code);
    }
    answer.i32()?;
    let coordinator = format!("{}:{}", answer.text()?, answer.i32()?);

    let mut question = Vec::new();
    put_text(&mut question, group);
    question.extend(1i32.to_be_bytes());
    put_text(&mut question, "");
    put_text(&mut question, instance);
    let mut answer = Answer(ask(&coordinator, LEAVE_GROUP, &question)?);
    answer.i32()?;
    match answer.i16()? {
        0 if answer.i32()? > 0 => {
            answer.text()?;
            answer.text()?;
            answer.i16()
        }
        code => Ok(code),
    }
}

/// Sends one request and returns what follows the answer's header.
fn ask(broker: &str, (api, version): (i16, i16), question: &[u8]) -> std::io::Result<Vec<u8>> {
    let address = broker
        .rsplit_once("://")
        .map_or(broker, |(_, address)| address)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| std::io::Error::other(format!("{broker} has no address")))?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut body = Vec::new();
    body.extend(api.to_be_bytes());
    body.extend(version.to_be_bytes());
    body.extend(1i32.to_be_bytes());
    put_text(&mut body, "headwater");
    body.extend(question);
    let length = i32::try_from(body.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&body)?;

    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(i32::from_be_bytes(length)).map_err(std::io::Error::other)?;
    if !(4..=LARGEST_ANSWER).contains(&length) {
        return Err(std::io::Error::other(format!("{broker} answered {length} bytes")));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    // The correlation id: one request, one answer.
    answer.drain(..4);
    Ok(answer)
}

fn put_text(buffer: &mut Vec<u8>, text: &str) {
    let length = i16::try_from(text.len()).unwrap_or(i16::MAX);
    buffer.extend(length.to_be_bytes());
    buffer.extend(&text.as_bytes()[..length.unsigned_abs() as usize]);
}

struct Answer(Vec<u8>);

impl Answer {
    fn take(&mut self, count: usize) -> std::io::Result<Vec<u8>> {
        if count > self.0.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.0.drain(..count).collect())
    }
    fn i16(&mut self) -> std::io::Result<i16> {
        let bytes = self.take(2)?;
        Ok(i16::from_be_bytes([bytes[0], bytes[1]]))
    }
    fn i32(&mut self) -> std::io::Result<i32> {
        let bytes = self.take(4)?;
        Ok(i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
    /// A text; null is empty.
    fn text(&mut self) -> std::io::Result<String> {
        let length = usize::try_from(self.i16()?).unwrap_or(0);
        Ok(String::from_utf8_lossy(&self.take(length)?).into_owned())
    }
}
