//! What is wrong with a topology file, pointing into it.
//!
//! Invariant: lines and columns are the file's, counted from 1 in characters, also for SQL inside a scalar.
//! Invariant: a problem is short, however long what it quotes.

use std::fmt;

/// More of a text that is quoted, or of a line, helps nobody.
const TEXT_LENGTH_MAX: usize = 600;
/// As many names are proposed.
const NAMES_MAX: usize = 20;
/// Longer names are not compared: that takes the product of their lengths.
const NAME_LENGTH_MAX: usize = 200;

/// All that is wrong with a file, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct PlanError {
    problems: Vec<Problem>,
}

impl PlanError {
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems.dedup();
        Self { problems }
    }

    /// At least one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    /// From 1; 0 when the problem is the file itself.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line as it stands in the file; empty where it is too long to be shown.
    pub source_line: String,
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message)?,
            line => write!(f, "{}:{line}:{}: {}", self.file, self.column, self.message)?,
        }
        if self.line > 0 && !self.source_line.is_empty() {
            let number = self.line.to_string();
            let margin = " ".repeat(number.len());
            // Tabs keep their width, so that the caret stands below its character.
            let indent: String = self
                .source_line
                .chars()
                .take(self.column - 1)
                .map(|character| if character == '\t' { '\t' } else { ' ' })
                .collect();
            write!(f, "\n{number} | {}\n{margin} | {indent}^", self.source_line)?;
        }
        match &self.help {
            Some(help) => write!(f, "\nhelp: {help}"),
            None => Ok(()),
        }
    }
}

/// A place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        Self { line: location.line() as usize, column: location.column() as usize }
    }
}

/// The file that problems point into.
pub struct SourceFile<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

impl SourceFile<'_> {
    pub fn problem(
        &self,
        place: impl Into<Place>,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Problem {
        let Place { line, column } = place.into();
        let source_line = match line.checked_sub(1) {
            Some(index) => lines(self.text).nth(index).unwrap_or_default(),
            None => "",
        };
        let column = column.clamp(1, source_line.chars().count() + 1);
        let shown = if source_line.len() > TEXT_LENGTH_MAX { "" } else { source_line };
        Problem {
            file: self.name.to_string(),
            line,
            column,
            source_line: shown.to_string(),
            message: shortened(message.into()),
            help: help.map(shortened),
        }
    }

    /// Where in the file the character at `line`, `column` of a scalar's value stands. `start` is where YAML
    /// says that the scalar begins.
    ///
    /// Folding and indentation only add or drop white space, so the n-th visible character of the value is the
    /// n-th of the source; that holds for block scalars of both kinds, plain scalars and, but for escapes that
    /// name a character by its code, quoted ones.
    pub fn inside(&self, value: &str, start: Place, line: usize, column: usize) -> Place {
        let before: usize = value
            .lines()
            .take(line)
            .enumerate()
            .map(|(index, text)| {
                let width = if index + 1 == line { column.saturating_sub(1) } else { usize::MAX };
                text.chars().take(width).filter(|character| !character.is_whitespace()).count()
            })
            .sum();
        let mut characters = self.after(start).into_iter().peekable();
        let quote = match characters.peek() {
            Some((_, '|' | '>')) => {
                while characters.next_if(|(place, _)| place.line == start.line).is_some() {}
                None
            }
            Some((_, quote @ ('\'' | '"'))) => {
                let quote = *quote;
                characters.next();
                Some(quote)
            }
            _ => None,
        };
        let mut seen = 0;
        let mut last = start;
        while let Some((place, character)) = characters.next() {
            if character.is_whitespace() {
                continue;
            }
            last = place;
            if seen == before {
                return place;
            }
            seen += 1;
            match quote {
                Some('\'') if character == '\'' => drop(characters.next_if(|(_, next)| *next == '\'')),
                Some('"') if character == '\\' => drop(characters.next()),
                _ => {}
            }
        }
        last
    }

    /// The file's characters with their places, from a place on.
    fn after(&self, start: Place) -> Vec<(Place, char)> {
        lines(self.text)
            .enumerate()
            .skip(start.line.saturating_sub(1))
            .flat_map(|(index, text)| {
                let line = index + 1;
                let skipped = if line == start.line { start.column.saturating_sub(1) } else { 0 };
                text.chars()
                    .enumerate()
                    .skip(skipped)
                    .map(move |(index, character)| (Place { line, column: index + 1 }, character))
            })
            .collect()
    }
}

/// The lines of a file as YAML counts them: a carriage return alone ends one, too.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// Without its middle, if it is long.
fn shortened(text: String) -> String {
    if text.len() <= TEXT_LENGTH_MAX {
        return text;
    }
    let half = TEXT_LENGTH_MAX / 2;
    let head = text.floor_char_boundary(half);
    let tail = text.ceil_char_boundary(text.len() - half);
    format!("{} … {}", &text[..head], &text[tail..])
}

/// "did you mean …?" with the nearest of the known names, then all of them.
pub fn suggest<'a>(
    wanted: &str,
    known: impl IntoIterator<Item = &'a str>,
    what_they_are: &str,
) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    if known.is_empty() {
        return None;
    }
    let mut listed = known.iter().take(NAMES_MAX).copied().collect::<Vec<_>>().join(", ");
    if known.len() > NAMES_MAX {
        listed.push_str(&format!(" and {} more", known.len() - NAMES_MAX));
    }
    let all = format!("{what_they_are} {listed}");
    Some(match nearest(wanted, &known) {
        Some(near) => format!("did you mean '{near}'? {all}"),
        None => all,
    })
}

pub(super) fn nearest<'a>(wanted: &str, known: &[&'a str]) -> Option<&'a str> {
    if wanted.len() > NAME_LENGTH_MAX {
        return None;
    }
    let wanted = wanted.to_lowercase();
    let near = |name: &&&str| strsim::damerau_levenshtein(&wanted, &name.to_lowercase());
    let best = known.iter().filter(|name| name.len() <= NAME_LENGTH_MAX).min_by_key(near)?;
    let limit = (wanted.chars().count() / 3).max(1);
    (strsim::damerau_levenshtein(&wanted, &best.to_lowercase()) <= limit).then_some(*best)
}
