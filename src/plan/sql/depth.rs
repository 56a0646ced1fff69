//! How deep an expression may be. The parser bounds brackets; `a or b or c …` makes a tree as deep as it is long without
//! any, and the planner, the checks here and later the evaluation go down it level by level.
//!
//! Invariant: no SQL that is parsed is deeper than [`LEVELS_TO_PARSE`], and none that is planned than [`LEVELS_MAX`];
//! `plan::parse` has a stack for the former, every thread that evaluates for the latter.

use datafusion_sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use super::SqlProblem;

/// Of an expression that is planned: `a or b or c` has two.
pub(super) const LEVELS_MAX: usize = 256;
/// By the words between two commas, of which each level needs one at least.
const LEVELS_TO_PARSE: usize = 10_000;

/// Calls with a syntax of their own: where it does not fit, the parser reads them once more as ordinary ones, with all
/// that is in them, so that each within another doubles its work.
const READ_TWICE: [&str; 11] = [
    "array",
    "cast",
    "ceil",
    "convert",
    "floor",
    "overlay",
    "position",
    "safe_cast",
    "substr",
    "substring",
    "try_cast",
];
/// Of these within each other: some hundredths of a second.
const READ_TWICE_MAX: usize = 14;

const HELP: &str = "write a list, as in x in (1, 2, 3), or a column with a part of it in a view of its own";

pub(super) fn too_deep(place: Span) -> SqlProblem {
    SqlProblem::at(place, format!("an expression of more than {LEVELS_MAX} levels"), HELP)
}

/// Refuses what would make a deeper tree than can be walked, before there is a tree.
pub(super) fn check(tokens: &[TokenWithSpan]) -> Result<(), SqlProblem> {
    // By bracket: the words since the last comma, and whether what it is of may be read twice.
    let mut open: Vec<(usize, bool)> = Vec::new();
    let (mut here, mut outside, mut twice) = (0, 0, 0);
    let mut before = &Token::EOF;
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) => continue,
            Token::Comma => here = 0,
            Token::LParen | Token::LBracket | Token::LBrace => {
                let is_twice = is_read_twice(before);
                open.push((here, is_twice));
                outside += here;
                twice += usize::from(is_twice);
                here = 1;
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                let (words, is_twice) = open.pop().unwrap_or_default();
                here = words;
                outside -= words;
                twice -= usize::from(is_twice);
                here += 1;
            }
            _ => here += 1,
        }
        before = &token.token;
        if twice > READ_TWICE_MAX {
            let message = format!("more than {READ_TWICE_MAX} casts, or calls like them, within each other");
            return Err(SqlProblem::at(token.span, message, HELP));
        }
        if outside + here > LEVELS_TO_PARSE {
            let message = format!("more than {LEVELS_TO_PARSE} words without a comma between them");
            return Err(SqlProblem::at(token.span, message, HELP));
        }
    }
    Ok(())
}

fn is_read_twice(token: &Token) -> bool {
    match token {
        Token::Word(word) => {
            word.quote_style.is_none() && READ_TWICE.iter().any(|name| word.value.eq_ignore_ascii_case(name))
        }
        _ => false,
    }
}
