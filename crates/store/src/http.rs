//! GET over HTTP, for hosts that are not trusted: bounded redirects, a token that only its own host
//! sees, an end to waiting, and a caller who may stop at any time.

use crate::digest::Announced;
use crate::options::{Patience, StoreOptions, Token, Watch};
use crate::{Result, StoreError};
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, StatusCode, Uri, header};

/// Redirects that are followed in a row.
const MAX_REDIRECTS: usize = 5;
/// Fewer bytes than this in the time after which a server counts as stalled are as good as none.
const FLOOR: usize = 1024;
/// How often the caller's wish to stop is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A client of one hub.
pub(crate) struct Client {
    agent: ureq::Agent,
    hub: Uri,
    token: Option<Token>,
    patience: Patience,
}

/// What a server says before the bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Bytes that follow.
    pub(crate) length: Option<u64>,
    /// Of a part: its first byte, and the length of the whole.
    pub(crate) range: Option<(u64, u64)>,
    /// Length of the whole file, as the hub itself says.
    pub(crate) linked_length: Option<u64>,
    /// How the hub itself says that the file can be checked.
    pub(crate) announced: Option<Announced>,
    /// The hub's explanation of an error.
    message: String,
}

/// An answer that is arriving.
pub(crate) struct Download {
    pub(crate) head: Head,
    pieces: Receiver<Result<Vec<u8>>>,
    host: String,
    stall: Duration,
    since: Instant,
    bytes: usize,
}

impl Client {
    /// A client of the hub that the options name.
    pub(crate) fn new(options: &StoreOptions) -> Result<Self> {
        let endpoint = options.endpoint.trim_end_matches('/');
        let hub: Uri = endpoint.parse().map_err(|_| StoreError::Unreachable {
            host: endpoint.to_owned(),
            why: "its address is not one (HF_ENDPOINT)".to_owned(),
        })?;
        if !matches!(hub.scheme_str(), Some("http" | "https")) || hub.host().is_none() {
            let why = "its address does not begin with https:// (HF_ENDPOINT)".to_owned();
            return Err(StoreError::Unreachable { host: endpoint.to_owned(), why });
        }
        let patience = options.patience;
        let mut config = ureq::Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("tangor/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(32 << 10)
            .timeout_resolve(Some(patience.stall))
            .timeout_connect(Some(patience.stall))
            .timeout_recv_response(Some(patience.stall))
            .timeout_per_read(Some(patience.stall))
            .timeout_per_write(Some(patience.stall));
        if hub.host().is_some_and(this_machine) {
            // A proxy would look for it on a machine of its own.
            config = config.proxy(None);
        }
        if let Some(file) = &options.ca_file {
            let roots = ureq::tls::RootCerts::Specific(certificates(file)?.into());
            config = config.tls_config(ureq::tls::TlsConfig::builder().root_certs(roots).build());
        }
        let agent = config.build().new_agent();
        Ok(Self { agent, hub, token: options.token.clone(), patience })
    }

    /// The hub's address, followed by `path`.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.hub.to_string().trim_end_matches('/'))
    }

    /// The hub's host, for messages.
    pub(crate) fn host(&self) -> String {
        host(&self.hub)
    }

    /// Starts a download at byte `from`. Whatever the status is, it is the caller's to look at.
    pub(crate) fn get(&self, url: &str, from: u64, watch: &mut Watch<'_>) -> Result<Download> {
        let bad = |why: String| StoreError::BadAnswer { host: self.host(), why };
        let uri: Uri = url.parse().map_err(|_| bad(format!("{url:?} is not an address")))?;
        let host = host(&uri);
        // Waiting happens in a thread of its own: nothing can be done about a system call that
        // waits, but nobody has to wait for it. Its timeouts see to its end.
        let (sender, pieces) = mpsc::sync_channel(4);
        let (head_sender, head) = mpsc::sync_channel(1);
        let exchange = Exchange {
            agent: self.agent.clone(),
            hub: self.hub.clone(),
            token: self.token.clone(),
            from,
            stall: self.patience.stall,
        };
        thread::spawn(move || exchange.run(uri, &head_sender, &sender));
        loop {
            watch.alive()?;
            match head.recv_timeout(LOOK_AGAIN) {
                Ok(head) => {
                    let (stall, since) = (self.patience.stall, Instant::now());
                    return Ok(Download { head: head?, pieces, host, stall, since, bytes: 0 });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(StoreError::Unreachable { host, why: "no answer".to_owned() });
                }
            }
        }
    }

