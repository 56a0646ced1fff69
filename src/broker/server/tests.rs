//! Connections that do nothing, or only half of what they began, and too many of them: closed, each by itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream as Socket};

use super::*;

/// Longer than any limit below, and than a slow machine needs: reading ends by the broker's closing, or fails.
const PATIENCE: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(3_600);

struct Server {
    address: SocketAddr,
    _folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
    _stop: watch::Sender<bool>,
}

fn start(limits: Limits) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Arc::new(Cluster::open(folder.path()).unwrap());
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (stop, stopped) = watch::channel(false);
    runtime.spawn(serve(cluster, listener, limits, stopped));
    Server { address, _folder: folder, _runtime: runtime, _stop: stop }
}

fn connect(server: &Server) -> Socket {
    let socket = Socket::connect(server.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn is_closed(mut socket: &Socket) -> bool {
    match socket.read(&mut [0; 64]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Asks which versions are served; whether that was answered.
fn asks(mut socket: &Socket) -> bool {
    let question = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff];
    if socket.write_all(&question).is_err() {
        return false;
    }
    let mut length = [0; 4];
    if socket.read_exact(&mut length).is_err() {
        return false;
    }
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    socket.read_exact(&mut answer).is_ok() && answer.starts_with(&[0, 0, 0, 7, 0, 0])
}

#[test]
fn one_that_asks_nothing_is_closed_after_a_time() {
    let limits = Limits { idle: Duration::from_millis(100), stall: NEVER, ..Limits::default() };
    let server = start(limits);
    assert!(is_closed(&connect(&server)));
    let asked = connect(&server);
    assert!(asks(&asked) && is_closed(&asked));
}

#[test]
fn one_that_ends_in_the_middle_of_a_frame_is_closed_after_a_time() {
    let limits = Limits { idle: NEVER, stall: Duration::from_millis(100), ..Limits::default() };
    let server = start(limits);
    for begun in [&[0, 0][..], &[0, 0, 0, 20], &[0, 0, 0, 20, 0, 18, 0, 0], &[0, 0x30, 0, 0, 1]] {
        let mut socket = connect(&server);
        socket.write_all(begun).unwrap();
        assert!(is_closed(&socket), "{begun:?}");
    }
    let waits = connect(&server);
    assert!(asks(&waits) && asks(&waits), "one that is idle only is left alone");
}

#[test]
fn more_connections_than_there_are_places_are_closed_at_once_and_places_are_free_again() {
    let server = start(Limits { connections: 3, ..Limits::default() });
    let mut held: Vec<Socket> = (0..3).map(|_| connect(&server)).collect();
    assert!(held.iter().all(asks));
    let fourth = connect(&server);
    assert!(is_closed(&fourth));
    assert!(held.iter().all(asks), "those that are there go on");
    held.pop();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !asks(&connect(&server)) {
        assert!(std::time::Instant::now() < deadline, "the place was not freed");
    }
}

#[test]
fn large_frames_share_a_budget_and_one_that_stalls_gives_it_back() {
    let limits =
        Limits { frames_bytes: 1 << 20, stall: Duration::from_millis(300), idle: NEVER, ..Limits::default() };
    let server = start(limits);
    // Takes the whole budget and sends nothing of what it promised.
    let mut greedy = connect(&server);
    greedy.write_all(&(1i32 << 20).to_be_bytes()).unwrap();
    let small = connect(&server);
    assert!(asks(&small), "small ones need none of it");
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        // Metadata for topics that nobody has, of 512 KiB.
        let mut socket = connect(&server);
        let mut frame = vec![0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff];
        let name = [&[0x7f, 0xff][..], &[b'a'; 0x7fff]].concat();
        frame.extend(16i32.to_be_bytes());
        (0..16).for_each(|_| frame.extend(&name));
        let mut length = [0; 4];
        let sent =
            socket.write_all(&(frame.len() as i32).to_be_bytes()).and_then(|()| socket.write_all(&frame));
        if sent.and_then(|()| socket.read_exact(&mut length)).is_ok() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the budget was not given back");
    }
    assert!(is_closed(&greedy));
}

#[test]
fn an_answer_gets_what_is_left_of_the_budget_and_never_waits() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (reader, _write) = client.into_split();
        let (frames, answers) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(1 << 10)));
        let reader = BufReader::new(reader);
        let mut incoming = Incoming {
            reader,
            limits: Limits::default(),
            frames,
            answers: answers.clone(),
            held: Vec::new(),
        };
        assert_eq!(incoming.reserve(10), 10);
        assert_eq!(incoming.reserve(1 << 20), 1 << 20);
        assert_eq!(incoming.reserve(8 << 20), SMALL_BYTES, "nothing is left");
        incoming.held.clear();
        assert_eq!(answers.available_permits(), 1 << 10);
        assert_eq!(incoming.reserve(3 << 20), (3 << 20) / 4);
    });
}
