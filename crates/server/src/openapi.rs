//! The OpenAPI document, derived from the route table.

use crate::app::App;
use crate::dialect::Dialect;
use crate::reply::Form;
use crate::route::{Access, Facts, Gives};
use crate::routes::routes;
use crate::shape::like;
use axum::Json;
use axum::extract::State;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// `GET /openapi.json`
pub(crate) async fn document(State(app): State<Arc<App>>) -> Json<Value> {
    let keyed = app.options.key.is_some() || app.options.admin_key.is_some();
    Json(describe(keyed))
}

/// What the document looks like.
pub(crate) fn example() -> Value {
    json!({"openapi": "", "info": {"title": "", "version": "", "description": ""}, "paths": {"*": {}},
           "components": {"schemas": {"*": {}}, "securitySchemes": {"*": {}}}})
}

/// The document; with `keyed`, routes say that they need the key.
pub(crate) fn describe(keyed: bool) -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes() {
        let facts = route.facts;
        let body = facts.body.map(|schema| schema(&mut generator).to_value());
        for (index, prefix) in facts.base.prefixes().iter().enumerate() {
            let path = format!("{prefix}{}", facts.path).replace("{*", "{");
            let described = operation(&facts, body.clone(), keyed, index);
            let entry = paths.entry(path).or_insert_with(|| json!({}));
            entry[facts.method] = described;
        }
    }
    let mut schemas = generator.take_definitions(false);
    for dialect in Dialect::ALL {
        schemas.insert(error_name(dialect), like(&dialect.error_example()));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tangor",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Runs 4-bit language models on this PC's own processors.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    })
}

/// One route under one of its names.
fn operation(facts: &Facts, body: Option<Value>, keyed: bool, alias: usize) -> Value {
    let word = facts.path.replace(['/', '{', '*', '}'], "_");
    let mut operation = json!({
        "operationId": format!("{}{word}{}", facts.method, if alias > 0 { alias.to_string() } else { String::new() }),
        "summary": facts.about,
        "tags": [facts.dialect.name()],
        "responses": responses(facts),
    });
    if let Some(schema) = body {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    let rest = facts.path.split_once("{*").and_then(|(_, rest)| rest.strip_suffix('}'));
    if let Some(name) = rest {
        operation["parameters"] = json!([{
            "name": name, "in": "path", "required": true, "schema": {"type": "string"},
        }]);
    }
    if keyed && facts.access != Access::Open {
        operation["security"] = json!([{"key": []}]);
    }
    operation
}

/// What a route answers with.
fn responses(facts: &Facts) -> Value {
    let error = json!({"$ref": format!("#/components/schemas/{}", error_name(facts.dialect))});
    let error = json!({"application/json": {"schema": error}});
    let mut all = json!({
        "4XX": {"description": "What is wrong with the request", "content": error},
        "5XX": {"description": "The server cannot answer now", "content": error},
    });
    let text = || json!({"schema": {"type": "string"}});
    let mut content = Map::new();
    match facts.gives {
        Gives::Like(example) => {
            content.insert("application/json".to_owned(), json!({"schema": like(&example())}));
        }
        Gives::Text(types) => {
            content.extend(types.iter().map(|kind| ((*kind).to_owned(), text())));
        }
        Gives::Never => return all,
        Gives::Unsaid | Gives::Nothing => {}
    }
    content.extend(facts.streams.map(|form| {
        // Every event, and the text of all lines.
        let schema = match form {
            Form::Events => json!({"schema": like(&json!({"data": "", "event?": ""}))}),
            Form::Lines => text(),
        };
        (form.content_type().to_owned(), schema)
    }));
    all["200"] = match content.is_empty() {
        true => json!({"description": "It is done"}),
        false => json!({"description": "The answer", "content": content}),
    };
    all
}

/// What the schema of a dialect's errors is called.
fn error_name(dialect: Dialect) -> String {
    format!("{}Error", dialect.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_under_each_of_its_names_and_every_reference_leads_somewhere() {
        let document = describe(true);
        for route in routes() {
            for prefix in route.facts.base.prefixes() {
                let path = format!("{prefix}{}", route.facts.path).replace("{*", "{");
                assert!(document["paths"][&path][route.facts.method].is_object(), "{path}");
            }
        }
        let text = document.to_string();
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
