//! Attention and its rotary embedding.

use super::{Columns, Importer, Ints, RowsOf, Val, refuse};
use crate::error::ImportError;
use crate::ir::{Attention, Op, ValueId};
use crate::rope::{Angles, Rope};
use tangor_formats::onnx::{Element, Node, Tensor};

/// What a rotary embedding was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RopeKey {
    /// Addresses, shapes and types of the caches' bytes.
    caches: Vec<(usize, Vec<usize>, Element)>,
    /// Where the second pair of caches begins, if there is one.
    limit: Option<usize>,
    rows: RowsOf,
    interleaved: bool,
}

impl<'a> Importer<'a> {
    /// `(x, positions, cos, sin)`: noted, and folded into the attention that reads it.
    pub(super) fn rotary_embedding(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let x = self.columns(node, 0)?;
        let rows = match self.val(node, 1)? {
            Val::Ints(Ints::Positions) => RowsOf::Positions,
            Val::Ints(Ints::OffsetPositions { limit, rows }) => {
                RowsOf::OffsetPositions { limit: *limit, rows: *rows }
            }
            other => return Err(refuse(node, format!("its positions are {}", other.kind()))),
        };
        if node.float("scale").is_some_and(|scale| scale.to_bits() != 1f32.to_bits()) {
            return Err(refuse(node, "it must not scale"));
        }
        let interleaved = node.int("interleaved").unwrap_or(0) != 0;
        self.rope(node, [2, 3], rows, interleaved)?;
        let dim = node.int("rotary_embedding_dim").unwrap_or(0);
        let rotated = self.rope.as_ref().map_or(0, |(_, rope)| rope.dim);
        if dim != 0 && usize::try_from(dim) != Ok(rotated) {
            let why = format!("it rotates {dim} elements with caches for {rotated}");
            return Err(refuse(node, why));
        }
        self.set(node, 0, Val::Rotated(x));
        Ok(())
    }

    pub(super) fn group_query_attention(&mut self, node: &'a Node) -> Result<(), ImportError> {
        self.left_out(
            node,
            &[
                (10, "attention bias"),
                (11, "head sink"),
                (12, "quantised key cache"),
                (13, "quantised value cache"),
                (14, "norm of queries"),
                (15, "norm of keys"),
            ],
        )?;
        let y = self.attention(node)?;
        self.set_rows(node, 0, y);
        Ok(())
    }

    /// Inputs 0 to 9 and the attributes of `GroupQueryAttention`.
    pub(super) fn attention(&mut self, node: &'a Node) -> Result<ValueId, ImportError> {
        let count = |name: &str| {
            let value = node.int(name).and_then(|value| usize::try_from(value).ok());
            value
                .filter(|value| (1..=1 << 20).contains(value))
                .ok_or_else(|| refuse(node, format!("its attribute {name:?} must be positive")))
        };
        let (heads, kv_heads) = (count("num_heads")?, count("kv_num_heads")?);
        if node.int("smooth_softmax").is_some_and(|value| value > 0) {
            return Err(refuse(node, "smooth softmax is not supported"));
        }
        for index in [5, 6] {
            match self.val(node, index)? {
                Val::Ints(_) => {}
                other => return Err(refuse(node, format!("its lengths are {}", other.kind()))),
            }
        }
        let (inputs, mut rotate) = self.projections(node)?;
        let per_head = if inputs.len() == 1 { heads + 2 * kv_heads } else { heads };
        let head_dim = self.width(inputs[0]) / per_head;
        if node.int("do_rotary").unwrap_or(0) != 0 {
            if rotate {
                return Err(refuse(node, "it rotates what is rotated already"));
            }
            if !matches!(self.optional(node, 9)?, None | Some(Val::Ints(Ints::Positions))) {
                return Err(refuse(node, "its positions are not those of the tokens"));
            }
            let interleaved = node.int("rotary_interleaved").unwrap_or(0) != 0;
            self.rope(node, [7, 8], RowsOf::Positions, interleaved)?;
            rotate = true;
        }
        if let Some((_, rope)) =
            self.rope.as_ref().filter(|(_, rope)| rotate && rope.dim > head_dim)
        {
            let why = format!("its caches rotate {} of {head_dim} elements", rope.dim);
            return Err(refuse(node, why));
        }
        #[allow(clippy::cast_precision_loss)]
        let scale = 1.0 / (head_dim as f32).sqrt();
        let layer = self.attentions.len();
        let attention = Attention {
            layer,
            heads,
            kv_heads,
            head_dim,
            scale: number(node, "scale")?.filter(|&scale| scale != 0.0).unwrap_or(scale),
            window: self.window(node, layer),
            softcap: number(node, "softcap")?.filter(|&cap| cap > 0.0),
            rotate,
        };
        self.check_alike(node, &attention)?;
        self.attentions.push(attention.clone());
        let name = format!("layers.{layer}.attention");
        self.push1(&name, Op::Attention(attention), &inputs)
    }

    /// `[q k v]` in one activation or three, and whether q and k are rotated already.
    fn projections(&mut self, node: &Node) -> Result<(Vec<ValueId>, bool), ImportError> {
        let part = |index: usize| -> Result<(Columns, bool), ImportError> {
            match self.val(node, index)? {
                Val::Rows(x) => Ok((*x, false)),
                Val::Rotated(x) => Ok((*x, true)),
                other => Err(refuse(node, format!("its input {index} is {}", other.kind()))),
            }
        };
        if node.input(1).is_none() {
            return Ok((vec![self.rows(node, 0)?], false));
        }
        let ((q, rotated), (k, k_rotated), (v, v_rotated)) = (part(0)?, part(1)?, part(2)?);
        if rotated != k_rotated || v_rotated {
            return Err(refuse(node, "q and k must be rotated alike, and v not at all"));
        }
        let one = q.of == k.of && k.of == v.of && v.start + v.width == self.width(q.of);
        let in_order = (q.start, k.start, v.start) == (0, q.width, q.width + k.width);
        if one && in_order {
            return Ok((vec![q.of], rotated));
        }
        let parts = [q, k, v].map(|columns| self.part(node, columns));
        Ok((parts.into_iter().collect::<Result<_, _>>()?, rotated))
    }

