//! Who may use which route, from where, with which key: every route of the server, in every case
//! there is, against rules that are written down here and nowhere else.

use crate::support::*;
use serde_json::Value;
use std::collections::BTreeSet;
use tangor_server::Key;

const USER: &str = "the user's";
const ADMIN: &str = "the administrator's";
const ALLOWED_HOST: &str = "box.example";
const LISTED_PAGE: &str = "https://chat.example";

/// Whom a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Everybody,
    Users,
    Administrators,
}

/// How a route words its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    OpenAi,
    Anthropic,
    Ollama,
}

/// A route that the server has.
#[derive(Clone, Debug)]
struct Endpoint {
    method: String,
    path: String,
    whom: For,
    words: Words,
}

/// Method and path of every endpoint, and whom it is for; `V1` stands for four prefixes.
#[rustfmt::skip]
const RULES: &[(&str, For, Words)] = &[
    ("post V1/chat/completions", For::Users, Words::OpenAi),
    ("post V1/completions", For::Users, Words::OpenAi),
    ("post V1/responses", For::Users, Words::OpenAi),
    ("post V1/embeddings", For::Users, Words::OpenAi),
    ("get V1/models", For::Users, Words::OpenAi),
    ("get V1/models/{id}", For::Users, Words::OpenAi),
    ("post V1/messages", For::Users, Words::Anthropic),
    ("post V1/messages/count_tokens", For::Users, Words::Anthropic),
    ("post /api/chat", For::Users, Words::Ollama),
    ("post /api/generate", For::Users, Words::Ollama),
    ("get /api/tags", For::Users, Words::Ollama),
    ("get /api/ps", For::Users, Words::Ollama),
    ("post /api/show", For::Users, Words::Ollama),
    ("post /api/pull", For::Administrators, Words::Ollama),
    ("delete /api/delete", For::Administrators, Words::Ollama),
    ("post /api/embed", For::Users, Words::Ollama),
    ("post /api/embeddings", For::Users, Words::Ollama),
    ("post /api/create", For::Administrators, Words::Ollama),
    ("post /api/copy", For::Administrators, Words::Ollama),
    ("post /api/push", For::Administrators, Words::Ollama),
    ("post /api/blobs/{digest}", For::Administrators, Words::Ollama),
    ("get /api/version", For::Everybody, Words::Ollama),
    ("get V1/health", For::Users, Words::OpenAi),
    ("get V1/stats", For::Users, Words::OpenAi),
    ("get V1/system-info", For::Users, Words::OpenAi),
    ("get V1/plan", For::Users, Words::OpenAi),
    ("get V1/slots", For::Users, Words::OpenAi),
    ("get V1/params", For::Users, Words::OpenAi),
    ("post V1/params", For::Administrators, Words::OpenAi),
    ("post V1/load", For::Administrators, Words::OpenAi),
    ("post V1/unload", For::Administrators, Words::OpenAi),
    ("post V1/pull", For::Administrators, Words::OpenAi),
    ("post V1/delete", For::Administrators, Words::OpenAi),
    ("get V1/halt", For::Administrators, Words::OpenAi),
    ("post V1/tokenize", For::Users, Words::OpenAi),
    ("post V1/detokenize", For::Users, Words::OpenAi),
    ("post /tokenize", For::Users, Words::OpenAi),
    ("post /detokenize", For::Users, Words::OpenAi),
    ("get /tokenizer_info", For::Users, Words::OpenAi),
    ("get /", For::Everybody, Words::OpenAi),
    ("get /docs", For::Everybody, Words::OpenAi),
    ("get /page/{file}", For::Everybody, Words::OpenAi),
    ("get /live", For::Everybody, Words::OpenAi),
    ("get /health", For::Everybody, Words::OpenAi),
    ("get /metrics", For::Users, Words::OpenAi),
    ("get /openapi.json", For::Everybody, Words::OpenAi),
];

/// The endpoints of the rules, which have to be those of the server's own document.
fn endpoints(document: &Value) -> Vec<Endpoint> {
    let mut all = Vec::new();
    for (row, whom, words) in RULES {
        let (method, path) = row.split_once(' ').unwrap();
        let prefixes = match path.strip_prefix("V1") {
            Some(_) => &["/v1", "/api/v1", "/v0", "/api/v0"][..],
            None => &[""],
        };
        let path = path.trim_start_matches("V1");
        for prefix in prefixes {
            let (method, path) = (method.to_owned(), format!("{prefix}{path}"));
            all.push(Endpoint { method, path, whom: *whom, words: *words });
        }
    }
    let ruled: BTreeSet<String> =
        all.iter().map(|end| format!("{} {}", end.method, end.path)).collect();
    let paths = document["paths"].as_object().unwrap().iter();
    let described = paths.flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
    });
    assert_eq!(ruled, described.collect(), "the rules and the server have the same routes");
    all
}

