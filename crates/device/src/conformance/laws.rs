//! The laws of the contract, on whole models, with equal bits.
//!
//! What a device computes for a row depends on that row's token, position and the cached rows
//! before it, and on nothing else.

use super::pieces::in_pieces;
use super::random::{Form, Kind, ModelKind, Random, model};
use super::{Checker, Line, difference};
use crate::contract::{
    Activations, Batch, Device, DeviceError, KvCache, KvSpec, KvType, PageId, Prepare, Products,
    Rounding, Runnable, Segment, Span,
};
use crate::oracle::{OracleDevice, run_sequence};
use tangor_model::Graph;
use tangor_tensor::DType;

/// Tokens per page: no multiple of a vector.
const PAGE: usize = 20;
/// Pages in the pool.
const PAGES: usize = 32;

/// What whole models may differ from the oracle by. Under 8-bit activations or caches an element
/// at the border of two steps may fall to either side, and layers pass that on.
const MODEL_F32: f64 = 1e-4;
const MODEL_ROUNDED: f64 = 1e-1;

/// One model prepared on one device, with a cache.
struct Session {
    runnable: Box<dyn Runnable>,
    kv: Box<dyn KvCache>,
}

impl Session {
    fn new(
        device: &dyn Device,
        graph: &Graph,
        activations: Activations,
        dtype: KvType,
    ) -> Result<Self, DeviceError> {
        let options = Prepare { activations, context: 256, max_rows: 128 };
        let hyper = &graph.hyper;
        let spec = KvSpec {
            layers: hyper.layers,
            kv_heads: hyper.kv_heads,
            head_dim: hyper.head_dim,
            page_tokens: PAGE,
            pages: PAGES,
            dtype,
        };
        Ok(Self {
            runnable: device.prepare(&Segment::whole(graph), options, &mut |_| {})?,
            kv: device.kv_cache(&spec)?,
        })
    }

    /// Runs rows of several sequences and gives the logits of all of them.
    fn run(&mut self, parts: &[(&[u32], usize, &[PageId])]) -> Result<Vec<f32>, DeviceError> {
        let tokens: Vec<u32> = parts.iter().flat_map(|part| part.0).copied().collect();
        let mut spans = Vec::new();
        let mut row = 0;
        for &(tokens, start, pages) in parts {
            let rope = tangor_model::rope::Variant::Short;
            spans.push(Span { rows: row..row + tokens.len(), start, pages, rope });
            row += tokens.len();
        }
        let rows: Vec<usize> = (0..row).collect();
        let batch = Batch { tokens: &tokens, spans: &spans, logit_rows: &rows };
        let mut outputs = [Vec::new()];
        self.runnable.run(&batch, self.kv.as_mut(), &[], &mut outputs)?;
        let [logits] = outputs;
        Ok(logits)
    }
}

fn kinds() -> [(ModelKind, Activations, KvType); 6] {
    let w4 = |group, zeros, scales| Form::Grouped { bits: 4, group, scales, zeros };
    let kind = |form, window, softcap, fused| ModelKind { form, window, softcap, fused };
    let (int8, exact) = (Activations::Int8, Activations::F32);
    [
        (kind(w4(32, Kind::Float, DType::F16), None, None, true), int8, KvType::Bf16),
        (kind(w4(128, Kind::Packed, DType::F32), Some(23), None, false), int8, KvType::Int8),
        (kind(w4(16, Kind::Middle, DType::F16), None, Some(30.0), true), exact, KvType::F32),
        (kind(Form::Dense(DType::Bf16), None, None, false), int8, KvType::F16),
        (kind(w4(64, Kind::Packed, DType::F16), Some(21), Some(25.0), false), int8, KvType::Bf16),
        (
            kind(
                Form::Grouped { bits: 8, group: 32, scales: DType::F16, zeros: Kind::Middle },
                Some(40),
                None,
                true,
            ),
            int8,
            KvType::F32,
        ),
    ]
}

fn tokens(random: &mut Random, count: usize) -> Vec<u32> {
    #[allow(clippy::cast_possible_truncation)]
    (0..count).map(|_| random.below(203) as u32).collect()
}

