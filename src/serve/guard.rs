//! Who is answered: the page and its API are for people on this machine, `/metrics` and the health of the process
//! for whoever reaches `http.listen`.
//!
//! A page in a browser that gave itself this machine's address by its name server (DNS rebinding) sends the name it
//! has in `Host`. So a request is answered only where `Host` is a name or address of this listener.
//!
//! Invariant: there is no way around these rules: they stand before the routes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What monitoring asks for, by whatever name it knows this machine.
const OPEN_PATHS: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// Nothing from elsewhere is loaded, run, framed or sent to.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Whose connection a request came on.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The names and addresses that this listener answers to.
#[derive(Debug)]
pub struct Guard {
    /// The host of `http.listen`, in lower case and without brackets.
    listen_host: String,
}

impl Guard {
    /// `listen` is `host:port`.
    pub fn new(listen: &str) -> Self {
        let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
        Self { listen_host: without_brackets(host).to_ascii_lowercase() }
    }

    /// Why a request for the page or its API is refused.
    fn refusal(&self, peer: IpAddr, uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
        if !peer.to_canonical().is_loopback() {
            return Some(
                "The page and its API answer only requests from the machine that headwater runs on. \
                 From another one, use a tunnel: ssh -L 9464:localhost:9464 HOST\n",
            );
        }
        let mut hosts = headers.get_all(header::HOST).iter();
        let named = match (hosts.next().map(HeaderValue::to_str), hosts.next()) {
            (Some(Ok(host)), None) => self.is_mine(host),
            _ => false,
        };
        // A request may name the host in its first line as well.
        let named = named && uri.authority().is_none_or(|authority| self.is_mine(authority.as_str()));
        (!named).then_some(
            "The Host header names another machine, which a web page elsewhere may have asked for. \
             Open the page as http://localhost:PORT, or by the address in http.listen.\n",
        )
    }

    fn is_mine(&self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else { return false };
        let host = host.to_ascii_lowercase();
        let loopback = host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        host == "localhost" || loopback || host == self.listen_host
    }
}

/// The host of `host`, `host:port` or `[v6]:port`; none where it is something else.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (address, port.strip_prefix(':').or(port.is_empty().then_some("0"))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "0")),
    };
    (!host.is_empty() && port.parse::<u16>().is_ok()).then_some(host)
}

fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Stands before all routes.
pub async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let open = OPEN_PATHS.contains(&request.uri().path());
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let refused = match peer {
        _ if open => None,
        Some(peer) => guard.refusal(peer, request.uri(), request.headers()),
        None => Some("It is not known where the request comes from.\n"),
    };
    let mut response = match refused {
        Some(why) => (StatusCode::FORBIDDEN, why).into_response(),
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod unit {
    use super::*;

    fn is_refused(listen: &str, peer: &str, host: Option<&str>, uri: &str) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, host.parse().unwrap());
        }
        Guard::new(listen).refusal(peer.parse().unwrap(), &uri.parse().unwrap(), &headers).is_some()
    }

    #[test]
    fn a_request_names_this_machine_by_a_name_that_nobody_else_can_take() {
        let asked = |listen: &str, host: &str| !is_refused(listen, "127.0.0.1", Some(host), "/");
        for host in ["localhost", "LOCALHOST:9464", "127.0.0.1:9464", "127.0.0.1:1", "[::1]:9464", "[::1]"] {
            assert!(asked("127.0.0.1:9464", host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:127.0.0.1",
            "localhost:9464:1",
            "localhost:",
            "localhost:x",
            "user@localhost",
            "[::1",
            "[::1]x",
            "::1",
            "192.0.2.7",
            "",
            ":9464",
        ] {
            assert!(!asked("127.0.0.1:9464", host), "{host}");
        }
        assert!(asked("Data.Example:80", "data.example") && asked("192.0.2.7:80", "192.0.2.7:80"));
        assert!(asked("[fd00::7]:80", "[fd00::7]:80") && !asked("0.0.0.0:80", "192.0.2.7"));
    }

    #[test]
    fn a_request_without_a_host_with_another_one_in_its_first_line_or_from_another_machine_is_refused() {
        let here = "127.0.0.1:9464";
        assert!(!is_refused(here, "127.0.0.1", Some("localhost"), "http://localhost:9464/"));
        assert!(!is_refused(here, "::ffff:127.0.0.1", Some("localhost"), "/"));
        assert!(is_refused(here, "127.0.0.1", None, "/"));
        assert!(is_refused(here, "127.0.0.1", Some("localhost"), "http://evil.example/"));
        assert!(is_refused("0.0.0.0:9464", "192.0.2.9", Some("localhost"), "/"));
        let mut two = HeaderMap::new();
        two.append(header::HOST, HeaderValue::from_static("localhost"));
        two.append(header::HOST, HeaderValue::from_static("evil.example"));
        let peer = IpAddr::from([127, 0, 0, 1]);
        assert!(Guard::new(here).refusal(peer, &Uri::from_static("/"), &two).is_some());
    }
}
