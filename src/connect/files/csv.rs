//! CSV as RFC 4180 has it: quotes begin a cell, a quote within is written twice, a quoted cell may hold lines.
//!
//! Invariant: a quote that never closes costs one line, not the rest of the file.

use std::ops::Range;

use super::rows::{Bad, Cut, line, member, quoted, trimmed};
use super::settings::{Csv, Encoding};
use crate::config::nearest;
use crate::connect::SourceError;
use crate::record::Type;

/// Where the buffer's first record ends.
pub fn cut(csv: &Csv, buffer: &[u8], at_end: bool, longest: usize) -> Option<Cut> {
    let first = line(buffer, at_end);
    if let Some(first) = first
        && !buffer[..first.bytes].contains(&csv.quote)
    {
        return Some(first);
    }
    let (mut in_quotes, mut cell_begins, mut lines) = (false, true, 0);
    let mut at = 0;
    while at < buffer.len() {
        let byte = buffer[at];
        at += 1;
        if byte == b'\n' {
            lines += 1;
            if !in_quotes {
                return Some(Cut { bytes: at, lines, broken: false });
            }
        } else if in_quotes {
            if byte == csv.quote {
                match buffer.get(at) {
                    Some(next) if *next == csv.quote => at += 1,
                    _ => in_quotes = false,
                }
            }
        } else if byte == csv.quote && cell_begins {
            in_quotes = true;
        }
        cell_begins = !in_quotes && byte == csv.delimiter;
    }
    // The quote never closes: what its line holds is lost, and not what follows.
    let endless = in_quotes && (at_end || buffer.len() > longest);
    match first {
        Some(first) if endless => Some(Cut { broken: true, ..first }),
        _ if at_end && !buffer.is_empty() => {
            Some(Cut { bytes: buffer.len(), lines: lines + 1, broken: false })
        }
        _ => None,
    }
}

/// One file's columns, and room for a row of it.
pub struct CsvRows {
    delimiter: u8,
    quote: u8,
    encoding: Encoding,
    null: Vec<Vec<u8>>,
    columns: Vec<Column>,
    /// By index into the columns.
    key: Vec<usize>,
    cells: Vec<u8>,
    ends: Vec<(usize, bool)>,
    spans: Vec<Range<usize>>,
}

struct Column {
    name: String,
    ty: Option<Type>,
}

impl CsvRows {
    pub fn new(csv: &Csv, key: &[String], header: Option<&[u8]>, place: &str) -> Result<Self, SourceError> {
        let mut rows = Self {
            delimiter: csv.delimiter,
            quote: csv.quote,
            encoding: csv.encoding,
            null: csv.nulls.iter().map(|text| text.clone().into_bytes()).collect(),
            columns: Vec::new(),
            key: Vec::new(),
            cells: Vec::new(),
            ends: Vec::new(),
            spans: Vec::new(),
        };
        let names = match header {
            Some(header) => rows.header(header, place)?,
            None => csv.names.clone(),
        };
        let has = |wanted: &String, what: &str| {
            names.iter().position(|name| name == wanted).ok_or_else(|| {
                let near = nearest(wanted, names.iter().map(String::as_str));
                let remedy = near.map_or_else(
                    || format!("its columns are: {}", names.join(", ")),
                    |near| format!("did you mean '{near}'?"),
                );
                SourceError::input(place, format!("{what} '{wanted}' is no column of this file"), remedy)
            })
        };
        rows.key = key.iter().map(|name| has(name, "the key")).collect::<Result<_, _>>()?;
        csv.types.keys().try_for_each(|name| has(name, "the typed column").map(|_| ()))?;
        rows.columns =
            names.into_iter().map(|name| Column { ty: csv.types.get(&name).cloned(), name }).collect();
        Ok(rows)
    }

    fn header(&mut self, header: &[u8], place: &str) -> Result<Vec<String>, SourceError> {
        let wrong = |what: String, remedy: &str| SourceError::input(format!("{place}:1"), what, remedy);
        let unreadable = |bad: Bad| {
            wrong(
                bad.message,
                "is it CSV, and is `delimiter` right? Without a line of names set header: false and names",
            )
        };
        self.split(trimmed(header)).map_err(unreadable)?;
        let mut names: Vec<String> = Vec::new();
        let mut start = 0;
        for (end, _) in self.ends.clone() {
            let name = self.text(&self.cells[start..end]).map_err(unreadable)?;
            start = end;
            let name = name.trim().to_owned();
            if name.is_empty() {
                let what = format!("column {} of the header has no name", names.len() + 1);
                return Err(wrong(what, "name it in the file, or set header: false and names"));
            }
            if names.contains(&name) {
                let what = format!("the header has '{name}' twice");
                return Err(wrong(what, "rename one of them in the file, or set header: false and names"));
            }
            names.push(name);
        }
        Ok(names)
    }

