//! The gate and up projections of a gated MLP become one linear.

use super::stack_before;
use crate::ir::{Graph, Op, ShapeError};

pub(super) fn run(graph: &Graph) -> Result<Graph, ShapeError> {
    stack_before(graph, |op| matches!(op, Op::Gated(_)), "gate_up_proj")
}
