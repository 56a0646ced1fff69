//! A librdkafka client handle, its configuration and its errors: what the rest of this folder stands on.
//!
//! Invariant: a [`Client`] outlives everything that librdkafka hands out for it (messages, queues, topics);
//! each of those holds an `Arc<Client>`.
//! Invariant: destroying a client never runs a rebalance: a member that leaves says so first.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings as sys;
use sys::rd_kafka_resp_err_t as Code;

use super::rebalance::Rebalances;
use crate::log::{LogError, OUTAGE_MAX, Result};
use crate::record::TopicPartition;

/// A process has many clients, and they all find out at once.
const WARN_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// librdkafka keeps every list of brokers that it is given.
const RECALL_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Says that it is being waited.
pub(super) fn warn_of_outage(brokers: &str) {
    static WARNED: Mutex<Option<Instant>> = Mutex::new(None);
    let mut warned = lock(&WARNED);
    if warned.is_none_or(|at| at.elapsed() > WARN_AGAIN_AFTER) {
        *warned = Some(Instant::now());
        tracing::warn!(
            "{brokers} does not answer; waiting for up to {} s until it does",
            OUTAGE_MAX.as_secs()
        );
    }
}

/// What a client is for: librdkafka has producers and consumers, nothing else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Consumer,
    Producer,
}

/// What callbacks write, and the client's owner reads.
#[derive(Default)]
pub(super) struct Context {
    /// The last connection error, so that a timeout can say why.
    last_error: Mutex<String>,
    brokers: OnceLock<String>,
    /// Since when no broker can be reached, as far as is known: librdkafka does not say when one is back.
    down_since: Mutex<Option<Instant>>,
    recalled: Mutex<Option<Instant>>,
    pub rebalances: Rebalances,
}

impl Context {
    pub fn down_since(&self) -> Option<Instant> {
        *lock(&self.down_since)
    }
    pub fn is_back(&self) {
        *lock(&self.down_since) = None;
    }
}

/// A configuration in the making: properties in order, later ones win.
pub(super) struct Configuration {
    raw: *mut sys::rd_kafka_conf_t,
    context: Arc<Context>,
}

impl Configuration {
    pub fn new() -> Self {
        // SAFETY: no preconditions; the configuration is owned here until `build` or drop.
        let raw = unsafe { sys::rd_kafka_conf_new() };
        let context = Arc::new(Context::default());
        // SAFETY: `raw` is live; the callbacks never unwind; the client that is built keeps the context alive.
        unsafe {
            sys::rd_kafka_conf_set_log_cb(raw, Some(on_log));
            sys::rd_kafka_conf_set_error_cb(raw, Some(on_error));
            sys::rd_kafka_conf_set_opaque(raw, Arc::as_ptr(&context).cast_mut().cast());
        }
        Self { raw, context }
    }

    pub fn set(self, name: &str, value: &str) -> Result<Self> {
        let (c_name, c_value) = (c_string(name)?, c_string(value)?);
        let mut text = ErrorText::new();
        // SAFETY: all pointers are live for the call; the buffer's length is given.
        let outcome = unsafe {
            sys::rd_kafka_conf_set(self.raw, c_name.as_ptr(), c_value.as_ptr(), text.as_mut_ptr(), text.len())
        };
        if outcome != sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
            return Err(LogError::Other {
                what: format!("kafka property '{name}'"),
                detail: format!("{} (the properties are librdkafka's){}", text.text(), without_tls(name)),
            });
        }
        Ok(self)
    }

    pub fn set_all(mut self, properties: &BTreeMap<String, String>) -> Result<Self> {
        for (name, value) in properties {
            self = self.set(name, value)?;
        }
        Ok(self)
    }

    /// The configuration itself, for callbacks. The caller keeps to librdkafka's rules for them.
    pub fn raw(&self) -> *mut sys::rd_kafka_conf_t {
        self.raw
    }

    pub fn build(mut self, kind: Kind, brokers: &str) -> Result<Client> {
        let mut text = ErrorText::new();
        let raw_kind = match kind {
            Kind::Consumer => sys::rd_kafka_type_t::RD_KAFKA_CONSUMER,
            Kind::Producer => sys::rd_kafka_type_t::RD_KAFKA_PRODUCER,
        };
        self.context.brokers.get_or_init(|| brokers.to_owned());
        // SAFETY: the configuration is live, and owned by the client if the call succeeds.
        let raw = unsafe { sys::rd_kafka_new(raw_kind, self.raw, text.as_mut_ptr(), text.len()) };
        let Some(raw) = NonNull::new(raw) else {
            // Security is the only part of a configuration that is looked at as late as here.
            let detail = format!("{}{}", text.text(), without_tls("security.protocol"));
            return Err(LogError::Other { what: "kafka client".into(), detail });
        };
        self.raw = std::ptr::null_mut();
        if kind == Kind::Consumer {
            // SAFETY: a live consumer; its main queue is served with the consumer's from now on.
            unsafe { sys::rd_kafka_poll_set_consumer(raw.as_ptr()) };
        }
        Ok(Client { raw, brokers: brokers.to_owned(), context: self.context.clone() })
    }
}

