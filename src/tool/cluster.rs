//! The cluster that a command talks to: the brokers that are configured, or the embedded one.
//!
//! Invariant: commands see a [`Log`] either way; only here is the difference known.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::broker::{self, Attached, Broker};
use crate::config::Config;
use crate::log::Log;
use crate::log::kafka::{KafkaLog, KafkaOptions};

use super::{Result, ToolError};

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
        Some(brokers) => (checked(brokers)?, None),
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

/// Schemes that librdkafka knows before an address.
const SCHEMES: [&str; 4] = ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"];

/// Brokers as they were given, if each of them is an address. A wrong one would be looked for without end.
fn checked(brokers: &str) -> Result<String> {
    for broker in brokers.split(',').map(str::trim) {
        let wrong = |why: String, help: String| Err(ToolError::input_with_help(why, help));
        let (scheme, address) = broker.split_once("://").unwrap_or(("PLAINTEXT", broker));
        if !SCHEMES.contains(&scheme.to_ascii_uppercase().as_str()) {
            let why = format!("brokers: '{broker}' is a URL, and brokers are named host:port");
            return wrong(why, format!("write {}", address.trim_end_matches('/')));
        }
        if address.is_empty() {
            return wrong(
                "brokers: an address is empty".to_owned(),
                "write host:port,host:port; without any, the embedded broker is used".to_owned(),
            );
        }
        let is_host = |host: &str| !host.is_empty() && (!host.contains(':') || host.starts_with('['));
        match address.rsplit_once(':') {
            Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0) => {}
            Some((host, port)) if is_host(host) => {
                let why = format!("brokers: '{port}' in '{broker}' is not a port");
                return wrong(why, format!("write for example {host}:9092"));
            }
            _ => {
                let why = format!("brokers: '{broker}' names no port");
                return wrong(why, format!("write for example {address}:9092"));
            }
        }
    }
    Ok(brokers.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_hosts_with_ports() {
        for right in ["a:9092", "a:1, b.c:65535", "SASL_SSL://a:9093", "[::1]:9092,127.0.0.1:9092"] {
            assert_eq!(checked(right).unwrap(), right);
        }
        for (wrong, says) in [
            ("localhost", "'localhost' names no port"),
            ("a:9092,b", "'b' names no port"),
            ("http://a:9092", "is a URL"),
            ("", "an address is empty"),
            ("a:9092,", "an address is empty"),
            ("a:x", "'x' in 'a:x' is not a port"),
            ("a:0", "is not a port"),
            ("a:99999", "is not a port"),
            ("::1", "names no port"),
        ] {
            let error = checked(wrong).unwrap_err().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
