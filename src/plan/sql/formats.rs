//! The patterns of `to_char`: PostgreSQL's, made to those of strftime, which are taken as they are.
//!
//! Invariant: a letter that is no pattern is refused, never copied: `YYYY` in a thousand records is nobody's wish.

/// PostgreSQL's, the longer first, with strftime's for them.
const PATTERNS: [(&str, &str); 27] = [
    ("FMMonth", "%B"),
    ("FMDay", "%A"),
    ("HH24", "%H"),
    ("HH12", "%I"),
    ("IYYY", "%G"),
    ("YYYY", "%Y"),
    ("yyyy", "%Y"),
    ("DDD", "%j"),
    ("Mon", "%b"),
    ("AM", "%p"),
    ("PM", "%p"),
    ("am", "%P"),
    ("pm", "%P"),
    ("HH", "%I"),
    ("hh24", "%H"),
    ("IW", "%V"),
    ("ID", "%u"),
    ("MI", "%M"),
    ("mi", "%M"),
    ("MM", "%m"),
    ("MS", "%3f"),
    ("US", "%6f"),
    ("YY", "%y"),
    ("DD", "%d"),
    ("dd", "%d"),
    ("Dy", "%a"),
    ("SS", "%S"),
];

/// The format for strftime, or the part that is no pattern.
pub(super) fn strftime(format: &str) -> Result<String, String> {
    if format.contains('%') || format.is_empty() {
        return Ok(format.to_string());
    }
    let mut made = String::new();
    let mut rest = format;
    while let Some(first) = rest.chars().next() {
        // PostgreSQL fills it up with blanks; strftime cannot.
        if rest.starts_with("Month") {
            return Err("Month".to_string());
        }
        if let Some((pattern, meant)) = PATTERNS.iter().find(|(pattern, _)| rest.starts_with(pattern)) {
            made.push_str(meant);
            rest = &rest[pattern.len()..];
        } else if first == '"' {
            let (text, after) = rest[1..].split_once('"').ok_or_else(|| rest.to_string())?;
            made.push_str(text);
            rest = after;
        } else if first.is_alphanumeric() {
            let end = rest.find(|other: char| !other.is_alphanumeric()).unwrap_or(rest.len());
            return Err(rest[..end].to_string());
        } else {
            made.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_those_of_strftime() {
        for (pattern, meant) in [
            ("YYYY-MM-DD", "%Y-%m-%d"),
            ("YYYY-MM-DD\"T\"HH24:MI:SS.MS", "%Y-%m-%dT%H:%M:%S.%3f"),
            ("HH12:MI AM, Dy DD Mon YY", "%I:%M %p, %a %d %b %y"),
            ("IYYY-\"W\"IW", "%G-W%V"),
            ("%d.%m.%Y", "%d.%m.%Y"),
        ] {
            assert_eq!(strftime(pattern).as_deref(), Ok(meant), "{pattern}");
        }
        for (pattern, wrong) in
            [("YYYY-Month", "Month"), ("DD of MM", "of"), ("9999", "9999"), ("\"a", "\"a")]
        {
            assert_eq!(strftime(pattern), Err(wrong.to_string()), "{pattern}");
        }
    }
}
