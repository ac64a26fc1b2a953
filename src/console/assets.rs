//! The one stylesheet, the one script and the icon, named by what is in them, so that a browser keeps them.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};

struct Asset {
    /// Where a page finds it.
    path: String,
    kind: &'static str,
    content: &'static str,
}

impl Asset {
    fn new(name: &str, kind: &'static str, content: &'static str) -> Self {
        let digest: String =
            Sha256::digest(content).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Self { path: format!("/assets/{digest}-{name}"), kind, content }
    }
}

static CSS: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("console.css", "text/css; charset=utf-8", include_str!("assets/console.css"))
});
static JS: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("console.js", "text/javascript; charset=utf-8", include_str!("assets/console.js"))
});
static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")));

pub(super) fn css() -> &'static str {
    &CSS.path
}

pub(super) fn js() -> &'static str {
    &JS.path
}

pub(super) fn icon() -> &'static str {
    &ICON.path
}

pub(super) async fn show(Path(name): Path<String>) -> Response {
    let known = [&CSS, &JS, &ICON].into_iter();
    let asset = known.into_iter().find(|asset| asset.path.ends_with(&format!("/{name}")));
    let Some(asset) = asset else { return StatusCode::NOT_FOUND.into_response() };
    let kept = (CACHE_CONTROL, "public, max-age=31536000, immutable");
    ([(CONTENT_TYPE, asset.kind), kept], asset.content).into_response()
}