/// What to say about a property that only a program with TLS understands.
fn without_tls(property: &str) -> &'static str {
    let secure =
        property.starts_with("ssl.") || property.starts_with("sasl.") || property == "security.protocol";
    if secure && cfg!(not(feature = "tls")) {
        "; this program was built without TLS: build it with --features tls"
    } else {
        ""
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: owned here, as no client took it over.
            unsafe { sys::rd_kafka_conf_destroy(self.raw) };
        }
    }
}

/// A live librdkafka client.
pub(super) struct Client {
    raw: NonNull<sys::rd_kafka_t>,
    pub brokers: String,
    pub context: Arc<Context>,
}

// SAFETY: librdkafka's handles may be used from any thread at once.
unsafe impl Send for Client {}
// SAFETY: as above.
unsafe impl Sync for Client {}

impl Client {
    pub fn raw(&self) -> *mut sys::rd_kafka_t {
        self.raw.as_ptr()
    }

    /// Names the brokers anew to a client that may have none left.
    ///
    /// librdkafka (2.12) forgets every broker that a metadata response does not list, and starts over from
    /// `bootstrap.servers` only when connections fail. For a moment a cluster may list topics and no brokers (one broker
    /// alone that stood still for longer than its session; an upgrade): after that a client knows nobody whom it could
    /// ask, and says nothing of it (<https://github.com/confluentinc/librdkafka/issues/5301>). Brokers that it knows are
    /// left as they are.
    pub fn recall_brokers(&self) {
        let mut recalled = lock(&self.context.recalled);
        if recalled.is_some_and(|at| at.elapsed() < RECALL_AGAIN_AFTER) {
            return;
        }
        *recalled = Some(Instant::now());
        // Without a zero byte, or there were no client.
        if let Ok(brokers) = c_string(&self.brokers) {
            // SAFETY: the client is live; the list is copied.
            unsafe { sys::rd_kafka_brokers_add(self.raw(), brokers.as_ptr()) };
        }
    }

    /// The error for a code that the cluster or the client gave. If nobody was reached, the brokers are named anew:
    /// the next attempt may find them.
    pub fn error(&self, code: Code, what: &str, detail: &str) -> LogError {
        use Code::*;
        let text = if detail.is_empty() { code_text(code) } else { detail.to_owned() };
        match code {
            RD_KAFKA_RESP_ERR__TRANSPORT
            | RD_KAFKA_RESP_ERR__RESOLVE
            | RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN
            // The client was told meanwhile that there is no such broker.
            | RD_KAFKA_RESP_ERR__DESTROY_BROKER
            | RD_KAFKA_RESP_ERR__TIMED_OUT
            | RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE
            | RD_KAFKA_RESP_ERR__MSG_TIMED_OUT
            | RD_KAFKA_RESP_ERR__WAIT_COORD => {
                self.recall_brokers();
                let last = lock(&self.context.last_error);
                let last = if last.is_empty() { String::new() } else { format!(" ({last})") };
                LogError::Unreachable {
                    brokers: self.brokers.clone(),
                    detail: format!("{what}: {text}{last}"),
                }
            }
            code if is_denied(code) => LogError::Denied(format!("{what}: {text}")),
            code if is_fenced(code) => LogError::Fenced(format!("{what}: {text}")),
            _ => LogError::Other { what: what.to_owned(), detail: text },
        }
    }

