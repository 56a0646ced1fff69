//! `init`: a first topology with its tests, a config and a few records, each of them commented, to edit.
//!
//! Invariant: nothing that exists is overwritten; either all files are written or none.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Printer, Result, ToolError};

const FILES: [(&str, &str); 4] = [
    ("topologies/example/example.yaml", include_str!("example.yaml")),
    ("topologies/example/orders.ndjson", include_str!("orders.ndjson")),
    ("topologies/example/example_test.yaml", include_str!("example_test.yaml")),
    (crate::config::DEFAULT_PATH, include_str!("headwater.yaml")),
];

#[derive(Serialize)]
struct Written<'a> {
    file: &'a Path,
}

/// Writes the example into `directory` and says what to do next.
pub fn init(directory: &Path, out: &mut Printer) -> Result<()> {
    let targets: Vec<(PathBuf, &str)> =
        FILES.iter().map(|(path, text)| (joined(directory, path), *text)).collect();
    if let Some((path, _)) = targets.iter().find(|(path, _)| path.exists()) {
        return Err(ToolError::input_with_help(
            format!("{} exists already, and init overwrites nothing", path.display()),
            "name another directory: headwater init DIR",
        ));
    }
    for (path, text) in &targets {
        write_new(path, text)?;
        if out.json() {
            out.object(&Written { file: path })?;
        } else {
            out.line(&format!("wrote {}", path.display()))?;
        }
    }
    if out.json() {
        return Ok(());
    }
    out.line("")?;
    out.line("Next:")?;
    if directory != Path::new(".") {
        out.line(&format!("  cd {}", directory.display()))?;
    }
    for step in [
        "  headwater check topologies/example/example.yaml",
        "  headwater test topologies",
        "  headwater topic produce example.orders topologies/example/orders.ndjson --partitions 1",
        "  headwater run topologies/example/example.yaml --until-end",
        "  headwater topic tail example.hourly_revenue",
    ] {
        out.line(step)?;
    }
    Ok(())
}

fn joined(directory: &Path, path: &str) -> PathBuf {
    if directory == Path::new(".") { PathBuf::from(path) } else { directory.join(path) }
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let what = || ToolError::io(format!("cannot write {}", path.display()));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(what())?;
    }
    let mut file = std::fs::File::create_new(path).map_err(what())?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(what())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::tool::printer::tests::Capture;

    #[test]
    fn what_is_written_can_be_read_and_is_never_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let output = Capture::default();
        init(directory.path(), &mut output.printer(false)).expect("written");
        assert!(output.text().contains("topologies/example/example.yaml"));

        let config = directory.path().join(crate::config::DEFAULT_PATH);
        assert_eq!(Config::load(Some(&config)).expect("a config"), Config::default());
        let orders = std::fs::read_to_string(directory.path().join(FILES[1].0)).expect("records");
        for line in orders.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        }

        std::fs::write(&config, "data_dir: mine\n").expect("written");
        std::fs::remove_file(directory.path().join(FILES[0].0)).expect("removed");
        let error = init(directory.path(), &mut output.printer(false)).expect_err("files are there");
        assert_eq!(error.exit_code(), 2);
        assert!(!directory.path().join(FILES[0].0).exists(), "all files or none");
        assert_eq!(std::fs::read_to_string(&config).expect("the file"), "data_dir: mine\n");
    }
}
