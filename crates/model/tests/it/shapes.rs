//! Published models: every one builds a graph, with as many weights as its authors say.

use tangor_model::ir::Rows;
use tangor_model::rope::{Angles, Variant};
use tangor_model::tensor::{self, Bytes, DType, Layout, Offset, Scales, Weight};
use tangor_model::{Graph, ImportError, Mixture, Op, Tensors, arch, pass, shapes};

const INT4: Layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Zero };

/// Weights that are all zero and share their memory, which is never touched.
struct Zeros(Bytes);

impl Tensors for Zeros {
    fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight, ImportError> {
        let groups = rows * cols.div_ceil(256);
        let scales = Scales { dtype: DType::F16, bytes: self.0.slice(..groups * 2) };
        let codes = self.0.slice(..groups * 128);
        Weight::grouped((4, 256), (rows, cols), codes, scales, tensor::Zeros::Middle)
            .map_err(|source| ImportError::Weight { name: name.to_owned(), source })
    }
}

fn graph(name: &str) -> Graph {
    let config = shapes::config(name).expect("a published shape");
    let zeros = Zeros(vec![0; 151_936 * 4096 / 2].into());
    pass::run_all(arch::graph(&config, &zeros).expect("a graph")).expect("shapes that fit")
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
    let mut config = shapes::config("smollm2-135m").unwrap();
    (config.hyper.layers, config.hyper.vocab) = (1, 1024);
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

#[test]
fn have_the_frequencies_that_transformers_computes() {
    // inv_freq at 1, n/2, 5n/8 and n-1 of n.
    let plain = [0.865_964_35, 0.01, 0.003_162_277_9, 1.154_781_9e-4];
    let (phi_short, phi_long) = (
        [0.809_219_8, 0.005_025_126_5, 0.001_565_484_3, 4.265_942_7e-5],
        [0.743_607_3, 1.986_491_7e-4, 5.050_754_8e-5, 1.868_487_9e-6],
    );
    for (name, variant, expected) in [
        ("llama-2-7b", Variant::Short, plain),
        ("deepseek-r1-distill-qwen-1.5b", Variant::Short, plain),
        (
            "llama-3-8b",
            Variant::Short,
            [0.814_617_2, 0.001_414_213_4, 2.742_482e-4, 2.455_140_7e-6],
        ),
        ("llama-3.1-8b", Variant::Short, [0.814_617_2, 5.248_46e-4, 3.428_102_4e-5, 3.068_926e-7]),
        ("llama-3.2-1b", Variant::Short, [0.663_601_3, 4.295_567e-4, 8.570_256e-6, 9.418_306_5e-8]),
        ("phi-3.5-mini", Variant::Short, phi_short),
        ("phi-3.5-mini", Variant::Long, phi_long),
        ("mistral-7b", Variant::Long, [0.805_842_2, 0.001, 1.778_279_4e-4, 1.240_937_8e-6]),
    ] {
        let rope = shapes::config(name).unwrap().rope;
        let Angles::Frequencies { inv_freq, factor } = rope.angles(variant) else {
            panic!("frequencies expected")
        };
        let n = inv_freq.len();
        for (index, expected) in [1, n / 2, n * 5 / 8, n - 1].into_iter().zip(expected) {
            let off: f32 = inv_freq[index] / expected - 1.0;
            assert!(off.abs() < 3e-7, "{name} {index}: {} is not {expected}", inv_freq[index]);
        }
        let expected = if name == "phi-3.5-mini" { 1.190_238_1 } else { 1.0 };
        assert_eq!(*factor, expected, "{name}");
    }
}

#[test]
fn mixtures_have_random_weights_of_the_right_size_in_every_matrix() {
    let mut config = shapes::config("llama-3.2-1b").unwrap();
    (config.hyper.layers, config.hyper.vocab) = (3, 512);
    for mixture in Mixture::ALL {
        let graph = shapes::random_mixture(&config, mixture, 1).unwrap();
        let mut bytes = 0;
        for named in graph.weights.iter().filter(|named| named.weight.rows() > 1) {
            let weight = &named.weight;
            let mut row = vec![0.0; weight.cols()];
            weight.row_f32(weight.rows() - 1, &mut row);
            let size = row.iter().map(|x| x * x).sum::<f32>();
            assert!((0.3..3.0).contains(&size), "{mixture} {}: {size}", named.name);
            bytes += weight.stored_bytes();
        }
        let bits = 8.0 * bytes as f64 / weights(&graph) as f64;
        assert!((4.1..5.3).contains(&bits), "{mixture}: {bits} bits per weight");
    }
}
