// Packed weights: tiles of 64 rows; in a tile, chunks of 32 inputs; in a chunk, BITS / 4 vectors of
// 16 bytes for every row, those of the 64 rows next to each other.
//
// BITS  4, 8: codes; 16, 32: the weights themselves.
// META  0: two groups' scales in f16 in a word, all with the zero point ZERO;
//       1: scale and offset in f16 in a word; 2: the same in f32 in two words;
//       3: whole numbers of 8 bits, (scale, minimum) of two groups in a word, to be multiplied with
//          a block's factors in f32, two words from `factors_at` on;
//       4, 5: the weights are IEEE halves, bf16.
// GROUP inputs of a group. BLOCK: of a block that has factors.
// MIN   1: a weight is scale * code + offset; 0: it is scale * (code - offset).
struct Packed {
    // Chunks of a row.
    chunks: u32,
    // Groups of a row.
    groups: u32,
    // Index in `groups` of a block's factors.
    factors_at: u32,
    // Blocks of a row that have factors.
    blocks: u32,
}

@group(0) @binding(2) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;

struct Chunk {
    v0: vec4<f32>,
    v1: vec4<f32>,
    v2: vec4<f32>,
    v3: vec4<f32>,
    v4: vec4<f32>,
    v5: vec4<f32>,
    v6: vec4<f32>,
    v7: vec4<f32>,
}

fn scale_of(p: Packed, tile: u32, group: u32, lane: u32) -> vec2<f32> {
    if META == 0u {
        let pair = unpack2x16float(scales[(tile * ((p.groups + 1u) / 2u) + group / 2u) * 64u + lane]);
        return vec2(select(pair.x, pair.y, (group & 1u) == 1u), f32(ZERO));
    } else if META == 1u {
        return unpack2x16float(scales[(tile * p.groups + group) * 64u + lane]);
    } else if META == 2u {
        let at = (tile * p.groups + group) * 128u + lane;
        return vec2(bitcast<f32>(scales[at]), bitcast<f32>(scales[at + 64u]));
    }
    let word = scales[(tile * ((p.groups + 1u) / 2u) + group / 2u) * 64u + lane];
    let units = unpack4xI8(word >> ((group & 1u) * 16u));
    let at = p.factors_at + (tile * p.blocks + group * GROUP / BLOCK) * 128u + lane;
    let scale = bitcast<f32>(scales[at]) * f32(units.x);
    let minimum = bitcast<f32>(scales[at + 64u]) * f32(units.y);
    return vec2(scale, select(f32(ZERO), minimum, MIN == 1u));
}

fn weigh(code: vec4<f32>, scale: vec2<f32>) -> vec4<f32> {
    if MIN == 1u {
        return fma(vec4(scale.x), code, vec4(scale.y));
    }
    return scale.x * (code - scale.y);
}

fn bytes_of(word: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(word));
}

fn halves_of(a: u32, b: u32) -> vec4<f32> {
    if META == 4u {
        return vec4(unpack2x16float(a), unpack2x16float(b));
    }
    return bitcast<vec4<f32>>(vec4(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
}

// The 32 weights of a row and chunk.
fn chunk_of(p: Packed, tile: u32, chunk: u32, lane: u32) -> Chunk {
    let at = (tile * p.chunks + chunk) * (64u * BITS / 4u) + lane;
    if BITS == 32u {
        return Chunk(
            bitcast<vec4<f32>>(codes[at]),
            bitcast<vec4<f32>>(codes[at + 64u]),
            bitcast<vec4<f32>>(codes[at + 128u]),
            bitcast<vec4<f32>>(codes[at + 192u]),
            bitcast<vec4<f32>>(codes[at + 256u]),
            bitcast<vec4<f32>>(codes[at + 320u]),
            bitcast<vec4<f32>>(codes[at + 384u]),
            bitcast<vec4<f32>>(codes[at + 448u]),
        );
    }
    if BITS == 16u {
        let a = codes[at];
        let b = codes[at + 64u];
        let c = codes[at + 128u];
        let d = codes[at + 192u];
        return Chunk(
            halves_of(a.x, a.y), halves_of(a.z, a.w), halves_of(b.x, b.y), halves_of(b.z, b.w),
            halves_of(c.x, c.y), halves_of(c.z, c.w), halves_of(d.x, d.y), halves_of(d.z, d.w),
        );
    }
    let group = chunk * 32u / GROUP;
    let first = scale_of(p, tile, group, lane);
    var second = first;
    if GROUP == 16u {
        second = scale_of(p, tile, min(group + 1u, p.groups - 1u), lane);
    }
    if BITS == 8u {
        let a = codes[at];
        let b = codes[at + 64u];
        return Chunk(
            weigh(bytes_of(a.x), first), weigh(bytes_of(a.y), first),
            weigh(bytes_of(a.z), first), weigh(bytes_of(a.w), first),
            weigh(bytes_of(b.x), second), weigh(bytes_of(b.y), second),
            weigh(bytes_of(b.z), second), weigh(bytes_of(b.w), second),
        );
    }
    let w = codes[at];
    let low = w & vec4(0x0f0f0f0fu);
    let high = (w >> vec4(4u)) & vec4(0x0f0f0f0fu);
    return Chunk(
        weigh(bytes_of(low.x), first), weigh(bytes_of(high.x), first),
        weigh(bytes_of(low.y), first), weigh(bytes_of(high.y), first),
        weigh(bytes_of(low.z), second), weigh(bytes_of(high.z), second),
        weigh(bytes_of(low.w), second), weigh(bytes_of(high.w), second),
    );
}
