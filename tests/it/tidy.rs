//! Tidiness is a test: the order of the rooms, who may name which library, and what a file looks like.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in reading order: a room imports only rooms before it.
const ROOMS: [&str; 16] = [
    "config", "record", "time", "broker", "log", "objects", "codec", "state", "operator", "plan", "lake",
    "engine", "connect", "serve", "tool", "cli",
];

/// Rooms that may import even less than the order allows: (room, all that it may import).
const NARROWER: [(&str, &[&str]); 9] = [
    ("record", &[]),
    ("time", &["record"]),
    ("broker", &["record"]),
    ("log", &["record"]),
    ("codec", &["record", "time"]),
    ("objects", &["config"]),
    ("state", &["record", "time", "objects"]),
    ("operator", &["record", "time", "codec", "state"]),
    // Of the broker: Kafka's names of topic configurations, and what their values may be.
    ("plan", &["record", "time", "broker", "codec", "state", "operator", "config"]),
];

const LINES_MAX: usize = 600;
const LINES_WISHED: usize = 400;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, as (path from the repository's root, text).
fn files(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(root()).unwrap().display().to_string(), text)
        })
        .collect()
}

/// A file's text without comments: what it says of other rooms is no import.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    lines.collect::<Vec<_>>().join("\n")
}

/// The names that follow `crate::` anywhere in the code, also within `use crate::{a::b, c}`.
fn rooms_named(code: &str) -> Vec<String> {
    let mut named = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            named.extend(first_names(group));
        } else {
            named.push(leading_name(rest));
        }
    }
    named
}

/// The first segment of each path of a `{…}` group whose opening brace has been taken off.
fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(leading_name(group[start..at].trim_start()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(leading_name(group[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

fn leading_name(path: &str) -> String {
    path.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

#[test]
fn rooms_are_found_in_every_form_of_a_path() {
    let named = rooms_named("use crate::{log::{Log, Run}, record, broker as b};\nlet x = crate::time::at();");
    assert_eq!(named, ["log", "record", "broker", "time"]);
}

#[test]
fn a_room_imports_only_rooms_before_it() {
    let mut wrong = Vec::new();
    for (path, text) in files("src") {
        let mut parts = path.split('/').skip(1);
        let room = parts.next().unwrap().trim_end_matches(".rs");
        let Some(place) = ROOMS.iter().position(|name| *name == room) else { continue };
        let allowed = NARROWER.iter().find(|(name, _)| *name == room).map_or(&ROOMS[..place], |(_, all)| all);
        // Unit tests may look around: what they need is not needed to build the room.
        let code = code(text.split("#[cfg(test)]\nmod ").next().unwrap());
        for named in rooms_named(&code) {
            if ROOMS.contains(&named.as_str()) && named != room && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{path} imports {named}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_library_at_a_border_is_named_in_one_place() {
    let borders: [(&str, &[&str]); 4] = [
        ("rdkafka", &["src/log/kafka", "tests/it/broker", "benches/"]),
        ("sled", &["src/state/sled", "tests/it/"]),
        ("kafka_protocol", &["src/broker/", "tests/it/broker", "benches/"]),
        ("axum", &["src/serve/"]),
    ];
    let mut wrong = Vec::new();
    for (path, text) in ["src", "tests", "benches"].into_iter().flat_map(files) {
        let code = code(&text);
        for (library, places) in borders {
            let used = code.match_indices(library).any(|(at, _)| {
                let before = code[..at].chars().next_back().unwrap_or(' ');
                let after = &code[at + library.len()..];
                !(before.is_ascii_alphanumeric() || before == '_' || before == ':' || before == '"')
                    && after.starts_with("::")
            });
            let own_module = code.contains(&format!("mod {library};"));
            if used && !own_module && !places.iter().any(|place| path.starts_with(place)) {
                wrong.push(format!("{path} names {library}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_says_why_it_exists_has_no_marks_and_is_short() {
    // Put together here, so that this file does not hold them.
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let mut wrong = Vec::new();
    for (path, text) in ["src", "tests", "benches"].into_iter().flat_map(files) {
        if !text.starts_with("//!") {
            wrong.push(format!("{path} does not open with //!"));
        }
        for (number, line) in text.lines().enumerate() {
            let marked = |mark: &String| {
                line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == mark.as_str())
            };
            if line.contains("//") && marks.iter().any(marked) {
                wrong.push(format!("{path}:{} holds a mark: do it or leave it", number + 1));
            }
        }
        let lines = text.lines().count();
        if lines > LINES_MAX && path.starts_with("src/") {
            wrong.push(format!("{path} has {lines} lines: it is two things"));
        } else if lines > LINES_WISHED {
            eprintln!("{path} has {lines} lines");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
