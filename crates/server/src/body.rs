//! Bodies of requests: JSON within limits, and errors that name the field.

use crate::app::App;
use crate::error::{ApiError, Kind, Result};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use serde::de::DeserializeOwned;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// Bytes of a body that nobody asked for that are still read, and how long they are waited for.
const REST_BYTES: usize = 64 << 10;
const REST_TIME: Duration = Duration::from_secs(1);

/// The JSON that a request carries. An empty body is an empty object.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self> {
        let named = request.headers().get(header::CONTENT_TYPE);
        let named = named.map(|value| String::from_utf8_lossy(value.as_bytes()).to_lowercase());
        let by_page = request.headers().contains_key(header::ORIGIN)
            || request.headers().contains_key("sec-fetch-site");
        // Web pages of other origins can send anything but JSON without being asked first.
        if by_page && !named.is_some_and(|named| named.starts_with("application/json")) {
            let message = "a web page must send its request as application/json";
            return Err(ApiError::new(Kind::Invalid, message));
        }
        let bytes = read(request.into_body(), app).await?;
        parse(&bytes).map(Self)
    }
}

/// Reads a body within the limits of size and time.
async fn read(body: Body, app: &App) -> Result<Bytes> {
    let limits = app.limits();
    let reading = axum::body::to_bytes(body, limits.body_bytes);
    match tokio::time::timeout(limits.body_time, reading).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let most = limits.body_bytes;
            let message = format!("the body is longer than {most} bytes, or ended early");
            Err(ApiError::new(Kind::TooLarge, message))
        }
        Err(_) => Err(ApiError::new(Kind::Timeout, "the body did not arrive in time")),
    }
}

/// A body that is read in one place, and in another if that left some of it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Body>>);

impl Shared {
    fn body(&self) -> MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.body()).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

/// Answers that are given before all of a body has come, as refusals are: the rest is read if it is
/// short, or the client is told that the connection ends. Otherwise the connection would be closed
/// without a word, and the client's next request on it be lost.
pub(crate) async fn to_its_end(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let body = Shared(Arc::new(Mutex::new(body)));
    let mut response = next.run(Request::from_parts(head, Body::new(body.clone()))).await;
    let rest = axum::body::to_bytes(Body::new(body), REST_BYTES);
    if !matches!(tokio::time::timeout(REST_TIME, rest).await, Ok(Ok(_))) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Parses JSON; what is wrong with it is said with the field's name.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let bytes = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes.trim_ascii() };
    // A list would be taken for the members of an object, in their order.
    if !bytes.starts_with(b"{") {
        return Err(ApiError::new(Kind::Invalid, "the body must be a JSON object"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let path = (path != ".").then_some(path);
        let what = path.as_deref().unwrap_or("the body");
        let message = format!("{what}: {}", error.inner());
        ApiError { param: path, ..ApiError::new(Kind::Invalid, message) }
    })?;
    let rest =
        |error: serde_json::Error| ApiError::new(Kind::Invalid, format!("the body: {error}"));
    reader.end().map_err(rest)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Example {
        #[serde(default)]
        list: Vec<u32>,
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        let error = parse::<Example>(br#"{"list": [1, -1]}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("list[1]"));
        assert!(error.message.contains("-1"), "{error}");
        for bytes in [&b"{"[..], b"[]", b"{} {}", b"\xff", br#"{"list": 1e400}"#] {
            assert_eq!(parse::<Example>(bytes).unwrap_err().kind, Kind::Invalid);
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(parse::<serde_json::Value>(&deep).is_err());
        assert!(parse::<Example>(b" ").unwrap().list.is_empty());
    }
}