    /// The smaller of the node's own window and the configuration's.
    fn window(&self, node: &Node, layer: usize) -> Option<usize> {
        let own = node.int("local_window_size").and_then(|size| usize::try_from(size).ok());
        let own = own.filter(|&size| size > 0);
        let sliding = self.config.decoder.sliding_window.as_ref();
        let configured = sliding
            .filter(|window| window.layers.is_empty() || window.layers.contains(&layer))
            .map(|window| window.window_size);
        match (own, configured) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// One KV cache serves all layers, so they must have the same heads.
    fn check_alike(&self, node: &Node, new: &Attention) -> Result<(), ImportError> {
        let Some(first) = self.attentions.first() else { return Ok(()) };
        let heads = |a: &Attention| (a.heads, a.kv_heads, a.head_dim);
        if heads(first) == heads(new) {
            return Ok(());
        }
        Err(refuse(node, "its heads differ from those of the layers before it"))
    }

    /// Reads the rotary embedding from the caches of inputs `[cos, sin]`, or finds that it is the
    /// one that is known already.
    fn rope(
        &mut self,
        node: &'a Node,
        inputs: [usize; 2],
        rows: RowsOf,
        interleaved: bool,
    ) -> Result<(), ImportError> {
        let (mut caches, mut limit) = (Vec::new(), None);
        for index in inputs {
            let mut note = |tensor: &Tensor| {
                caches.push((tensor.data.as_ptr().addr(), tensor.dims.clone(), tensor.element));
            };
            match self.val(node, index)? {
                Val::Const(tensor) => note(tensor),
                Val::ByLength(short, beyond, long) => {
                    limit = Some(*beyond);
                    [short, long].into_iter().for_each(note);
                }
                _ => {}
            }
        }
        let key = RopeKey { caches, limit, rows, interleaved };
        if self.rope.as_ref().is_some_and(|(known, _)| *known == key) {
            return Ok(());
        }
        let rope = match (self.val(node, inputs[0])?, self.val(node, inputs[1])?) {
            (Val::Const(cos), Val::Const(sin)) => one_table(node, cos, sin, rows)?,
            (Val::ByLength(cos, limit, long_cos), Val::ByLength(sin, same, long_sin))
                if rows == RowsOf::Positions && limit == same =>
            {
                let (dim, short) = table(node, cos, sin)?;
                let (long_dim, long) = table(node, long_cos, long_sin)?;
                if dim != long_dim {
                    return Err(refuse(node, "its two caches differ in width"));
                }
                Rope { dim, interleaved: false, short, long: Some((*limit, long)) }
            }
            _ => return Err(refuse(node, "its caches of cosines and sines must be constants")),
        };
        let rope = Rope { interleaved, ..rope };
        match &self.rope {
            Some((_, known)) if *known != rope => {
                Err(refuse(node, "its rotary embedding differs from that of the layers before it"))
            }
            Some(_) => Ok(()),
            None => {
                self.rope = Some((key, rope));
                Ok(())
            }
        }
    }
}

/// A number attribute, which must be one.
fn number(node: &Node, name: &str) -> Result<Option<f32>, ImportError> {
    match node.float(name).filter(|value| !value.is_finite()) {
        Some(value) => Err(refuse(node, format!("its attribute {name:?} is {value}"))),
        None => Ok(node.float(name)),
    }
}

/// One cache, or two in one: the second begins where the first ends.
fn one_table(node: &Node, cos: &Tensor, sin: &Tensor, rows: RowsOf) -> Result<Rope, ImportError> {
    let (dim, all) = table(node, cos, sin)?;
    let RowsOf::OffsetPositions { limit, rows } = rows else {
        return Ok(Rope { dim, interleaved: false, short: all, long: None });
    };
    let Angles::Table { cos, sin } = all else {
        return Err(refuse(node, "its caches must be tables"));
    };
    let split = rows.saturating_mul(dim / 2);
    if split == 0 || split >= cos.len() || rows < limit {
        return Err(refuse(node, "its caches are shorter than the offset into them"));
    }
    let part = |from: &[f32], to: &[f32]| Angles::Table { cos: from.into(), sin: to.into() };
    let short = part(&cos[..split], &sin[..split]);
    let long = part(&cos[split..], &sin[split..]);
    Ok(Rope { dim, interleaved: false, short, long: Some((limit, long)) })
}

/// Elements rotated, and the angles, of caches `(positions, elements / 2)`.
fn table(node: &Node, cos: &Tensor, sin: &Tensor) -> Result<(usize, Angles), ImportError> {
    let &[rows, half] = &cos.dims[..] else {
        return Err(refuse(node, "its caches must be matrices"));
    };
    let (Some(cosines), Some(sines)) = (cos.floats(), sin.floats()) else {
        return Err(refuse(node, "its caches must be floats"));
    };
    if cos.dims != sin.dims || rows == 0 || half == 0 {
        return Err(refuse(node, "its caches of cosines and sines differ or are empty"));
    }
    if cosines.iter().chain(&sines).any(|value| !value.is_finite()) {
        return Err(refuse(
            node,
            "its caches of cosines and sines have elements that are no numbers",
        ));
    }
    Ok((half * 2, Angles::Table { cos: cosines.into(), sin: sines.into() }))
}
