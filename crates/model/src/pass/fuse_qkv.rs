//! The q, k and v projections become one linear: one pass over the input instead of three.

use super::stack_before;
use crate::ir::{Graph, Op, ShapeError};

pub(super) fn run(graph: &Graph) -> Result<Graph, ShapeError> {
    stack_before(graph, |op| matches!(op, Op::Attention(_)), "qkv_proj")
}