    /// A whole answer of at most `limit` bytes; `what` is asked for, for messages.
    pub(crate) fn read(
        &self,
        url: &str,
        limit: usize,
        what: &str,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<u8>> {
        self.retry(watch, |client, watch| {
            let mut download = client.get(url, 0, watch)?;
            download.expect(200, what)?;
            let mut text = Vec::new();
            while let Some(piece) = download.next(watch)? {
                text.extend_from_slice(&piece);
                if text.len() > limit {
                    let why = format!("it is longer than {limit} bytes");
                    return Err(StoreError::BadAnswer { host: client.host(), why });
                }
            }
            Ok(text)
        })
    }

    /// Does `task` until it works, fails for good, or has failed too often.
    pub(crate) fn retry<T>(
        &self,
        watch: &mut Watch<'_>,
        mut task: impl FnMut(&Self, &mut Watch<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut failed = 0;
        loop {
            match task(self, watch) {
                Err(error) if passing(&error) => {
                    failed += 1;
                    self.pause(failed, error, watch)?;
                }
                other => return other,
            }
        }
    }

    /// Waits before the next attempt, after `failed` of them; fails with the last one's `error`
    /// if those were too many.
    pub(crate) fn pause(&self, failed: u32, error: StoreError, watch: &Watch<'_>) -> Result<()> {
        if failed >= self.patience.attempts {
            return Err(error);
        }
        let pause = self.patience.pause.saturating_mul(1 << (failed - 1).min(6));
        let start = Instant::now();
        while let Some(left) = pause.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            watch.alive()?;
            thread::park_timeout(left.min(LOOK_AGAIN));
        }
        Ok(())
    }
}

/// Whether the same request may do better later.
pub(crate) fn passing(error: &StoreError) -> bool {
    match error {
        StoreError::Unreachable { .. } | StoreError::Stalled { .. } => true,
        StoreError::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
        _ => false,
    }
}

impl Download {
    /// Fails unless the server has answered `status`.
    pub(crate) fn expect(&self, status: u16, what: &str) -> Result<()> {
        if self.head.status == status {
            return Ok(());
        }
        let message = self.head.message.clone();
        Err(StoreError::Status { what: what.to_owned(), status: self.head.status, message })
    }

