//! JSON: values into Arrow by a declared schema, and Arrow rows into refined values.
//!
//! Reading order: `decode` (the decoder), `object` (keys to columns), `value` and `number` (values into columns),
//! `builder` (columns that can be cut back); then `encode`, then `infer`.

mod builder;
mod decode;
mod encode;
mod infer;
mod number;
mod object;
#[cfg(test)]
mod properties;
mod value;

pub use decode::JsonDecoder;
pub use encode::{EncodeError, RowEncoder};
pub use infer::{Inferred, infer};
