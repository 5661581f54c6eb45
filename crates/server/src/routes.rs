//! The route table: one row per endpoint.

use crate::dialect::Dialect::{self, Anthropic, Lemonade, Ollama, OpenAi};
use crate::reply::Form::{Events, Lines};
use crate::route::Access::{Admin, Open};
use crate::route::Base::{Api, Root, V1};
use crate::route::Gives::{Never, Nothing, Text};
use crate::route::{Facts, Route};
use crate::{anthropic, lemonade, ollama, openai, openapi, page};
use std::sync::LazyLock;

/// Every endpoint.
#[rustfmt::skip]
pub(crate) fn routes() -> Vec<Route> {
    vec![
        // OpenAI
        Route::post((V1, "/chat/completions", "Answers a conversation"), openai::chat::create)
            .takes::<openai::chat::Request>().like(openai::chat::example).streams(Events),
        Route::post((V1, "/completions", "Continues a text"), openai::completions::create)
            .takes::<openai::completions::Request>()
            .like(openai::completions::example).streams(Events),
        Route::post((V1, "/responses", "Answers a conversation, item by item"), openai::responses::create)
            .takes::<openai::responses::Request>().like(openai::responses::example).streams(Events),
        Route::post((V1, "/embeddings", "Embeds texts"), openai::embeddings::create)
            .takes::<openai::embeddings::Request>().like(openai::embeddings::example),
        Route::get((V1, "/models", "Lists the models on this machine"), openai::models::list)
            .like(openai::models::list_example),
        Route::get((V1, "/models/{*id}", "Describes a model"), openai::models::one)
            .like(openai::models::example),
        // Anthropic
        Route::post((V1, "/messages", "Answers a conversation"), anthropic::create)
            .takes::<anthropic::Request>().of(Anthropic).like(anthropic::example).streams(Events),
        Route::post((V1, "/messages/count_tokens", "Counts a conversation's tokens"), anthropic::count)
            .takes::<anthropic::Request>().of(Anthropic).like(anthropic::count_example),
        // Ollama
        Route::post((Api, "/chat", "Answers a conversation"), ollama::chat::create)
            .takes::<ollama::chat::Request>().of(Ollama).like(ollama::chat::example).streams(Lines),
        Route::post((Api, "/generate", "Answers a prompt"), ollama::generate::create)
            .takes::<ollama::generate::Request>().of(Ollama)
            .like(ollama::generate::example).streams(Lines),
        Route::get((Api, "/tags", "Lists the models on this machine"), ollama::models::tags).of(Ollama)
            .like(ollama::models::tags_example),
        Route::get((Api, "/ps", "Lists the models in memory"), ollama::models::running).of(Ollama)
            .like(ollama::models::running_example),
        Route::post((Api, "/show", "Describes a model"), ollama::models::show)
            .takes::<ollama::models::Named>().of(Ollama).like(ollama::models::show_example),
        Route::post((Api, "/pull", "Fetches a model"), ollama::models::pull)
            .takes::<ollama::models::Pull>().of(Ollama).only(Admin)
            .like(ollama::models::pull_example).streams(Lines),
        Route::delete((Api, "/delete", "Removes a model"), ollama::models::delete)
            .takes::<ollama::models::Named>().of(Ollama).only(Admin).gives(Nothing),
        Route::post((Api, "/embed", "Embeds texts"), ollama::embed::create)
            .takes::<ollama::embed::Request>().of(Ollama).like(ollama::embed::example),
        Route::post((Api, "/embeddings", "Embeds a text"), ollama::embed::old)
            .takes::<ollama::embed::Old>().of(Ollama).like(ollama::embed::old_example),
        Route::post((Api, "/create", "Refused: models are made of files"), ollama::refused::create)
            .of(Ollama).only(Admin).gives(Never),
        Route::post((Api, "/copy", "Refused: a model has one name"), ollama::refused::copy)
            .of(Ollama).only(Admin).gives(Never),
        Route::post((Api, "/push", "Refused: models are fetched only"), ollama::refused::push)
            .of(Ollama).only(Admin).gives(Never),
        Route::post((Api, "/blobs/{*digest}", "Refused: models are made of files"), ollama::refused::create)
            .of(Ollama).only(Admin).gives(Never),
        Route::get((Api, "/version", "The version"), ollama::models::version).of(Ollama).only(Open)
            .like(ollama::models::version_example),
        // Lemonade
        Route::get((V1, "/health", "Which models are in memory"), lemonade::status::health).of(Lemonade)
            .like(lemonade::status::health_example),
        Route::get((V1, "/stats", "What the last answer took, and totals"), lemonade::status::stats).of(Lemonade)
            .like(lemonade::status::stats_example),
        Route::get((V1, "/system-info", "What this machine is"), lemonade::status::system_info).of(Lemonade)
            .like(lemonade::status::system_info_example),
        Route::get((V1, "/plan", "How the models in memory run, device by device"), lemonade::status::plan).of(Lemonade)
            .like(lemonade::status::plan_example),
        Route::get((V1, "/slots", "What every model is doing"), lemonade::status::slots).of(Lemonade)
            .like(lemonade::status::slots_example),
        Route::get((V1, "/params", "Parameters that were set"), lemonade::params::get).of(Lemonade)
            .like(lemonade::params::example),
        Route::post((V1, "/params", "Sets parameters"), lemonade::params::set)
            .takes::<lemonade::params::Request>().of(Lemonade).only(Admin)
            .like(lemonade::params::example),
        Route::post((V1, "/load", "Loads a model"), lemonade::models::load)
            .takes::<lemonade::models::Load>().of(Lemonade).only(Admin)
            .like(lemonade::models::load_example),
        Route::post((V1, "/unload", "Lets a model go"), lemonade::models::unload)
            .takes::<lemonade::models::Named>().of(Lemonade).only(Admin)
            .like(lemonade::models::done_example),
        Route::post((V1, "/pull", "Fetches a model"), lemonade::models::pull)
            .takes::<lemonade::models::Pull>().of(Lemonade).only(Admin)
            .like(lemonade::models::done_example).streams(Events),
        Route::post((V1, "/delete", "Removes a model"), lemonade::models::delete)
            .takes::<lemonade::models::Named>().of(Lemonade).only(Admin)
            .like(lemonade::models::done_example),
        Route::get((V1, "/halt", "Ends the server"), lemonade::status::halt).of(Lemonade).only(Admin)
            .like(lemonade::status::halt_example),
        Route::post((V1, "/tokenize", "A text's tokens"), lemonade::tokens::tokenize)
            .takes::<lemonade::tokens::Tokenize>().of(Lemonade)
            .like(lemonade::tokens::tokens_example),
        Route::post((V1, "/detokenize", "The text of tokens"), lemonade::tokens::detokenize)
            .takes::<lemonade::tokens::Detokenize>().of(Lemonade)
            .like(lemonade::tokens::text_example),
        // The same at the root, where lm-eval and clients of llama.cpp and vLLM look
        Route::post((Root, "/tokenize", "A text's tokens"), lemonade::tokens::tokenize)
            .takes::<lemonade::tokens::Tokenize>().of(Lemonade)
            .like(lemonade::tokens::tokens_example),
        Route::post((Root, "/detokenize", "The text of tokens"), lemonade::tokens::detokenize)
            .takes::<lemonade::tokens::Detokenize>().of(Lemonade)
            .like(lemonade::tokens::text_example),
        Route::get((Root, "/tokenizer_info", "What is to be known of the tokenizer"), lemonade::tokens::info)
            .of(Lemonade).like(lemonade::tokens::info_example),
        // The server itself
        Route::get((Root, "/", "The page, for browsers; a line for Ollama's clients"), page::root).of(Lemonade).only(Open)
            .gives(Text(&["text/plain", "text/html"])),
        Route::get((Root, "/docs", "This interface, to read"), page::docs).of(Lemonade).only(Open)
            .gives(Text(&["text/html"])),
        Route::get((Root, "/page/{*file}", "What the page consists of"), page::part).of(Lemonade).only(Open)
            .gives(Text(page::KINDS)),
        Route::get((Root, "/live", "Whether the server runs"), lemonade::status::live).of(Lemonade).only(Open)
            .like(lemonade::status::live_example),
        Route::get((Root, "/health", "Whether the models are loaded"), lemonade::status::ready).of(Lemonade).only(Open)
            .like(lemonade::status::live_example),
        Route::get((Root, "/metrics", "Counters for Prometheus"), lemonade::status::metrics).of(Lemonade)
            .gives(Text(&[lemonade::status::OPENMETRICS])),
        Route::get((Root, "/openapi.json", "This interface"), openapi::document).of(Lemonade).only(Open)
            .like(openapi::example),
    ]
}

