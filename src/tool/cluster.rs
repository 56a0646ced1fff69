//! The cluster that a command talks to.
//!
//! Invariant: commands see a [`Log`]; only here is it known which.

use std::sync::Arc;

use crate::config::Config;
use crate::log::Log;
use crate::log::kafka::{KafkaLog, KafkaOptions};

use super::{Result, ToolError};

/// An open cluster.
pub struct Cluster {
    pub log: Arc<dyn Log>,
    /// What clients connect to: `host:port,…`.
    pub address: String,
}

/// Connects to the configured brokers.
pub fn open(config: &Config) -> Result<Cluster> {
    let Some(brokers) = &config.brokers else {
        return Err(ToolError::input_with_help(
            "no brokers are configured",
            "give --brokers HOST:PORT, or 'brokers' in the config",
        ));
    };
    let options = KafkaOptions {
        brokers: brokers.clone(),
        properties: config.kafka.clone(),
        client_id: "headwater".to_owned(),
    };
    Ok(Cluster { log: Arc::new(KafkaLog::connect(&options)?), address: brokers.clone() })
}