    fn text(&self, cell: &[u8]) -> Result<String, Bad> {
        match self.encoding {
            Encoding::Latin1 => Ok(cell.iter().map(|byte| char::from(*byte)).collect()),
            Encoding::Utf8 => match std::str::from_utf8(cell) {
                Ok(text) => Ok(text.to_owned()),
                Err(_) => Err(Bad::new("encoding", "a byte is no UTF-8; is it encoding: latin1?")),
            },
        }
    }

    /// Cuts a row into cells, their quotes taken off.
    fn split(&mut self, row: &[u8]) -> Result<(), Bad> {
        self.cells.clear();
        self.ends.clear();
        let mut rest = row;
        loop {
            let quoted = rest.first() == Some(&self.quote);
            if quoted {
                rest = self.quoted_cell(&rest[1..])?;
            } else {
                let end = rest.iter().position(|byte| *byte == self.delimiter).unwrap_or(rest.len());
                self.cells.extend_from_slice(&rest[..end]);
                rest = &rest[end..];
            }
            self.ends.push((self.cells.len(), quoted));
            match rest.split_first() {
                None => return Ok(()),
                Some((_, after)) => rest = after,
            }
        }
    }

    /// What follows a quoted cell: nothing, or a delimiter.
    fn quoted_cell<'a>(&mut self, mut rest: &'a [u8]) -> Result<&'a [u8], Bad> {
        let number = self.ends.len() + 1;
        loop {
            let Some(end) = rest.iter().position(|byte| *byte == self.quote) else {
                return Err(Bad::new(
                    "decode",
                    format!("the quote that opens cell {number} is never closed"),
                ));
            };
            self.cells.extend_from_slice(&rest[..end]);
            match rest.get(end + 1) {
                Some(next) if *next == self.quote => {
                    self.cells.push(self.quote);
                    rest = &rest[end + 2..];
                }
                Some(next) if *next != self.delimiter => {
                    return Err(Bad::new("decode", format!("cell {number} goes on after its closing quote")));
                }
                _ => return Ok(&rest[end + 1..]),
            }
        }
    }

    pub fn convert(&mut self, raw: &[u8], value: &mut Vec<u8>, key: &mut Vec<u8>) -> Result<bool, Bad> {
        let row = trimmed(raw);
        if row.trim_ascii().is_empty() {
            return Ok(false);
        }
        if self.encoding == Encoding::Utf8
            && let Err(error) = std::str::from_utf8(row)
        {
            let at = error.valid_up_to() + 1;
            return Err(Bad::new(
                "encoding",
                format!("byte {at} of the line is no UTF-8; is it encoding: latin1?"),
            ));
        }
        self.split(row)?;
        if self.ends.len() != self.columns.len() {
            let (found, expected) = (self.ends.len(), self.columns.len());
            return Err(Bad::new("fields", format!("{found} cells, and the header has {expected}")));
        }
        self.spans.clear();
        let mut start = 0;
        for (at, (column, (end, in_quotes))) in self.columns.iter().zip(&self.ends).enumerate() {
            let cell = &self.cells[start..*end];
            start = *end;
            member(value, at == 0, &column.name);
            let from = value.len();
            if !in_quotes && self.null.iter().any(|null| null == cell) {
                value.extend_from_slice(b"null");
            } else {
                match &column.ty {
                    None => quoted(value, &self.text(cell)?),
                    Some(ty) => typed(value, cell, ty, &column.name)?,
                }
            }
            self.spans.push(from..value.len());
        }
        value.push(b'}');
        for (at, column) in self.key.iter().enumerate() {
            member(key, at == 0, &self.columns[*column].name);
            key.extend_from_slice(&value[self.spans[*column].clone()]);
        }
        if !self.key.is_empty() {
            key.push(b'}');
        }
        Ok(true)
    }
}

/// Writes a cell as its column's type is in JSON.
fn typed(out: &mut Vec<u8>, cell: &[u8], ty: &Type, column: &str) -> Result<(), Bad> {
    let text = std::str::from_utf8(cell).unwrap_or_default().trim();
    let wrong = || Bad::new("type", format!("column '{column}': '{}' is no {ty}", shown(cell)));
    match ty {
        Type::BigInt
        | Type::Integer
        | Type::SmallInt
        | Type::TimestampMs
        | Type::TimestampUs
        | Type::TimestampS => {
            let number: i64 = text.parse().map_err(|_| wrong())?;
            let fits = match ty {
                Type::Integer => i32::try_from(number).is_ok(),
                Type::SmallInt => i16::try_from(number).is_ok(),
                _ => true,
            };
            if !fits {
                return Err(wrong());
            }
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Type::Double | Type::Real => {
            let number: f64 = text.parse().map_err(|_| wrong())?;
            if !number.is_finite() {
                return Err(wrong());
            }
            // As it is written where that is JSON: digits are not rounded here.
            match serde_json::from_str::<serde_json::Number>(text) {
                Ok(_) => out.extend_from_slice(text.as_bytes()),
                Err(_) => out.extend_from_slice(serde_json::json!(number).to_string().as_bytes()),
            }
        }
        Type::Boolean => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => out.extend_from_slice(b"true"),
            "false" | "f" | "0" => out.extend_from_slice(b"false"),
            _ => return Err(wrong()),
        },
        Type::Decimal { precision, scale } => {
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
            let numeric = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            let whole_digits = whole.trim_start_matches('0').len();
            let fits =
                whole_digits <= usize::from(precision - scale) && fraction.len() <= usize::from(*scale);
            if whole.is_empty() || !numeric(whole) || !numeric(fraction) || !fits {
                return Err(wrong());
            }
            quoted(out, text.strip_prefix('+').unwrap_or(text));
        }
        _ => return Err(wrong()),
    }
    Ok(())
}

