//! Who is let in: names of this machine, origins of web pages, keys.

use crate::app::App;
use crate::error::{ApiError, Kind, worded};
use crate::options::{Key, Options};
use crate::route::{Access, Facts};
use crate::routes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;

/// Lets through requests that name this machine and come from where they may. A web page whose
/// own name is made to lead here (DNS rebinding) gives itself away by that name.
pub(crate) async fn place(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let refused = check_place(&app.options, request.uri(), request.headers());
    let dialect = routes::dialect(request.uri().path());
    match refused {
        Err(error) => worded(error.into_response(), dialect),
        Ok(()) => worded(next.run(request).await, dialect),
    }
}

fn check_place(options: &Options, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let forbidden = |message: String| Err(ApiError::new(Kind::Forbidden, message));
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = text(header::HOST).or_else(|| uri.authority().map(|a| a.as_str()));
    let Some(host) = host.filter(|_| hosts.by_ref().count() <= 1) else {
        return forbidden("the request needs one Host header".into());
    };
    if !is_own_host(options, host) {
        let message = "the Host header names another machine: start the server with \
                       --allow-host NAME if that is a name of this one";
        return forbidden(message.into());
    }
    match text(header::ORIGIN) {
        None if headers.contains_key(header::ORIGIN) => forbidden("the Origin is no text".into()),
        None => Ok(()),
        Some(origin) if is_own_origin(origin, host) || is_listed(options, origin) => Ok(()),
        Some(_) => forbidden(
            "web pages of this origin may not ask: start the server with --cors ORIGIN to let them"
                .into(),
        ),
    }
}

/// Whether a Host header names this machine.
fn is_own_host(options: &Options, host: &str) -> bool {
    let name = without_port(host);
    let listed = |own: &String| own.eq_ignore_ascii_case(name);
    if name.eq_ignore_ascii_case("localhost") || options.hosts.iter().any(listed) {
        return true;
    }
    let bound = options.address.ip();
    match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        // A page cannot make a bare address its own name.
        Ok(ip) => ip.is_loopback() || ip == bound || bound.is_unspecified(),
        Err(_) => false,
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            let bare_v6 = name.contains(':') && !name.ends_with(']');
            if bare_v6 { host } else { name }
        }
        _ => host,
    }
}

/// Whether an origin is the server's own page.
fn is_own_origin(origin: &str, host: &str) -> bool {
    origin.split_once("://").is_some_and(|(scheme, rest)| {
        matches!(scheme, "http" | "https") && rest.eq_ignore_ascii_case(host)
    })
}

fn is_listed(options: &Options, origin: &str) -> bool {
    options.origins.iter().any(|listed| listed == "*" || listed.eq_ignore_ascii_case(origin))
}

/// Lets through requests to a route that show the key which it needs, words errors as the route's
/// dialect does, and counts.
pub(crate) async fn door(
    State((app, facts)): State<(Arc<App>, Facts)>,
    request: Request,
    next: Next,
) -> Response {
    let counted = app.metrics.request(facts.path);
    let checked = check_page(&facts, request.headers())
        .and_then(|()| check_key(&app.options, facts.access, request.headers()));
    let response = match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    counted.until_the_end_of(worded(response, facts.dialect))
}

/// Browsers say where a request comes from even where there is no Origin, as for images: other
/// pages can ask for nothing that way. Mails and chats have links, too, which no page opens: routes
/// that change something and take no body are out of every browser's reach. (Other programs, as
/// Node, send a `Sec-Fetch-Mode` alone.)
fn check_page(facts: &Facts, headers: &HeaderMap) -> Result<(), ApiError> {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let elsewhere = matches!(site, Some(b"cross-site" | b"same-site"));
    if facts.access != Access::Open && elsewhere && !headers.contains_key(header::ORIGIN) {
        return Err(ApiError::new(Kind::Forbidden, "web pages of other origins may not ask"));
    }
    let link = facts.method == "get" && site.is_some();
    if facts.access == Access::Admin && link {
        return Err(ApiError::new(Kind::Forbidden, "browsers may not ask for this"));
    }
    Ok(())
}

fn check_key(options: &Options, access: Access, headers: &HeaderMap) -> Result<(), ApiError> {
    let user = options.key.as_ref();
    let admin = options.admin_key.as_ref();
    let needed: Vec<&Key> = match access {
        Access::Open => return Ok(()),
        // Whoever may do more may do this.
        Access::User if user.is_some() => user.into_iter().chain(admin).collect(),
        Access::User => return Ok(()),
        Access::Admin => admin.or(user).into_iter().collect(),
    };
    if needed.is_empty() {
        return Ok(());
    }
    let shown = shown_key(headers);
    // Every key is compared, so that nothing can be told from the time.
    let fits = needed.iter().filter(|key| shown.is_some_and(|shown| key.is(shown))).count();
    if fits > 0 {
        return Ok(());
    }
    let message = match shown {
        None => "no API key: send it as `Authorization: Bearer KEY`",
        Some(_) => "the API key is not the one that this needs",
    };
    Err(ApiError::new(Kind::Unauthorized, message).code("invalid_api_key"))
}

/// The key that a request shows, as OpenAI's and as Anthropic's clients send it.
fn shown_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let value = value.as_bytes();
        let (scheme, key) = value.split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_brackets_are_no_part_of_a_name() {
        for (host, name) in [
            ("localhost", "localhost"),
            ("localhost:8000", "localhost"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:8000", "[::1]"),
            ("::1", "::1"),
            ("evil.example:", "evil.example"),
            (":80", ":80"),
        ] {
            assert_eq!(without_port(host), name, "{host}");
        }
    }

    #[test]
    fn only_the_servers_own_page_has_its_origin() {
        for (origin, own) in [
            ("http://localhost:8000", true),
            ("http://LOCALHOST:8000", true),
            ("http://localhost", false),
            ("http://evil.example", false),
            ("null", false),
            ("file://localhost:8000", false),
        ] {
            assert_eq!(is_own_origin(origin, "localhost:8000"), own, "{origin}");
        }
    }
}
