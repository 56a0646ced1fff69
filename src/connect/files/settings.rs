//! The keys of the `files` connector.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::config::scalar;
use crate::connect::settings::{Topics, ratio};
use crate::record::Type;

use super::glob::Pattern;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// It says of which kind the file is, and was looked at before.
    #[serde(rename = "connector")]
    _connector: String,
    #[serde(default, deserialize_with = "scalar::optional_text")]
    pub name: Option<String>,
    /// A folder, a file, or a pattern.
    #[serde(deserialize_with = "scalar::text")]
    pub path: String,
    /// Which files of the folder; `None`: all of them that are not hidden.
    #[serde(default, rename = "match", deserialize_with = "scalar::optional_text")]
    pub pattern: Option<String>,
    /// `None`: by the file's name.
    #[serde(default)]
    pub format: Option<FormatKind>,
    #[serde(default, deserialize_with = "scalar::optional_text")]
    pub stream: Option<String>,
    #[serde(default)]
    pub key: Vec<String>,
    #[serde(default = "every", deserialize_with = "scalar::duration")]
    pub every: Duration,
    #[serde(default = "settle", deserialize_with = "scalar::duration")]
    pub settle: Duration,
    #[serde(default)]
    pub on_change: OnChange,
    #[serde(default)]
    pub columns: Vec<Provenance>,
    #[serde(default = "max_reject_ratio", deserialize_with = "ratio")]
    pub max_reject_ratio: f64,
    #[serde(default)]
    pub topics: Topics,
}

fn every() -> Duration {
    Duration::from_secs(2)
}
fn settle() -> Duration {
    Duration::from_secs(2)
}
fn max_reject_ratio() -> f64 {
    0.5
}

/// What a file becomes whose content is another than what was read of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnChange {
    /// It is read as a new file.
    #[default]
    Append,
    Stop,
}

/// Columns that say where a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Provenance {
    #[serde(rename = "_file")]
    File,
    #[serde(rename = "_row")]
    Row,
}

