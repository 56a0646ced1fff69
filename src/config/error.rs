//! What can be wrong with a config file, told so that the reader finds the place and the remedy.

use std::path::PathBuf;

/// Why a config could not be used. `Display` says what and where; [`ConfigError::help`] what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no config file {}", path.display())]
    Missing { path: PathBuf },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// `line` and `column` start at 1.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid { path: PathBuf, line: u64, column: u64, message: String, help: Option<String> },
}

impl ConfigError {
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => {
                Some("name another with --config, or write one with: headwater init".to_owned())
            }
            Self::Read { .. } => None,
            Self::Invalid { help, .. } => help.clone(),
        }
    }
}

/// The name among `known` that a reader most likely meant by `given`, if any is close.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(&given, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
