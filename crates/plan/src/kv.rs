//! How large the KV cache is.

use crate::{KvType, PlanError, PlanOptions};
use serde::{Deserialize, Serialize};
use tangor_model::Graph;

/// Tokens per page of the KV cache: the unit of sharing, and of the order in which attention
/// reduces. Larger pages waste more per sequence, smaller ones cost more bookkeeping per step.
pub const PAGE_TOKENS: usize = 32;

/// The pool of KV pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvPlan {
    /// Element type.
    pub dtype: KvType,
    /// Tokens per page.
    pub page_tokens: usize,
    /// Bytes per page, all layers.
    pub page_bytes: u64,
    /// Pages.
    pub pages: usize,
    /// Bytes of the pool.
    pub bytes: u64,
    /// Longest sequence: never more than the pool holds.
    pub context: usize,
    /// Longest sequence that the model was made for.
    pub model_context: usize,
}

/// Bytes of a page: keys and values of all layers, and for 8 bits their scales.
fn page_bytes(graph: &Graph, kv: KvType) -> u64 {
    let hyper = &graph.hyper;
    let elements = [hyper.layers, PAGE_TOKENS, hyper.kv_heads, hyper.head_dim]
        .into_iter()
        .fold(2_u64, |product, n| product.saturating_mul(n as u64));
    match kv {
        KvType::F32 => elements.saturating_mul(4),
        KvType::F16 | KvType::Bf16 => elements.saturating_mul(2),
        KvType::Int8 => {
            // Half of the elements are keys, half values.
            let scales = (elements / 2).div_ceil(16).saturating_add((elements / 2).div_ceil(32));
            elements.saturating_add(scales.saturating_mul(2))
        }
    }
}

/// The pool for `options`, within `room` bytes.
pub(crate) fn kv_plan(
    graph: &Graph,
    options: &PlanOptions,
    room: u64,
    reasons: &mut Vec<String>,
) -> Result<KvPlan, PlanError> {
    const MOST: u64 = 4 << 30;
    let page = page_bytes(graph, options.kv).max(1);
    let model_context = graph.hyper.context;
    let asked = options.context.unwrap_or(model_context).max(1);
    if asked > model_context {
        reasons.push(format!(
            "the context of {asked} tokens is longer than the {model_context} that the model was \
             made for: it may write nonsense beyond them"
        ));
    }
    let per_sequence = asked.div_ceil(PAGE_TOKENS) as u64;
    let mut budget = options.kv_bytes.map_or((room / 2).min(MOST), |bytes| bytes.min(room));
    if options.context.is_some() && options.kv_bytes.is_none() {
        budget = budget.max(per_sequence.saturating_mul(page).min(room));
    }
    let mut context = asked;
    if budget / page < per_sequence {
        if options.context.is_some() || budget < page {
            let needed = per_sequence.saturating_mul(page);
            return Err(PlanError::KvDoesNotFit { context: asked, needed, limit: budget });
        }
        context = usize::try_from(budget / page).unwrap_or(usize::MAX) * PAGE_TOKENS;
        reasons.push(format!(
            "the context is {context} tokens, not the model's {asked}: {budget} bytes of KV cache \
             hold no more"
        ));
    }
    let wanted = (context.div_ceil(PAGE_TOKENS) as u64)
        .saturating_mul(options.max_sequences as u64)
        .min(u64::from(u32::MAX));
    let pages = wanted.min(budget / page);
    Ok(KvPlan {
        dtype: options.kv,
        page_tokens: PAGE_TOKENS,
        page_bytes: page,
        pages: usize::try_from(pages).unwrap_or(usize::MAX),
        bytes: pages * page,
        context,
        model_context,
    })
}
