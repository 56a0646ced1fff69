//! `headwater schema`.

use clap::Args;

use super::Global;
use crate::tool::Result;

const EXAMPLES: &str = "\
Example, for an editor that completes and checks YAML by a schema:
  headwater schema > headwater.schema.json
and as the first line of a topology:
  # yaml-language-server: $schema=headwater.schema.json";

/// Print the JSON Schema of topology files, or of their tests
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Schema {
    /// The schema of test files instead
    #[arg(long)]
    tests: bool,
}

impl Schema {
    pub fn run(self, global: &Global) -> Result<()> {
        let mut out = global.printer();
        crate::tool::check::print_schema(self.tests, &mut out)?;
        out.flush()
    }
}