    /// The next bytes; `None` at the end.
    pub(crate) fn next(&mut self, watch: &Watch<'_>) -> Result<Option<Vec<u8>>> {
        loop {
            watch.alive()?;
            let received = self.pieces.recv_timeout(LOOK_AGAIN);
            if let Ok(Ok(piece)) = &received {
                self.bytes += piece.len();
            }
            if self.since.elapsed() >= self.stall {
                if self.bytes < FLOOR && !matches!(received, Err(RecvTimeoutError::Disconnected)) {
                    return Err(stalled(self.host.clone(), self.stall));
                }
                (self.since, self.bytes) = (Instant::now(), 0);
            }
            match received {
                Ok(piece) => return piece.map(Some),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

/// One request and the redirects that it leads to.
struct Exchange {
    agent: ureq::Agent,
    hub: Uri,
    token: Option<Token>,
    from: u64,
    stall: Duration,
}

impl Exchange {
    /// Sends the head, and then the bytes until their end or until nobody wants them.
    fn run(
        &self,
        mut uri: Uri,
        head_to: &SyncSender<Result<Head>>,
        pieces_to: &SyncSender<Result<Vec<u8>>>,
    ) {
        let (head, body) = match self.follow(&mut uri) {
            Ok((head, body)) => (Ok(head), Some(body)),
            Err(error) => (Err(error), None),
        };
        let wanted = head_to.send(head).is_ok();
        let Some(body) = body.filter(|_| wanted) else { return };
        let mut reader = body.into_with_config().limit(u64::MAX).reader();
        loop {
            let mut piece = vec![0; 128 << 10];
            let read = match reader.read(&mut piece) {
                Ok(0) => return,
                Ok(len) => {
                    piece.truncate(len);
                    Ok(piece)
                }
                Err(error) => Err(match ureq::Error::from(error) {
                    ureq::Error::Timeout(_) => stalled(host(&uri), self.stall),
                    error => unreachable(&uri, &error),
                }),
            };
            let over = read.is_err();
            if pieces_to.send(read).is_err() || over {
                return;
            }
        }
    }

    /// The first answer that is no redirect.
    fn follow(&self, uri: &mut Uri) -> Result<(Head, ureq::Body)> {
        let mut head = Head::default();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(uri).map_err(|error| unreachable(uri, &error))?;
            let (status, headers) = (response.status(), response.headers());
            head.learn(headers, same_place(uri, &self.hub));
            if let Some(to) = redirect(status, headers) {
                *uri = self.next_hop(uri, to)?;
                continue;
            }
            head.status = status.as_u16();
            head.length = number(headers, "content-length");
            head.range = text(headers, "content-range").and_then(range);
            return Ok((head, response.into_body()));
        }
        let why = format!("more than {MAX_REDIRECTS} times");
        Err(StoreError::Redirect { host: host(uri), why })
    }

    fn request(&self, uri: &Uri) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        // A compressed answer would be counted, and resumed, in other bytes than the file has.
        let mut request = self.agent.get(uri).header(header::ACCEPT_ENCODING, "identity");
        if self.from > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", self.from));
        }
        if let Some(token) = self.token.as_ref().filter(|_| same_place(uri, &self.hub)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        request.call()
    }

    /// Where a redirect leads, if that is a place to follow it to.
    fn next_hop(&self, from: &Uri, to: &str) -> Result<Uri> {
        let refuse = |why: String| StoreError::Redirect { host: host(from), why };
        let next = join(from, to).ok_or_else(|| refuse("to no address".to_owned()))?;
        if from.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
            return Err(refuse(format!("from https to {}", next.scheme_str().unwrap_or("none"))));
        }
        if inside(&next) && !inside(&self.hub) {
            return Err(refuse(format!("to {}, which is inside this network", host(&next))));
        }
        Ok(next)
    }
}

impl Head {
    /// Takes what the headers of one answer say about the file. Only the hub's own word counts: a
    /// tag of another host may be anything.
    fn learn(&mut self, headers: &HeaderMap, from_hub: bool) {
        if !from_hub {
            return;
        }
        let tag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        self.announced = tag.and_then(Announced::from_etag).or(self.announced);
        self.linked_length = number(headers, "x-linked-size").or(self.linked_length);
        if let Some(message) = text(headers, "x-error-message") {
            self.message = message.chars().filter(|c| !c.is_control()).take(200).collect();
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}

/// `bytes 5-9/10` → `(5, 10)`.
fn range(text: &str) -> Option<(u64, u64)> {
    let (span, whole) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = span.split_once('-')?;
    Some((first.trim().parse().ok()?, whole.trim().parse().ok()?))
}

fn redirect(status: StatusCode, headers: &HeaderMap) -> Option<&str> {
    let redirects = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
    text(headers, "location").filter(|_| redirects)
}

/// The address that a redirect from `base` to `to` means.
fn join(base: &Uri, to: &str) -> Option<Uri> {
    let authority = base.authority()?.as_str();
    let scheme = base.scheme_str()?;
    let absolute = if to.contains("://") {
        to.to_owned()
    } else if let Some(rest) = to.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{to}")
    };
    let uri: Uri = absolute.split('#').next()?.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(uri)
}

/// Whether two addresses are served by the same program: scheme, host and port.
fn same_place(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 })
    };
    let same_host = match (a.host(), b.host()) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => false,
    };
    a.scheme_str() == b.scheme_str() && same_host && port(a) == port(b)
}

