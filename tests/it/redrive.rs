//! Dead letters that go back, and dead letters that are deleted: as a user does it, on the embedded broker.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::project::Project;
use crate::support::within;

/// Revenue by hour, and shares, on which a zero is poison; `countries` are those that the check lets pass.
fn topology(name: &str, countries: &str) -> String {
    format!(
        "name: {name}
sources:
  orders:
    topic: {name}.orders
    format: json
    columns: {{id: bigint, country: varchar, amount: bigint, at: timestamp}}
    event_time: at
checks:
  orders:
    - {{name: known, expect: \"country in ({countries})\"}}
views:
  hourly: |
    select window_start, window_end, country, count(*) as orders, sum(amount) as amount
    from tumble(orders, at, interval '1 hour')
    group by window_start, window_end, country
  shares: select id, 100 / amount as share from orders where id = 4
sinks:
  hourly:
    topic: {{name: {name}.hourly, format: json, key: [country, window_start]}}
    lake: {{table: gold/{name}}}
  shares:
    topic: {{name: {name}.shares, format: json, key: [id]}}
"
    )
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn order(id: u32, country: &str, amount: u32, at: &str) -> String {
    format!("{{\"id\":{id},\"country\":\"{country}\",\"amount\":{amount},\"at\":\"2026-01-01T{at}:00Z\"}}\n")
}

fn produce(project: &Project, topic: &str, lines: &str) {
    let arguments = ["topic", "produce", topic, "--partitions", "1"];
    let outcome = project.run_with(&arguments, lines);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
}

/// The last line that a run to the ends prints of its counts.
fn run(project: &Project, file: &str) -> Value {
    let out = project.ok(&["run", file, "--until-end", "--json"]);
    objects(&out).pop().unwrap()
}

fn counts(moment: &Value) -> [u64; 5] {
    ["read", "refined", "filtered", "late", "dead"].map(|name| moment[name].as_u64().unwrap())
}

/// The outcomes of a redrive, by the original's offset.
fn outcomes(text: &str) -> BTreeMap<u64, String> {
    let each = objects(text).into_iter();
    each.map(|line| {
        (line["source"]["offset"].as_u64().unwrap(), line["outcome"].as_str().unwrap().to_owned())
    })
    .collect()
}

fn digest(project: &Project, file: &str) -> Value {
    objects(&project.ok(&["replay", file, "--json"]))[0]["digest"].clone()
}

#[test]
fn r12_a_redriven_record_counts_once_live_replayed_and_begun_anew() {
    let project = Project::new();
    std::fs::create_dir(project.path().join("config")).unwrap();
    project.write("config/headwater.yaml", "http: {listen: '127.0.0.1:0'}\n");
    let _server = project.broker();
    project.write("shop.yaml", &topology("shop", "'DE','AT'"));
    let records = [
        order(1, "DE", 5, "10:10"),
        // Dead by the check, but it moves the watermark: what follows is late.
        order(2, "XX", 7, "12:00"),
        order(5, "AT", 2, "10:40"),
        // The shares fail on it, the hourly revenue has it.
        order(4, "DE", 0, "12:05"),
        order(6, "YY", 1, "12:20"),
    ];
    produce(&project, "shop.orders", &records[..2].concat());
    // A value that is no JSON goes in as an envelope's text.
    let broken = "{\"key\":\"k3\",\"value\":\"{\\\"id\\\":3,\",\"encoding\":\"text\",\"headers\":[{\"name\":\"trace\",\"value\":\"abc\"}]}\n";
    let outcome = project.run_with(&["topic", "produce", "shop.orders", "--envelope"], broken);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    produce(&project, "shop.orders", &records[2..].concat());
    assert_eq!(counts(&run(&project, "shop.yaml")), [6, 1, 0, 1, 4]);

    // Corrected with any tool that knows JSON; what can't go back is said, what is not named stays.
    let letters = project.ok(&["dlq", "list", "shop", "--json"]);
    let mut edited = String::new();
    for mut letter in objects(&letters) {
        match letter["source"]["offset"].as_u64().unwrap() {
            1 => letter["value"] = serde_json::from_str(&order(2, "AT", 7, "12:00")).unwrap(),
            2 => letter["value"] = Value::from(order(3, "AT", 1, "12:10").trim()),
            4 => {}
            _ => continue,
        }
        edited.push_str(&format!("{letter}\n"));
    }
    let redrive = ["dlq", "redrive", "shop.yaml", "--edited", "-", "--json"];
    let dry = project.run_with(&[&redrive[..], &["--dry-run"]].concat(), &edited);
    assert_eq!(dry.code, 0, "{}", dry.err);
    assert_eq!(outcomes(&dry.out)[&1], "would_be_redriven");
    assert!(!project.ok(&["topic", "list"]).contains("shop.redriven"), "a dry run leaves nothing");
    let done = project.run_with(&redrive, &edited);
    assert_eq!(done.code, 0, "{}", done.err);
    let wanted = [(1, "redriven"), (2, "redriven"), (4, "refused")];
    assert_eq!(outcomes(&done.out), wanted.map(|(at, outcome)| (at, outcome.to_owned())).into());
    let why =
        objects(&done.out).into_iter().find_map(|line| line["why"].as_str().map(str::to_owned)).unwrap();
    assert!(why.contains("view 'shares'"), "{why}");

    let tail = objects(&project.ok(&["topic", "tail", "shop.orders", "-n", "2", "--json"]));
    let fixed = tail.iter().find(|record| record["key"] == "k3").unwrap();
    assert_eq!(fixed["value"]["amount"], 1);
    let header = |name: &str| {
        let headers = fixed["headers"].as_array().unwrap().iter();
        headers
            .filter(|header| header["name"] == name)
            .map(|header| header["value"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!((header("trace"), header("headwater.attempt")), (vec!["abc".into()], vec!["1".into()]));
    assert_eq!(header("headwater.redriven.offset"), ["2"]);
    assert_eq!(header("__connect.errors.topic"), [""; 0], "a record has no provenance of a death");

    // A second time does nothing.
    let again = project.run_with(&redrive, &edited);
    assert_eq!(outcomes(&again.out)[&1], "redriven_before");
    assert!(project.ok(&["dlq", "list", "shop"]).contains("  redriven  "));
    produce(&project, "shop.orders", &order(7, "DE", 1, "15:00"));
    assert_eq!(counts(&run(&project, "shop.yaml")), [9, 4, 0, 1, 4]);
    assert!(project.ok(&["verify", "shop.yaml"]).contains("0 differ"));
    let hourly = project.ok(&["topic", "tail", "shop.hourly", "--from-beginning"]);
    assert!(hourly.contains("\"country\":\"AT\",\"orders\":2,\"amount\":8"), "{hourly}");

    // Under a check that lets the originals pass they still count once, where they were redriven to.
    let lax = "'DE','AT','XX'";
    project.write("lax.yaml", &topology("shop", lax));
    project.write("other.yaml", &topology("other", lax));
    let moves_only = order(2, "ZZ", 7, "12:00");
    let others = [
        &records[0],
        &moves_only,
        &records[2],
        &records[3],
        &records[4],
        &order(2, "AT", 7, "12:00"),
        &order(3, "AT", 1, "12:10"),
        &order(7, "DE", 1, "15:00"),
    ];
    produce(&project, "other.orders", &others.map(String::as_str).concat());
    assert_eq!(digest(&project, "lax.yaml"), digest(&project, "other.yaml"));

    // So they do for a run that begins anew; what it has not read again yet is not redriven.
    project.ok(&["reset", "lax.yaml", "--to", "earliest"]);
    let early = project.ok(&["dlq", "redrive", "lax.yaml", "--reason", "check", "--json"]);
    assert_eq!(outcomes(&early)[&5], "refused");
    assert!(early.contains("has not read the original again"), "{early}");
    let moment = run(&project, "lax.yaml");
    assert_eq!(counts(&moment), [9, 4, 0, 1, 4]);
    assert!(project.ok(&["verify", "lax.yaml"]).contains("0 differ"));
    let hourly = project.ok(&["topic", "tail", "shop.hourly", "--from-beginning"]);
    assert!(!hourly.contains("XX"), "{hourly}");
    let redriven = project.ok(&["dlq", "redrive", "lax.yaml", "--reason", "check", "--json"]);
    assert_eq!(outcomes(&redriven)[&5], "redriven");
    // It dies once more: that is its second attempt.
    run(&project, "lax.yaml");
    let misspelt = project.ok(&["dlq", "list", "shop", "--reason", "chek"]);
    assert!(misspelt.starts_with("0 dead letters of the reason chek; of others "), "{misspelt}");
    let listed = project.ok(&["dlq", "list", "shop", "--reason", "check"]);
    assert!(listed.contains("  attempt 2  "), "{listed}");
}

const LETTERS: usize = 600;

#[test]
fn a_redrive_that_is_killed_or_overtaken_goes_on_where_it_was() {
    let project = Project::new();
    let _server = project.broker();
    let file = "name: t
sources:
  a: {topic: t.a, format: json, columns: {id: bigint}, max_reject_ratio: 1.0}
views:
  v: select id from a
sinks:
  v: {topic: {name: t.v, format: json}}
";
    project.write("t.yaml", file);
    std::fs::create_dir(project.path().join("config")).unwrap();
    project.write("config/headwater.yaml", "http: {listen: '127.0.0.1:0'}\n");
    let lines: String = (0..LETTERS).map(|n| format!("{{\"id\": \"{n}\"}}\n")).collect();
    produce(&project, "t.a", &lines);
    assert_eq!(counts(&run(&project, "t.yaml"))[4], LETTERS as u64);

    let done =
        |project: &Project| project.printed().0.lines().filter(|line| line.contains("back to")).count();
    for _ in 0..3 {
        let before = done(&project);
        let redrive = project.start(&["dlq", "redrive", "t.yaml", "--rate", "40"]);
        within(std::time::Duration::from_secs(60), "some letters to go back", || {
            std::thread::yield_now();
            (done(&project) > before).then_some(())
        });
        redrive.kill();
    }
    // One that is overtaken by another ends, and says so.
    let before = done(&project);
    let slow = project.start(&["dlq", "redrive", "t.yaml", "--rate", "20"]);
    within(std::time::Duration::from_secs(60), "some letters to go back", || {
        std::thread::yield_now();
        (done(&project) > before).then_some(())
    });
    let rest = project.ok(&["dlq", "redrive", "t.yaml"]);
    assert!(rest.contains(" redriven before"), "{rest}");
    let (code, _) = slow.wait(std::time::Duration::from_secs(60));
    let (_, err) = project.printed();
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("another redrive of topology 't' has begun"), "{err}");

    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for line in project.ok(&["topic", "tail", "t.a", "--from-beginning"]).lines() {
        *seen.entry(line.to_owned()).or_default() += 1;
    }
    assert_eq!(seen.len(), LETTERS);
    let odd: Vec<_> = seen.iter().filter(|(_, count)| **count != 2).collect();
    assert!(odd.is_empty(), "not the record and one redriven: {odd:?}");
    let last = project.ok(&["dlq", "redrive", "t.yaml"]);
    assert!(last.ends_with(&format!("0 dead letters redriven, {LETTERS} redriven before\n")), "{last}");
}

#[test]
fn a_purge_asks_first_and_cuts_only_from_the_start() {
    let project = Project::new();
    let _server = project.broker();
    std::fs::create_dir(project.path().join("config")).unwrap();
    project.write("config/headwater.yaml", "http: {listen: '127.0.0.1:0'}\n");
    project.write("shop.yaml", &topology("shop", "'DE'"));
    let records = [order(1, "XX", 1, "10:00"), "7\n".to_owned(), order(2, "XX", 1, "10:00")];
    produce(&project, "shop.orders", &records.concat());
    run(&project, "shop.yaml");
    let listed = || project.ok(&["dlq", "list", "shop", "--json"]).lines().count();
    assert_eq!(listed(), 3);

    let mixed = project.run(&["dlq", "purge", "shop", "--reason", "check", "--yes"]);
    assert_eq!(mixed.code, 2, "{}", mixed.out);
    assert!(
        mixed.err.contains("2 letters that match")
            && mixed.err.contains("--partition 0 alone takes all of them"),
        "{}",
        mixed.err
    );
    let unasked = project.run(&["dlq", "purge", "shop", "--offset", "0"]);
    assert_eq!(unasked.code, 2);
    assert!(
        unasked.err.contains("delete 1 dead letter of topology 'shop' for good, 1 of them never redriven?")
    );
    assert!(unasked.err.contains("--yes"), "{}", unasked.err);
    let dry = project.ok(&["dlq", "purge", "shop", "--dry-run"]);
    assert!(dry.ends_with("3 dead letters would be deleted\n"), "{dry}");
    assert_eq!(listed(), 3, "nothing is deleted by any of these");

    let first = project.ok(&["dlq", "purge", "shop", "--offset", "0", "--yes", "--json"]);
    assert_eq!((&objects(&first)[0]["letters"], &objects(&first)[0]["before"]), (&1.into(), &1.into()));
    assert_eq!(listed(), 2);
    assert_eq!(project.ok(&["dlq", "purge", "shop", "--before", "1d", "--yes"]), "0 dead letters deleted\n");
    let rest = project.ok(&["dlq", "purge", "shop.yaml", "--before", "0s", "--yes"]);
    assert!(rest.ends_with("2 dead letters deleted\n"), "{rest}");
    assert_eq!(listed(), 0);
    let none = project.run(&["dlq", "purge", "nope", "--yes"]);
    assert_eq!(none.code, 2, "{}", none.err);
    let named = project.run(&["dlq", "redrive", "shop"]);
    assert!(named.code == 2 && named.err.contains("redrive needs the topology's file"), "{}", named.err);
}

/// Sums by hour, and a ratio over them that a single order breaks.
const DERIVED: &str = "\
name: t
sources:
  orders: {topic: t.orders, format: json, columns: {id: bigint, country: varchar, at: timestamp}, event_time: at}
views:
  hourly: |
    select window_start, window_end, country, count(*) as orders
    from tumble(orders, at, interval '1 hour')
    group by window_start, window_end, country
  ratios: select window_start, country, 10 / (orders - 1) as ratio from hourly
sinks:
  ratios: {topic: {name: t.ratios, format: json, key: [country, window_start]}}
";

#[test]
fn a_row_of_several_records_that_dies_is_counted_beside_them_and_stays() {
    let project = Project::new();
    let _server = project.broker();
    std::fs::create_dir(project.path().join("config")).unwrap();
    project.write("config/headwater.yaml", "http: {listen: '127.0.0.1:0'}\n");
    project.write("t.yaml", DERIVED);
    let records = [
        order(1, "DE", 1, "10:00"),
        order(2, "DE", 1, "10:10"),
        order(3, "AT", 1, "10:20"),
        order(4, "DE", 1, "12:00"),
    ];
    produce(&project, "t.orders", &records.concat());
    let dead = |project: &Project| {
        assert_eq!(counts(&run(project, "t.yaml")), [4, 4, 0, 0, 0]);
        let status = objects(&project.ok(&["status", "t.yaml", "--json"])).remove(0);
        assert_eq!(status["balanced"], true);
        status["derived_dead"].as_u64().unwrap()
    };
    assert_eq!(dead(&project), 1);
    assert!(project.ok(&["status", "t.yaml"]).contains("1 row of several records failed in a later view"));
    // It names a record of the exchange that is there.
    let letter = objects(&project.ok(&["dlq", "list", "t", "--json"])).remove(0);
    let (topic, offset) =
        (letter["source"]["topic"].as_str().unwrap(), letter["source"]["offset"].as_i64().unwrap());
    assert_eq!(topic, "t.exchange.hourly");
    let exchange = objects(&project.ok(&["topic", "tail", topic, "--from-beginning", "--json"]));
    let is_it =
        |record: &Value| record["partition"] == letter["source"]["partition"] && record["offset"] == offset;
    assert!(exchange.iter().any(is_it), "{letter}");

    // A muted fold counts nothing again.
    std::fs::remove_dir_all(project.path().join(".headwater/state")).unwrap();
    std::fs::remove_dir_all(project.path().join(".headwater/checkpoints")).unwrap();
    assert_eq!(dead(&project), 1);
    let refused = project.ok(&["dlq", "redrive", "t.yaml"]);
    assert!(
        refused.contains("a row that was made of several records; correct the view and replay"),
        "{refused}"
    );
}
