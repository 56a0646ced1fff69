//! Which file is which: what is found in the folder against what has been read.
//!
//! A file is known by what was read of it: the hash of its first KiB and of the last KiB before the place where reading
//! stopped. A rename keeps its inode as well, a rotated copy its name. Times alone decide nothing.
//!
//! Invariant: a file that can't be told from one that was read begins with all of what was read of that one.

use serde::{Deserialize, Serialize};

/// As much at the start and before the end is compared.
pub const SAMPLE: usize = 1024;

/// What is remembered of a file: its position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub v: u32,
    /// Relative to the folder, as it was seen last.
    pub path: String,
    pub stamp: Stamp,
    /// Bytes of text that became records.
    pub at: u64,
    /// Lines among them.
    pub lines: u64,
    /// Of the first bytes, at most [`SAMPLE`] and `at`.
    pub head: String,
    /// Of the last bytes before `at`.
    pub tail: String,
    /// Its last line had no end when it was taken.
    #[serde(default)]
    pub open_end: bool,
    /// A packed file was read to its end.
    #[serde(default)]
    pub done: bool,
}

/// What the file system says of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub device: u64,
    pub inode: u64,
    /// When it was created, where the file system knows that; nanoseconds.
    pub born: Option<i64>,
    pub size: u64,
    /// Nanoseconds.
    pub modified: i64,
}

impl Stamp {
    fn is_same_file(&self, other: &Stamp) -> bool {
        let born = match (self.born, other.born) {
            (Some(own), Some(others)) => own == others,
            _ => true,
        };
        (self.device, self.inode) == (other.device, other.inode) && born
    }
}

/// A file in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub path: String,
    pub stamp: Stamp,
}

/// What a found file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Nothing was read of it.
    New,
    /// Another content was read at this path before.
    Rewritten,
    /// A known one, by its number.
    Known(u64),
    /// What stands under a rotated name while the file itself still holds it.
    Copy,
}

/// Matches all files that were found. `holds(path, entry)`: the file begins with what was read for the entry.
pub fn reconcile<E>(
    entries: &[(u64, &Entry)],
    found: &[Found],
    holds: &mut dyn FnMut(&str, &Entry) -> Result<bool, E>,
) -> Result<Vec<Match>, E> {
    let mut matches: Vec<Option<Match>> = vec![None; found.len()];
    let mut taken = std::collections::BTreeSet::new();
    let mut by_path: std::collections::BTreeMap<&str, (u64, &Entry)> = std::collections::BTreeMap::new();
    for (number, entry) in entries {
        by_path.insert(&entry.path, (*number, entry)); // the newest of a path is the last
    }
    for (file, matched) in found.iter().zip(&mut matches) {
        let Some((number, entry)) = by_path.get(file.path.as_str()) else { continue };
        if entry.stamp == file.stamp || holds(&file.path, entry)? {
            *matched = Some(Match::Known(*number));
            taken.insert(*number);
        }
    }
    for (file, matched) in found.iter().zip(&mut matches).filter(|(_, matched)| matched.is_none()) {
        for (number, entry) in entries.iter().rev() {
            if !taken.contains(number) && entry.stamp.is_same_file(&file.stamp) && holds(&file.path, entry)? {
                *matched = Some(Match::Known(*number));
                taken.insert(*number);
                break;
            }
        }
    }
    for (file, matched) in found.iter().zip(&mut matches).filter(|(_, matched)| matched.is_none()) {
        for (number, entry) in entries.iter().rev() {
            if entry.at > 0 && is_rotated(&entry.path, &file.path) && holds(&file.path, entry)? {
                // While the file still holds it, what is missing is read there.
                *matched = Some(if taken.contains(number) { Match::Copy } else { Match::Known(*number) });
                taken.insert(*number);
                break;
            }
        }
    }
    let left = |file: &Found| match by_path.get(file.path.as_str()) {
        Some((number, entry)) if !taken.contains(number) && entry.at > 0 => Match::Rewritten,
        _ => Match::New,
    };
    Ok(found.iter().zip(matches).map(|(file, matched)| matched.unwrap_or_else(|| left(file))).collect())
}

