//! How deep an expression may be. The parser bounds brackets; `a or b or c …` makes a tree as deep as it is long without
//! any, and the planner, the checks here and later the evaluation go down it level by level.
//!
//! Invariant: no SQL that is parsed is deeper than [`LEVELS_TO_PARSE`], and none that is planned than [`LEVELS_MAX`];
//! `plan::parse` has a stack for the former, every thread that evaluates for the latter.

use datafusion_sql::sqlparser::keywords::Keyword;
use datafusion_sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use super::SqlProblem;

/// Of an expression that is planned: `a or b or c` has two.
pub(super) const LEVELS_MAX: usize = 256;
/// By the words between two commas, of which each level needs one at least.
const LEVELS_TO_PARSE: usize = 10_000;
/// An INTERVAL of an INTERVAL is the one thing that the parser goes down without a bound, on more stack than for others.
const INTERVAL_WORDS: usize = 20;

pub(super) const HELP: &str =
    "write a list, as in x in (1, 2, 3), or a column with a part of it in a view of its own";

pub(super) fn too_deep(place: Span) -> SqlProblem {
    SqlProblem::at(place, format!("an expression of more than {LEVELS_MAX} levels"), HELP)
}

/// Refuses what would make a deeper tree than can be walked, before there is a tree.
pub(super) fn check(tokens: &[TokenWithSpan]) -> Result<(), SqlProblem> {
    // By bracket: the words since the last comma.
    let mut open: Vec<usize> = Vec::new();
    let (mut here, mut outside, mut counted_as) = (0, 0, String::new());
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) => continue,
            Token::Comma => here = 0,
            Token::LParen | Token::LBracket | Token::LBrace => {
                open.push(here);
                outside += here;
                here = 1;
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                here = open.pop().unwrap_or_default();
                outside -= here;
                here += 1;
            }
            Token::Word(word) if word.keyword == Keyword::INTERVAL => {
                here += INTERVAL_WORDS;
                counted_as = format!(", of which INTERVAL counts as {INTERVAL_WORDS}");
            }
            _ => here += 1,
        }
        if outside + here > LEVELS_TO_PARSE {
            let message =
                format!("more than {LEVELS_TO_PARSE} words without a comma between them{counted_as}");
            return Err(SqlProblem::at(token.span, message, HELP));
        }
    }
    Ok(())
}
