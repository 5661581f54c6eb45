//! How tokens are chosen: what the command line asks for, over what the model's publisher
//! recommends, over the likeliest token every time.

use crate::args::SamplingOptions;
use serde_json::Value;
use tangor_engine::SamplingParams;
use tangor_engine::plan::model::formats::Checkpoint;

/// What the publisher recommends (`generation_config.json`, or `search` of `genai_config.json`):
/// greedy unless it says `do_sample`. What it leaves out is as in transformers.
pub(crate) fn recommended(checkpoint: &Checkpoint) -> SamplingParams {
    match checkpoint {
        Checkpoint::Gguf(_) => SamplingParams::default(),
        Checkpoint::Hf(hf) => of_generation_config(&hf.sidecars().generation_config),
        Checkpoint::Oga(oga) => {
            let search = &oga.genai.search;
            let base = SamplingParams {
                repetition_penalty: search.repetition_penalty as f32,
                ..SamplingParams::default()
            };
            if !search.do_sample {
                return base;
            }
            SamplingParams {
                temperature: search.temperature as f32,
                top_k: search.top_k,
                top_p: if search.top_p > 0.0 { search.top_p as f32 } else { 1.0 },
                ..base
            }
        }
    }
}

fn of_generation_config(config: &Value) -> SamplingParams {
    let number = |key: &str| config.get(key).and_then(Value::as_f64).map(|value| value as f32);
    let base = SamplingParams {
        repetition_penalty: number("repetition_penalty").filter(|p| *p > 0.0).unwrap_or(1.0),
        ..SamplingParams::default()
    };
    if config.get("do_sample").and_then(Value::as_bool) != Some(true) {
        return base;
    }
    let top_k = config.get("top_k").and_then(Value::as_u64).unwrap_or(50);
    SamplingParams {
        temperature: number("temperature").filter(|t| *t >= 0.0).unwrap_or(1.0),
        top_k: usize::try_from(top_k).unwrap_or(0),
        top_p: number("top_p").filter(|p| (0.0..=1.0).contains(p)).unwrap_or(1.0),
        min_p: number("min_p").filter(|p| (0.0..=1.0).contains(p)).unwrap_or(0.0),
        ..base
    }
}

/// The recommendation as the options change it.
///
/// Asking for a temperature of 0 asks for the likeliest token, whatever else is recommended.
pub(crate) fn chosen(recommended: &SamplingParams, options: &SamplingOptions) -> SamplingParams {
    let or = |option: Option<f32>, value: f32| option.unwrap_or(value);
    SamplingParams {
        temperature: or(options.temperature, recommended.temperature),
        top_k: options.top_k.unwrap_or(recommended.top_k),
        top_p: or(options.top_p, recommended.top_p),
        min_p: or(options.min_p, recommended.min_p),
        repetition_penalty: or(options.repetition_penalty, recommended.repetition_penalty),
        presence_penalty: or(options.presence_penalty, recommended.presence_penalty),
        frequency_penalty: or(options.frequency_penalty, recommended.frequency_penalty),
        seed: options.seed,
        ..recommended.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn without_a_recommendation_the_likeliest_token_is_taken() {
        for config in [Value::Null, json!({}), json!({"temperature": 0.6, "top_p": 0.9})] {
            assert_eq!(of_generation_config(&config), SamplingParams::default(), "{config}");
        }
        assert_eq!(SamplingParams::default().temperature, 0.0);
    }

    #[test]
    fn a_publisher_may_recommend_sampling() {
        let config = json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9});
        let params = of_generation_config(&config);
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.6, 50, 0.9));
        let nonsense = json!({"do_sample": true, "temperature": -1, "top_p": 7, "top_k": "x"});
        let params = of_generation_config(&nonsense);
        assert_eq!((params.temperature, params.top_k, params.top_p), (1.0, 50, 1.0));
    }

    #[test]
    fn options_come_before_recommendations() {
        let config = json!({"do_sample": true, "temperature": 0.6, "repetition_penalty": 1.1});
        let options = SamplingOptions {
            temperature: Some(0.0),
            top_k: Some(3),
            seed: Some(5),
            ..SamplingOptions::default()
        };
        let params = chosen(&of_generation_config(&config), &options);
        assert_eq!((params.temperature, params.top_k, params.seed), (0.0, 3, Some(5)));
        assert_eq!(params.repetition_penalty, 1.1);
    }
}
