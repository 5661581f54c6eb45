// Rows of a table of packed weights, by token. A lane writes a chunk of 32 elements.
struct Shape {
    packed: Packed,
    // Elements of a row, and of a row of y.
    k: u32,
    y_stride: u32,
    // The first row of the table that is here, and how many there are.
    first: u32,
    n: u32,
}

@group(0) @binding(1) var<uniform> shape: Shape;
@group(0) @binding(4) var<storage, read> batch: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

fn put(at: u32, k: u32, v: vec4<f32>) {
    if k < shape.k { y[at + k] = v.x; }
    if k + 1u < shape.k { y[at + k + 1u] = v.y; }
    if k + 2u < shape.k { y[at + k + 2u] = v.z; }
    if k + 3u < shape.k { y[at + k + 3u] = v.w; }
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let chunk = id.x;
    let row = id.y;
    let token = batch[row];
    if chunk >= shape.packed.chunks || token < shape.first || token >= shape.first + shape.n {
        return;
    }
    let at = token - shape.first;
    let w = chunk_of(shape.packed, at / 64u, chunk, at % 64u);
    let out = row * shape.y_stride;
    let k = chunk * 32u;
    put(out, k, w.v0);
    put(out, k + 4u, w.v1);
    put(out, k + 8u, w.v2);
    put(out, k + 12u, w.v3);
    put(out, k + 16u, w.v4);
    put(out, k + 20u, w.v5);
    put(out, k + 24u, w.v6);
    put(out, k + 28u, w.v7);
}
