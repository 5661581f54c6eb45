//! A graph that is cut into pieces and prepared in one call, as engines do where two devices share
//! a prompt: it computes what it computes whole, and its pieces share weights and memory.

use crate::contract::{
    Activations, Batch, Device, DeviceError, KvSpec, KvType, PageId, Prepare, Runnable, Segment,
    Span,
};
use std::collections::HashMap;
use std::ops::Range;
use tangor_model::rope::Variant;
use tangor_model::{Graph, ValueId};

/// What a run in pieces came to.
#[derive(Clone, Debug, PartialEq)]
pub struct InPieces {
    /// Logits of all rows, `(rows, vocab)`.
    pub logits: Vec<f32>,
    /// Bytes that all pieces together took more after the run than before: scratch memory that
    /// grows with use.
    pub scratch_bytes: u64,
}

/// Runs `tokens` in one batch through a graph that is cut into `count` pieces of as many nodes.
///
/// # Errors
/// Whatever the device says.
pub fn in_pieces(
    device: &dyn Device,
    graph: &Graph,
    count: usize,
    tokens: &[u32],
    (activations, kv): (Activations, KvType),
) -> Result<InPieces, DeviceError> {
    let length = graph.nodes.len().div_ceil(count.max(1)).max(1);
    let starts = (0..graph.nodes.len()).step_by(length);
    let cut = |start: usize| segment(graph, start..(start + length).min(graph.nodes.len()));
    let segments: Vec<Segment<'_>> = starts.map(cut).collect();
    let rows = tokens.len();
    let options = Prepare { activations, context: rows, max_rows: rows };
    let mut pieces = device.prepare_all(&segments, options, &mut |_| {})?;
    let hyper = &graph.hyper;
    let page_tokens = 16;
    let spec = KvSpec {
        layers: hyper.layers,
        kv_heads: hyper.kv_heads,
        head_dim: hyper.head_dim,
        page_tokens,
        pages: rows.div_ceil(page_tokens),
        dtype: kv,
    };
    let mut cache = device.kv_cache(&spec)?;
    let pages: Vec<PageId> = (0..).take(spec.pages).collect();
    let spans = [Span { rows: 0..rows, start: 0, pages: &pages, rope: Variant::Short }];
    let wanted: Vec<usize> = (0..rows).collect();
    let batch = Batch { tokens, spans: &spans, logit_rows: &wanted };
    let bytes = |pieces: &[Box<dyn Runnable>]| -> u64 {
        pieces.iter().map(|piece| piece.memory_bytes()).sum()
    };
    let before = bytes(&pieces);
    let mut values: HashMap<ValueId, Vec<f32>> = HashMap::new();
    for (piece, segment) in pieces.iter_mut().zip(&segments) {
        let inputs = segment.inputs.iter().map(|id| values.get(id).map_or(&[][..], |x| x));
        let inputs: Vec<&[f32]> = inputs.collect();
        let mut outputs = vec![Vec::new(); segment.outputs.len()];
        piece.run(&batch, cache.as_mut(), &inputs, &mut outputs)?;
        values.extend(segment.outputs.iter().copied().zip(outputs));
    }
    let logits = values.remove(&graph.logits).unwrap_or_default();
    Ok(InPieces { logits, scratch_bytes: bytes(&pieces).saturating_sub(before) })
}

/// Some nodes of a graph, with what they exchange with the others.
fn segment(graph: &Graph, nodes: Range<usize>) -> Segment<'_> {
    let (mut inputs, mut written) = (Vec::new(), Vec::new());
    for node in &graph.nodes[nodes.clone()] {
        for &id in &node.inputs {
            if !written.contains(&id) && !inputs.contains(&id) {
                inputs.push(id);
            }
        }
        written.extend(&node.outputs);
    }
    let later = &graph.nodes[nodes.end..];
    let read = |id: &ValueId| later.iter().any(|node| node.inputs.contains(id));
    written.retain(|id| *id == graph.logits || read(id));
    Segment { graph, nodes, inputs, outputs: written, packed: None }
}
