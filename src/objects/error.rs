//! What can go wrong with an object store, by what a caller or a user can do about it.

use std::error::Error as StdError;

use object_store::Error;

pub type Result<T, E = ObjectError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("'{url}': {detail}")]
    Url { url: String, detail: String },
    #[error("there is no such object: {0}")]
    NotFound(String),
    #[error("there is such an object already: {0}")]
    AlreadyExists(String),
    #[error(
        "{place}: there is no bucket '{bucket}'; create it, or correct the URL (and s3.endpoint, s3.region)"
    )]
    NoBucket { place: String, bucket: String },
    #[error(
        "{place}: access is denied ({detail}); check s3.access_key_id and s3.secret_access_key, and that they may list, \
         read, write and delete there"
    )]
    Denied { place: String, detail: String },
    #[error("{place}: the request is refused ({detail}); check s3.endpoint, s3.region and s3.path_style")]
    Refused { place: String, detail: String },
    #[error("{place} can't be reached ({detail}); check s3.endpoint and the network")]
    Unreachable { place: String, detail: String },
    /// A folder's, or one that nothing more is known about.
    #[error(transparent)]
    Other(Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// What an error of S3 at a place means.
pub(super) fn explain(error: Error, place: &str, bucket: &str) -> ObjectError {
    let text = messages_of(&error);
    let place = place.to_owned();
    match error {
        Error::NotFound { .. } if text.contains("NoSuchBucket") => {
            ObjectError::NoBucket { place, bucket: bucket.to_owned() }
        }
        Error::NotFound { path, .. } => ObjectError::NotFound(path),
        Error::AlreadyExists { path, .. } | Error::Precondition { path, .. } => {
            ObjectError::AlreadyExists(path)
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            ObjectError::Denied { place, detail: brief(&text) }
        }
        Error::Generic { .. } if text.contains("NoSuchBucket") => {
            ObjectError::NoBucket { place, bucket: bucket.to_owned() }
        }
        // A listing's errors come without a kind.
        Error::Generic { .. } if text.contains("403 Forbidden") || text.contains("401 Unauthorized") => {
            ObjectError::Denied { place, detail: brief(&text) }
        }
        Error::Generic { .. } if text.contains("400 Bad Request") || text.contains("301 Moved") => {
            ObjectError::Refused { place, detail: brief(&text) }
        }
        Error::Generic { .. } => ObjectError::Unreachable { place, detail: brief(&text) },
        other => ObjectError::Other(other),
    }
}

/// A folder's error.
pub(super) fn plain(error: Error) -> ObjectError {
    match error {
        Error::NotFound { path, .. } => ObjectError::NotFound(path),
        Error::AlreadyExists { path, .. } => ObjectError::AlreadyExists(path),
        other => ObjectError::Other(other),
    }
}

/// An error's messages and those of its sources, where they add something to the ones before them.
pub fn messages_of(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for error in std::iter::successors(Some(error), |&error| error.source()) {
        let message = error.to_string();
        if text.is_empty() {
            text = message;
        } else if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
    }
    text
}

/// S3 answers in XML, of which a reader wants the code and the message.
fn brief(text: &str) -> String {
    let part = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>")).map(|(inside, _)| inside.trim().to_owned())
    };
    match (part("Code"), part("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => text.lines().next().unwrap_or_default().trim_start_matches("Generic S3 error: ").to_owned(),
    }
}
