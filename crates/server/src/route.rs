//! A row of the route table: everything that is true of a route stands in it, and routing, keys,
//! counting and the OpenAPI document are derived from that.

use crate::app::App;
use crate::dialect::Dialect;
use axum::handler::Handler;
use axum::routing::{self, MethodRouter};
use schemars::{JsonSchema, Schema, SchemaGenerator};
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
}

impl Facts {
    /// Of a route that anybody with a key may use, in OpenAI's words, without a body.
    fn new(method: &'static str, base: Base, path: &'static str, about: &'static str) -> Self {
        let (dialect, access) = (Dialect::OpenAi, Access::User);
        Self { method, base, path, dialect, access, about, body: None }
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
