//! Where objects lie: a folder, as a path or `file://` URL, or a prefix of a bucket, as `s3://bucket/prefix`.

use std::path::PathBuf;

use crate::config::S3;

/// A place as a user writes it, with what it takes to get there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Location {
    pub url: String,
    /// Read for `s3://` only.
    pub s3: S3,
}

impl Location {
    pub fn new(url: impl Into<String>, s3: &S3) -> Self {
        Self { url: url.into(), s3: s3.clone() }
    }
}

impl From<&str> for Location {
    fn from(url: &str) -> Self {
        Self { url: url.to_owned(), s3: S3::default() }
    }
}

impl From<String> for Location {
    fn from(url: String) -> Self {
        Self { url, s3: S3::default() }
    }
}

impl From<&String> for Location {
    fn from(url: &String) -> Self {
        url.as_str().into()
    }
}

impl From<&Location> for Location {
    fn from(location: &Location) -> Self {
        location.clone()
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Folder(PathBuf),
    Bucket { bucket: String, prefix: String },
}

/// Takes a URL apart; the error says what is wrong with it.
pub(super) fn parse(url: &str) -> Result<Parsed, String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.is_empty() { Err("it is empty".to_owned()) } else { Ok(Parsed::Folder(url.into())) };
    };
    match scheme {
        "file" => {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            if !path.starts_with('/') {
                return Err("a file:// URL has three slashes and an absolute path".to_owned());
            }
            let path = percent_decode(path).ok_or("its %-escapes are not UTF-8")?;
            Ok(Parsed::Folder(path.into()))
        }
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let named =
                bucket.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c));
            if bucket.is_empty() || !named {
                return Err(format!("'{bucket}' is no bucket's name; write s3://bucket/prefix"));
            }
            Ok(Parsed::Bucket { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() })
        }
        scheme => Err(format!("{scheme}:// is not supported; there are folders, file:// and s3://")),
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => std::str::from_utf8(&[*high, *low])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_buckets_are_told_apart_and_mistakes_are_named() {
        let folder = |path: &str| Ok(Parsed::Folder(path.into()));
        let bucket = |bucket: &str, prefix: &str| {
            Ok(Parsed::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
        };
        assert_eq!(parse("some/where"), folder("some/where"));
        assert_eq!(parse("file:///a%20lake"), folder("/a lake"));
        assert_eq!(parse("file://localhost/lake"), folder("/lake"));
        assert_eq!(parse("s3://lake"), bucket("lake", ""));
        assert_eq!(parse("s3://my-lake.eu/a/b/"), bucket("my-lake.eu", "a/b"));
        for (wrong, why) in [
            ("", "empty"),
            ("file://relative", "three slashes"),
            ("file:///%ff", "UTF-8"),
            ("s3:///prefix", "no bucket's name"),
            ("s3://Bucket/x", "no bucket's name"),
            ("gs://bucket", "gs:// is not supported"),
        ] {
            assert!(parse(wrong).is_err_and(|error| error.contains(why)), "{wrong}");
        }
    }
}
