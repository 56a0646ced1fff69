//! The documentation says what is there: its commands parse, its keys and metrics exist, and none is missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use headwater::config::Config;
use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// The pages for users, by path.
fn pages() -> Vec<(String, String)> {
    let mut paths = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned(), "CHANGELOG.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        paths.push(format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    for entry in std::fs::read_dir(root().join("topologies")).unwrap() {
        paths.push(format!("topologies/{}/README.md", entry.unwrap().file_name().to_str().unwrap()));
    }
    paths
        .into_iter()
        .filter(|path| root().join(path).exists())
        .map(|path| (path.clone(), read(&path)))
        .collect()
}

fn headwater(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_headwater")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// What stands between backticks in the first column of the tables whose header is `header`.
fn first_column(page: &str, header: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        match line.strip_prefix("| ").and_then(|row| row.split(" | ").next()) {
            Some(first) if first == header => inside = true,
            Some(first) if inside => {
                found.extend(first.split('`').skip(1).step_by(2).map(str::to_owned));
            }
            None if !line.starts_with('|') => inside = false,
            _ => {}
        }
    }
    assert!(!found.is_empty(), "no table of {header}");
    found
}

/// `headwater …` as it stands in a code block: up to a pipe, a redirection or what is explained beside it.
fn commands(page: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for block in page.split("```").skip(1).step_by(2) {
        for line in block.lines() {
            for part in line.trim_start_matches("$ ").split(" | ") {
                let Some(arguments) = part.strip_prefix("headwater ") else { continue };
                let arguments = arguments.split(['>', '#', '&']).next().unwrap_or_default();
                let arguments = arguments.split("  ").next().unwrap_or_default();
                found.push(arguments.split_whitespace().map(str::to_owned).collect());
            }
        }
    }
    found
}

#[test]
fn every_command_in_the_documentation_is_understood() {
    let mut seen = 0;
    for (path, page) in pages() {
        for command in commands(&page) {
            let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
            arguments.push("--help");
            let (code, out, err) = headwater(&arguments);
            assert_eq!(code, 0, "{path}: headwater {}\n{err}", command.join(" "));
            assert!(out.contains("Usage: headwater"), "{path}: headwater {}", command.join(" "));
            seen += 1;
        }
    }
    assert!(seen > 15, "{seen} commands");
}

#[test]
fn every_command_is_in_the_documentation() {
    let (_, help, _) = headwater(&["--help"]);
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let there: BTreeSet<String> = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(|name| format!("headwater {name}"))
        .collect();
    assert_eq!(first_column(&read("docs/operating.md"), "command"), there);
}

/// Paths of a schema's keys: `<>` for a name of the user's, `[]` for an element.
fn schema_keys(schema: &Value, defs: &Value, path: &str, found: &mut BTreeSet<String>) {
    let schema = match schema["$ref"].as_str() {
        Some(name) => &defs[name.rsplit('/').next().unwrap()],
        None => schema,
    };
    for choice in schema["anyOf"].as_array().into_iter().flatten() {
        if choice["type"] != "null" {
            return schema_keys(choice, defs, path, found);
        }
    }
    let at = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    if let Some(properties) = schema["properties"].as_object() {
        properties.iter().for_each(|(key, schema)| schema_keys(schema, defs, &at(key), found));
    } else if schema["additionalProperties"].is_object() {
        schema_keys(&schema["additionalProperties"], defs, &at("<>"), found);
    } else if schema["type"] == "array" && schema["items"]["$ref"].is_string() {
        schema_keys(&schema["items"], defs, &format!("{path}[]"), found);
    } else {
        found.insert(path.to_owned());
    }
}

#[test]
fn the_references_have_the_keys_of_the_schemas() {
    compare_with_schema("docs/topology.md", &["schema"]);
    compare_with_schema("docs/testing.md", &["schema", "--tests"]);
}

fn compare_with_schema(page: &str, command: &[&str]) {
    let (_, schema, _) = headwater(command);
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let mut there = BTreeSet::new();
    schema_keys(&schema, &schema["$defs"], "", &mut there);
    let unnamed = |key: &String| {
        let parts = key.split('<').enumerate().map(|(index, part)| match (index, part.split_once('>')) {
            (1.., Some((_, rest))) => format!("<>{rest}"),
            _ => part.to_owned(),
        });
        parts.collect::<String>()
    };
    let documented: BTreeSet<String> = first_column(&read(page), "key").iter().map(unnamed).collect();
    assert_eq!(documented, there, "{page}");
}

/// Paths of the config's keys, from how its default prints itself: a key a line, deeper ones further in.
fn config_keys() -> BTreeSet<String> {
    let printed = format!("{:#?}", Config::default());
    let mut path: Vec<&str> = Vec::new();
    let mut found = BTreeSet::new();
    for line in printed.lines().skip(1) {
        let depth = line.len() - line.trim_start().len();
        let Some((key, value)) = line.trim().split_once(": ") else { continue };
        path.truncate(depth / 4 - 1);
        path.push(key);
        let is_section = value.ends_with('{') && value.starts_with(char::is_uppercase);
        if !is_section {
            found.insert(path.join("."));
        }
    }
    found
}

#[test]
fn the_config_keys_are_documented_and_their_defaults_are_those() {
    let page = read("docs/operating.md");
    assert_eq!(first_column(&page, "key"), config_keys());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("headwater.yaml");
    let mut checked = 0;
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [key, _, default] = cells[..] else { continue };
        let (key, default) = (key.trim_matches('`'), default.trim_matches('`'));
        if !config_keys().contains(key) || default.contains([' ', '<']) || default.is_empty() {
            continue;
        }
        let yaml = match key.split_once('.') {
            Some((section, key)) => format!("{section}:\n  {key}: {default}\n"),
            None => format!("{key}: {default}\n"),
        };
        std::fs::write(&file, &yaml).unwrap();
        assert_eq!(Config::load(Some(&file)).unwrap(), Config::default(), "{yaml}");
        checked += 1;
    }
    assert!(checked > 5, "{checked} defaults");
}

#[test]
fn the_metrics_are_documented() {
    let code = read("src/serve/metrics.rs");
    let there: BTreeSet<String> = code
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("headwater_") && !text.contains(' '))
        .map(str::to_owned)
        .collect();
    let documented: BTreeSet<String> = first_column(&read("docs/operating.md"), "metric")
        .iter()
        .map(|name| name.split('{').next().unwrap().to_owned())
        .collect();
    assert_eq!(documented, there);
}

/// All source code in one text, strings over several lines joined.
fn code() -> String {
    fn walk(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, text),
                false => text.push_str(&std::fs::read_to_string(&path).unwrap()),
            }
        }
    }
    let mut text = String::new();
    walk(&root().join("src"), &mut text);
    text.split("\\\n").map(str::trim_start).collect()
}

#[test]
fn errors_that_are_explained_are_those_that_are_said() {
    let code = code();
    for said in first_column(&read("docs/operating.md"), "what it says") {
        assert!(code.contains(&said), "no error says: {said}");
    }
}

#[test]
fn each_alert_has_an_action() {
    let rules = read("deploy/prometheus/headwater.yml");
    let there: BTreeSet<String> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned)).collect();
    assert_eq!(first_column(&read("docs/operating.md"), "alert"), there);
}

#[test]
fn links_lead_to_files_that_are_there() {
    for (path, page) in pages() {
        let folder = root().join(&path).parent().map(Path::to_path_buf).unwrap();
        for link in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if !file.is_empty() && !link.contains("://") {
                assert!(folder.join(file).exists(), "{path} links to {link}");
            }
        }
    }
}
