//! Embeddings are the pooled rows that the output head reads, whatever else is in the batch.

use crate::support::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tangor_engine::device::oracle::OracleDevice;
use tangor_engine::device::{Activations, Batch, Device, KvSpec, KvType, Prepare, Segment, Span};
use tangor_engine::plan::model::{Graph, Op, formats, import};

/// Longer than a step of a prompt.
fn long() -> String {
    (0..90).map(|i| format!("word{i} ")).collect()
}

fn graph(server: &Running) -> Graph {
    let source = tangor_store::DirSource::open(&server.folder.path().join("tiny")).unwrap();
    let limits = formats::Limits::default();
    let checkpoint = formats::Checkpoint::open(&source, source.file(), &limits).unwrap();
    import(&checkpoint).unwrap()
}

/// What the last linear of a graph reads behind every token, in one run of the whole graph; and
/// proof that it is that: the logits are its product with the head's weights.
fn hidden(graph: &Graph, tokens: &[u32]) -> Vec<Vec<f32>> {
    let (device, hyper, count) = (OracleDevice::new(), &graph.hyper, tokens.len());
    let head = graph.nodes.last().unwrap();
    let Op::Linear { weight, bias: None } = head.op else { panic!("{head:?}") };
    let spec = KvSpec {
        layers: hyper.layers,
        kv_heads: hyper.kv_heads,
        head_dim: hyper.head_dim,
        page_tokens: 16,
        pages: count.div_ceil(16),
        dtype: KvType::F32,
    };
    let mut kv = device.kv_cache(&spec).unwrap();
    let outputs = vec![head.inputs[0], graph.logits];
    let segment = Segment { outputs, ..Segment::whole(graph) };
    let prepare = Prepare { activations: Activations::F32, context: count, max_rows: count };
    let mut runnable = device.prepare(&segment, prepare, &mut |_| {}).unwrap();
    let pages: Vec<u32> = (0..u32::try_from(spec.pages).unwrap()).collect();
    let rope = graph.rope.variant(count);
    let spans = [Span { rows: 0..count, start: 0, pages: &pages, rope }];
    let rows: Vec<usize> = (0..count).collect();
    let mut outputs = [Vec::new(), Vec::new()];
    let batch = Batch { tokens, spans: &spans, logit_rows: &rows };
    runnable.run(&batch, kv.as_mut(), &[], &mut outputs).unwrap();
    let [hidden, logits] = outputs;
    let hidden: Vec<Vec<f32>> = hidden.chunks_exact(hyper.hidden).map(<[f32]>::to_vec).collect();
    assert_eq!(hidden.len(), count);
    let mut row = vec![0.0; hyper.hidden];
    graph.weight(weight).row_f32(7, &mut row);
    for (hidden, logits) in hidden.iter().zip(logits.chunks_exact(hyper.vocab)) {
        let product: f64 = hidden.iter().zip(&row).map(|(x, w)| f64::from(x * w)).sum();
        assert!((product - f64::from(logits[7])).abs() < 1e-3, "{product} {}", logits[7]);
    }
    hidden
}

fn unit(sum: &[f64]) -> Vec<u32> {
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    sum.iter().map(|x| ((x / length) as f32).to_bits()).collect()
}

fn bits(vector: &Value) -> Vec<u32> {
    let numbers = vector.as_array().unwrap().iter();
    numbers.map(|x| (x.as_f64().unwrap() as f32).to_bits()).collect()
}

fn tokens(server: &Running, text: &str) -> Vec<u32> {
    let ask = json!({"content": text, "add_special": true, "parse_special": false});
    serde_json::from_value(server.post("/v1/tokenize", ask).json()["tokens"].clone()).unwrap()
}

#[test]
fn an_embedding_is_what_the_head_reads_pooled_and_of_length_one() {
    let server = Running::new(|_| {});
    let graph = graph(&server);
    for text in ["x", "Hello there", &long()] {
        let tokens = tokens(&server, text);
        let rows = hidden(&graph, &tokens);
        let wide = |row: &Vec<f32>| row.iter().copied().map(f64::from).collect::<Vec<f64>>();
        let mut mean = vec![0.0; graph.hyper.hidden];
        for row in &rows {
            mean.iter_mut().zip(wide(row)).for_each(|(sum, x)| *sum += x);
        }
        let last = wide(rows.last().unwrap());
        for (pooling, expected) in [("mean", unit(&mean)), ("last", unit(&last))] {
            // As a text and as its tokens, from a cold cache and from a warm one.
            for input in [json!(text), json!(tokens), json!(text)] {
                let ask = json!({"model": "tiny", "input": input, "pooling": pooling});
                let body = server.post("/v1/embeddings", ask).json();
                assert_eq!(bits(&body["data"][0]["embedding"]), expected, "{pooling} of {text}");
                assert_eq!(body["usage"]["prompt_tokens"], tokens.len());
            }
        }
    }
    assert!(tokens(&server, &long()).len() > 256, "more than a step of a prompt");
}

