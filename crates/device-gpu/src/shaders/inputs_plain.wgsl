// Inputs that all lanes read alike: compilers of graphics processors read them once.

// The sum and the products of a chunk, one after the other.
fn add_chunk(sum: f32, w: Chunk, row: u32, chunk: u32) -> f32 {
    let at = row + chunk * 8u;
    let k = chunk * 32u;
    var s = add4(sum, four(at, k), w.v0);
    s = add4(s, four(at + 1u, k + 4u), w.v1);
    s = add4(s, four(at + 2u, k + 8u), w.v2);
    s = add4(s, four(at + 3u, k + 12u), w.v3);
    s = add4(s, four(at + 4u, k + 16u), w.v4);
    s = add4(s, four(at + 5u, k + 20u), w.v5);
    s = add4(s, four(at + 6u, k + 24u), w.v6);
    return add4(s, four(at + 7u, k + 28u), w.v7);
}
