//! What a request can be answered with instead of success: the error codes of Kafka's protocol that this
//! broker uses (<https://kafka.apache.org/protocol#protocol_error_codes>).
//!
//! Invariant: every failure, an I/O error included, reaches the client as one of these; nothing panics.

use std::io;

/// A Kafka error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum Fault {
    OffsetOutOfRange = 1,
    CorruptMessage = 2,
    UnknownTopicOrPartition = 3,
    MessageTooLarge = 10,
    OffsetMetadataTooLarge = 12,
    CoordinatorNotAvailable = 15,
    InvalidTopic = 17,
    IllegalGeneration = 22,
    InconsistentGroupProtocol = 23,
    InvalidGroupId = 24,
    UnknownMemberId = 25,
    InvalidSessionTimeout = 26,
    RebalanceInProgress = 27,
    InvalidTimestamp = 32,
    UnsupportedVersion = 35,
    TopicAlreadyExists = 36,
    InvalidPartitions = 37,
    InvalidConfig = 40,
    InvalidRequest = 42,
    UnsupportedForMessageFormat = 43,
    PolicyViolation = 44,
    OutOfOrderSequenceNumber = 45,
    DuplicateSequenceNumber = 46,
    InvalidProducerEpoch = 47,
    InvalidTransactionState = 48,
    InvalidProducerIdMapping = 49,
    InvalidTransactionTimeout = 50,
    ConcurrentTransactions = 51,
    OperationNotAttempted = 55,
    KafkaStorageError = 56,
    NonEmptyGroup = 68,
    GroupIdNotFound = 69,
    UnsupportedCompressionType = 76,
    MemberIdRequired = 79,
    GroupMaxSizeReached = 81,
    FencedInstanceId = 82,
    InvalidRecord = 87,
    UnstableOffsetCommit = 88,
    ProducerFenced = 90,
}

/// The code of an outcome: 0 is success.
pub fn code<T>(outcome: &Result<T, Fault>) -> i16 {
    match outcome {
        Ok(_) => 0,
        Err(fault) => *fault as i16,
    }
}

impl Fault {
    /// As a coordinator says it: its clients know no storage error, but ask again for as long as they have time.
    pub fn of_coordinator(self) -> Fault {
        match self {
            Fault::KafkaStorageError => Fault::CoordinatorNotAvailable,
            other => other,
        }
    }
}

impl From<io::Error> for Fault {
    /// The client learns that storage failed; the operator reads why in the log.
    fn from(error: io::Error) -> Fault {
        let full = error.kind() == io::ErrorKind::StorageFull;
        let then = if full { "free some space: it goes on by itself" } else { "look at the disk" };
        tracing::error!(%error, "the embedded broker cannot read or write its data folder; {then}");
        Fault::KafkaStorageError
    }
}
