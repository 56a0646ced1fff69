//! The cluster that a command talks to: the brokers that are configured, or the embedded one.
//!
//! Invariant: commands see a [`Log`] either way; only here is the difference known.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::broker::{self, Attached, Broker};
use crate::config::Config;
use crate::log::Log;
use crate::log::kafka::{KafkaLog, KafkaOptions};

use super::Result;

/// Where the embedded broker listens unless that port is taken.
pub const PREFERRED_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9092);

/// An open cluster. The embedded broker, if this process serves it, lives as long as this does.
pub struct Cluster {
    pub log: Arc<dyn Log>,
    /// What clients connect to: `host:port,…`.
    pub address: String,
    _broker: Option<Broker>,
}

/// Connects to the configured brokers; without any, to the embedded broker of `data_dir`, which is served from
/// here unless another process serves it already.
pub fn open(config: &Config) -> Result<Cluster> {
    let (address, broker) = match &config.brokers {
        Some(brokers) => (brokers.clone(), None),
        None => match broker::attach(&config.data_dir.join("broker"), PREFERRED_ADDRESS)? {
            Attached::Own(broker) => (broker.address().to_string(), Some(broker)),
            Attached::Running(address) => (address.to_string(), None),
        },
    };
    let options = KafkaOptions {
        brokers: address.clone(),
        properties: config.kafka.clone(),
        client_id: "headwater".to_owned(),
    };
    Ok(Cluster { log: Arc::new(KafkaLog::connect(&options)?), address, _broker: broker })
}
