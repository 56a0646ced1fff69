//! Admin requests as librdkafka takes them: sent with options and a queue, answered by an event.
//!
//! Invariant: what librdkafka hands over is destroyed once, by whoever owns it here.

use std::time::Duration;

use rdkafka::bindings as sys;
use sys::rd_kafka_admin_op_t as Operation;
use sys::rd_kafka_resp_err_t as Code;

use super::admin::{Admin, unless_stood_still};
use super::client::{Client, ErrorText, c_string, millis, text_of};
use crate::log::{LogError, Result, TopicSpec};

/// librdkafka may say so late that a request's time is over.
pub(super) const EVENT_LATE_BY: Duration = Duration::from_secs(2);

impl Admin {
    pub(super) fn request(
        &self,
        operation: Operation,
        what: &str,
        timeout: Duration,
        call: impl FnOnce(&Ask),
    ) -> Result<Answer> {
        self.request_with_code(operation, what, timeout, call).map_err(|(_, error)| error)
    }

    /// One that is the same when it is made twice: a process that stood still makes it once more.
    pub(super) fn request_repeatable(
        &self,
        operation: Operation,
        what: &str,
        timeout: Duration,
        mut call: impl FnMut(&Ask),
    ) -> Result<Answer> {
        unless_stood_still(timeout + EVENT_LATE_BY, || self.request(operation, what, timeout, &mut call))
    }

    pub(super) fn request_with_code(
        &self,
        operation: Operation,
        what: &str,
        timeout: Duration,
        call: impl FnOnce(&Ask),
    ) -> Result<Answer, (Code, LogError)> {
        let client = self.client.raw();
        let mut text = ErrorText::new();
        // SAFETY: the client is live; options and queue are destroyed once, after the answer is taken.
        let event = unsafe {
            let options = sys::rd_kafka_AdminOptions_new(client, operation);
            let queue = sys::rd_kafka_queue_new(client);
            sys::rd_kafka_AdminOptions_set_request_timeout(
                options,
                millis(timeout),
                text.as_mut_ptr(),
                text.len(),
            );
            call(&Ask { client, options, queue });
            let event = sys::rd_kafka_queue_poll(queue, millis(timeout + EVENT_LATE_BY));
            sys::rd_kafka_queue_destroy(queue);
            sys::rd_kafka_AdminOptions_destroy(options);
            event
        };
        if event.is_null() {
            let code = Code::RD_KAFKA_RESP_ERR__TIMED_OUT;
            return Err((code, self.client.error(code, what, "")));
        }
        let answer = Answer(event);
        // SAFETY: the event is live; the text is copied.
        let (code, text) =
            unsafe { (sys::rd_kafka_event_error(event), text_of(sys::rd_kafka_event_error_string(event))) };
        if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(answer)
        } else {
            Err((code, self.client.error(code, what, &text)))
        }
    }
}

/// What a request is sent with.
pub(super) struct Ask {
    pub client: *mut sys::rd_kafka_t,
    pub options: *mut sys::rd_kafka_AdminOptions_t,
    pub queue: *mut sys::rd_kafka_queue_t,
}

/// A result event, owned.
pub(super) struct Answer(pub *mut sys::rd_kafka_event_t);

type TopicResults = (*mut *const sys::rd_kafka_topic_result_t, usize);

impl Answer {
    /// The first failure of a topic, other than the `accepted` code.
    pub fn topic_results(
        &self,
        client: &Client,
        what: &str,
        accepted: Code,
        results: impl FnOnce(*mut sys::rd_kafka_event_t) -> TopicResults,
    ) -> Result<()> {
        let (results, count) = results(self.0);
        for i in 0..count {
            // SAFETY: `count` live results of this event.
            let (code, name, text) = unsafe {
                let result = *results.add(i);
                (
                    sys::rd_kafka_topic_result_error(result),
                    text_of(sys::rd_kafka_topic_result_name(result)),
                    text_of(sys::rd_kafka_topic_result_error_string(result)),
                )
            };
            if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR && code != accepted {
                return Err(client.error(code, &format!("{what} '{name}'"), &text));
            }
        }
        Ok(())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0) };
    }
}

/// Topics to create, owned.
pub(super) struct Specs(pub Vec<*mut sys::rd_kafka_NewTopic_t>);

impl Specs {
    pub fn add(&mut self, topic: &TopicSpec) -> Result<()> {
        let name = c_string(&topic.name)?;
        let mut text = ErrorText::new();
        // The cluster's default replication.
        let replication = -1;
        // SAFETY: the name is copied.
        let raw = unsafe {
            sys::rd_kafka_NewTopic_new(
                name.as_ptr(),
                topic.partitions,
                replication,
                text.as_mut_ptr(),
                text.len(),
            )
        };
        if raw.is_null() {
            return Err(LogError::Other {
                what: format!("create topic '{}' with {} partitions", topic.name, topic.partitions),
                detail: text.text(),
            });
        }
        self.0.push(raw);
        for (name, value) in &topic.config {
            let (name, value) = (c_string(name)?, c_string(value)?);
            // SAFETY: the topic is live; both are copied.
            unsafe { sys::rd_kafka_NewTopic_set_config(raw, name.as_ptr(), value.as_ptr()) };
        }
        Ok(())
    }
}

impl Drop for Specs {
    fn drop(&mut self) {
        // SAFETY: each is owned and destroyed once.
        unsafe { sys::rd_kafka_NewTopic_destroy_array(self.0.as_mut_ptr(), self.0.len()) };
    }
}

/// A topic object of a client, owned.
pub(super) struct TopicHandle {
    raw: *mut sys::rd_kafka_topic_t,
    _client: std::sync::Arc<Client>,
}

// SAFETY: librdkafka's topic objects may be used from any thread.
unsafe impl Send for TopicHandle {}

impl TopicHandle {
    pub fn new(client: &std::sync::Arc<Client>, topic: &str) -> Result<Self> {
        let name = c_string(topic)?;
        // SAFETY: the client is live; the name is copied.
        let raw = unsafe { sys::rd_kafka_topic_new(client.raw(), name.as_ptr(), std::ptr::null_mut()) };
        if raw.is_null() {
            return Err(LogError::Other {
                what: format!("topic '{topic}'"),
                detail: "not a name that Kafka takes".into(),
            });
        }
        Ok(Self { raw, _client: client.clone() })
    }

    pub fn raw(&self) -> *mut sys::rd_kafka_topic_t {
        self.raw
    }
}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once, before the client it keeps alive.
        unsafe { sys::rd_kafka_topic_destroy(self.raw) };
    }
}