/// As much of a cell as a message takes.
fn shown(cell: &[u8]) -> String {
    String::from_utf8_lossy(cell).chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LONGEST: usize = 1 << 20;

    fn rows(csv: &Csv, text: &str) -> Vec<Result<String, Bad>> {
        let mut rest = text.as_bytes();
        let mut made: Option<CsvRows> = None;
        let mut found = Vec::new();
        while let Some(cut) = cut(csv, rest, true, LONGEST) {
            let (record, after) = rest.split_at(cut.bytes);
            rest = after;
            let Some(rows) = &mut made else {
                made = Some(CsvRows::new(csv, &[], Some(record), "x.csv").unwrap());
                continue;
            };
            let (mut value, mut key) = (Vec::new(), Vec::new());
            match rows.convert(record, &mut value, &mut key) {
                Ok(true) => found.push(Ok(String::from_utf8(value).unwrap())),
                Ok(false) => {}
                Err(bad) => found.push(Err(bad)),
            }
        }
        found
    }

    #[test]
    fn quotes_hold_delimiters_lines_and_quotes() {
        let text = "a,b\r\n\"x, \"\"y\"\"\nz\",1\r\n\r\n,\"\"\r\nlast,no end";
        let found: Vec<String> = rows(&Csv::default(), text).into_iter().map(Result::unwrap).collect();
        assert_eq!(
            found,
            [r#"{"a":"x, \"y\"\nz","b":"1"}"#, r#"{"a":null,"b":""}"#, r#"{"a":"last","b":"no end"}"#]
        );
    }

    #[test]
    fn a_quote_that_never_closes_costs_its_line() {
        let found = rows(&Csv::default(), "a,b\n1,2\n\"x,3\n4,5\n6,7\n");
        assert_eq!(found.len(), 4);
        assert!(found[1].as_ref().unwrap_err().message.contains("never closed"));
        assert_eq!(found[3].as_ref().unwrap(), r#"{"a":"6","b":"7"}"#);
    }

    #[test]
    fn what_is_no_row_says_why() {
        let types = [
            ("n", Type::BigInt),
            ("d", Type::Decimal { precision: 4, scale: 2 }),
            ("f", Type::Double),
            ("t", Type::Boolean),
        ];
        let types = types.map(|(name, ty)| (name.to_owned(), ty)).into_iter().collect::<BTreeMap<_, _>>();
        let csv = Csv { types, nulls: vec!["".into(), "NA".into()], ..Csv::default() };
        let text = "n,d,f,t\n007,12.3,1.50,T\nNA,,.5,false\n1.7,1,1,1\n1,123.4,1,1\n1,1,NaN,1\n1,1,1,maybe\n1,2\n1,1,1,1\"\n\"1\"x,1,1,1\n";
        let found = rows(&csv, text);
        assert_eq!(found[0].as_ref().unwrap(), r#"{"n":7,"d":"12.3","f":1.50,"t":true}"#);
        assert_eq!(found[1].as_ref().unwrap(), r#"{"n":null,"d":null,"f":0.5,"t":false}"#);
        let messages: Vec<&str> =
            found[2..].iter().map(|bad| bad.as_ref().unwrap_err().message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "column 'n': '1.7' is no bigint",
                "column 'd': '123.4' is no decimal(4,2)",
                "column 'f': 'NaN' is no double",
                "column 't': 'maybe' is no boolean",
                "2 cells, and the header has 4",
                "column 't': '1\"' is no boolean",
                "cell 1 goes on after its closing quote",
            ]
        );
    }

    #[test]
    fn the_header_is_checked() {
        let new = |csv: &Csv, header: &str, key: &[String]| {
            CsvRows::new(csv, key, Some(header.as_bytes()), "x.csv")
                .err()
                .map(|error| format!("{error}; {}", error.remedy.clone().unwrap_or_default()))
        };
        let csv = Csv::default();
        assert_eq!(new(&csv, "a,b", &["b".into()]), None);
        assert!(new(&csv, "a,a", &[]).unwrap().contains("'a' twice"));
        assert!(new(&csv, "a,,b", &[]).unwrap().contains("column 2 of the header has no name"));
        assert!(new(&csv, "order_id,b", &["orderid".into()]).unwrap().contains("did you mean 'order_id'?"));
    }
}