/// How errors at a path are worded: as its route says, and where there is none, as its neighbours.
pub(crate) fn dialect(path: &str) -> Dialect {
    static FACTS: LazyLock<Vec<Facts>> =
        LazyLock::new(|| routes().into_iter().map(|route| route.facts).collect());
    let ollama = path.starts_with("/api/") && !path.starts_with("/api/v");
    let nearest = if ollama { Ollama } else { OpenAi };
    FACTS.iter().find(|facts| facts.is_at(path)).map_or(nearest, |facts| facts.dialect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Gives;
    use std::collections::BTreeSet;

    #[test]
    fn no_endpoint_has_two_rows_and_every_row_says_what_it_does() {
        let mut seen = BTreeSet::new();
        for route in routes() {
            let facts = route.facts;
            assert!(seen.insert((facts.method, facts.base.prefixes(), facts.path)), "{facts:?}");
            assert!(facts.path.starts_with('/') && !facts.about.is_empty());
            assert!(!matches!(facts.gives, Gives::Unsaid), "{facts:?} gives nothing");
        }
    }

    #[test]
    fn whatever_changes_things_for_everybody_is_for_administrators() {
        let models = ["/load", "/unload", "/pull", "/delete", "/create", "/copy", "/push"];
        for route in routes() {
            let word = |word: &&str| route.facts.path.ends_with(*word);
            let changes = models.iter().chain(&["/halt"]).any(word)
                || route.facts.path.starts_with("/blobs")
                || (route.facts.method == "post" && route.facts.path == "/params");
            assert_eq!(changes, route.facts.access == Admin, "{:?}", route.facts);
        }
    }
}
