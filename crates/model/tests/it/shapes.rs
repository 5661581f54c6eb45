//! Published models: every one builds a graph, with as many weights as its authors say.

use tangor_model::ir::Rows;
use tangor_model::tensor::{DType, Layout, Offset};
use tangor_model::{Graph, Op, shapes};

const INT4: Layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Zero };

fn graph(name: &str) -> Graph {
    let config = shapes::config(name).expect("a published shape");
    shapes::random_graph(&config, INT4, 0).expect("a graph")
}

fn weights(graph: &Graph) -> usize {
    graph.weights.iter().map(|named| named.weight.rows() * named.weight.cols()).sum()
}

#[test]
fn have_the_published_number_of_weights() {
    let published = [
        ("deepseek-r1-distill-llama-8b", 8_030_261_248),
        ("deepseek-r1-distill-qwen-1.5b", 1_777_088_000),
        ("deepseek-r1-distill-qwen-7b", 7_615_616_512),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-7b-chat", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b", 7_248_023_552),
        ("phi-3-mini", 3_821_079_552),
        ("phi-3.5-mini", 3_821_079_552),
        ("qwen1.5-7b", 7_721_324_544),
        ("smollm2-135m", 134_515_008),
    ];
    assert!(shapes::names().eq(published.iter().map(|(name, _)| *name)));
    for (name, expected) in published {
        assert_eq!(weights(&graph(name)), expected, "{name}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_known_ones() {
    let error = shapes::config("gpt-5").expect_err("must be refused").to_string();
    assert!(error.contains("\"gpt-5\"") && error.contains("llama-3.2-1b"), "{error}");
}

#[test]
fn random_weights_have_the_layout_that_was_asked_for_and_depend_on_the_seed() {
    let config = shapes::config("smollm2-135m").unwrap();
    let dense = Layout::Dense(DType::Bf16);
    let eight = Layout::Quant { bits: 8, group: 64, offset: Offset::Min };
    for layout in [INT4, dense, eight] {
        let graph = |seed| shapes::random_graph(&config, layout, seed).unwrap();
        let (one, same, other) = (graph(1), graph(1), graph(2));
        let row = |graph: &Graph| {
            let Op::Embed { table } = graph.nodes[0].op else { panic!("embedding first") };
            let table = graph.weight(table);
            assert_eq!(table.layout(), Some(layout));
            let mut row = vec![0.0; table.cols()];
            table.row_f32(7, &mut row);
            row
        };
        assert_eq!(row(&one), row(&same), "{layout:?}");
        assert_ne!(row(&one), row(&other), "{layout:?}");
        let size = row(&one).iter().map(|x| x * x).sum::<f32>();
        assert!((0.2..5.0).contains(&size), "{layout:?}: a row's squares sum to {size}");
    }
}

#[test]
fn only_the_wanted_rows_pass_the_last_mlp() {
    for name in ["smollm2-135m", "phi-3-mini"] {
        let graph = graph(name);
        let last = graph.hyper.layers - 1;
        for node in &graph.nodes {
            let rows = graph.value(node.outputs[0]).rows;
            let in_last_mlp = node.name.starts_with(&format!("layers.{last}.mlp"));
            let in_first_mlp = node.name.starts_with("layers.0.mlp");
            assert!(!in_last_mlp || rows == Rows::Logits, "{name}: {}", node.name);
            assert!(!in_first_mlp || rows == Rows::Tokens, "{name}: {}", node.name);
        }
    }
}
