//! Topology files, read from disk.

use std::path::Path;

use crate::plan::{Plan, PlanError, Problem, parse};

/// Reads a topology file.
pub fn load(path: &Path) -> Result<Plan, PlanError> {
    let file_name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &file_name),
        Err(error) => Err(PlanError::new(vec![Problem {
            file: file_name,
            line: 0,
            column: 0,
            source_line: String::new(),
            message: format!("cannot read the topology: {error}"),
            help: Some("a topology is given by its file; 'headwater init' writes an example".to_string()),
        }])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there() {
        let error = load(Path::new("nowhere/flights.yaml")).unwrap_err();
        let problem = &error.problems()[0];
        assert_eq!((problem.line, problem.file.as_str()), (0, "nowhere/flights.yaml"));
        assert!(error.to_string().starts_with("nowhere/flights.yaml: cannot read the topology: "), "{error}");
    }
}
