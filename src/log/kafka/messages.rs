//! Records where librdkafka put them: a run owns its messages and gives them back when it is dropped.
//!
//! Invariant: no byte of a record is copied between the socket's buffer and the decoder.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use rdkafka::bindings as sys;
use sys::rd_kafka_resp_err_t as Code;

use super::client::{Client, text_of};
use crate::record::{Header, RecordRef, Records};

/// One message of a consumer, owned.
pub(super) struct Message(NonNull<sys::rd_kafka_message_t>);

// SAFETY: a message may be read and destroyed by any one thread.
unsafe impl Send for Message {}

impl Message {
    /// # Safety
    /// `raw` was handed over by a consume call and belongs to nobody else.
    pub unsafe fn from_raw(raw: *mut sys::rd_kafka_message_t) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    fn raw(&self) -> &sys::rd_kafka_message_t {
        // SAFETY: live until drop.
        unsafe { self.0.as_ref() }
    }

    pub fn code(&self) -> Code {
        self.raw().err
    }
    /// A record, or the end of a partition; and not an error, which may be the client's own.
    pub fn is_from_a_broker(&self) -> bool {
        matches!(self.code(), Code::RD_KAFKA_RESP_ERR_NO_ERROR | Code::RD_KAFKA_RESP_ERR__PARTITION_EOF)
    }
    pub fn offset(&self) -> i64 {
        self.raw().offset
    }
    /// Of its key and value.
    pub fn bytes(&self) -> usize {
        self.raw().len + self.raw().key_len
    }
    pub fn partition(&self) -> i32 {
        self.raw().partition
    }
    /// Equal for messages of one topic; null for errors without a topic.
    pub fn topic_handle(&self) -> *mut sys::rd_kafka_topic_t {
        self.raw().rkt
    }
    pub fn topic(&self) -> String {
        if self.raw().rkt.is_null() {
            return String::new();
        }
        // SAFETY: the message holds its topic.
        text_of(unsafe { sys::rd_kafka_topic_name(self.raw().rkt) })
    }
    pub fn error_text(&self) -> String {
        // SAFETY: live; the text is copied.
        text_of(unsafe { sys::rd_kafka_message_errstr(self.0.as_ptr()) })
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) };
    }
}

/// The messages of one run. They go before the client does: fields drop in this order.
pub(super) struct Messages {
    messages: Vec<Message>,
    _client: Arc<Client>,
}

impl Messages {
    pub fn new(messages: Vec<Message>, client: Arc<Client>) -> Self {
        Self { messages, _client: client }
    }
}

/// # Safety
/// `start` is null or points to `length` bytes that live as long as `'a`.
unsafe fn bytes<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) })
}

impl Records for Messages {
    fn len(&self) -> usize {
        self.messages.len()
    }

    fn bytes(&self) -> usize {
        self.messages.iter().map(Message::bytes).sum()
    }

    fn get(&self, index: usize) -> RecordRef<'_> {
        let raw = self.messages[index].raw();
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is live, and so are its key and payload while it is.
        unsafe {
            let timestamp_ms = sys::rd_kafka_message_timestamp(raw, &mut kind);
            RecordRef {
                offset: raw.offset,
                timestamp_ms,
                key: bytes(raw.key, raw.key_len),
                value: bytes(raw.payload, raw.len),
            }
        }
    }

    fn headers(&self, index: usize) -> Vec<Header> {
        let raw: *const sys::rd_kafka_message_t = self.messages[index].raw();
        let mut headers = std::ptr::null_mut();
        let mut found = Vec::new();
        // SAFETY: the message is live; the headers belong to it and are copied out. They are parsed on first
        // use, inside the message, which only this thread can reach: `Messages` is `Send`, not `Sync`.
        unsafe {
            if sys::rd_kafka_message_headers(raw, &mut headers) != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return found;
            }
            for position in 0.. {
                let (mut name, mut value, mut length) = (std::ptr::null(), std::ptr::null(), 0);
                let code =
                    sys::rd_kafka_header_get_all(headers, position, &mut name, &mut value, &mut length);
                if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                    break;
                }
                found.push(Header { name: text_of(name), value: bytes(value, length).map(<[u8]>::to_vec) });
            }
        }
        found
    }
}
