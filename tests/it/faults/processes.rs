//! What only a process shows: signals, exit codes, a second one of the same instance, a broker that is away.

use super::*;
use crate::log_conformance::proxy::{LIST_OFFSETS, Proxy};
use crate::project::{Project, Running};
use crate::support::until;

/// Metrics on any port: other tests run topologies at the same time.
const CONFIG: &str = "worker: {threads: 2, epoch: 50ms}\nhttp: {listen: '127.0.0.1:0'}\n";

fn project() -> Project {
    let project = Project::new();
    project.write("faults.yaml", &topology(PLAIN));
    project.write("config.yaml", CONFIG);
    project
}

fn start(project: &Project, brokers: &str) -> Running {
    project.start(&["run", "faults.yaml", "--brokers", brokers, "--config", "config.yaml"])
}

fn produce(project: &Project, brokers: &str, lines: &[String]) {
    let arguments = ["topic", "produce", "in", "--partitions", "2", "--brokers", brokers];
    let outcome = project.run_with(&arguments, &lines.join("\n"));
    assert_eq!(outcome.code, 0, "{}", outcome.err);
}

fn await_read(log: &dyn Log, count: u64) {
    until(&format!("{count} records read"), || {
        std::thread::sleep(Duration::from_millis(10));
        (counters(log, "headwater.faults", "in").read == count).then_some(())
    });
}

#[test]
fn without_a_broker_it_says_so_within_seconds() {
    let began = Instant::now();
    let outcome = project().run(&["run", "faults.yaml", "--brokers", "127.0.0.1:1"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.err.starts_with("error: cannot reach 127.0.0.1:1"), "{}", outcome.err);
    assert!(outcome.err.contains("help: is the broker running"), "{}", outcome.err);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// A machine that sleeps, or is moved: what it asked before is too old when it wakes, and the broker was there all the time.
#[test]
fn a_process_that_stood_still_while_it_connected_asks_again() {
    let project = project();
    let server = project.broker();
    produce(&project, &server.address, &lines(0..5));
    // It does not answer until the other stands still.
    server.signal("-STOP");
    let running = project.start(&["topic", "list", "--brokers", &server.address]);
    std::thread::sleep(Duration::from_secs(2));
    running.signal("-STOP");
    server.signal("-CONT");
    std::thread::sleep(Duration::from_secs(6));
    running.signal("-CONT");
    let (code, _) = running.wait(Duration::from_secs(30));
    let (out, err) = project.printed();
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("in"), "{out}");
}

#[test]
fn signals_commit_and_leave_and_a_second_process_is_turned_away() {
    let project = project();
    let server = project.broker();
    let brokers = server.address.as_str();
    let log = connect(brokers);
    for (round, signal) in ["-TERM", "-INT"].into_iter().enumerate() {
        produce(&project, brokers, &lines(round as i64 * 500..round as i64 * 500 + 500));
        let running = start(&project, brokers);
        await_read(&*log, (round as u64 + 1) * 500);
        if round == 0 {
            let second = project.run(&["run", "faults.yaml", "--brokers", brokers]);
            assert_eq!(second.code, 1, "{}", second.out);
            assert!(second.err.contains("in use by another worker or process"), "{}", second.err);
        }
        running.signal(signal);
        let (code, took) = running.wait(Duration::from_secs(30));
        let (out, err) = project.printed();
        assert_eq!(code, 0, "{err}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(out.contains("stopped and committed after"), "{out}");
        assert!(!err.contains("error"), "{err}");
    }
    // It has left: the next one has the partitions at once, and all that was read is in the topics.
    let began = Instant::now();
    let outcome = project.run(&["run", "faults.yaml", "--until-end", "--brokers", brokers]);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert!(
        began.elapsed() < Duration::from_secs(9),
        "{:?}: it waited for a session to time out",
        began.elapsed()
    );
    assert_eq!(read_topic(&*log, "faults.rows").values().map(Vec::len).sum::<usize>(), 1000);
}

#[test]
fn a_broker_that_comes_back_is_waited_for_with_a_warning() {
    let project = project();
    let mut server = project.broker();
    let brokers = server.address.clone();
    let log = connect(&brokers);
    produce(&project, &brokers, &lines(0..500));
    let mut running = start(&project, &brokers);
    await_read(&*log, 500);
    server.kill();
    until("a warning", || {
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(running.ended(), None, "{}", project.printed().1);
        project.printed().1.contains(&format!("{brokers} does not answer; waiting")).then_some(())
    });
    let _server = project.broker_at(&brokers);
    produce(&project, &brokers, &lines(500..1000));
    await_read(&*log, 1000);
    assert_eq!(running.ended(), None, "{}", project.printed().1);
    running.signal("-TERM");
    assert_eq!(running.wait(Duration::from_secs(30)).0, 0, "{}", project.printed().1);
    assert_eq!(read_topic(&*log, "faults.rows").values().map(Vec::len).sum::<usize>(), 1000);
    // What was committed last may still lie in the exchange: a stopped topology leaves it there.
    project.ok(&["run", "faults.yaml", "--until-end", "--brokers", &brokers]);
    let verified = project.run(&["verify", "faults.yaml", "--brokers", &brokers]);
    assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
}

/// A process is waited for that stops, and takes its partitions to one that can't ask where they stand.
#[test]
fn partitions_come_to_a_process_while_brokers_do_not_answer() {
    let project = project();
    let server = project.broker();
    let proxy = Proxy::start(server.address.parse().unwrap());
    let log = connect(&server.address);
    produce(&project, &server.address, &lines(0..500));
    let first = start(&project, &server.address);
    await_read(&*log, 500);
    let (brokers, config) = (proxy.address.to_string(), ["--config", "config.yaml", "--data-dir", "second"]);
    let arguments = [&["run", "faults.yaml", "--brokers", &brokers], &config[..]].concat();
    let mut second = project.start(&arguments);
    let joined = || project.printed().0.matches("topology 'faults' runs").count() == 2;
    until("the second process", || joined().then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    proxy.keep(LIST_OFFSETS);
    first.signal("-TERM");
    assert_eq!(first.wait(Duration::from_secs(30)).0, 0, "{}", project.printed().1);
    until("a warning", || {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(second.ended(), None, "{}", project.printed().1);
        project.printed().1.contains("can't be taken over yet").then_some(())
    });
    proxy.pass(LIST_OFFSETS);
    produce(&project, &server.address, &lines(500..1000));
    await_read(&*log, 1000);
    second.signal("-TERM");
    assert_eq!(second.wait(Duration::from_secs(30)).0, 0, "{}", project.printed().1);
}

#[test]
fn closed_outputs_are_no_error() {
    let project = project();
    let server = project.broker();
    let brokers = server.address.as_str();
    produce(&project, brokers, &lines(0..100));
    for arguments in [
        &["run", "faults.yaml", "--until-end", "--brokers", brokers][..],
        &["run", "none.yaml", "--brokers", brokers],
    ] {
        let mut child = project
            .command(arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let code = child.wait().unwrap().code();
        assert_eq!(code, Some(if arguments[1] == "none.yaml" { 2 } else { 0 }), "{arguments:?}");
    }
}
