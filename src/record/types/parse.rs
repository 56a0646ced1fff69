//! Reads a type's spelling, and says what was meant when it can't.
//!
//! Invariant: recursion ends at [`DEPTH_MAX`] levels, whatever the text.

use std::fmt;
use std::str::FromStr;

use super::{Type, TypeError};

/// The deepest nesting of arrays and structs.
pub(super) const DEPTH_MAX: usize = 32;

pub(super) const KNOWN: &[&str] = &[
    "bigint",
    "integer",
    "smallint",
    "double",
    "real",
    "boolean",
    "varchar",
    "decimal(p,s)",
    "date",
    "timestamp",
    "timestamp_ms",
    "timestamp_us",
    "timestamp_s",
    "bytea",
    "json",
    "<type>[]",
    "struct<name type, …>",
];

/// What other systems call our types, where spelling alone would suggest the wrong one.
const FOREIGN: &[(&str, &str)] = &[
    ("string", "varchar"),
    ("text", "varchar"),
    ("char", "varchar"),
    ("utf8", "varchar"),
    ("int", "integer"),
    ("int4", "integer"),
    ("int32", "integer"),
    ("int2", "smallint"),
    ("int16", "smallint"),
    ("tinyint", "smallint"),
    ("long", "bigint"),
    ("int8", "bigint"),
    ("int64", "bigint"),
    ("float", "real"),
    ("float4", "real"),
    ("float32", "real"),
    ("float8", "double"),
    ("float64", "double"),
    ("number", "double"),
    ("bool", "boolean"),
    ("numeric", "decimal(p,s)"),
    ("datetime", "timestamp"),
    ("timestamptz", "timestamp"),
    ("time", "timestamp"),
    ("binary", "bytea"),
    ("bytes", "bytea"),
    ("blob", "bytea"),
    ("jsonb", "json"),
    ("object", "struct<name type, …>"),
    ("map", "json"),
    ("list", "<type>[]"),
    ("uuid", "varchar"),
];

impl FromStr for Type {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Type, TypeError> {
        let mut parser = Parser { text, rest: text };
        let ty = parser.ty(0)?;
        parser.skip_space();
        match parser.rest {
            "" if height(&ty) > DEPTH_MAX => Err(TypeError::TooDeep),
            "" => Ok(ty),
            _ => Err(parser.expected("the end")),
        }
    }
}