/// `app.log.1`, `app.log-20240101.gz` of `app.log`; `app.log.2.gz` of `app.log.1`.
fn is_rotated(old: &str, new: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let base = |path: &str| -> String {
        let plain = path.strip_suffix(".gz").or_else(|| path.strip_suffix(".zst")).unwrap_or(path);
        match plain.rsplit_once('.') {
            Some((base, number)) if is_number(number) => base.to_owned(),
            _ => plain.to_owned(),
        }
    };
    let base = base(old);
    new != old
        && new
            .strip_prefix(&base)
            .is_some_and(|rest| rest.starts_with(['.', '-', '_']) && !rest.contains('/'))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A folder in memory: what each file holds, and its inode.
    struct Folder(BTreeMap<&'static str, (u64, &'static str)>);

    impl Folder {
        fn found(&self) -> Vec<Found> {
            let each = self.0.iter().map(|(path, (inode, text))| {
                let stamp = Stamp { inode: *inode, size: text.len() as u64, ..Stamp::default() };
                Found { path: (*path).to_owned(), stamp }
            });
            each.collect()
        }
    }

    /// An entry whose head stands for all that was read of it.
    fn entry(path: &str, inode: u64, read: &str) -> Entry {
        let stamp = Stamp { inode, size: read.len() as u64, modified: 1, ..Stamp::default() };
        Entry { path: path.into(), stamp, at: read.len() as u64, head: read.into(), ..Entry::default() }
    }

    fn matched(entries: &[Entry], folder: &[(&'static str, u64, &'static str)]) -> Vec<Match> {
        let folder = Folder(folder.iter().map(|(path, inode, text)| (*path, (*inode, *text))).collect());
        let numbered: Vec<(u64, &Entry)> = (1..).zip(entries).collect();
        let mut holds = |path: &str, entry: &Entry| Ok::<_, ()>(folder.0[path].1.starts_with(&entry.head));
        reconcile(&numbered, &folder.found(), &mut holds).unwrap()
    }

    #[test]
    fn a_file_is_known_by_what_was_read_of_it() {
        let read = [entry("a.log", 1, "one\n")];
        assert_eq!(matched(&read, &[("a.log", 1, "one\ntwo\n")]), [Match::Known(1)], "grown");
        assert_eq!(
            matched(&read, &[("a.log", 9, "one\ntwo\n")]),
            [Match::Known(1)],
            "another inode, the same file"
        );
        assert_eq!(matched(&read, &[("a.log", 1, "new\n")]), [Match::Rewritten]);
        assert_eq!(matched(&read, &[("b.log", 2, "one\n")]), [Match::New], "equal content is no rename");
    }

    #[test]
    fn a_rotated_file_goes_on_under_its_new_name() {
        let read = [entry("a.log", 1, "one\n")];
        let renamed = [("a.log", 2, "three\n"), ("a.log.1", 1, "one\ntwo\n")];
        assert_eq!(matched(&read, &renamed), [Match::New, Match::Known(1)]);
        let truncated = [("a.log", 1, "three\n"), ("a.log.1", 2, "one\ntwo\n")];
        assert_eq!(matched(&read, &truncated), [Match::New, Match::Known(1)], "copytruncate");
        let copied = [("a.log", 1, "one\ntwo\n"), ("a.log.1", 2, "one\ntwo\n")];
        assert_eq!(matched(&read, &copied), [Match::Known(1), Match::Copy], "not truncated yet");
        let away = [("b.csv", 1, "one\ntwo\n")];
        assert_eq!(matched(&read, &away), [Match::Known(1)], "renamed");
        let reused = [("b.csv", 1, "two\n")];
        assert_eq!(matched(&read, &reused), [Match::New], "only its inode is used again");
    }

    #[test]
    fn each_entry_is_one_file() {
        let read = [entry("a.log", 1, "one\n"), entry("a.log.1", 2, "zero\n")];
        let rotated = [("a.log", 3, "two\n"), ("a.log.1", 1, "one\n"), ("a.log.2", 2, "zero\n")];
        assert_eq!(matched(&read, &rotated), [Match::New, Match::Known(1), Match::Known(2)]);
    }

    #[test]
    fn rotated_names_are_the_usual_ones() {
        for (old, new, expected) in [
            ("a.log", "a.log.1", true),
            ("a.log", "a.log-20240101", true),
            ("a.log", "a.log.1.gz", true),
            ("a.log.1", "a.log.2.gz", true),
            ("a.log.1", "a.log", false),
            ("a.log", "b.log.1", false),
            ("a.log", "a.log", false),
            ("in/a.log", "in/a.log.1", true),
            ("a", "a.b/c", false),
        ] {
            assert_eq!(is_rotated(old, new), expected, "{old} {new}");
        }
    }
}
