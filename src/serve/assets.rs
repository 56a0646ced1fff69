//! The page's files, built from `web/` and part of the program.
//!
//! Invariant: a path is looked up in this table and never in a file system.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::routing::get;

/// (path, type, content)
pub const FILES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("../../web/dist/index.html")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("../../web/dist/page.js")),
    ("/page.css", "text/css; charset=utf-8", include_str!("../../web/dist/page.css")),
    ("/icon.svg", "image/svg+xml", include_str!("../../web/dist/icon.svg")),
];

pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        // Another version of the program may stand behind the same address.
        router.route(
            path,
            get(move || async move { ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], text) }),
        )
    })
}