fn equal(got: &[f32], want: &[f32]) -> Result<f64, String> {
    if got.len() != want.len() {
        return Err(format!("{} logits instead of {}", got.len(), want.len()));
    }
    let different = got.iter().zip(want).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    if different == 0 { Ok(0.0) } else { Err(format!("{different} of {} differ", want.len())) }
}

/// Logits of a fixed small model over fixed tokens in prefill and decode: devices that promise the
/// same bits (the same processor with other threads, another instruction set) give the same.
///
/// # Errors
/// Whatever the device says.
pub fn bits(device: &dyn Device) -> Result<Vec<f32>, DeviceError> {
    let mut all = Vec::new();
    for (kind, activations, kv) in kinds() {
        let Some(graph) = model(&mut Random(3), kind) else { continue };
        let tokens = tokens(&mut Random(4), 75);
        let mut session = Session::new(device, &graph, activations, kv)?;
        let pages: Vec<PageId> = (0..8).collect();
        all.extend(session.run(&[(&tokens[..70], 0, &pages)])?);
        for position in 70..75 {
            all.extend(session.run(&[(&tokens[position..=position], position, &pages)])?);
        }
    }
    Ok(all)
}

/// All laws, on one of every `every` models.
pub(super) fn check(device: &dyn Device, every: usize) -> Vec<Line> {
    let exact = match device.arithmetic().products {
        Products::F32 => MODEL_F32,
        Products::Bf16 => MODEL_ROUNDED,
    };
    let layers = "models of two layers that mix weights, caches, windows and caps of scores";
    let mut models = [
        Checker::new("model, f32", format!("{layers}; exact mode"), exact),
        Checker::new("model, rounded", format!("{layers}; int8 or a cache of less"), MODEL_ROUNDED),
    ];
    let mut laws = [
        ("chunked = whole", "75 tokens in chunks of 1 to 30 rows", law_chunks as Law),
        ("batched = single", "three sequences in one batch, at different places", law_batches),
        ("pages in any order", "pages that are neither the first nor in order", law_pages),
        ("copied pages", "two sequences that share a beginning and go on apart", law_copies),
        ("caches read and written", "keys and values handed to other pages", law_transfer),
    ]
    .map(|(what, varied, law)| (Checker::new(what, varied, 0.0), law));
    let mut pieces =
        Checker::new("pieces = whole", "models cut into 2 and 7 pieces, prepared together", 0.0);
    for (index, (kind, activations, kv)) in kinds().into_iter().enumerate().step_by(every) {
        let name = format!("model {index}, {activations:?}, KV {kv:?}");
        let Some(graph) = model(&mut Random(index as u64), kind) else {
            models[0].record(&name, Err("the model could not be built".into()));
            continue;
        };
        let tokens = tokens(&mut Random(99), 75);
        let make = || Session::new(device, &graph, activations, kv);
        let rounded = activations == Activations::Int8 || kv != KvType::F32;
        models[usize::from(rounded)]
            .record(&name, against_oracle(device, &graph, (activations, kv)));
        for count in [2, 7] {
            let run = |count| in_pieces(device, &graph, count, &tokens, (activations, kv));
            let both = run(count).and_then(|cut| Ok((cut.logits, run(1)?.logits)));
            let both = both.map_err(|error| error.to_string());
            pieces.record(&name, both.and_then(|(cut, whole)| equal(&cut, &whole)));
        }
        for (checker, law) in &mut laws {
            let result = make().and_then(|session| {
                let pages: Vec<PageId> = (0..4).collect();
                let whole = make()?.run(&[(&tokens, 0, &pages)])?;
                law(session, &tokens, &whole)
            });
            checker.record(
                &name,
                result.map_err(|error| error.to_string()).and_then(|both| equal(&both.0, &both.1)),
            );
        }
    }
    let laws = laws.into_iter().map(|law| law.0).chain([pieces]);
    models.into_iter().chain(laws).map(|checker| checker.line).collect()
}

