//! A connector's file.
//!
//! Invariant: a key that is not known is an error with its line, never ignored.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::config::{self, ConfigError, nearest, scalar};

use super::Result;
use super::files::Files;

/// The connectors there are.
const BUILT: [&str; 1] = ["files"];

/// A connector, as its file says.
#[derive(Clone, Debug)]
pub struct Connector {
    /// [the file's]
    pub name: String,
    pub files: Files,
}

/// Of the topics that a connector writes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    /// `None`: the connector's name.
    #[serde(deserialize_with = "scalar::optional_text")]
    pub prefix: Option<String>,
    #[serde(deserialize_with = "scalar::count")]
    pub partitions: usize,
    /// By Kafka's names.
    #[serde(deserialize_with = "scalar::text_map")]
    pub config: BTreeMap<String, String>,
}

impl Default for Topics {
    fn default() -> Self {
        Self { prefix: None, partitions: 4, config: BTreeMap::new() }
    }
}

/// Only what says of which kind the file is.
#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    connector: Option<String>,
}

impl Connector {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => invalid(path, "there is no such connector file".to_owned(), None),
            _ => ConfigError::Read { path: path.to_owned(), source },
        })?;
        Self::parse(&text, path)
    }

    /// `path` is for the name and for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let kind: Kind = config::read(text, path)?;
        let keys = || {
            Some(format!(
                "write for example\n  connector: files\n  path: data/\n  match: \"*.csv\"\nconnectors built so far: {}",
                BUILT.join(", ")
            ))
        };
        match kind.connector.as_deref() {
            Some("files") => {}
            None => return Err(invalid(path, "the key 'connector' is missing".to_owned(), keys()).into()),
            Some(other) => {
                let help = match nearest(other, BUILT) {
                    Some(name) => Some(format!("did you mean '{name}'?")),
                    None => Some(format!("the connectors built so far: {}", BUILT.join(", "))),
                };
                return Err(invalid(path, format!("there is no connector '{other}'"), help).into());
            }
        }
        let files: Files = config::read(text, path)?;
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name = files.name.clone().unwrap_or_else(|| stem.to_owned());
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !(1..=200).contains(&name.len()) || !name.chars().all(is_name) || name.starts_with('.') {
            let what = format!("'{name}' can't be a connector's name, which is part of its topics' names");
            let help = "give it one: name: of the letters a-z A-Z 0-9 . _ -";
            return Err(invalid(path, what, Some(help.to_owned())).into());
        }
        if let Err((what, help)) = files.checked() {
            return Err(invalid(path, what, Some(help)).into());
        }
        Ok(Self { name, files })
    }

    /// Where its records go.
    pub fn topic(&self) -> String {
        let prefix = self.files.topics.prefix.as_deref().unwrap_or(&self.name);
        match &self.files.stream {
            Some(stream) => format!("{prefix}.{stream}"),
            None => prefix.to_owned(),
        }
    }
}

fn invalid(path: &Path, message: String, help: Option<String>) -> ConfigError {
    ConfigError::Invalid { path: path.to_owned(), line: 1, column: 1, message, help }
}

/// A share between 0 and 1.
pub fn ratio<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let ratio = f64::deserialize(from)?;
    match (0.0..=1.0).contains(&ratio) {
        true => Ok(ratio),
        false => Err(serde::de::Error::custom(format!("{ratio} is not a share between 0 and 1"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::files::FormatKind;
    use super::*;

    fn parse(text: &str) -> Result<Connector> {
        Connector::parse(text, Path::new("connectors/weather.yaml"))
    }
    fn refusal(text: &str) -> String {
        let error = parse(text).expect_err("this is no connector");
        format!("{error}; {}", error.help().unwrap_or_default())
    }

    #[test]
    fn two_lines_are_a_connector_and_its_name_is_the_files() {
        let connector = parse("connector: files\npath: data/weather.csv\n").unwrap();
        assert_eq!((connector.name.as_str(), connector.topic().as_str()), ("weather", "weather"));
        assert_eq!(connector.files.every, Duration::from_secs(2));
        assert!(matches!(connector.files.format_of("weather.csv"), Some(FormatKind::Csv(_))));
    }

    #[test]
    fn every_key_is_read() {
        let connector = parse(
            "connector: files
name: returns
path: in/
match: '**/*.csv'
format: {csv: {header: false, names: [id, amount], delimiter: ';', quote: \"'\", nulls: ['', NA], types: {id: bigint}, encoding: latin1}}
stream: rows
key: [id]
every: 30s
settle: 1s
on_change: stop
columns: [_file, _row]
max_reject_ratio: 0.1
topics: {prefix: raw, partitions: 2, config: {retention.ms: -1}}
",
        )
        .unwrap();
        assert_eq!((connector.name.as_str(), connector.topic().as_str()), ("returns", "raw.rows"));
        let Some(FormatKind::Csv(csv)) = connector.files.format_of("x") else { panic!("no CSV") };
        assert_eq!((csv.delimiter, csv.quote, csv.header), (b';', b'\'', false));
        assert_eq!(connector.files.topics.config["retention.ms"], "-1");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_a_remedy() {
        assert!(refusal("path: x\n").contains("weather.yaml:1:1: the key 'connector' is missing"));
        assert!(refusal("connector: file\npath: x").contains("did you mean 'files'?"));
        assert!(refusal("connector: postgres\n").contains("built so far: files"));
        let typo = refusal("connector: files\npath: x\nmtach: '*'\n");
        assert!(
            typo.contains("weather.yaml:3:1: there is no key 'mtach'") && typo.contains("'match'"),
            "{typo}"
        );
        assert!(refusal("connector: files\npath: x\nformat: cvs\n").contains("csv"));
        assert!(refusal("connector: files\npath: x\nformat: {csv: {types: {a: bigit}}}\n").contains("bigit"));
        assert!(refusal("connector: files\npath: x\non_change: replace\n").contains("append"));
        assert!(refusal("connector: files\npath: s3://bucket/x\n").contains("s3://"));
        assert!(refusal("connector: files\npath: x\nmax_reject_ratio: 2\n").contains("between 0 and 1"));
        assert!(refusal("connector: files\npath: x\nformat: {csv: {header: false}}\n").contains("names"));
    }
}