    pub fn check(&self, code: Code, what: &str) -> Result<()> {
        if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(()) } else { Err(self.error(code, what, "")) }
    }

    /// Takes over an error object; null is success.
    pub fn check_object(&self, error: *mut sys::rd_kafka_error_t, what: &str) -> Result<()> {
        match Failure::take(error) {
            None => Ok(()),
            Some(failure) => Err(self.error(failure.code, what, &failure.text)),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: the last owner; nothing of this client is in use any more (see the invariant above).
        unsafe {
            sys::rd_kafka_destroy_flags(self.raw(), sys::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE as c_int)
        };
    }
}

/// An `rd_kafka_error_t`, copied out.
pub(super) struct Failure {
    pub code: Code,
    pub text: String,
    pub fatal: bool,
    pub retriable: bool,
    pub requires_abort: bool,
}

impl Failure {
    pub fn take(error: *mut sys::rd_kafka_error_t) -> Option<Self> {
        if error.is_null() {
            return None;
        }
        // SAFETY: a live error object, destroyed once after its parts are copied.
        unsafe {
            let failure = Self {
                code: sys::rd_kafka_error_code(error),
                text: text_of(sys::rd_kafka_error_string(error)),
                fatal: sys::rd_kafka_error_is_fatal(error) != 0,
                retriable: sys::rd_kafka_error_is_retriable(error) != 0,
                requires_abort: sys::rd_kafka_error_txn_requires_abort(error) != 0,
            };
            sys::rd_kafka_error_destroy(error);
            Some(failure)
        }
    }
}

/// Whether the code says that this user may not do that.
pub(super) fn is_denied(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
            | RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
            | RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED
            | RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED
            | RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED
            | RD_KAFKA_RESP_ERR__AUTHENTICATION
    )
}

/// Whether the code says that a newer member or producer has taken over.
pub(super) fn is_fenced(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        RD_KAFKA_RESP_ERR__FENCED
            | RD_KAFKA_RESP_ERR_PRODUCER_FENCED
            | RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH
            | RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID
            | RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION
            | RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID
    )
}

/// An owned list of partitions with offsets and metadata.
pub(super) struct PartitionList(*mut sys::rd_kafka_topic_partition_list_t);

// SAFETY: plain memory, owned.
unsafe impl Send for PartitionList {}

impl PartitionList {
    pub fn new() -> Self {
        // SAFETY: no preconditions.
        Self(unsafe { sys::rd_kafka_topic_partition_list_new(8) })
    }

    pub fn of(partitions: &[TopicPartition]) -> Result<Self> {
        let mut list = Self::new();
        for partition in partitions {
            list.add(partition, None, None)?;
        }
        Ok(list)
    }

    pub fn with_offsets(from: &[(TopicPartition, i64)]) -> Result<Self> {
        let mut list = Self::new();
        for (partition, offset) in from {
            list.add(partition, Some(*offset), None)?;
        }
        Ok(list)
    }

    pub fn add(
        &mut self,
        partition: &TopicPartition,
        offset: Option<i64>,
        metadata: Option<&str>,
    ) -> Result<()> {
        let topic = c_string(&partition.topic)?;
        // SAFETY: the list is live; the new element is written before anything else touches the list. The
        // metadata is allocated as librdkafka frees it.
        unsafe {
            let element =
                &mut *sys::rd_kafka_topic_partition_list_add(self.0, topic.as_ptr(), partition.partition);
            if let Some(offset) = offset {
                element.offset = offset;
            }
            if let Some(metadata) = metadata.filter(|m| !m.is_empty()) {
                let copy = sys::rd_kafka_mem_malloc(std::ptr::null_mut(), metadata.len());
                std::ptr::copy_nonoverlapping(metadata.as_ptr(), copy.cast::<u8>(), metadata.len());
                element.metadata = copy;
                element.metadata_size = metadata.len();
            }
        }
        Ok(())
    }

    pub fn raw(&self) -> *mut sys::rd_kafka_topic_partition_list_t {
        self.0
    }

    pub fn entries(&self) -> Vec<Entry> {
        // SAFETY: the list is live.
        unsafe { entries_of(self.0) }
    }
}

impl Drop for PartitionList {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once.
        unsafe { sys::rd_kafka_topic_partition_list_destroy(self.0) };
    }
}

/// One element of a partition list, copied out.
pub(super) struct Entry {
    pub partition: TopicPartition,
    pub offset: i64,
    pub metadata: String,
    pub code: Code,
}

