//! The server's own page: chat, models, plan and counters in a browser, and the OpenAPI document to
//! read. Its files stand in `web/` and are part of the program, so that it works without a network.
//!
//! Whatever a model writes is foreign text. The page shows it sanitised, and its policy
//! ([`POLICY`]) takes the browser as a second guard: no script but the page's own runs, and nothing
//! is fetched from anywhere else.

use crate::error::{ApiError, Kind, Result};
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::sync::OnceLock;

/// What Ollama's clients look for to see that somebody is there.
const OLLAMA_LINE: &str = "Ollama is running";

/// What the page may do. Pictures come from the page alone (`data:`), not even from this server:
/// one that a model writes could otherwise ask for any route that reads, `halt` among them.
const POLICY: &str = "default-src 'self'; img-src data:; object-src 'none'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types dompurify";

/// A file of the page.
#[derive(Debug)]
struct File {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Every kind of file.
pub(crate) const KINDS: &[&str] = &[HTML, CSS, SCRIPT, TEXT];

macro_rules! files {
    ($($name:literal: $kind:ident,)*) => {
        &[$(File {
            name: $name,
            kind: $kind,
            bytes: include_bytes!(concat!("../web/", $name)),
        },)*]
    };
}

/// Every file.
const FILES: &[File] = files! {
    "index.html": HTML,
    "docs.html": HTML,
    "style.css": CSS,
    "app.js": SCRIPT,
    "api.js": SCRIPT,
    "chat.js": SCRIPT,
    "dom.js": SCRIPT,
    "docs.js": SCRIPT,
    "markdown.js": SCRIPT,
    "message.js": SCRIPT,
    "metrics.js": SCRIPT,
    "models.js": SCRIPT,
    "plan.js": SCRIPT,
    "settings.js": SCRIPT,
    "talks.js": SCRIPT,
    "vendor.js": SCRIPT,
    "vendor.licences.txt": TEXT,
};

/// The page for browsers, and a line for clients of Ollama.
pub(crate) async fn root(headers: HeaderMap) -> Result<Response> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let mut response = match accept.is_some_and(|accept| accept.contains("text/html")) {
        true => file("index.html", &headers)?,
        false => OLLAMA_LINE.into_response(),
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// The OpenAPI document, to read.
pub(crate) async fn docs(headers: HeaderMap) -> Result<Response> {
    file("docs.html", &headers)
}

/// What the page consists of.
pub(crate) async fn part(Path(name): Path<String>, headers: HeaderMap) -> Result<Response> {
    file(&name, &headers)
}

/// A file, or that the browser's copy is still the same.
fn file(name: &str, headers: &HeaderMap) -> Result<Response> {
    let nowhere = || ApiError::new(Kind::NotFound, "the page has no such file");
    let index = FILES.iter().position(|file| file.name == name).ok_or_else(nowhere)?;
    let (file, tag) = (&FILES[index], &tags()[index]);
    let own = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
    let head = [
        (header::ETAG, tag.clone()),
        own(header::CACHE_CONTROL, "no-cache"),
        own(header::CONTENT_SECURITY_POLICY, POLICY),
        own(header::REFERRER_POLICY, "no-referrer"),
        own(HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        own(HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    if has(headers, tag) {
        return Ok((StatusCode::NOT_MODIFIED, head).into_response());
    }
    Ok((head, [own(header::CONTENT_TYPE, file.kind)], file.bytes).into_response())
}

/// Whether the browser says that it has the file with this tag.
fn has(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let lists = headers.get_all(header::IF_NONE_MATCH).iter();
    let mut tags = lists.flat_map(|list| list.as_bytes().split(|byte| *byte == b','));
    tags.any(|given| {
        let given = given.trim_ascii();
        given == b"*" || given.strip_prefix(b"W/").unwrap_or(given) == tag.as_bytes()
    })
}

/// The tags of [`FILES`]: of the same bytes the same.
fn tags() -> &'static [HeaderValue] {
    static TAGS: OnceLock<Vec<HeaderValue>> = OnceLock::new();
    let tag = |file: &File| {
        let digest = Sha256::digest(file.bytes);
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        HeaderValue::try_from(format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""))
    };
    TAGS.get_or_init(|| FILES.iter().map(tag).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_if_any_of_the_browsers_tags_is_the_files() {
        let tag = HeaderValue::from_static("\"a\"");
        for (given, same) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(given));
            assert_eq!(has(&headers, &tag), same, "{given}");
        }
        assert!(!has(&HeaderMap::new(), &tag));
    }
}
