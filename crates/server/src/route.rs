//! A row of the route table: everything that is true of a route stands in it, and routing, keys,
//! counting and the OpenAPI document are derived from that.

use crate::app::App;
use crate::dialect::Dialect;
use crate::reply::Form;
use axum::handler::Handler;
use axum::routing::{self, MethodRouter};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;
use std::sync::Arc;

/// Where a route can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// Under `/v1`, and under the other names that clients of lemonade have for it.
    V1,
    /// Under `/api`, as Ollama has it.
    Api,
    /// At the root.
    Root,
}

impl Base {
    /// What stands before the path.
    pub(crate) fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &["/v1", "/api/v1", "/v0", "/api/v0"],
            Self::Api => &["/api"],
            Self::Root => &[""],
        }
    }
}

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody, without a key.
    Open,
    /// Whoever has the key.
    User,
    /// Whoever has the administrator's key, where there is one.
    Admin,
}

/// What a route answers with, when all goes well.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gives {
    /// Nothing is said of it yet: no row may leave it so.
    Unsaid,
    /// JSON that looks like this example (see [`crate::shape`]).
    Like(fn() -> Value),
    /// Texts of these types.
    Text(&'static [&'static str]),
    /// An empty body.
    Nothing,
    /// All never goes well: it says what to do instead.
    Never,
}

/// What is true of a route, its handler aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) method: &'static str,
    pub(crate) base: Base,
    pub(crate) path: &'static str,
    pub(crate) dialect: Dialect,
    pub(crate) access: Access,
    /// What it does, in a line.
    pub(crate) about: &'static str,
    /// The schema of its body.
    pub(crate) body: Option<fn(&mut SchemaGenerator) -> Schema>,
    pub(crate) gives: Gives,
    /// How it streams, where it does so when asked to.
    pub(crate) streams: Option<Form>,
}

impl Facts {
    /// Of a route that anybody with a key may use, in OpenAI's words, without a body.
    fn new(method: &'static str, base: Base, path: &'static str, about: &'static str) -> Self {
        let (dialect, access) = (Dialect::OpenAi, Access::User);
        let (body, gives, streams) = (None, Gives::Unsaid, None);
        Self { method, base, path, dialect, access, about, body, gives, streams }
    }

    /// Whether a request for this path comes here.
    pub(crate) fn is_at(&self, path: &str) -> bool {
        self.base.prefixes().iter().any(|prefix| {
            let rest = path.strip_prefix(prefix);
            rest.is_some_and(|rest| match self.path.split_once("{*") {
                Some((before, _)) => rest.len() > before.len() && rest.starts_with(before),
                None => rest == self.path,
            })
        })
    }
}

/// A row of the table.
pub(crate) struct Route {
    pub(crate) facts: Facts,
    pub(crate) handler: MethodRouter<Arc<App>>,
}

impl Route {
    /// A route that reads.
    pub(crate) fn get<T: 'static>(
        (base, path, about): (Base, &'static str, &'static str),
        handler: impl Handler<T, Arc<App>>,
    ) -> Self {
        Self { facts: Facts::new("get", base, path, about), handler: routing::get(handler) }
    }

    /// A route that takes a body.
    pub(crate) fn post<T: 'static>(
        (base, path, about): (Base, &'static str, &'static str),
        handler: impl Handler<T, Arc<App>>,
    ) -> Self {
        Self { facts: Facts::new("post", base, path, about), handler: routing::post(handler) }
    }

    /// A route that removes.
    pub(crate) fn delete<T: 'static>(
        (base, path, about): (Base, &'static str, &'static str),
        handler: impl Handler<T, Arc<App>>,
    ) -> Self {
        Self { facts: Facts::new("delete", base, path, about), handler: routing::delete(handler) }
    }

    /// With a body of this type.
    pub(crate) fn takes<T: JsonSchema>(mut self) -> Self {
        self.facts.body = Some(|generator| generator.subschema_for::<T>());
        self
    }

    /// Answering with JSON like this example.
    pub(crate) fn like(self, example: fn() -> Value) -> Self {
        self.gives(Gives::Like(example))
    }

    /// Answering with this.
    pub(crate) fn gives(mut self, gives: Gives) -> Self {
        self.facts.gives = gives;
        self
    }

    /// Streaming so, when it is asked to.
    pub(crate) fn streams(mut self, form: Form) -> Self {
        self.facts.streams = Some(form);
        self
    }

    /// Of this dialect.
    pub(crate) fn of(mut self, dialect: Dialect) -> Self {
        self.facts.dialect = dialect;
        self
    }

    /// For these.
    pub(crate) fn only(mut self, access: Access) -> Self {
        self.facts.access = access;
        self
    }
}
