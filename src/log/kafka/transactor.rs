//! A transactional producer outside any group.
//!
//! Invariant: once it stands, everything that its predecessor under the same id began is committed or aborted.

use std::time::Duration;

use super::client::{Client, Failure, is_denied, is_fenced, millis};
use super::member::{init_transactions, retry};
use super::producer::{Sender, blames_a_record};
use crate::log::{CommitError, LogError, OUTAGE_MAX, Outgoing, Result, Transactor};
use crate::record::TopicPartition;

use rdkafka::bindings as sys;

pub(super) struct KafkaTransactor {
    sender: Sender,
    id: String,
    timeout: Duration,
    open: bool,
}

impl KafkaTransactor {
    /// Fences the predecessor with the same id.
    pub fn start(producer: Client, id: &str, timeout: Duration) -> Result<Self> {
        let sender = Sender::new(producer)?;
        init_transactions(&sender.client, id)?;
        Ok(Self { sender, id: id.to_owned(), timeout, open: false })
    }

    fn commit_error(&self, failure: &Failure) -> CommitError {
        if blames_a_record(failure.code) {
            self.sender.await_report();
        }
        match self.undelivered() {
            _ if is_fenced(failure.code) => CommitError::Fenced(failure.text.clone()),
            Some(error) => error,
            None if is_denied(failure.code) => {
                CommitError::Refused(self.sender.client.error(failure.code, &self.id, &failure.text))
            }
            None if failure.requires_abort => CommitError::Aborted(failure.text.clone()),
            None => CommitError::Unknown(failure.text.clone()),
        }
    }

    /// The record that was not delivered.
    fn undelivered(&self) -> Option<CommitError> {
        Some(match self.sender.failure()?.error(&self.sender.client) {
            LogError::Fenced(why) => CommitError::Fenced(why),
            error => CommitError::Refused(error),
        })
    }
}

impl Transactor for KafkaTransactor {
    fn begin(&mut self) -> Result<()> {
        self.sender.take_failure();
        // SAFETY: a live producer.
        let error = unsafe { sys::rd_kafka_begin_transaction(self.sender.client.raw()) };
        self.sender.client.check_object(error, "begin a transaction")?;
        self.open = true;
        Ok(())
    }

    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()> {
        self.sender.produce(to, records)
    }

    fn commit(&mut self) -> Result<(), CommitError> {
        if let Some(error) = self.undelivered() {
            return Err(error);
        }
        let producer = self.sender.client.raw();
        retry(&self.sender.client.brokers, self.timeout, |rest| {
            // SAFETY: a live producer.
            unsafe { sys::rd_kafka_commit_transaction(producer, millis(rest)) }
        })
        .map_err(|failure| self.commit_error(&failure))?;
        self.open = false;
        Ok(())
    }

    fn abort(&mut self) -> Result<()> {
        self.sender.take_failure();
        if !self.open {
            return Ok(());
        }
        let producer = self.sender.client.raw();
        retry(&self.sender.client.brokers, OUTAGE_MAX, |rest| {
            // SAFETY: a live producer.
            unsafe { sys::rd_kafka_abort_transaction(producer, millis(rest)) }
        })
        .map_err(|failure| match failure.code {
            code if is_fenced(code) => LogError::Fenced(self.id.clone()),
            code => self.sender.client.error(code, "abort a transaction", &failure.text),
        })?;
        self.sender.take_failure();
        self.open = false;
        Ok(())
    }
}
