//! Checkpoints of every format to graphs, one file per format.

pub mod gguf;
pub mod hf;
pub mod onnx;

use crate::error::ImportError;
use crate::ir::Graph;
use crate::pass;
use std::cell::RefCell;
use std::collections::HashSet;
use tangor_formats::Checkpoint;
use tangor_tensor::Weight;

/// The graph of a checkpoint, after every pass: what devices run.
///
/// # Errors
/// [`ImportError`], naming the key or tensor that is missing, wrong or left over.
pub fn import(checkpoint: &Checkpoint) -> Result<Graph, ImportError> {
    Ok(pass::run_all(as_written(checkpoint)?)?)
}

/// The graph of a checkpoint as its architecture or its file writes it down, nothing fused.
///
/// # Errors
/// As [`import`].
pub fn as_written(checkpoint: &Checkpoint) -> Result<Graph, ImportError> {
    let mut graph = match checkpoint {
        Checkpoint::Gguf(gguf) => gguf::graph(gguf),
        Checkpoint::Hf(checkpoint) => hf::graph(checkpoint),
        Checkpoint::Oga(checkpoint) => onnx::graph(&checkpoint.model, &checkpoint.genai),
    }?;
    graph.identity = checkpoint.guard().identity();
    Ok(graph)
}

/// Which tensors of a file a graph took: a model with others is not what its file says it is, and
/// would run and be wrong.
#[derive(Default)]
struct Taken(RefCell<HashSet<String>>);

impl Taken {
    fn take(&self, name: &str) {
        self.0.borrow_mut().insert(name.to_owned());
    }

    /// Fails if one of `names` was not taken, is not `ignored`, and is not a vector of zeros (some
    /// quantisers write biases for linears that have none).
    fn check<N: AsRef<str>>(
        &self,
        names: impl Iterator<Item = N>,
        ignored: impl Fn(&str) -> bool,
        read: impl Fn(&str) -> Result<Weight, tangor_formats::FormatError>,
    ) -> Result<(), ImportError> {
        for name in names {
            let name = name.as_ref();
            if self.0.borrow().contains(name) || ignored(name) {
                continue;
            }
            let weight = read(name)?;
            if weight.rows() != 1 || vector(&weight).iter().any(|&value| value != 0.0) {
                return Err(ImportError::LeftOver { name: name.to_owned() });
            }
        }
        Ok(())
    }
}

/// The only row of a weight.
fn vector(weight: &Weight) -> Vec<f32> {
    let mut values = vec![0.0; weight.cols()];
    weight.row_f32(0, &mut values);
    values
}