fn against_oracle(
    device: &dyn Device,
    graph: &Graph,
    (activations, kv): (Activations, KvType),
) -> Result<f64, String> {
    let tokens = tokens(&mut Random(7), 33);
    let run = |device: &dyn Device, activations| {
        run_sequence(device, graph, &tokens, activations, kv).map_err(|error| error.to_string())
    };
    let defined = match device.arithmetic().rounding {
        Rounding::Defined => activations,
        Rounding::None => Activations::F32,
    };
    let want = run(&OracleDevice::new(), defined)?;
    difference(&run(device, activations)?, &want, graph.hyper.vocab)
}

/// Runs something in an unusual way; gives what came out and what should have.
type Law = fn(Session, &[u32], &[f32]) -> Result<(Vec<f32>, Vec<f32>), DeviceError>;

/// A prompt in chunks of any size, then token by token.
fn law_chunks(
    mut session: Session,
    tokens: &[u32],
    whole: &[f32],
) -> Result<(Vec<f32>, Vec<f32>), DeviceError> {
    let pages: Vec<PageId> = (0..4).collect();
    let (mut got, mut start) = (Vec::new(), 0);
    for count in [1, 30, 2, 5, 17, 1, 1, 6, 1, 1, 1, 9] {
        got.extend(session.run(&[(&tokens[start..start + count], start, &pages)])?);
        start += count;
    }
    Ok((got, whole.to_vec()))
}

/// Three sequences at once, at different places, in one batch.
fn law_batches(
    mut session: Session,
    tokens: &[u32],
    whole: &[f32],
) -> Result<(Vec<f32>, Vec<f32>), DeviceError> {
    let pages: Vec<Vec<PageId>> =
        (0..3).map(|sequence| (0..4).map(|page| page * 3 + sequence).collect()).collect();
    let vocab = whole.len() / tokens.len();
    session.run(&[(&tokens[..40], 0, &pages[0]), (&tokens[..7], 0, &pages[1])])?;
    let got = session.run(&[
        (&tokens[40..41], 40, &pages[0]),
        (&tokens[7..50], 7, &pages[1]),
        (&tokens[..12], 0, &pages[2]),
    ])?;
    let want = [40..41, 7..50, 0..12].map(|r| whole[r.start * vocab..r.end * vocab].to_vec());
    Ok((got, want.concat()))
}

/// Pages in another order, and not the first ones.
fn law_pages(
    mut session: Session,
    tokens: &[u32],
    whole: &[f32],
) -> Result<(Vec<f32>, Vec<f32>), DeviceError> {
    let got = session.run(&[(tokens, 0, &[31, 2, 17, 5])])?;
    Ok((got, whole.to_vec()))
}

/// Two sequences that share a beginning: the second continues on a copied page.
fn law_copies(
    mut session: Session,
    tokens: &[u32],
    whole: &[f32],
) -> Result<(Vec<f32>, Vec<f32>), DeviceError> {
    let vocab = whole.len() / tokens.len();
    session.run(&[(&tokens[..50], 0, &[3, 4, 5])])?;
    session.kv.copy_page(5, 9, 10);
    // The first goes on with other tokens, on its own page.
    session.run(&[(&[1, 2, 3], 50, &[3, 4, 5])])?;
    let got = session.run(&[(&tokens[50..], 50, &[3, 4, 9, 10])])?;
    Ok((got, whole[50 * vocab..].to_vec()))
}

/// A page that is read out and written elsewhere holds the same.
fn law_transfer(
    mut session: Session,
    tokens: &[u32],
    whole: &[f32],
) -> Result<(Vec<f32>, Vec<f32>), DeviceError> {
    let vocab = whole.len() / tokens.len();
    session.run(&[(&tokens[..30], 0, &[0, 1])])?;
    let spec = *session.kv.spec();
    for (from, to, count) in [(0, 11, PAGE), (1, 7, 10)] {
        for layer in 0..spec.layers {
            let len = count * spec.kv_heads * spec.head_dim;
            let (mut keys, mut values) = (vec![f32::NAN; len], vec![f32::NAN; len]);
            session.kv.read_page(from, layer, count, &mut keys, &mut values);
            session.kv.write_page(to, layer, count, &keys, &values);
        }
    }
    let got = session.run(&[(&tokens[30..], 30, &[11, 7, 2, 3])])?;
    Ok((got, whole[30 * vocab..].to_vec()))
}
