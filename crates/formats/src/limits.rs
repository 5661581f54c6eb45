//! How much of everything a checkpoint may have.

/// Bounds on what a file may ask for. Whatever is over one is refused with
/// [`ErrorKind::Limit`](crate::ErrorKind::Limit) before memory is reserved for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a GGUF string (keys, values, array elements).
    pub gguf_string_bytes: u64,
    /// Elements of a GGUF metadata array.
    pub gguf_array_elements: u64,
    /// Key-value pairs of a GGUF file.
    pub gguf_metadata_entries: u64,
    /// Tensors of a checkpoint, in all its files.
    pub tensors: u64,
    /// Dimensions of a GGUF tensor.
    pub gguf_dims: u32,
    /// Dimensions of a safetensors or ONNX tensor.
    pub dims: usize,
    /// Files that the weights of one checkpoint may be split over.
    pub shards: usize,
    /// Bytes of a safetensors header, and of the index of a sharded checkpoint.
    pub safetensors_header_bytes: u64,
    /// Nodes of an ONNX model, those of its subgraphs included.
    pub onnx_nodes: u64,
    /// Depth of ONNX subgraphs.
    pub onnx_depth: usize,
    /// Bytes of `tokenizer.json` and `tokenizer.model`.
    pub tokenizer_bytes: u64,
    /// Bytes of a chat template.
    pub template_bytes: u64,
    /// Bytes of any other JSON file.
    pub json_bytes: u64,
    /// Values (numbers, strings, lists, …) in any such file.
    pub json_values: usize,
    /// Layers of a model.
    pub layers: usize,
    /// Entries of a vocabulary.
    pub vocab: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            gguf_string_bytes: 16 << 20,
            gguf_array_elements: 4 << 20,
            gguf_metadata_entries: 65_536,
            tensors: 65_536,
            gguf_dims: 4,
            dims: 8,
            shards: 1024,
            safetensors_header_bytes: 64 << 20,
            onnx_nodes: 200_000,
            onnx_depth: 8,
            tokenizer_bytes: 64 << 20,
            template_bytes: 256 << 10,
            json_bytes: 8 << 20,
            json_values: 100_000,
            layers: 1024,
            vocab: 2 << 20,
        }
    }
}
