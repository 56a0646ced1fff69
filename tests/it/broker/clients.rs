//! Clients that are not ours against the embedded broker: confluent-kafka in Python, and Kafka's own tools in Java.
//! Each is skipped, loudly, where it is not there.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/broker/clients.py");
const STACK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/kafka");

#[test]
fn confluent_kafka_in_python_does_all_it_does_with_a_kafka() {
    let python = std::env::var("HEADWATER_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import confluent_kafka"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED: {python} has no confluent_kafka (pip install confluent-kafka; HEADWATER_TEST_PYTHON names another)"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    let output = Command::new(python).args([SCRIPT, &broker.address().to_string()]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(text(&output.stdout), "all of it\n");
}

/// Kafka's tools, run against one broker.
struct Tools {
    address: String,
}

impl Tools {
    /// Runs a tool class; what it printed. It must succeed.
    fn run(&self, class: &str, arguments: &[&str], input: &str) -> String {
        let mut child = Command::new(STACK)
            .args(["tool", class, "--bootstrap-server", &self.address])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{class} {arguments:?}:\n{said}\n{errors}");
        format!("{said}{errors}")
    }
}

#[test]
fn the_tools_of_kafka_work_with_it() {
    for tool in ["java", "mvn"] {
        if Command::new(tool).arg("-version").output().is_err() {
            eprintln!("SKIPPED: no tools of Kafka without {tool}");
            return;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = start(folder.path());
    let tools = Tools { address: broker.address().to_string() };
    let topics = |arguments: &[&str]| tools.run("org.apache.kafka.tools.TopicCommand", arguments, "");
    topics(&["--create", "--topic", "tools", "--partitions", "3", "--config", "retention.ms=-1"]);
    let described = topics(&["--describe", "--topic", "tools"]);
    assert!(described.contains("PartitionCount: 3") && described.contains("retention.ms=-1"), "{described}");
    assert!(topics(&["--list"]).lines().any(|line| line == "tools"));

    let configs = |arguments: &[&str]| {
        let all = [&["--entity-type", "topics", "--entity-name", "tools"], arguments].concat();
        tools.run("kafka.admin.ConfigCommand", &all, "")
    };
    configs(&["--alter", "--add-config", "max.message.bytes=2000000"]);
    let described = configs(&["--describe"]);
    assert!(described.contains("max.message.bytes=2000000"), "{described}");

    let lines: String = (0..100).map(|number| format!("k{}\tvalue {number}\n", number % 5)).collect();
    let keyed = ["--topic", "tools", "--reader-property", "parse.key=true", "--compression-codec", "lz4"];
    tools.run("org.apache.kafka.tools.ConsoleProducer", &keyed, &lines);
    let consume = |group: &str, count: &str| {
        let arguments = [
            "--topic",
            "tools",
            "--from-beginning",
            "--group",
            group,
            "--max-messages",
            count,
            "--timeout-ms",
            "30000",
            "--isolation-level",
            "read_committed",
        ];
        tools.run("org.apache.kafka.tools.consumer.ConsoleConsumer", &arguments, "")
    };
    let consumed = consume("tools.group", "100");
    assert_eq!(consumed.lines().filter(|line| line.starts_with("value ")).count(), 100, "{consumed}");

    let groups = |arguments: &[&str]| {
        tools.run("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", arguments, "")
    };
    assert!(groups(&["--list"]).contains("tools.group"));
    let described = groups(&["--describe", "--group", "tools.group"]);
    assert!(described.contains("tools"), "{described}");
    let reset =
        ["--group", "tools.group", "--topic", "tools", "--reset-offsets", "--to-earliest", "--execute"];
    groups(&reset);
    let again = consume("tools.group", "100");
    assert_eq!(again.lines().filter(|line| line.starts_with("value ")).count(), 100, "{again}");

    // A transactional producer under load.
    let performance = [
        "--topic",
        "tools",
        "--num-records",
        "5000",
        "--record-size",
        "100",
        "--throughput",
        "-1",
        "--transactional-id",
        "tools.id",
        "--transaction-duration-ms",
        "50",
    ];
    let said = tools.run("org.apache.kafka.tools.ProducerPerformance", &performance, "");
    assert!(said.contains("5000 records sent"), "{said}");
    let counted = consume("tools.other", "5100");
    assert!(counted.contains("5100 messages"), "{}", counted.lines().last().unwrap_or_default());
    let offsets = tools.run("org.apache.kafka.tools.GetOffsetShell", &["--topic", "tools"], "");
    assert_eq!(offsets.lines().filter(|line| line.starts_with("tools:")).count(), 3, "{offsets}");
    groups(&["--delete", "--group", "tools.other"]);
    topics(&["--delete", "--topic", "tools"]);
    assert!(!topics(&["--list"]).lines().any(|line| line == "tools"));
}
