//! Stands between a broker and its clients: answers for it that there are no brokers, or keeps requests from it.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater::broker::Broker;
use headwater::log::kafka::KafkaLog;
use tempfile::TempDir;

use super::{connected, embedded};
use crate::support::real_kafka;

/// Where proxies listen, on the broker's port: 127.0.0.2 and so on, which as texts are as long as the broker's own.
const PROXIES: std::ops::Range<u8> = 2..10;
pub const PRODUCE: i16 = 0;
pub const LIST_OFFSETS: i16 = 2;
const METADATA: i16 = 3;
pub const FIND_COORDINATOR: i16 = 10;
pub const CREATE_TOPICS: i16 = 19;
pub const END_TXN: i16 = 26;

pub struct Proxy {
    pub address: SocketAddr,
    /// The keys of requests that are kept from the broker.
    kept: Mutex<BTreeSet<i16>>,
    hides: AtomicBool,
    hidden: AtomicUsize,
}

/// A log behind a proxy, and the same without one. Fields are dropped in this order.
pub struct Behind {
    pub log: KafkaLog,
    pub direct: KafkaLog,
    pub proxy: Arc<Proxy>,
    _embedded: Option<(Broker, TempDir)>,
}

impl Behind {
    /// An embedded broker of its own.
    pub fn start(properties: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = embedded(dir.path());
        let behind = Self::of(broker.address(), properties);
        Self { _embedded: Some((broker, dir)), ..behind }
    }

    /// The real Kafka, if it is on this machine: at another it could not be told from the proxy.
    pub fn kafka() -> Option<Self> {
        let address = real_kafka()?;
        address.starts_with("127.0.0.1:").then(|| Self::of(address.parse().unwrap(), &[]))
    }

    fn of(broker: SocketAddr, properties: &[(&str, &str)]) -> Self {
        let proxy = Proxy::start(broker);
        let log = connected(proxy.address, properties);
        Self { log, direct: connected(broker, properties), proxy, _embedded: None }
    }
}

impl Proxy {
    pub fn start(broker: SocketAddr) -> Arc<Self> {
        let addresses =
            PROXIES.map(|number| SocketAddr::from((Ipv4Addr::new(127, 0, 0, number), broker.port())));
        let listener = TcpListener::bind(&addresses.collect::<Vec<_>>()[..]).unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Arc::new(Self {
            address,
            kept: Mutex::default(),
            hides: AtomicBool::new(false),
            hidden: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&proxy);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // Either end may be gone by now; the client tries again.
                let Ok(client) = client else { continue };
                let Ok(server) = TcpStream::connect(broker) else { continue };
                shared.connect(client, server);
            }
        });
        proxy
    }

    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let asked: Arc<Mutex<HashMap<i32, (i16, i16)>>> = Arc::default();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let (noted, proxy) = (Arc::clone(&asked), Arc::clone(self));
        std::thread::spawn(move || {
            while let Some(frame) = frame(&mut from) {
                let number = |at| i16::from_be_bytes([frame[at], frame[at + 1]]);
                let (key, version) = (number(0), number(2));
                if proxy.kept.lock().unwrap().contains(&key) {
                    continue;
                }
                noted.lock().unwrap().insert(correlation(&frame[4..]), (key, version));
                if send(&mut to, &frame).is_none() {
                    break;
                }
            }
            // The other direction ends with it.
            let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
        });
        let (proxy, mut from, mut to) = (Arc::clone(self), server, client);
        std::thread::spawn(move || {
            while let Some(mut frame) = frame(&mut from) {
                let (key, version) = asked.lock().unwrap().remove(&correlation(&frame)).unwrap();
                if key == METADATA && version >= 9 && proxy.hides.load(Ordering::SeqCst) {
                    frame = without_brokers(&frame);
                    proxy.hidden.fetch_add(1, Ordering::SeqCst);
                }
                if matches!(key, METADATA | FIND_COORDINATOR) {
                    replace(&mut frame, b"127.0.0.1", proxy.address.ip().to_string().as_bytes());
                }
                if send(&mut to, &frame).is_none() {
                    break;
                }
            }
            let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
        });
    }

    /// Requests of this kind do not come to the broker until they pass again; those that were kept are gone.
    pub fn keep(&self, key: i16) {
        self.kept.lock().unwrap().insert(key);
    }

    pub fn pass(&self, key: i16) {
        self.kept.lock().unwrap().remove(&key);
    }

    /// Names no brokers for as long as each client takes to ask, by far.
    pub fn hide(&self, mut meanwhile: impl FnMut()) {
        self.hides.store(true, Ordering::SeqCst);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) {
            meanwhile();
            std::thread::sleep(Duration::from_millis(10));
        }
        self.hides.store(false, Ordering::SeqCst);
        assert!(self.hidden.swap(0, Ordering::SeqCst) > 0, "nobody has asked");
    }
}

fn frame(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame).ok()?;
    Some(frame)
}

fn send(to: &mut TcpStream, frame: &[u8]) -> Option<()> {
    let length = u32::try_from(frame.len()).unwrap();
    to.write_all(&length.to_be_bytes()).and_then(|()| to.write_all(frame)).ok()
}

fn correlation(frame: &[u8]) -> i32 {
    i32::from_be_bytes(frame[..4].try_into().unwrap())
}

fn replace(frame: &mut [u8], old: &[u8], new: &[u8]) {
    for at in 0..frame.len().saturating_sub(old.len()) {
        if frame[at..].starts_with(old) {
            frame[at..at + old.len()].copy_from_slice(new);
        }
    }
}

/// A metadata response of version 9: correlation, tags, throttle time, then a compact array of the brokers.
fn without_brokers(frame: &[u8]) -> Vec<u8> {
    const BROKERS: usize = 4 + 1 + 4;
    let count = usize::from(frame[BROKERS]) - 1;
    let mut rest = BROKERS + 1;
    for _ in 0..count {
        rest += 4; // node id
        rest += usize::from(frame[rest]); // host, and its length plus one
        rest += 4; // port
        rest += usize::from(frame[rest]).max(1); // rack, which may be null
        rest += 1; // tags
    }
    let mut emptied = frame[..BROKERS].to_vec();
    emptied.push(1);
    emptied.extend_from_slice(&frame[rest..]);
    emptied
}
