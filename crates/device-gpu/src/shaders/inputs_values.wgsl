// Inputs as they are, against weights as numbers.
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>;

fn weights_of(tile: u32, chunk: u32, lane: u32) -> Chunk {
    return chunk_of(shape.packed, tile, chunk, lane);
}

// Four inputs, zeros after the last one.
fn four(at: u32, first: u32) -> vec4<f32> {
    let v = x[at];
    if TAIL == 0u {
        return v;
    }
    let inside = vec4(first, first + 1u, first + 2u, first + 3u) < vec4(shape.k);
    return select(vec4(0.0), v, inside);
}

fn add4(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

