//! The parser's dialect, which counts what is read. Where an expression does not fit one syntax the parser goes back and
//! tries another, with all that is in it: each such level doubles its work, and many words begin one.
//!
//! Invariant: what does not parse is known not to after [`READS_PER_TOKEN`] beginnings of expressions for each token, and
//! some.

use std::any::TypeId;
use std::cell::Cell;
use std::iter::Peekable;
use std::str::Chars;

use datafusion_sql::sqlparser::ast::Expr;
use datafusion_sql::sqlparser::dialect::{Dialect, GenericDialect};
use datafusion_sql::sqlparser::parser::{Parser, ParserError};
use datafusion_sql::sqlparser::tokenizer::Token;

/// What parses takes two at most.
const READS_PER_TOKEN: usize = 8;
/// For few tokens: some hundredths of a second.
const READS_BEFORE: usize = 20_000;

/// More than `+` (30), less than `*` and the sign of a number (40): `j->-1->>'k'`.
const ARROWS: u8 = 36;
/// As in PostgreSQL more than `+`, but less than arrows.
const CONCAT: u8 = 35;
/// More than `=` and IS (20), less than `+` (30).
const CONTAINS: u8 = 25;

/// The generic dialect, whose parser gives up in time.
#[derive(Debug)]
pub(super) struct Bounded {
    left: Cell<usize>,
    /// The last place, by line and column, at which an expression began.
    furthest: Cell<(u64, u64)>,
}

impl Bounded {
    pub fn new(tokens: usize) -> Self {
        Self { left: Cell::new(READS_BEFORE + READS_PER_TOKEN * tokens), furthest: Cell::new((0, 0)) }
    }

    pub fn furthest(&self) -> (u64, u64) {
        self.furthest.get()
    }
}

/// As the generic dialect has them.
macro_rules! generic {
    ($($method:ident),* $(,)?) => {
        $(fn $method(&self) -> bool {
            GenericDialect.$method()
        })*
    };
}

impl Dialect for Bounded {
    fn dialect(&self) -> TypeId {
        GenericDialect.dialect()
    }

    fn parse_prefix(&self, parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        let place = parser.peek_token_ref().span.start;
        self.furthest.set(self.furthest.get().max((place.line, place.column)));
        self.left.set(self.left.get().saturating_sub(1));
        // The one error that no other syntax is tried after.
        (self.left.get() == 0).then_some(Err(ParserError::RecursionLimitExceeded))
    }

    /// JSON's arrows bind more than arithmetic and comparison do: `j->>'a' = 'x'` compares the text.
    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        match parser.peek_token_ref().token {
            Token::Arrow | Token::LongArrow | Token::HashArrow | Token::HashLongArrow => Some(Ok(ARROWS)),
            Token::StringConcat => Some(Ok(CONCAT)),
            Token::AtArrow | Token::ArrowAt => Some(Ok(CONTAINS)),
            _ => None,
        }
    }

    fn is_delimited_identifier_start(&self, character: char) -> bool {
        GenericDialect.is_delimited_identifier_start(character)
    }

    fn is_nested_delimited_identifier_start(&self, character: char) -> bool {
        GenericDialect.is_nested_delimited_identifier_start(character)
    }

    fn peek_nested_delimited_identifier_quotes(
        &self,
        text: Peekable<Chars<'_>>,
    ) -> Option<(char, Option<char>)> {
        GenericDialect.peek_nested_delimited_identifier_quotes(text)
    }

    /// `#` is of operators: `j#>'{a,b}'`.
    fn is_identifier_start(&self, character: char) -> bool {
        character != '#' && GenericDialect.is_identifier_start(character)
    }

    fn is_identifier_part(&self, character: char) -> bool {
        character != '#' && GenericDialect.is_identifier_part(character)
    }

    generic!(
        supports_unicode_string_literal,
        supports_partition_by_after_order_by,
        supports_array_join_syntax,
        supports_group_by_expr,
        supports_group_by_with_modifier,
        supports_left_associative_joins_without_parens,
        supports_connect_by,
        supports_match_recognize,
        supports_pipe_operator,
        supports_start_transaction_modifier,
        supports_window_function_null_treatment_arg,
        supports_dictionary_syntax,
        supports_window_clause_named_window_reference,
        supports_parenthesized_set_variables,
        supports_select_wildcard_except,
        support_map_literal_syntax,
        allow_extract_custom,
        allow_extract_single_quotes,
        supports_extract_comma_syntax,
        supports_create_view_comment_syntax,
        supports_parens_around_table_factor,
        supports_values_as_table_factor,
        supports_create_index_with_clause,
        supports_explain_with_utility_options,
        supports_limit_comma,
        supports_update_order_by,
        supports_from_first_select,
        supports_projection_trailing_commas,
        supports_asc_desc_in_column_definition,
        supports_try_convert,
        supports_bitwise_shift_operators,
        supports_comment_on,
        supports_load_extension,
        supports_named_fn_args_with_assignment_operator,
        supports_struct_literal,
        supports_empty_projections,
        supports_nested_comments,
        supports_multiline_comment_hints,
        supports_user_host_grantee,
        supports_string_escape_constant,
        supports_array_typedef_with_brackets,
        supports_match_against,
        supports_set_names,
        supports_comma_separated_set_assignments,
        supports_filter_during_aggregation,
        supports_select_wildcard_exclude,
        supports_data_type_signed_suffix,
        supports_interval_options,
        supports_quote_delimited_string,
        supports_select_wildcard_replace,
        supports_select_wildcard_ilike,
        supports_select_wildcard_rename,
        supports_optimize_table,
        supports_install,
        supports_detach,
        supports_prewhere,
        supports_with_fill,
        supports_limit_by,
        supports_interpolate,
        supports_settings,
        supports_select_format,
        supports_comment_optimizer_hint,
        supports_constraint_keyword_without_name,
        supports_key_column_option,
        supports_comma_separated_trim,
        supports_cte_without_as,
        supports_select_item_multi_column_alias,
        supports_xml_expressions,
    );
}
