//! From a file to a [`Config`], with the line and column of whatever is wrong.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::{Config, ConfigError, DEFAULT_PATH, nearest};

impl Config {
    /// Reads the file at `path`; without one, [`DEFAULT_PATH`] if it is there, else the defaults.
    pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        let named = path.is_some();
        let path = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&text, path),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                if named {
                    Err(ConfigError::Missing { path: path.to_owned() })
                } else {
                    Ok(Config::default())
                }
            }
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Reads `text`; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Config::default());
        }
        read(text, path)
    }
}

/// Reads any file of settings; `path` is for messages only.
pub fn read<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    serde_saphyr::from_str(text).map_err(|error| invalid(path, &error))
}

fn invalid(path: &Path, error: &serde_saphyr::Error) -> ConfigError {
    let error = error.without_snippet();
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    let (message, help) = match error {
        serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => {
            let help = match nearest(field, expected.iter().copied()) {
                Some(name) => format!("did you mean '{name}'?"),
                None => format!("the keys here are: {}", expected.join(", ")),
            };
            (format!("there is no key '{field}'"), Some(help))
        }
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            (format!("the key '{key}' stands twice"), None)
        }
        serde_saphyr::Error::Message { msg, .. } => (msg.clone(), None),
        other => (strip_location(&other.to_string()), None),
    };
    ConfigError::Invalid { path: path.to_owned(), line, column, message, help }
}

/// The parser ends its messages with the place, which ours begin with.
fn strip_location(message: &str) -> String {
    let cut = message.rfind(" at line ").unwrap_or(message.len());
    message[..cut].to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Secret;
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("c.yaml"))
    }

    fn refusal(text: &str) -> (String, Option<String>) {
        let error = parse(text).expect_err("this is not a config");
        (error.to_string(), error.help())
    }

    #[test]
    fn no_file_an_empty_file_and_a_file_of_comments_are_the_defaults() {
        for text in ["", "\n\n", "# nothing yet\n  # brokers: x\n"] {
            assert_eq!(parse(text).expect("defaults"), Config::default());
        }
        let defaults = Config::default();
        assert_eq!(defaults.data_dir, Path::new(".headwater"));
        assert_eq!(defaults.state.budget, 268_435_456);
        assert_eq!(defaults.http.listen, "127.0.0.1:9464");
        assert_eq!(defaults.worker.epoch, Duration::from_millis(200));
        assert_eq!(defaults.worker.checkpoint_interval, Duration::from_secs(30));
    }

    #[test]
    fn every_key_is_read() {
        let text = "
brokers: ${HEADWATER_TEST_NOT_SET:-a:9092,b:9092}
kafka: {security.protocol: SASL_SSL, enable.ssl.certificate.verification: false, linger.ms: 5}
registry: {url: 'http://registry:8081'}
data_dir: /var/lib/headwater
state: {url: 's3://bucket/state', budget: 1GiB}
lake: {url: file:///lake}
s3: {endpoint: 'http://minio:9000', region: eu-west-1, access_key_id: me, secret_access_key: hush, path_style: false}
http: {listen: 0.0.0.0:80}
worker: {threads: 4, epoch: 1s, epoch_rows: 10_000, epoch_bytes: 8MiB, checkpoint_interval: 5m}
";
        let config = parse(text).expect("a config");
        assert_eq!(config.brokers.as_deref(), Some("a:9092,b:9092"));
        assert_eq!(config.kafka["enable.ssl.certificate.verification"], "false");
        assert_eq!(config.kafka["linger.ms"], "5");
        assert_eq!(config.registry.url.as_deref(), Some("http://registry:8081"));
        assert_eq!(config.data_dir, Path::new("/var/lib/headwater"));
        assert_eq!((config.state.url.as_deref(), config.state.budget), (Some("s3://bucket/state"), 1 << 30));
        assert_eq!(config.lake.url.as_deref(), Some("file:///lake"));
        assert_eq!(config.s3.endpoint.as_deref(), Some("http://minio:9000"));
        assert_eq!((config.s3.region.as_str(), config.s3.path_style), ("eu-west-1", false));
        assert_eq!(config.s3.access_key_id.as_deref(), Some("me"));
        assert_eq!(config.s3.secret_access_key.as_ref().map(Secret::reveal), Some("hush"));
        assert!(!format!("{config:?}").contains("hush"), "secrets are not shown");
        assert_eq!(config.http.listen, "0.0.0.0:80");
        assert_eq!(config.worker.threads, Some(4));
        assert_eq!(config.worker.epoch_rows, 10_000);
        assert_eq!(config.worker.epoch_bytes, 8 << 20);
        assert_eq!(config.worker.checkpoint_interval, Duration::from_secs(300));
    }

    #[test]
    fn a_variable_that_is_empty_leaves_the_brokers_unset() {
        assert_eq!(parse("brokers: ${HEADWATER_TEST_NOT_SET:-}").expect("a config").brokers, None);
        assert_eq!(parse("brokers:\n").expect("a config").brokers, None);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_the_nearest_name() {
        let (message, help) = refusal("worker:\n  epoch: 1s\n  treads: 4\n");
        assert_eq!(message, "c.yaml:3:3: there is no key 'treads'");
        assert_eq!(help.as_deref(), Some("did you mean 'threads'?"));

        let (message, help) = refusal("kubernetes: {}\n");
        assert_eq!(message, "c.yaml:1:1: there is no key 'kubernetes'");
        assert!(help.is_some_and(|help| help.contains("data_dir")));

        let (message, _) = refusal("state:\n  budget: lots\n");
        assert_eq!(message, "c.yaml:2:11: 'lots' is not a size; write for example 64MiB, 2GiB or 500MB");

        let (message, _) = refusal("state: {budget: 10}\n");
        assert_eq!(
            message,
            "c.yaml:1:17: 10 bytes are too few for state; write 1MiB or more, for example 256MiB"
        );

        let (message, _) = refusal("lake:\n  url: ${HEADWATER_TEST_NOT_SET}\n");
        assert!(
            message.starts_with("c.yaml:2:8: the environment variable HEADWATER_TEST_NOT_SET"),
            "{message}"
        );

        let (message, _) = refusal("brokers: a\nbrokers: b\n");
        assert_eq!(message, "c.yaml:2:1: the key 'brokers' stands twice");

        let (message, _) = refusal("http: [1]\n");
        assert!(message.starts_with("c.yaml:1:"), "{message}");
        let (message, _) = refusal("http: {listen: 'x\n");
        assert!(message.starts_with("c.yaml:"), "{message}");
        let (message, _) = refusal("kafka: {bootstrap.servers: x}\n");
        assert!(message.contains("'brokers'"), "{message}");
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let error = Config::load(Some(Path::new("no/such/config.yaml"))).expect_err("it is not there");
        assert_eq!(error.to_string(), "there is no config file no/such/config.yaml");
    }
}
