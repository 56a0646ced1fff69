//! Topology files: any text gives a plan, or problems that point into it. The SQL within is broken word by word, for
//! broken bytes seldom get past YAML; and there are files that are valid and too much (`topology_bombs.rs`).

use headwater::plan;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::mutate::mutate;
use super::{Target, files, topology_bombs};

/// A long message helps nobody.
const MESSAGE_LENGTH_MAX: usize = 1_500;
const WORDS: [&str; 96] = [
    "select ",
    " from ",
    " where ",
    " group by ",
    " having ",
    " and ",
    " or ",
    " not ",
    " is null",
    " is not null",
    " in (",
    "(",
    ")",
    ",",
    "*",
    " + ",
    " - ",
    " / ",
    " % ",
    " || ",
    "'",
    "\"",
    ";",
    "--",
    "/*",
    "*/",
    "::",
    "::bigint",
    "[1]",
    "count(*)",
    "count(distinct ",
    "sum(",
    "avg(",
    "min(",
    "max(",
    "first(",
    "last(",
    "case when ",
    " then ",
    " else ",
    " end",
    "cast(",
    " as ",
    "interval '1 hour'",
    "interval '",
    "tumble(",
    "date_bin(",
    "date_trunc('",
    "extract(year from ",
    "substring(",
    "coalesce(",
    "nullif(",
    "repeat('x', ",
    "lpad('x', ",
    "regexp_replace(",
    "struct(",
    "named_struct(",
    "make_array(",
    " between ",
    " like ",
    " similar to ",
    " union all ",
    " join ",
    " over ()",
    " filter (where ",
    "with x as (",
    "null",
    "true",
    "1",
    "-1",
    "9223372036854775807",
    "1e308",
    "0.1",
    "''",
    "'a'",
    "timestamp '2013-01-01'",
    "date '",
    "decimal(38,10)",
    "struct<a bigint>",
    "[]",
    "\n",
    "  ",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "|\n",
    ">\n",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "? ",
    "#",
];
const SEEDS: [&str; 15] = [
    include_str!("../golden/aggregates.yaml"),
    include_str!("../golden/broken.yaml"),
    include_str!("../golden/checks.yaml"),
    include_str!("../golden/decimals.yaml"),
    include_str!("../golden/distinct.yaml"),
    include_str!("../golden/extreme_times.yaml"),
    include_str!("../golden/first_last.yaml"),
    include_str!("../golden/idle.yaml"),
    include_str!("../golden/late.yaml"),
    include_str!("../golden/log_time.yaml"),
    include_str!("../golden/skewed.yaml"),
    include_str!("../golden/stateless.yaml"),
    include_str!("../golden/two_views.yaml"),
    include_str!("../golden/views_on_views.yaml"),
    include_str!("../../../src/tool/init/example.yaml"),
];

pub struct Topology {
    seeds: Vec<Vec<u8>>,
}

impl Topology {
    pub fn new() -> Self {
        Self { seeds: SEEDS.iter().map(|text| topology_of(text).into_bytes()).collect() }
    }
}

/// The topology of a golden case, which is a block scalar there; another file is one itself.
fn topology_of(text: &str) -> String {
    let Some((_, block)) = text.split_once("topology: |\n") else { return text.to_owned() };
    let lines = block.lines().take_while(|line| line.is_empty() || line.starts_with("  "));
    lines.map(|line| format!("{}\n", line.strip_prefix("  ").unwrap_or(line))).collect()
}

/// Words and signs, with the space after them.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = 0;
    let mut last = ' ';
    for (at, character) in text.char_indices() {
        let joined = |c: char| c.is_alphanumeric() || c == '_';
        if at > start && !(joined(last) && joined(character)) && character != ' ' {
            words.push(&text[start..at]);
            start = at;
        }
        last = character;
    }
    words.push(&text[start..]);
    words
}

fn mutate_words(text: &str, other: &str, random: &mut SmallRng) -> String {
    let mut words = words(text);
    let others = self::words(other);
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..words.len());
        match random.random_range(0..5) {
            0 => drop(words.remove(at)),
            1 => words.insert(at, WORDS[random.random_range(0..WORDS.len())]),
            2 => words[at] = others[random.random_range(0..others.len())],
            3 => {
                let to = random.random_range(0..words.len());
                words.swap(at, to);
            }
            _ => {
                let end = (at + random.random_range(1..8)).min(words.len());
                let part = words[at..end].to_vec();
                let times = [1, 1, 2, 20, 400][random.random_range(0..5)];
                words.splice(at..at, part.repeat(times));
            }
        }
        if words.is_empty() {
            break;
        }
    }
    words.concat()
}

impl Target for Topology {
    fn corpus(&self) -> Vec<Vec<u8>> {
        let mut all = files("topology");
        all.extend(self.seeds.iter().cloned());
        all.extend(topology_bombs::all());
        all
    }

    fn input(&self, random: &mut SmallRng) -> Vec<u8> {
        let seed = &self.seeds[random.random_range(0..self.seeds.len())];
        let other = &self.seeds[random.random_range(0..self.seeds.len())];
        if random.random_bool(0.7) {
            let (seed, other) = (String::from_utf8_lossy(seed), String::from_utf8_lossy(other));
            let mut text = mutate_words(&seed, &other, random);
            let mut end = text.len().min(64 << 10);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            return text.into_bytes();
        }
        let mut bytes = seed.clone();
        mutate(&mut bytes, other, &WORDS, random);
        bytes
    }

    fn run(&self, input: &[u8]) {
        // A file that is no text is refused when it is read.
        let text = String::from_utf8_lossy(input);
        match plan::parse(&text, "fuzz.yaml") {
            Ok(planned) => {
                assert!(!planned.sinks.is_empty() && !planned.stages.is_empty() && !planned.name.is_empty());
                assert!(!planned.fingerprint.is_empty());
            }
            Err(error) => {
                assert!(!error.problems().is_empty(), "an error without a problem");
                // As YAML counts them: a carriage return alone ends a line, too.
                let text = text.replace("\r\n", "\n").replace('\r', "\n");
                let lines: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
                for problem in error.problems() {
                    // The end of the file is behind its last line.
                    let count = lines.len() + 1;
                    assert!(
                        (1..=count).contains(&problem.line),
                        "line {} of {count}: {problem}",
                        problem.line
                    );
                    let width = lines.get(problem.line - 1).copied().unwrap_or(0);
                    assert!(
                        (1..=width + 1).contains(&problem.column),
                        "column {} of {width}: {problem}",
                        problem.column
                    );
                    let words = problem.message.len() + problem.help.as_ref().map_or(0, String::len);
                    assert!(
                        !problem.message.is_empty() && words <= MESSAGE_LENGTH_MAX,
                        "{words} bytes: {problem}"
                    );
                }
            }
        }
    }

    fn bytes_max(&self, input: &[u8]) -> usize {
        // An argument of two bytes becomes an expression of DataFusion's, several copies of which are alive while it is
        // planned: 1,600 bytes for each byte of a file that is all arguments, less for any other.
        let of_words = (1 << 20) + 2_048 * input.len();
        // A regular expression may take 10 MiB, and is compiled in several forms: 27 MB for a short one.
        let text = String::from_utf8_lossy(input).to_lowercase();
        let has_patterns = ["regexp", "similar", "like", "~"].iter().any(|word| text.contains(word));
        of_words + if has_patterns { 32 << 20 } else { 0 }
    }
}
