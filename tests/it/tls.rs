//! A broker behind TLS that asks for a password: the whole way of a topology, and what is said when it stays shut.
//!
//! The program that runs here has the feature `tls` where the tests are built with it, as CI builds them.

use crate::project::Project;
use crate::support::{SecureKafka, secure_kafka, unique};

const TOPOLOGY: &str = "name: NAME
sources:
  orders: {topic: NAME-in, format: json, columns: {id: bigint, at: timestamp}, event_time: at}
views:
  per_minute: |
    select window_start, window_end, count(*) as n from tumble(orders, at, interval '1 minute')
    group by window_start, window_end
sinks:
  per_minute: {topic: {name: NAME-out, format: json, key: [window_start]}}
";

fn config(kafka: &SecureKafka, password: &str, authority: &str) -> String {
    format!(
        "brokers: {}
kafka:
  security.protocol: SASL_SSL
  ssl.ca.location: {authority}
  sasl.mechanism: PLAIN
  sasl.username: headwater
  sasl.password: {password}
http: {{listen: '127.0.0.1:0'}}
",
        kafka.address
    )
}

#[test]
fn a_topology_runs_over_tls_with_a_password() {
    let Some(kafka) = secure_kafka() else { return };
    let project = Project::new();
    let name = unique("tls").replace('.', "-");
    project.write("t.yaml", &TOPOLOGY.replace("NAME", &name));
    project.write("c.yaml", &config(&kafka, "headwater-secret", &kafka.authority));
    let topic = format!("{name}-in");
    let lines: Vec<String> =
        (0..200).map(|id| format!(r#"{{"id":{id},"at":"2024-01-01T00:{:02}:00Z"}}"#, id / 4)).collect();
    let produce = ["topic", "produce", &topic, "--partitions", "2", "--config", "c.yaml"];
    let produced = project.run_with(&produce, &lines.join("\n"));
    assert_eq!(produced.code, 0, "{}", produced.err);
    let out = project.ok(&["run", "t.yaml", "--until-end", "--config", "c.yaml"]);
    assert!(out.contains("read 200 "), "{out}");
    let verified = project.ok(&["verify", "t.yaml", "--config", "c.yaml"]);
    assert!(verified.contains("EQUAL") && !verified.contains("DIFFERENT"), "{verified}");
}

#[test]
fn a_wrong_password_and_an_unknown_authority_are_told_apart() {
    let Some(kafka) = secure_kafka() else { return };
    let project = Project::new();
    let refused = |text: String| {
        project.write("c.yaml", &text);
        let outcome = project.run(&["topic", "list", "--config", "c.yaml"]);
        assert_eq!(outcome.code, 1, "{}", outcome.out);
        outcome.err
    };
    let err = refused(config(&kafka, "guessed", &kafka.authority));
    assert!(err.contains("Authentication failed"), "{err}");
    let strangers = "/etc/ssl/certs/ca-certificates.crt";
    if std::path::Path::new(strangers).exists() {
        let err = refused(config(&kafka, "headwater-secret", strangers));
        assert!(err.contains("certificate verify failed"), "{err}");
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_program_without_tls_says_how_to_get_it() {
    let project = Project::new();
    project.write("c.yaml", "brokers: 127.0.0.1:1\nkafka: {security.protocol: SASL_SSL}\n");
    let outcome = project.run(&["topic", "list", "--config", "c.yaml"]);
    assert_eq!(outcome.code, 1, "{}", outcome.out);
    assert!(outcome.err.contains("build it with --features tls"), "{}", outcome.err);
}
