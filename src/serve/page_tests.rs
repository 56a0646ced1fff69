//! What a browser gets, and what others do not: the page's files, who is answered, and what one client can take.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::http::ClientLimits;
use super::tests::{Cluster, keyed_plan};
use super::{Server, Watched, assets};
use crate::engine::Progress;

const PATIENCE: Duration = Duration::from_secs(30);

fn start(cluster: &Cluster, listen: &str, limits: ClientLimits) -> Server {
    let watched =
        Watched { plan: keyed_plan(), log: Arc::clone(&cluster.log), progress: Progress::default() };
    Server::start_within(listen, Arc::new(watched), limits).unwrap()
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All that comes until the server closes the connection.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // It closed with bytes of ours unread.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server did not close the connection: {error}"),
    }
    String::from_utf8(bytes).unwrap()
}

/// The status, the head and the body.
fn ask(server: &Server, first_line: &str, host: &str) -> (u16, String, String) {
    let mut stream = connect(server);
    write!(stream, "{first_line}\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let answer = rest(&mut stream);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{first_line}: {answer}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

#[test]
fn the_page_comes_from_the_program_alone_and_loads_nothing_from_elsewhere() {
    let cluster = Cluster::start();
    let server = start(&cluster, "127.0.0.1:0", ClientLimits::default());
    for (path, kind, text) in assets::FILES {
        let (status, head, body) = ask(&server, &format!("GET {path} HTTP/1.1"), "localhost");
        assert_eq!((status, body.as_str()), (200, text), "{path}");
        assert!(!text.is_empty() && head.contains(&format!("content-type: {kind}")), "{head}");
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(head.contains(header), "{path} has no {header}: {head}");
        }
        assert!(!head.contains("access-control-allow-origin"), "{head}");
    }
    let (_, _, html) = ask(&server, "GET / HTTP/1.1", "localhost");
    for (_, rest) in html
        .match_indices("href=\"")
        .chain(html.match_indices("src=\""))
        .map(|(at, name)| (at, &html[at + name.len()..]))
    {
        let path = rest.split('"').next().unwrap();
        assert!(assets::FILES.iter().any(|(file, ..)| *file == path), "the page asks for {path}");
    }
    assert!(
        !html.contains("<style") && !html.contains("<script>"),
        "the policy refuses what stands in the page"
    );
    let (status, head, _) = ask(&server, "GET /api/v1/topologies HTTP/1.1", "localhost");
    assert!(status == 200 && head.contains("nosniff") && head.contains("cache-control: no-store"), "{head}");
}

#[test]
fn a_page_elsewhere_that_gave_itself_this_address_is_not_answered() {
    let cluster = Cluster::start();
    let server = start(&cluster, "127.0.0.1:0", ClientLimits::default());
    let port = server.address().port();
    for path in ["/", "/page.js", "/api/v1/topologies", "/api/v1/topologies/orders/status", "/nothing"] {
        let first = format!("GET {path} HTTP/1.1");
        let (status, head, body) = ask(&server, &first, &format!("evil.example:{port}"));
        assert_eq!(status, 403, "{path}");
        assert!(
            body.contains("Host header") && head.contains("nosniff") && !body.contains("orders"),
            "{body}"
        );
        assert_ne!(ask(&server, &first, &format!("localhost:{port}")).0, 403, "{path}");
    }
    // Monitoring knows this machine by names of its own.
    for path in ["/metrics", "/healthz"] {
        assert_eq!(ask(&server, &format!("GET {path} HTTP/1.1"), "headwater:9464").0, 200, "{path}");
    }
    assert_eq!(ask(&server, &format!("GET http://evil.example:{port}/ HTTP/1.1"), "localhost").0, 403);
}

#[test]
fn there_is_no_way_out_of_the_pages_files() {
    let cluster = Cluster::start();
    let server = start(&cluster, "127.0.0.1:0", ClientLimits::default());
    for path in [
        "/../Cargo.toml",
        "/..%2fCargo.toml",
        "/%2e%2e/Cargo.toml",
        "/page.js/../../Cargo.toml",
        "//etc/passwd",
        "/page.js%00",
        "/.%252e/Cargo.toml",
        "/api/v1/topologies/..%2f..%2fetc%2fpasswd",
        "/api/v1/topologies/%ff",
        "/api/v1/topologies/orders/../../../etc/passwd",
    ] {
        let (status, _, body) = ask(&server, &format!("GET {path} HTTP/1.1"), "localhost");
        assert!(matches!(status, 400 | 404), "{path}: {status}");
        assert!(!body.contains("[package]") && !body.contains("root:"), "{path}: {body}");
    }
}

#[test]
fn the_page_only_reads() {
    let cluster = Cluster::start();
    let server = start(&cluster, "127.0.0.1:0", ClientLimits::default());
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        for path in ["/", "/api/v1/topologies", "/api/v1/topologies/orders", "/metrics"] {
            let (status, ..) = ask(&server, &format!("{method} {path} HTTP/1.1"), "localhost");
            assert_eq!(status, 405, "{method} {path}");
        }
    }
    // 10 MB of a body are not read.
    let mut stream = connect(&server);
    write!(stream, "POST /api/v1/topologies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n")
        .unwrap();
    let piece = [b'x'; 1 << 16];
    let refused = (0..160).any(|_| stream.write_all(&piece).is_err());
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 405") || (refused && answer.is_empty()), "{answer}");
}

#[test]
fn a_request_that_is_too_long_is_refused() {
    let cluster = Cluster::start();
    let server = start(&cluster, "127.0.0.1:0", ClientLimits::default());
    let long = "x".repeat(64 << 10);
    for request in [
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "a: b\r\n".repeat(5_000)),
    ] {
        let mut stream = connect(&server);
        let cut = stream.write_all(request.as_bytes()).is_err();
        let answer = rest(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 4") || (cut && answer.is_empty()), "{answer}");
        assert!(!answer.contains("<!doctype"), "{answer}");
    }
    assert_eq!(ask(&server, "GET / HTTP/1.1", "localhost").0, 200);
}

#[test]
fn slow_clients_are_let_go_and_leave_room_for_others() {
    let cluster = Cluster::start();
    let limits = ClientLimits {
        connections_max: 2,
        request_patience: Duration::from_millis(300),
        connection_age_max: Duration::from_millis(900),
        last_answer_patience: Duration::from_millis(300),
        ..ClientLimits::default()
    };
    let server = start(&cluster, "127.0.0.1:0", limits);
    // One sends nothing, one a line that does not end: together they are all that may be connected.
    let mut silent = connect(&server);
    let mut dripping = connect(&server);
    write!(dripping, "GET / HT").unwrap();
    let began = Instant::now();
    assert_eq!(ask(&server, "GET /healthz HTTP/1.1", "localhost").0, 200);
    assert!(began.elapsed() < PATIENCE);
    assert!(!rest(&mut silent).contains("200 OK") && !rest(&mut dripping).contains("200 OK"));

    // One that asks and does not read is not held for ever either.
    let mut deaf = connect(&server);
    for _ in 0..400 {
        if write!(deaf, "GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n").is_err() {
            break;
        }
    }
    let mut other = connect(&server);
    write!(other, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    // The connection lives on between requests, but not beyond its age.
    let answer = rest(&mut other);
    assert!(answer.ends_with("alive\n"), "{answer}");
    for _ in 0..3 {
        assert_eq!(ask(&server, "GET /healthz HTTP/1.1", "localhost").0, 200);
    }
}