/// Which keys a server has.
#[derive(Clone, Copy, Debug)]
struct Keys {
    user: bool,
    admin: bool,
}

/// A request to any route.
#[derive(Clone, Copy, Debug)]
struct Case {
    keys: Keys,
    /// What it shows.
    key: Option<&'static str>,
    host: &'static str,
    origin: Option<&'static str>,
    /// Whether the server lets pages of [`LISTED_PAGE`] ask.
    cors: bool,
}

/// Stands for the address that the server has.
const LOOPBACK: &str = "127.0.0.1:PORT";
const FOREIGN_HOST: &str = "evil.example";
/// Stands for the origin of the server's own pages.
const OWN_PAGE: &str = "http://HOST";
const FOREIGN_PAGE: &str = "https://evil.example";

impl Case {
    /// Whether the request may reach any route at all.
    fn is_from_here(&self) -> bool {
        let page = match self.origin {
            None | Some(OWN_PAGE) => true,
            Some(LISTED_PAGE) => self.cors,
            Some(_) => false,
        };
        self.host != FOREIGN_HOST && page
    }

    /// Whether the key that it shows is good for such a route.
    fn is_known(&self, whom: For) -> bool {
        let (user, admin) = (self.key == Some(USER), self.key == Some(ADMIN));
        match (whom, self.keys) {
            (For::Everybody, _) | (_, Keys { user: false, admin: false }) => true,
            (For::Users, Keys { user: false, .. }) => true,
            (For::Users, Keys { admin: true, .. }) => user || admin,
            (_, Keys { admin: true, .. }) => admin,
            (_, Keys { admin: false, .. }) => user,
        }
    }

    /// The status with which the request is refused.
    fn refusal(&self, whom: For) -> Option<u16> {
        match (self.is_from_here(), self.is_known(whom)) {
            (false, _) => Some(403),
            (true, false) => Some(401),
            (true, true) => None,
        }
    }

    fn every(mut each: impl FnMut(Self)) {
        for (user, admin) in [(false, false), (true, false), (true, true), (false, true)] {
            for cors in [false, true] {
                for key in [None, Some("nobody's"), Some(USER), Some(ADMIN)] {
                    for host in [LOOPBACK, ALLOWED_HOST, FOREIGN_HOST] {
                        for origin in [None, Some(OWN_PAGE), Some(FOREIGN_PAGE), Some(LISTED_PAGE)]
                        {
                            each(Self { keys: Keys { user, admin }, key, host, origin, cors });
                        }
                    }
                }
            }
        }
    }

    fn server(&self) -> Running {
        Running::with(&[], OnOracle::default(), |options| {
            options.key = Key::new(if self.keys.user { USER } else { "" });
            options.admin_key = Key::new(if self.keys.admin { ADMIN } else { "" });
            options.hosts = vec![ALLOWED_HOST.into()];
            options.origins = self.cors.then(|| LISTED_PAGE.to_owned()).into_iter().collect();
        })
    }

    /// What the request says of itself to a server there.
    fn headers(&self, base: &str) -> Vec<(&'static str, String)> {
        let port = base.rsplit(':').next().unwrap();
        let host = self.host.replace("PORT", port);
        let mut headers = vec![("host", host.clone()), ("content-type", "application/json".into())];
        headers.extend(self.origin.map(|origin| ("origin", origin.replace("HOST", &host))));
        headers.extend(self.key.map(|key| ("authorization", format!("Bearer {key}"))));
        headers
    }
}

fn ask(wire: &mut Wire, end: &Endpoint, method: &str, headers: &[(&str, String)]) -> Reply {
    let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
    // A name that no model has, where there is room for one.
    let path = end.path.replace("{id}", "nobody/nothing").replace("{file}", "absent");
    let path = path.replace("{digest}", "sha256:0");
    wire.ask(&method.to_uppercase(), &path, &headers, "{}")
}

/// The kind of error that a refusal has, in the words of the route.
fn check_refusal(end: &Endpoint, status: u16, reply: &Reply, about: &str) {
    let body = reply.any_json();
    let kind = if status == 401 { "authentication_error" } else { "permission_error" };
    let worded = match end.words {
        Words::OpenAi => body["type"].is_null() && body["error"]["type"] == kind,
        Words::Anthropic => body["type"] == "error" && body["error"]["type"] == kind,
        Words::Ollama => body["error"].is_string(),
    };
    assert!(worded, "{about}: {body}");
    assert_eq!(reply.header("www-authenticate").is_some(), status == 401, "{about}");
}

