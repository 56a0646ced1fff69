//! Walks into JSON text, value by value, and copies nothing on the way.
//!
//! Invariant: what is returned is the text as it stands in the document, so no number loses a digit.
//! Invariant: nothing recurses, however deep the document.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Into a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Key(Cow<'a, str>),
    /// From 0; from the end if negative.
    Index(i64),
}

/// The whole of a document, checked, without the white space around it.
pub(super) fn document(text: &str) -> serde_json::Result<&str> {
    Ok(serde_json::from_str::<&RawValue>(text)?.get())
}

/// What stands at the end of the path; `None`: nothing.
pub(super) fn at<'a>(text: &'a str, path: &[Step<'_>]) -> serde_json::Result<Option<&'a str>> {
    let mut at = document(text)?;
    for step in path {
        let found = match (step, at.as_bytes().first()) {
            (Step::Key(key), Some(b'{')) => member(at, key)?,
            (Step::Index(index), Some(b'[')) => element(at, *index)?,
            _ => None,
        };
        match found {
            Some(found) => at = found,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

/// The value of a key; the last one, if it stands there more than once.
fn member<'a>(object: &'a str, key: &str) -> serde_json::Result<Option<&'a str>> {
    struct Member<'k>(&'k str);
    impl<'de> Visitor<'de> for Member<'_> {
        type Value = Option<&'de str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(is_it) = map.next_key_seed(Is(self.0))? {
                if is_it {
                    found = Some(map.next_value::<&RawValue>()?.get());
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }
    serde_json::Deserializer::from_str(object).deserialize_map(Member(key))
}

/// Compares a key without keeping it.
struct Is<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

fn element(array: &str, index: i64) -> serde_json::Result<Option<&str>> {
    let index = match usize::try_from(index) {
        Ok(index) => index,
        Err(_) => {
            let from_end = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
            match length(array)?.and_then(|length| length.checked_sub(from_end)) {
                Some(index) => index,
                None => return Ok(None),
            }
        }
    };
    struct Element(usize);
    impl<'de> Visitor<'de> for Element {
        type Value = Option<&'de str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            for _ in 0..self.0 {
                if items.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(None);
                }
            }
            let found = items.next_element::<&RawValue>()?.map(RawValue::get);
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok(found)
        }
    }
    serde_json::Deserializer::from_str(array).deserialize_seq(Element(index))
}

/// The number of an array's elements, or of an object's keys; `None`: it is neither.
pub(super) fn length(text: &str) -> serde_json::Result<Option<usize>> {
    match text.as_bytes().first() {
        Some(b'[') => Ok(Some(serde_json::from_str::<Vec<IgnoredAny>>(text)?.len())),
        Some(b'{') => Ok(Some(keys(text)?.len())),
        _ => Ok(None),
    }
}

/// An object's keys, in their order.
pub(super) fn keys(object: &str) -> serde_json::Result<Vec<String>> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            let mut keys = Vec::new();
            while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                keys.push(key);
            }
            Ok(keys)
        }
    }
    serde_json::Deserializer::from_str(object).deserialize_map(Keys)
}

/// A value as text: a string without its quotes and escapes, anything else as it stands. `None`: it is null.
pub(super) fn as_text(value: &str) -> serde_json::Result<Option<String>> {
    match value.as_bytes().first() {
        Some(b'"') => Ok(Some(serde_json::from_str(value)?)),
        _ if value == "null" => Ok(None),
        _ => Ok(Some(value.to_string())),
    }
}

/// Reads `$.a."b c"['d'][0]`, SQL's path language as far as it names one value.
pub(super) fn parse(path: &str) -> Option<Vec<Step<'_>>> {
    let mut rest = path.trim().strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (inside, after) = bracket(after)?;
            steps.push(inside);
            rest = after;
        } else {
            rest = rest.strip_prefix('.')?;
            let (key, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
            };
            if key.is_empty() || key.contains(['*', '?', '@', '(', ' ']) && !rest.starts_with('"') {
                return None;
            }
            steps.push(Step::Key(Cow::Borrowed(key)));
            rest = after;
        }
    }
    Some(steps)
}

/// What stands between brackets, the first of which is taken off, and what follows them.
fn bracket(text: &str) -> Option<(Step<'_>, &str)> {
    let quote = text.chars().next().filter(|first| matches!(first, '\'' | '"'));
    if let Some(quote) = quote {
        let (key, after) = text[1..].split_once(quote)?;
        return Some((Step::Key(Cow::Borrowed(key)), after.strip_prefix(']')?));
    }
    let (index, after) = text.split_once(']')?;
    Some((Step::Index(index.trim().parse().ok()?), after))
}

/// Reads `{a,b,0}`, PostgreSQL's path: a number is an index in an array, and a key in an object.
pub(super) fn parse_braces(path: &str) -> Option<Vec<&str>> {
    let inside = path.trim().strip_prefix('{')?.strip_suffix('}')?;
    let parts = inside.split(',').filter(|part| !part.is_empty());
    Some(parts.map(|part| part.trim().trim_matches('"')).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(text: &str, path: &str) -> Option<String> {
        at(text, &parse(path).unwrap()).unwrap().map(str::to_string)
    }

    #[test]
    fn a_path_finds_the_text_as_it_stands() {
        let text = r#" {"a": {"b c": [1.50, {"d": "x\ny"}, null]}, "a.b": 12345678901234567890} "#;
        assert_eq!(get(text, "$.a.\"b c\"[0]").as_deref(), Some("1.50"));
        assert_eq!(get(text, "$['a']['b c'][1].d").as_deref(), Some(r#""x\ny""#));
        assert_eq!(get(text, "$.a[\"b c\"][-1]").as_deref(), Some("null"));
        assert_eq!(get(text, "$['a.b']").as_deref(), Some("12345678901234567890"));
        assert_eq!(get(text, "$").as_deref(), Some(text.trim()));
        for nothing in ["$.b", "$.a[0]", "$.a.\"b c\"[3]", "$.a.\"b c\"[-4]", "$.a.\"b c\".x"] {
            assert_eq!(get(text, nothing), None, "{nothing}");
        }
        assert_eq!(get(r#"{"a": 1, "a": 2}"#, "$.a").as_deref(), Some("2"));
        assert_eq!(get(r#"{"\u0061": 1}"#, "$.a").as_deref(), Some("1"));
    }

    #[test]
    fn paths_that_name_more_than_one_value_are_none() {
        for path in ["", "a", "$.", "$..a", "$.*", "$[*]", "$[", "$['a'", "$.a b", "$[1 to 2]", "$a"] {
            assert_eq!(parse(path), None, "{path}");
        }
        assert_eq!(parse_braces("{a, 0,\"b c\"}"), Some(vec!["a", "0", "b c"]));
        assert_eq!(parse_braces("a,b"), None);
    }

    #[test]
    fn what_is_no_json_is_an_error_wherever_the_path_leads() {
        for text in ["", "{", "{\"a\": 1}}", "[1,]", "nul"] {
            assert!(at(text, &[Step::Key("b".into())]).is_err(), "{text}");
        }
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(at(&deep, &[Step::Index(1)]).unwrap(), None);
    }
}
