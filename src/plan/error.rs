//! What is wrong with a topology file, pointing into it.
//!
//! Invariant: lines and columns are the file's, counted from 1 in characters, also for SQL inside a scalar.

use std::fmt;

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
    /// The line as it stands in the file.
    pub source_line: String,
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.file, self.message)?;
        } else {
            let number = self.line.to_string();
            let margin = " ".repeat(number.len());
            // Tabs keep their width, so that the caret stands below its character.
            let indent: String = self
                .source_line
                .chars()
                .take(self.column - 1)
                .map(|character| if character == '\t' { '\t' } else { ' ' })
                .collect();
            writeln!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
            writeln!(f, "{number} | {}", self.source_line)?;
            write!(f, "{margin} | {indent}^")?;
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
            Some(index) => self.text.lines().nth(index).unwrap_or_default().to_string(),
            None => String::new(),
        };
        let column = column.clamp(1, source_line.chars().count() + 1);
        Problem { file: self.name.to_string(), line, column, source_line, message: message.into(), help }
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
        self.text
            .lines()
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
    let listed = known.join(", ");
    let all = format!("{what_they_are} {listed}");
    Some(match nearest(wanted, &known) {
        Some(near) => format!("did you mean '{near}'? {all}"),
        None => all,
    })
}

pub(super) fn nearest<'a>(wanted: &str, known: &[&'a str]) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let near = |name: &&&str| strsim::damerau_levenshtein(&wanted, &name.to_lowercase());
    let best = known.iter().min_by_key(near)?;
    let limit = (wanted.chars().count() / 3).max(1);
    (strsim::damerau_levenshtein(&wanted, &best.to_lowercase()) <= limit).then_some(*best)
}