#[test]
fn every_route_lets_in_whom_the_rules_let_in_and_nobody_else() {
    let mut requests = 0;
    let mut at: Option<(String, Running, Wire, Vec<Endpoint>)> = None;
    Case::every(|case| {
        let setting = format!("{:?} {}", case.keys, case.cors);
        if at.as_ref().is_none_or(|(of, ..)| *of != setting) {
            let server = case.server();
            let wire = Wire::new(&server.base);
            let all = endpoints(&server.get("/openapi.json").json());
            at = Some((setting, server, wire, all));
        }
        let (_, server, wire, all) = at.as_mut().unwrap();
        let headers = case.headers(&server.base);
        for end in all.iter() {
            let about = format!("{} {}: {case:?}", end.method, end.path);
            let refusal = case.refusal(end.whom);
            if refusal.is_none() && end.path.ends_with("/halt") {
                continue;
            }
            let reply = ask(wire, end, &end.method, &headers);
            requests += 1;
            match refusal {
                Some(status) => {
                    assert_eq!(reply.status, status, "{about}: {}", reply.text);
                    check_refusal(end, status, &reply, &about);
                }
                None => {
                    let served = ![401, 403, 405].contains(&reply.status);
                    assert!(served && (reply.status < 500 || reply.status == 501), "{about}");
                }
            }
            // Pages that may ask can read what they are told, a refused key too.
            let readable = reply.header("access-control-allow-origin");
            let listed = case.cors && case.origin == Some(LISTED_PAGE) && refusal != Some(403);
            assert_eq!(readable, listed.then_some(LISTED_PAGE), "{about}");
        }
    });
    assert!(requests > 20_000, "{requests}");
}

#[test]
fn whoever_may_end_the_server_ends_it() {
    for (user, admin, key) in
        [(false, false, None), (true, false, Some(USER)), (true, true, Some(ADMIN))]
    {
        let keys = Keys { user, admin };
        let case = Case { keys, key, host: LOOPBACK, origin: None, cors: false };
        for prefix in ["/v1", "/api/v1", "/v0", "/api/v0"] {
            let mut server = case.server();
            let headers = case.headers(&server.base);
            let path = format!("{prefix}/halt");
            let (whom, words) = (For::Administrators, Words::OpenAi);
            let end = Endpoint { method: "get".into(), path, whom, words };
            assert_eq!(ask(&mut Wire::new(&server.base), &end, "get", &headers).status, 200);
            server.ended().unwrap();
        }
    }
}

#[test]
fn browsers_that_ask_beforehand_learn_who_may_ask_and_reach_no_route() {
    let mut at: Option<(bool, Running, Wire, Vec<Endpoint>)> = None;
    Case::every(|case| {
        // Browsers show no key when they ask beforehand.
        if case.origin.is_none() || case.key.is_some() || !(case.keys.user && case.keys.admin) {
            return;
        }
        if at.as_ref().is_none_or(|(cors, ..)| *cors != case.cors) {
            let server = case.server();
            let wire = Wire::new(&server.base);
            let all = endpoints(&server.get("/openapi.json").json());
            at = Some((case.cors, server, wire, all));
        }
        let (_, server, wire, all) = at.as_mut().unwrap();
        for end in all.iter() {
            let about = format!("{} {}: {case:?}", end.method, end.path);
            let mut headers = case.headers(&server.base);
            headers.push(("access-control-request-method", end.method.to_uppercase()));
            let sent = "authorization,x-api-key,content-type,x-stainless-lang";
            headers.push(("access-control-request-headers", sent.into()));
            let reply = ask(wire, end, "options", &headers);
            let allowed = |name: &str| reply.header(name).unwrap_or_default().to_lowercase();
            match (case.is_from_here(), case.origin == Some(LISTED_PAGE)) {
                (false, _) => {
                    assert_eq!(reply.status, 403, "{about}");
                    check_refusal(end, 403, &reply, &about);
                }
                (true, true) => {
                    assert_eq!(reply.status, 200, "{about}");
                    assert_eq!(allowed("access-control-allow-origin"), LISTED_PAGE, "{about}");
                    assert!(allowed("access-control-allow-methods").contains(&end.method));
                    for header in sent.split(',') {
                        let headers = allowed("access-control-allow-headers");
                        assert!(headers.contains(header), "{about}: {header}");
                    }
                }
                // The server's own pages need not ask, and are told nothing.
                (true, false) => {
                    assert_eq!(reply.header("access-control-allow-origin"), None, "{about}");
                    assert!(reply.text.is_empty() || reply.status == 405, "{about}");
                }
            }
        }
        // Nothing has ended it.
        assert_eq!(server.get("/live").status, 200);
    });
}
