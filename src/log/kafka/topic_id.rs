//! Which topic has a name: ids tell a topic from one that was made anew under its name.

use std::ffi::CStr;

use rdkafka::bindings as sys;
use sys::rd_kafka_admin_op_t as Operation;
use sys::rd_kafka_resp_err_t as Code;

use super::admin::{Admin, REQUEST_TIMEOUT};
use super::client::{c_string, text_of};
use crate::log::Result;

/// Of a broker that gives topics none.
const NO_ID: &CStr = c"AAAAAAAAAAAAAAAAAAAAAA";

impl Admin {
    pub fn topic_id(&self, topic: &str) -> Result<Option<String>> {
        let name = c_string(topic)?;
        let what = format!("the id of topic '{topic}'");
        let mut names = [name.as_ptr()];
        // SAFETY: the names are copied.
        let topics = unsafe { sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()) };
        let answer = self.request_repeatable(
            Operation::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            &what,
            REQUEST_TIMEOUT,
            // SAFETY: the collection is live for the call, which copies it.
            |ask| unsafe { sys::rd_kafka_DescribeTopics(ask.client, topics, ask.options, ask.queue) },
        );
        // SAFETY: made above, destroyed once.
        unsafe { sys::rd_kafka_TopicCollection_destroy(topics) };
        let answer = answer?;
        // SAFETY: the event is live and of this kind; everything is copied out.
        unsafe {
            let mut count = 0;
            let result = sys::rd_kafka_event_DescribeTopics_result(answer.0);
            let described = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
            for i in 0..count {
                let description = *described.add(i);
                let error = sys::rd_kafka_TopicDescription_error(description);
                match sys::rd_kafka_error_code(error) {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
                    Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => return Ok(None),
                    code => {
                        let detail = text_of(sys::rd_kafka_error_string(error));
                        return Err(self.client.error(code, &what, &detail));
                    }
                }
                let id = sys::rd_kafka_Uuid_base64str(sys::rd_kafka_TopicDescription_topic_id(description));
                if !id.is_null() && CStr::from_ptr(id) != NO_ID {
                    return Ok(Some(text_of(id)));
                }
            }
        }
        Ok(None)
    }
}