/// # Safety
/// `list` is null or live for the call.
pub(super) unsafe fn entries_of(list: *const sys::rd_kafka_topic_partition_list_t) -> Vec<Entry> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise; `elems` holds `cnt` elements.
    unsafe {
        let count = usize::try_from((*list).cnt).unwrap_or(0);
        (0..count)
            .map(|i| {
                let element = &*(*list).elems.add(i);
                let metadata = if element.metadata.is_null() {
                    String::new()
                } else {
                    let bytes =
                        std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size);
                    String::from_utf8_lossy(bytes).into_owned()
                };
                Entry {
                    partition: TopicPartition::new(text_of(element.topic), element.partition),
                    offset: element.offset,
                    metadata,
                    code: element.err,
                }
            })
            .collect()
    }
}

/// A buffer for librdkafka's error texts.
pub(super) struct ErrorText([c_char; 512]);

impl ErrorText {
    pub fn new() -> Self {
        Self([0; 512])
    }
    pub fn as_mut_ptr(&mut self) -> *mut c_char {
        self.0.as_mut_ptr()
    }
    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn text(&self) -> String {
        text_of(self.0.as_ptr())
    }
}

pub(super) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| LogError::Other {
        what: format!("'{}'", text.escape_debug()),
        detail: "a name with a zero byte cannot be sent to Kafka".into(),
    })
}

/// Copies a C string; null is empty.
pub(super) fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka's strings end with a zero byte and live through the call.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

pub(super) fn code_text(code: Code) -> String {
    // SAFETY: returns a static string for every code.
    text_of(unsafe { sys::rd_kafka_err2str(code) })
}

/// A panic elsewhere does not make the guarded data wrong: each is written in one step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn millis(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX)
}

/// What librdkafka says, without its threads and states: `[thrd:…]: localhost:1/bootstrap: Connect to … failed:
/// Connection refused (after 0ms in state CONNECT)`.
fn bare(text: &str) -> String {
    let text = match text.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")) {
        Some((_, rest)) => rest,
        None => text,
    };
    let text = text.split(" (after ").next().unwrap_or_default();
    text.split_once("/bootstrap: ").map_or(text, |(_, rest)| rest).to_string()
}

/// librdkafka's own log lines go where the program's go.
unsafe extern "C" fn on_log(
    client: *const sys::rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    text: *const c_char,
) {
    let (facility, text) = (text_of(facility), text_of(text));
    if !client.is_null() && matches!(facility.as_str(), "FAIL" | "ERROR") {
        // SAFETY: every configuration here has a context as its opaque, which outlives the client.
        if let Some(context) = unsafe { opaque::<Context>(sys::rd_kafka_opaque(client)) } {
            *lock(&context.last_error) = bare(&text);
        }
    }
    match level {
        // The one warning class that says nothing: properties of the other kind of client.
        _ if facility == "CONFWARN" => tracing::debug!(target: "librdkafka", "{facility}: {text}"),
        0..=4 => tracing::warn!(target: "librdkafka", "{facility}: {text}"),
        5 | 6 => tracing::debug!(target: "librdkafka", "{facility}: {text}"),
        _ => tracing::trace!(target: "librdkafka", "{facility}: {text}"),
    }
}

/// Errors of the client as a whole: of these, that all brokers are down is news to a user.
unsafe extern "C" fn on_error(
    _client: *mut sys::rd_kafka_t,
    code: c_int,
    reason: *const c_char,
    context: *mut c_void,
) {
    let reason = text_of(reason);
    tracing::warn!(target: "librdkafka", "{reason}");
    // SAFETY: every configuration here has a context as its opaque, which outlives the client.
    let Some(context) = (unsafe { opaque::<Context>(context) }) else { return };
    if code == Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN as c_int {
        lock(&context.down_since).get_or_insert_with(Instant::now);
        warn_of_outage(context.brokers.get().map_or("the cluster", String::as_str));
    }
    *lock(&context.last_error) = bare(&reason);
}

/// For callbacks: the opaque pointer that was given with the configuration, as what it is.
///
/// # Safety
/// `opaque` is null or points to a live `T` that is only ever shared.
pub(super) unsafe fn opaque<'a, T>(opaque: *mut c_void) -> Option<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { opaque.cast::<T>().as_ref() }
}
