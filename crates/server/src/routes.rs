//! The route table: one row per endpoint.

use crate::dialect::Dialect::{Anthropic, Lemonade, Ollama};
use crate::route::Access::{Admin, Open};
use crate::route::Base::{Api, Root, V1};
use crate::route::Route;
use crate::{anthropic, lemonade, ollama, openai, openapi};

/// Every endpoint.
#[rustfmt::skip]
pub(crate) fn routes() -> Vec<Route> {
    vec![
        // OpenAI
        Route::post((V1, "/chat/completions", "Answers a conversation"), openai::chat::create)
            .takes::<openai::chat::Request>(),
        Route::post((V1, "/completions", "Continues a text"), openai::completions::create)
            .takes::<openai::completions::Request>(),
        Route::post((V1, "/responses", "Answers a conversation, item by item"), openai::responses::create)
            .takes::<openai::responses::Request>(),
        Route::post((V1, "/embeddings", "Embeds texts"), openai::embeddings::create)
            .takes::<openai::embeddings::Request>(),
        Route::get((V1, "/models", "Lists the models on this machine"), openai::models::list),
        Route::get((V1, "/models/{*id}", "Describes a model"), openai::models::one),
        // Anthropic
        Route::post((V1, "/messages", "Answers a conversation"), anthropic::create)
            .takes::<anthropic::Request>().of(Anthropic),
        Route::post((V1, "/messages/count_tokens", "Counts a conversation's tokens"), anthropic::count)
            .takes::<anthropic::Request>().of(Anthropic),
        // Ollama
        Route::post((Api, "/chat", "Answers a conversation"), ollama::chat::create)
            .takes::<ollama::chat::Request>().of(Ollama),
        Route::post((Api, "/generate", "Answers a prompt"), ollama::generate::create)
            .takes::<ollama::generate::Request>().of(Ollama),
        Route::get((Api, "/tags", "Lists the models on this machine"), ollama::models::tags).of(Ollama),
        Route::get((Api, "/ps", "Lists the models in memory"), ollama::models::running).of(Ollama),
        Route::post((Api, "/show", "Describes a model"), ollama::models::show)
            .takes::<ollama::models::Named>().of(Ollama),
        Route::post((Api, "/pull", "Fetches a model"), ollama::models::pull)
            .takes::<ollama::models::Pull>().of(Ollama).only(Admin),
        Route::delete((Api, "/delete", "Removes a model"), ollama::models::delete)
            .takes::<ollama::models::Named>().of(Ollama).only(Admin),
        Route::post((Api, "/embed", "Embeds texts"), ollama::embed::create)
            .takes::<ollama::embed::Request>().of(Ollama),
        Route::post((Api, "/embeddings", "Embeds a text"), ollama::embed::old)
            .takes::<ollama::embed::Old>().of(Ollama),
        Route::get((Api, "/version", "The version"), ollama::models::version).of(Ollama).only(Open),
        // Lemonade
        Route::get((V1, "/health", "Which models are in memory"), lemonade::status::health).of(Lemonade),
        Route::get((V1, "/stats", "What the last answer took, and totals"), lemonade::status::stats).of(Lemonade),
        Route::get((V1, "/system-info", "What this machine is"), lemonade::status::system_info).of(Lemonade),
        Route::get((V1, "/slots", "What every model is doing"), lemonade::status::slots).of(Lemonade),
        Route::get((V1, "/params", "Parameters that were set"), lemonade::params::get).of(Lemonade),
        Route::post((V1, "/params", "Sets parameters"), lemonade::params::set)
            .takes::<lemonade::params::Request>().of(Lemonade),
        Route::post((V1, "/load", "Loads a model"), lemonade::models::load)
            .takes::<lemonade::models::Load>().of(Lemonade).only(Admin),
        Route::post((V1, "/unload", "Lets a model go"), lemonade::models::unload)
            .takes::<lemonade::models::Named>().of(Lemonade).only(Admin),
        Route::post((V1, "/pull", "Fetches a model"), lemonade::models::pull)
            .takes::<lemonade::models::Pull>().of(Lemonade).only(Admin),
        Route::post((V1, "/delete", "Removes a model"), lemonade::models::delete)
            .takes::<lemonade::models::Named>().of(Lemonade).only(Admin),
        Route::get((V1, "/halt", "Ends the server"), lemonade::status::halt).of(Lemonade).only(Admin),
        Route::post((V1, "/tokenize", "A text's tokens"), lemonade::tokens::tokenize)
            .takes::<lemonade::tokens::Tokenize>().of(Lemonade),
        Route::post((V1, "/detokenize", "The text of tokens"), lemonade::tokens::detokenize)
            .takes::<lemonade::tokens::Detokenize>().of(Lemonade),
        // The server itself
        Route::get((Root, "/", "What this is"), lemonade::status::root).of(Lemonade).only(Open),
        Route::get((Root, "/live", "Whether the server runs"), lemonade::status::live).of(Lemonade).only(Open),
        Route::get((Root, "/metrics", "Counters for Prometheus"), lemonade::status::metrics).of(Lemonade),
        Route::get((Root, "/openapi.json", "This interface"), openapi::document).of(Lemonade).only(Open),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_endpoint_has_two_rows_and_every_row_says_what_it_does() {
        let mut seen = BTreeSet::new();
        for route in routes() {
            let facts = route.facts;
            assert!(seen.insert((facts.method, facts.base.prefixes(), facts.path)), "{facts:?}");
            assert!(facts.path.starts_with('/') && !facts.about.is_empty());
        }
    }

    #[test]
    fn whatever_changes_which_models_there_are_is_for_administrators() {
        for route in routes() {
            let word = |word: &&str| route.facts.path.ends_with(*word);
            let changes = ["/load", "/unload", "/pull", "/delete", "/halt"].iter().any(word);
            assert_eq!(changes, route.facts.access == Admin, "{:?}", route.facts);
        }
    }
}
