//! Patterns of paths: `*` and `?` within a name, `[a-z]`, and `**/` for any folders.
//!
//! Invariant: hidden files and folders match only where the pattern names the dot.

#[derive(Clone, Debug)]
pub struct Pattern {
    parts: Vec<String>,
}

impl Pattern {
    pub fn new(text: &str) -> Self {
        Self {
            parts: text
                .split('/')
                .filter(|part| !part.is_empty() && *part != ".")
                .map(str::to_owned)
                .collect(),
        }
    }

    pub fn is_pattern(part: &str) -> bool {
        part.contains(['*', '?', '['])
    }

    /// Whether files below other folders may match.
    pub fn is_deep(&self) -> bool {
        self.parts.len() > 1
    }

    /// `path` is relative, with `/` between its parts.
    pub fn matches(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        parts_match(&self.parts, &parts)
    }

    /// Whether a folder may hold what matches.
    pub fn may_hold(&self, folder: &str) -> bool {
        let parts: Vec<&str> = folder.split('/').collect();
        for (at, part) in parts.iter().enumerate() {
            match self.parts.get(at).map(String::as_str) {
                Some("**") => return !part.starts_with('.'),
                Some(pattern) if name_matches(pattern.as_bytes(), part.as_bytes()) => {}
                _ => return false,
            }
        }
        self.parts.len() > parts.len()
    }
}

fn parts_match(patterns: &[String], parts: &[&str]) -> bool {
    match (patterns.split_first(), parts.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "**" => {
            parts_match(rest, parts)
                || parts
                    .split_first()
                    .is_some_and(|(part, deeper)| !part.starts_with('.') && parts_match(patterns, deeper))
        }
        (Some((first, rest)), Some((part, deeper))) => {
            name_matches(first.as_bytes(), part.as_bytes()) && parts_match(rest, deeper)
        }
        _ => false,
    }
}

fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    text_matches(pattern, name)
}

/// Greedy, with one place to go back to: linear in practice, and never exponential.
fn text_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                back = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => class(&pattern[p..], text[t]),
            Some(byte) if *byte == text[t] => Some(1),
            _ => None,
        };
        match (step, back) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            (None, Some((after, from))) => {
                back = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// How long a class is that the byte is in; one without an end is a bracket.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let Some(end) = pattern.iter().skip(2).position(|byte| *byte == b']').map(|at| at + 2) else {
        return (byte == b'[').then_some(1);
    };
    let (not, set) = match &pattern[1..end] {
        [b'!' | b'^', rest @ ..] if !rest.is_empty() => (true, rest),
        set => (false, set),
    };
    let mut found = false;
    let mut at = 0;
    while at < set.len() {
        if let [from, b'-', to, ..] = &set[at..] {
            found |= (from..=to).contains(&&byte);
            at += 3;
        } else {
            found |= set[at] == byte;
            at += 1;
        }
    }
    (found != not).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_shells_match_them() {
        for (pattern, path, expected) in [
            ("*.csv", "a.csv", true),
            ("*.csv", "a.csv.gz", false),
            ("*.csv", "b/a.csv", false),
            ("*.csv", ".a.csv", false),
            (".*.csv", ".a.csv", true),
            ("**/*.csv", "a.csv", true),
            ("**/*.csv", "b/c/a.csv", true),
            ("**/*.csv", "b/.git/a.csv", false),
            ("2024-??/*.json*", "2024-01/x.jsonl", true),
            ("2024-??/*.json*", "2024-1/x.jsonl", false),
            ("app.log*", "app.log.1", true),
            ("[a-c]*.csv", "b1.csv", true),
            ("[!a-c]*.csv", "b1.csv", false),
            ("x[", "x[", true),
            ("*a*b*c", "aXbXc", true),
            ("*a*b*c", "aXbX", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(path), expected, "{pattern} {path}");
        }
        assert!(Pattern::new("in/**/*.csv").may_hold("in/x/y"));
        assert!(!Pattern::new("in/*.csv").may_hold("out"));
        assert!(!Pattern::new("*.csv").may_hold("in"));
    }
}