#[test]
fn many_texts_beside_an_answer_equal_each_alone() {
    // The test's loader takes 8 at a time, the answer among them.
    let server = Running::new(|options| options.limits.embedding = 4);
    let texts: Vec<String> = (0..21).map(|i| format!("{i} {}", "so ".repeat(i * i % 17))).collect();
    let chat = json!({
        "messages": said("Hi"), "max_tokens": 40, "ignore_eos": true, "stream": true,
    });
    let quiet = server.post("/v1/chat/completions", chat.clone()).events();
    let busy = std::thread::scope(|scope| {
        let chatting = scope.spawn(|| server.post("/v1/chat/completions", chat).events());
        let all = server.post("/api/v1/embeddings", json!({"input": texts})).json();
        (chatting.join().unwrap(), all)
    });
    let said = |events: &[(Option<String>, Value)]| -> String {
        let text = |data: &Value| data["choices"][0]["delta"]["content"].as_str().map(String::from);
        events.iter().filter_map(|(_, data)| text(data)).collect()
    };
    assert_eq!(said(&busy.0), said(&quiet));
    let all = busy.1["data"].as_array().unwrap();
    assert_eq!(all.len(), texts.len());
    let mut counted = 0;
    for (index, (text, one)) in texts.iter().zip(all).enumerate() {
        assert_eq!(
            (one["index"].as_u64(), &one["object"]),
            (Some(index as u64), &"embedding".into())
        );
        let alone = server.post("/v1/embeddings", json!({"input": text})).json();
        assert_eq!(bits(&alone["data"][0]["embedding"]), bits(&one["embedding"]), "{text}");
        counted += alone["usage"]["prompt_tokens"].as_u64().unwrap();
    }
    assert_eq!(busy.1["usage"]["prompt_tokens"], counted);
}

#[test]
fn every_dialect_gives_the_same_vectors() {
    let server = Running::new(|_| {});
    let texts = json!(["Hello", "there"]);
    let floats = server.post("/v1/embeddings", json!({"input": texts, "dimensions": 64})).json();
    let expected: Vec<_> = (0..2).map(|i| bits(&floats["data"][i]["embedding"])).collect();
    let ask = json!({"input": texts, "encoding_format": "base64"});
    let coded = server.post("/v0/embeddings", ask).json();
    let ollama = server.post("/api/embed", json!({"model": "tiny", "input": texts})).json();
    assert_eq!(ollama["prompt_eval_count"], floats["usage"]["prompt_tokens"]);
    for (index, expected) in expected.iter().enumerate() {
        let bytes = STANDARD.decode(coded["data"][index]["embedding"].as_str().unwrap()).unwrap();
        let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        assert_eq!(&words.collect::<Vec<_>>(), expected);
        assert_eq!(&bits(&ollama["embeddings"][index]), expected);
        let ask = json!({"model": "tiny", "prompt": texts[index]});
        let old = server.post("/api/embeddings", ask).json();
        assert_eq!(&bits(&old["embedding"]), expected);
    }
    for input in [json!(""), json!([])] {
        let none = server.post("/api/embed", json!({"model": "tiny", "input": input})).json();
        assert_eq!(none["embeddings"], json!([]));
    }
}

#[test]
fn what_cannot_be_embedded_is_refused_with_numbers_and_ollama_cuts() {
    let server = Running::new(|_| {});
    let long = "x".repeat(3 * CONTEXT);
    let all = tokens(&server, &long).len().to_string();
    for (ask, words) in [
        (json!({}), vec!["input is missing"]),
        (json!({"input": []}), vec!["input is missing"]),
        (json!({"input": ["a", ""]}), vec!["text 2", "empty"]),
        (json!({"input": [[1], []]}), vec!["text 2", "empty"]),
        (json!({"input": [99_999_999]}), vec!["99999999", "vocabulary"]),
        (json!({"input": ["a", long]}), vec!["text 2", &all, "2048"]),
        (json!({"input": "a", "dimensions": 32}), vec!["dimensions is 32", "64"]),
        (json!({"input": vec!["a"; 2049]}), vec!["2049", "2048"]),
        (json!({"input": "a", "encoding_format": "hex"}), vec!["encoding_format"]),
        (json!({"input": "a", "pooling": "max"}), vec!["pooling"]),
    ] {
        let reply = server.post("/v1/embeddings", ask);
        assert_eq!(reply.status, 400, "{}", reply.text);
        assert!(words.iter().all(|word| reply.text.contains(word)), "{words:?}: {}", reply.text);
    }
    let ask = |truncate| json!({"model": "tiny", "input": long, "truncate": truncate});
    let refused = server.post("/api/embed", ask(json!(false)));
    assert_eq!(refused.status, 400);
    assert!(refused.text.contains(&all), "{}", refused.text);
    let cut = server.post("/api/embed", ask(Value::Null)).json();
    assert_eq!(cut["prompt_eval_count"], CONTEXT);
}