/// Whether an address, as it is written, is one of this machine or of a private network.
fn inside(uri: &Uri) -> bool {
    let Some(host) = uri.host() else { return false };
    let name = bare(host);
    if this_machine(host) {
        return true;
    }
    match name.parse() {
        Ok(IpAddr::V4(ip)) => inside_v4(ip),
        Ok(IpAddr::V6(ip)) => {
            ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some_and(inside_v4)
        }
        // Hosts that are numbers in another notation (0x7f.1, 2130706433).
        Err(_) => name.rsplit('.').next().is_some_and(|last| {
            last.starts_with("0x") || (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
        }),
    }
}

/// Whether a host, as it is written, is this machine.
fn this_machine(host: &str) -> bool {
    let name = bare(host);
    let loopback = |ip: IpAddr| ip.is_loopback();
    name == "localhost" || name.ends_with(".localhost") || name.parse().is_ok_and(loopback)
}

/// A host without brackets, in lower case.
fn bare(host: &str) -> String {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.trim_end_matches('.').to_ascii_lowercase()
}

fn inside_v4(ip: std::net::Ipv4Addr) -> bool {
    let shared = matches!(ip.octets(), [100, 64..=127, ..]);
    let local = ip.is_loopback() || ip.is_private() || ip.is_link_local();
    local || shared || ip.is_unspecified() || ip.is_broadcast()
}

/// Host and port, for messages.
fn host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or("the server");
    uri.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn stalled(host: String, stall: Duration) -> StoreError {
    StoreError::Stalled { host, seconds: stall.as_secs() }
}

fn unreachable(uri: &Uri, error: &ureq::Error) -> StoreError {
    let why = match error {
        ureq::Error::HostNotFound => "there is no such host, or no network".to_owned(),
        ureq::Error::Timeout(_) => "it does not answer".to_owned(),
        ureq::Error::ConnectionFailed => "it refuses connections".to_owned(),
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    if why.contains("invalid peer certificate") {
        return StoreError::Untrusted { host: host(uri), why };
    }
    StoreError::Unreachable { host: host(uri), why }
}

/// The certificates in a PEM file.
fn certificates(path: &Path) -> Result<Vec<ureq::tls::Certificate<'static>>> {
    let failed = |error| StoreError::io("read certificates from", path, error);
    let text = std::fs::read(path).map_err(failed)?;
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(&text) {
        match item {
            Ok(ureq::tls::PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(failed(error.into_io())),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn redirects_are_joined_like_a_browser_joins_them() {
        let base = uri("https://hub.example:8443/a/b?q=1");
        for (to, expected) in [
            ("https://cdn.example/x?sig=1", Some("https://cdn.example/x?sig=1")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("/x/y?z", Some("https://hub.example:8443/x/y?z")),
            ("c", Some("https://hub.example:8443/a/c")),
            ("/x#fragment", Some("https://hub.example:8443/x")),
            ("ftp://cdn.example/x", None),
            ("file:///etc/passwd", None),
            ("https://", None),
        ] {
            assert_eq!(join(&base, to), expected.map(uri), "{to}");
        }
    }

    #[test]
    fn a_place_is_scheme_host_and_port() {
        let hub = uri("https://Hub.example");
        assert!(same_place(&hub, &uri("https://hub.example:443/x")));
        for other in [
            "http://hub.example",
            "https://hub.example:444",
            "https://x.hub.example",
            "https://hub.example.evil.example",
        ] {
            assert!(!same_place(&hub, &uri(other)), "{other}");
        }
    }

    #[test]
    fn addresses_inside_the_network_are_recognised() {
        for host in [
            "localhost",
            "a.localhost",
            "127.0.0.1",
            "127.8.8.8",
            "10.0.0.1",
            "172.16.3.4",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "[::1]",
            "[fe80::1]",
            "[fd00::1]",
            "[::ffff:127.0.0.1]",
            "2130706433",
            "0x7f.1",
            "127.1",
        ] {
            assert!(inside(&uri(&format!("http://{host}/"))), "{host}");
        }
        for host in ["hub.example", "8.8.8.8", "[2001:db8::1]", "1e100.example", "10.example"] {
            assert!(!inside(&uri(&format!("http://{host}/"))), "{host}");
        }
    }

    #[test]
    fn reads_content_ranges() {
        assert_eq!(range("bytes 5-9/10"), Some((5, 10)));
        for bad in ["bytes */10", "bytes 5-9/*", "5-9/10", "bytes -1-9/10", "bytes 5-9"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