/// Levels of the type. The parser bounds each way down; array suffixes on each of its levels add up.
fn height(ty: &Type) -> usize {
    match ty {
        Type::Array(item) => 1 + height(item),
        Type::Struct(fields) => 1 + fields.iter().map(|(_, ty)| height(ty)).max().unwrap_or(0),
        _ => 1,
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl Parser<'_> {
    fn ty(&mut self, depth: usize) -> Result<Type, TypeError> {
        if depth >= DEPTH_MAX {
            return Err(TypeError::TooDeep);
        }
        let name = self.word()?;
        let mut ty = match name.to_ascii_lowercase().as_str() {
            "bigint" => Type::BigInt,
            "integer" => Type::Integer,
            "smallint" => Type::SmallInt,
            "double" => Type::Double,
            "real" => Type::Real,
            "boolean" => Type::Boolean,
            "varchar" => Type::Varchar,
            "decimal" => self.decimal()?,
            "date" => Type::Date,
            "timestamp" => Type::Timestamp,
            "timestamp_ms" => Type::TimestampMs,
            "timestamp_us" => Type::TimestampUs,
            "timestamp_s" => Type::TimestampS,
            "bytea" => Type::Bytea,
            "json" => Type::Json,
            "array" => {
                self.require("<", "'<' and the type of the items")?;
                let item = self.ty(depth + 1)?;
                self.require(">", "'>'")?;
                Type::Array(Box::new(item))
            }
            "struct" => self.members(depth)?,
            lower => return Err(TypeError::Unknown { hint: nearest(lower), name }),
        };
        let mut suffixes = depth;
        while self.accept("[") {
            self.require("]", "']'")?;
            suffixes += 1;
            if suffixes >= DEPTH_MAX {
                return Err(TypeError::TooDeep);
            }
            ty = Type::Array(Box::new(ty));
        }
        Ok(ty)
    }

    /// `(precision,scale)` or `(precision)` for a scale of 0.
    fn decimal(&mut self) -> Result<Type, TypeError> {
        const EXAMPLE: &str = "digits and scale in brackets, as in decimal(10,2),";
        self.require("(", EXAMPLE)?;
        let precision = self.number(EXAMPLE)?;
        let scale = if self.accept(",") { self.number(EXAMPLE)? } else { 0 };
        self.require(")", "')'")?;
        if precision == 0 || precision > 38 || scale > precision {
            return Err(TypeError::Decimal { text: self.text.to_string() });
        }
        Ok(Type::Decimal { precision, scale })
    }

    fn members(&mut self, depth: usize) -> Result<Type, TypeError> {
        let mut fields: Vec<(String, Type)> = Vec::new();
        self.require("<", "'<' and the fields, as in struct<a bigint, b varchar>,")?;
        loop {
            let name = self.name()?;
            if fields.iter().any(|(earlier, _)| *earlier == name) {
                return Err(TypeError::DuplicateField { text: self.text.to_string(), name });
            }
            self.accept(":");
            fields.push((name, self.ty(depth + 1)?));
            if !self.accept(",") {
                break;
            }
        }
        self.require(">", "',' or '>'")?;
        Ok(Type::Struct(fields))
    }

    /// A field's name: a word, or anything in double quotes (a quote within is doubled).
    fn name(&mut self) -> Result<String, TypeError> {
        self.skip_space();
        let Some(mut quoted) = self.rest.strip_prefix('"') else { return self.word() };
        let mut name = String::new();
        loop {
            let Some((part, after)) = quoted.split_once('"') else {
                return Err(self.expected("a closing '\"'"));
            };
            name.push_str(part);
            match after.strip_prefix('"') {
                Some(more) => {
                    name.push('"');
                    quoted = more;
                }
                None => {
                    self.rest = after;
                    return Ok(name);
                }
            }
        }
    }

    fn word(&mut self) -> Result<String, TypeError> {
        self.skip_space();
        let end = self.rest.find(|c: char| !is_word(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.expected("a name"));
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word.to_string())
    }

    fn number(&mut self, expected: &'static str) -> Result<u8, TypeError> {
        self.skip_space();
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        if digits.is_empty() {
            return Err(self.expected(expected));
        }
        self.rest = rest;
        // More digits than a u8 holds are more than any decimal has.
        digits.parse().map_err(|_| TypeError::Decimal { text: self.text.to_string() })
    }

    fn accept(&mut self, token: &str) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn require(&mut self, token: &str, expected: &'static str) -> Result<(), TypeError> {
        if self.accept(token) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn expected(&self, expected: &'static str) -> TypeError {
        TypeError::Syntax { text: self.text.to_string(), rest: self.rest.to_string(), expected }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn nearest(name: &str) -> String {
    if let Some((_, ours)) = FOREIGN.iter().find(|(foreign, _)| *foreign == name) {
        return format!("; did you mean {ours}?");
    }
    let bare = |known: &'static str| known.split(['(', '<']).next().unwrap_or(known);
    KNOWN
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, bare(known)), *known))
        .filter(|(distance, known)| !bare(known).is_empty() && *distance <= 3.min(name.chars().count() / 2))
        .min()
        .map_or_else(String::new, |(_, known)| format!("; did you mean {known}?"))
}

/// A field's name as it is written: bare where it is one word, else in double quotes.
pub(super) struct Name<'a>(pub &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(is_word) {
            return f.write_str(self.0);
        }
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Type {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        text.parse::<Type>().expect_err(text).to_string()
    }

    #[test]
    fn every_spelling_of_the_contract_is_read() {
        for name in [
            "bigint",
            "integer",
            "smallint",
            "double",
            "real",
            "boolean",
            "varchar",
            "decimal(10,2)",
            "date",
            "timestamp",
            "timestamp_ms",
            "timestamp_us",
            "timestamp_s",
            "bytea",
            "json",
            "bigint[]",
            "struct<a bigint, b varchar>",
            "struct<a bigint[], b struct<c decimal(38,38)>>[][]",
        ] {
            assert_eq!(read(name).to_string(), name);
        }
        assert_eq!(read(" Array< BIGINT > "), Type::Array(Box::new(Type::BigInt)));
        assert_eq!(read("array<array<real>>").to_string(), "real[][]");
        assert_eq!(read("decimal( 5 )"), Type::Decimal { precision: 5, scale: 0 });
        assert_eq!(read("struct<a: bigint,b:date>").to_string(), "struct<a bigint, b date>");
        assert_eq!(read(r#"struct<"a ""b""" bigint>"#), Type::Struct(vec![("a \"b\"".into(), Type::BigInt)]));
    }

    #[test]
    fn an_unknown_type_is_answered_with_the_nearest_and_the_list() {
        let error = refused("bigit");
        assert!(error.contains("did you mean bigint?") && error.contains("timestamp_ms, "), "{error}");
        assert!(refused("string").contains("did you mean varchar?"));
        assert!(refused("timestmp").contains("did you mean timestamp?"));
        assert!(refused("decimel(3,1)").contains("did you mean decimal(p,s)?"));
        let error = refused("xyzzy");
        assert!(!error.contains("did you mean") && error.contains("the types are: bigint"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(refused("decimal").contains("decimal(10,2)"));
        assert!(refused("decimal(39,2)").contains("1 to 38"));
        assert!(refused("decimal(2,3)").contains("1 to 38"));
        assert!(refused("decimal(0,0)").contains("1 to 38"));
        assert!(refused("decimal(999,0)").contains("1 to 38"));
        assert!(refused("varchar(20)").contains("expected the end at '(20)'"));
        assert!(refused("struct<>").contains("expected a name"));
        assert!(refused("struct<a bigint, a date>").contains("names the field 'a' twice"));
        assert!(refused("array<bigint").contains("expected '>'"));
        assert!(refused("bigint[").contains("expected ']'"));
        assert!(refused("").contains("expected a name"));
        assert!(refused("struct<\"a bigint>").contains("closing"));
    }

    #[test]
    fn depth_is_bounded() {
        assert_eq!(refused(&"array<".repeat(100_000)), TypeError::TooDeep.to_string());
        assert_eq!(refused(&format!("bigint{}", "[]".repeat(100_000))), TypeError::TooDeep.to_string());
        assert_eq!(refused(&"struct<a ".repeat(100_000)), TypeError::TooDeep.to_string());
    }

    fn any_type() -> impl Strategy<Value = Type> {
        let leaf = prop_oneof![
            Just(Type::BigInt),
            Just(Type::TimestampMs),
            Just(Type::Json),
            Just(Type::Varchar),
            (1u8..=38).prop_flat_map(
                |precision| (0..=precision).prop_map(move |scale| Type::Decimal { precision, scale })
            ),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                inner.clone().prop_map(|item| Type::Array(Box::new(item))),
                prop::collection::vec(inner, 1..4).prop_flat_map(|types| {
                    prop::collection::btree_set(any::<String>(), types.len())
                        .prop_map(move |names| Type::Struct(names.into_iter().zip(types.clone()).collect()))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ty in any_type()) {
            prop_assert_eq!(ty.to_string().parse::<Type>(), Ok(ty));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a-z<>\\[\\](),:\" 0-9ä]{0,40}") {
            let _ = text.parse::<Type>();
        }
    }
}