#[derive(Clone, Debug)]
pub enum FormatKind {
    Csv(Csv),
    Jsonl,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Csv {
    /// The first line names the columns.
    pub header: bool,
    /// The columns, where no line names them.
    pub names: Vec<String>,
    #[serde(deserialize_with = "one_byte")]
    pub delimiter: u8,
    #[serde(deserialize_with = "one_byte")]
    pub quote: u8,
    /// What stands for null. `null` itself is no key of YAML unless it is quoted.
    #[serde(alias = "null")]
    pub nulls: Vec<String>,
    pub encoding: Encoding,
    /// Columns that are no text.
    #[serde(deserialize_with = "types")]
    pub types: BTreeMap<String, Type>,
}

impl Default for Csv {
    fn default() -> Self {
        Self {
            header: true,
            names: Vec::new(),
            delimiter: b',',
            quote: b'"',
            nulls: vec![String::new()],
            encoding: Encoding::Utf8,
            types: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Encoding {
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "latin1")]
    Latin1,
}

fn one_byte<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
    let text = String::deserialize(from)?;
    match text.as_str() {
        "\\t" | "tab" => Ok(b'\t'),
        text if text.len() == 1 && text.is_ascii() && !matches!(text, "\n" | "\r") => Ok(text.as_bytes()[0]),
        text => Err(D::Error::custom(format!(
            "'{text}' is not one character of ASCII; write for example \";\", or tab"
        ))),
    }
}

fn types<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Type>, D::Error> {
    let named = BTreeMap::<String, String>::deserialize(from)?;
    let each = named.into_iter().map(|(column, text)| {
        let ty: Type =
            text.parse().map_err(|error| D::Error::custom(format!("column '{column}': {error}")))?;
        match ty {
            Type::Array(_) | Type::Struct(_) | Type::Bytea | Type::Json => Err(D::Error::custom(format!(
                "column '{column}': a cell of CSV can't be {text}; leave it out, and it is text"
            ))),
            ty => Ok((column, ty)),
        }
    });
    each.collect()
}

impl<'de> Deserialize<'de> for FormatKind {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Named;
        const KNOWN: &str = "a format is csv or jsonl, with settings for example {csv: {delimiter: \";\"}}";
        fn unknown<E: Error>(name: &str) -> E {
            E::custom(format!("there is no format '{name}' for files yet; {KNOWN}"))
        }
        impl<'de> Visitor<'de> for Named {
            type Value = FormatKind;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(KNOWN)
            }
            fn visit_str<E: Error>(self, name: &str) -> Result<FormatKind, E> {
                match name {
                    "csv" => Ok(FormatKind::Csv(Csv::default())),
                    "jsonl" => Ok(FormatKind::Jsonl),
                    other => Err(unknown(other)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FormatKind, A::Error> {
                let name: Option<String> = map.next_key()?;
                match name.as_deref() {
                    Some("csv") => Ok(FormatKind::Csv(map.next_value()?)),
                    Some("jsonl") => map.next_value::<BTreeMap<String, String>>().map(|_| FormatKind::Jsonl),
                    other => Err(unknown(other.unwrap_or_default())),
                }
            }
        }
        from.deserialize_any(Named)
    }
}

impl Files {
    /// What can't be told from one key alone: what is wrong, and what to do.
    pub fn checked(&self) -> Result<(), (String, String)> {
        let wrong = |what: String, help: &str| Err((what, help.to_owned()));
        if let Some((scheme, _)) = self.path.split_once("://") {
            return wrong(
                format!("path: '{}': {scheme}:// is not read yet", self.path),
                "name a folder or a file of this machine; a bucket can be synchronized or mounted to one",
            );
        }
        if let Some(FormatKind::Csv(csv)) = &self.format {
            if !csv.header && csv.names.is_empty() {
                return wrong(
                    "format: without a header nothing names the columns".to_owned(),
                    "list them: {csv: {header: false, names: [id, amount]}}",
                );
            }
            if csv.header && !csv.names.is_empty() {
                return wrong(
                    "format: 'names' and a header are two names for one column".to_owned(),
                    "with a first line that names them leave 'names' out; without one add header: false",
                );
            }
            if csv.delimiter == csv.quote {
                return wrong("format: delimiter and quote are the same".to_owned(), "make them differ");
            }
        }
        if !(1..=10_000).contains(&self.topics.partitions) {
            return wrong(
                format!("topics: {} partitions", self.topics.partitions),
                "write from 1 to 10000; 4 is the default",
            );
        }
        Ok(())
    }

    /// The format of a file, by its name where none is given.
    pub fn format_of(&self, name: &str) -> Option<FormatKind> {
        if let Some(format) = &self.format {
            return Some(format.clone());
        }
        let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
        match plain.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
            "csv" => Some(FormatKind::Csv(Csv::default())),
            "tsv" => Some(FormatKind::Csv(Csv { delimiter: b'\t', ..Csv::default() })),
            "jsonl" | "ndjson" => Some(FormatKind::Jsonl),
            _ => None,
        }
    }

    /// The folder to look through, and which of its files count.
    pub fn place(&self) -> (PathBuf, Pattern) {
        let path = Path::new(&self.path);
        if self.pattern.is_none() && !path.is_dir() {
            // A pattern, or a file.
            let parts: Vec<&str> = self.path.split('/').collect();
            let fixed = parts.iter().take_while(|part| !Pattern::is_pattern(part)).count();
            let fixed = fixed.min(parts.len() - 1);
            let folder = parts[..fixed].join("/");
            let folder = match (folder.as_str(), self.path.starts_with('/')) {
                ("", true) => "/",
                ("", false) => ".",
                (folder, _) => folder,
            };
            return (PathBuf::from(folder), Pattern::new(&parts[fixed..].join("/")));
        }
        (path.to_owned(), Pattern::new(self.pattern.as_deref().unwrap_or("*")))
    }
}
