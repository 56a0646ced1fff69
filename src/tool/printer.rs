//! Where commands print: lines and tables for people, one JSON object a line with `--json`.

use std::io::{BufWriter, ErrorKind, Write};

use serde::Serialize;

use super::{Result, ToolError};
use crate::serve::text;

/// A command's standard output.
pub struct Printer {
    out: Box<dyn Write>,
    json: bool,
}

impl Printer {
    pub fn stdout(json: bool) -> Self {
        Self::new(Box::new(BufWriter::new(std::io::stdout().lock())), json)
    }
    pub fn new(out: Box<dyn Write>, json: bool) -> Self {
        Self { out, json }
    }

    /// Whether `--json` was given.
    pub fn json(&self) -> bool {
        self.json
    }

    pub fn line(&mut self, line: &str) -> Result<()> {
        self.bytes(line.as_bytes())
    }

    /// A line that need not be UTF-8: a record's value as it is.
    pub fn bytes(&mut self, line: &[u8]) -> Result<()> {
        self.out.write_all(line).and_then(|()| self.out.write_all(b"\n")).map_err(write_error)
    }

    pub fn object(&mut self, object: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec(object).map_err(|error| ToolError::Failed {
            message: format!("cannot write JSON: {error}"),
            help: None,
        })?;
        self.bytes(&text)
    }

    /// Columns as wide as their widest cell; columns of numbers stand to the right.
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>]) -> Result<()> {
        text::table(&mut self.out, header, rows).map_err(write_error)
    }

    /// What was printed is seen now: before waiting, and at the end.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(write_error)
    }
}

/// For rooms that write by themselves; they give the errors as they are.
impl Write for Printer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.out.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

fn write_error(source: std::io::Error) -> ToolError {
    match source.kind() {
        ErrorKind::BrokenPipe => ToolError::ClosedPipe,
        _ => ToolError::Io { what: "cannot write the output".to_owned(), source },
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A printer whose output can be read back.
    #[derive(Clone, Default)]
    pub struct Capture(Arc<Mutex<Vec<u8>>>);

    impl Write for Capture {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("one thread").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Capture {
        pub fn printer(&self, json: bool) -> Printer {
            Printer::new(Box::new(self.clone()), json)
        }
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("one thread").clone()).expect("UTF-8")
        }
    }

    #[test]
    fn a_closed_pipe_is_told_apart_from_a_failure() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let error = Printer::new(Box::new(Closed), false).line("x").expect_err("closed");
        assert_eq!(error.exit_code(), 0);
    }
}
