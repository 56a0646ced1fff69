//! Functions of text that DataFusion lacks: hashes as hexadecimal digits, parts that a regular expression finds, and the
//! patterns of LIKE with an escape character of one's own.

use std::fmt::Write;
use std::sync::Arc;

use datafusion_common::{Result, exec_datafusion_err, exec_err};
use datafusion_expr::ScalarUDF;
use md5::{Digest, Md5};
use regex::Regex;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use super::rowwise::{Apply, Argument, Made, Returns, Rowwise, Takes};

/// Not to be called by its name: `x like y escape z` is `x like _like_pattern(y, z)`.
pub(super) const LIKE_PATTERN: &str = "_like_pattern";

const HASH: Rowwise = Rowwise {
    name: "md5",
    aliases: &[],
    takes: &[Takes::Bytes],
    optional: 0,
    repeats: false,
    returns: Returns::Text,
    apply: hash::<Md5>,
};

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    let matched =
        Rowwise { name: "regexp_substr", takes: &[Takes::Text, Takes::Text], apply: || find(false), ..HASH };
    let extracted = Rowwise {
        name: "regexp_extract",
        takes: &[Takes::Text, Takes::Text, Takes::Integer],
        optional: 1,
        apply: || find(true),
        ..HASH
    };
    let hashes = [
        HASH,
        Rowwise { name: "sha224", apply: hash::<Sha224>, ..HASH },
        Rowwise { name: "sha256", apply: hash::<Sha256>, ..HASH },
        Rowwise { name: "sha384", apply: hash::<Sha384>, ..HASH },
        Rowwise { name: "sha512", apply: hash::<Sha512>, ..HASH },
    ];
    hashes.into_iter().chain([matched, extracted]).map(Rowwise::function).collect()
}

pub(super) fn like_pattern() -> Arc<ScalarUDF> {
    let apply = || -> Apply {
        Box::new(|arguments| {
            let [pattern, escape] = arguments else { return exec_err!("a pattern and its escape character") };
            match backslashes(pattern.text(), escape.text().chars().next()) {
                Some(pattern) => Ok(Some(Made::Text(pattern))),
                None => exec_err!("the pattern '{}' ends with its escape character", pattern.text()),
            }
        })
    };
    Rowwise { name: LIKE_PATTERN, takes: &[Takes::Text, Takes::Text], apply, ..HASH }.function()
}

/// The pattern with backslashes for its escape character; `None`: it ends with one. Without one, a backslash is itself.
pub(super) fn backslashes(pattern: &str, escape: Option<char>) -> Option<String> {
    let mut made = String::with_capacity(pattern.len());
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        let is_escape = Some(character) == escape;
        let literal = if is_escape { characters.next()? } else { character };
        if literal == '\\' || (is_escape && matches!(literal, '%' | '_')) {
            made.push('\\');
        }
        made.push(literal);
    }
    Some(made)
}

fn hash<D: Digest + 'static>() -> Apply {
    Box::new(|arguments| {
        let mut digits = String::new();
        for byte in D::digest(arguments.first().map_or(&[][..], Argument::bytes)) {
            // Writing to a string does not fail.
            let _ = write!(digits, "{byte:02x}");
        }
        Ok(Some(Made::Text(digits)))
    })
}

/// What a pattern finds first, or the group of it that the third argument numbers; `or_empty`: else an empty text, not
/// null, as where the group has no part in it.
fn find(or_empty: bool) -> Apply {
    let mut compiled: Option<(String, Regex)> = None;
    Box::new(move |arguments| {
        let [text, pattern, group @ ..] = arguments else { return exec_err!("a text and a pattern") };
        let (text, pattern) = (text.text(), pattern.text());
        let known = match compiled.take() {
            Some((known, regex)) if known == pattern => regex,
            _ => {
                let wrong = |error| exec_datafusion_err!("'{pattern}' is no regular expression: {error}");
                Regex::new(pattern).map_err(wrong)?
            }
        };
        let group = match group {
            [Argument::Integer(group)] => *group,
            _ => 0,
        };
        let number = usize::try_from(group).ok().filter(|group| *group < known.captures_len());
        let Some(number) = number else {
            return exec_err!("'{pattern}' has no group {group}: it has {}", known.captures_len() - 1);
        };
        let found = known.captures(text).and_then(|found| found.get(number)).map(|part| part.as_str());
        let found: Result<Option<Made>> = Ok(match found {
            Some(found) => Some(Made::Text(found.to_string())),
            None if or_empty => Some(Made::Text(String::new())),
            None => None,
        });
        compiled = Some((pattern.to_string(), known));
        found
    })
}
