// Inputs rounded to integers, as `round.wgsl` leaves them, against the codes of weights: four
// products at a time, sums exact within a chunk, then scaled and added up in f32.
//
// A chunk of 32 inputs is five vectors: what is common to it, its low digits, its high digits.
@group(0) @binding(4) var<storage, read> x: array<vec4<u32>>;

// The codes of a row and chunk, four to a word, and of both halves scale and offset.
struct Codes {
    a: vec4<u32>,
    b: vec4<u32>,
    first: vec2<f32>,
    second: vec2<f32>,
}

// Codes of 8 bits less 128, so that they have a sign.
fn weights_of(tile: u32, chunk: u32, lane: u32) -> Codes {
    let p = shape.packed;
    let at = (tile * p.chunks + chunk) * (64u * BITS / 4u) + lane;
    let group = chunk * 32u / GROUP;
    let first = moved(scale_of(p, tile, group, lane));
    var second = first;
    if GROUP == 16u {
        second = moved(scale_of(p, tile, min(group + 1u, p.groups - 1u), lane));
    }
    let w = codes[at];
    if BITS == 8u {
        let flip = vec4(0x80808080u);
        return Codes(w ^ flip, codes[at + 64u] ^ flip, first, second);
    }
    let low = w & vec4(0x0f0f0f0fu);
    let high = (w >> vec4(4u)) & vec4(0x0f0f0f0fu);
    return Codes(
        vec4(low.x, high.x, low.y, high.y),
        vec4(low.z, high.z, low.w, high.w),
        first,
        second,
    );
}

// Scale and offset for codes that are 128 less.
fn moved(scale: vec2<f32>) -> vec2<f32> {
    if BITS == 4u {
        return scale;
    } else if MIN == 1u {
        return vec2(scale.x, fma(scale.x, 128.0, scale.y));
    }
    return vec2(scale.x, scale.y - 128.0);
}

fn dot16(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z)
        + dot4I8Packed(a.w, b.w);
}

// The sum of weights times steps, from the sums of codes times steps and of steps.
fn weighed(products: i32, steps: f32, scale: vec2<f32>) -> f32 {
    if MIN == 1u {
        return fma(scale.x, f32(products), scale.y * steps);
    }
    return scale.x * fma(-scale.y, steps, f32(products));
}

// The sum and the products of a chunk.
fn add_chunk(sum: f32, w: Codes, row: u32, chunk: u32) -> f32 {
    let at = row + chunk * 5u;
    // The size of a step, sums of the steps of both halves, and 1 if there are high digits.
    let facts = bitcast<vec4<f32>>(x[at]);
    var first = dot16(w.a, x[at + 1u]);
    var second = dot16(w.b, x[at + 2u]);
    if facts.w > 0.0 {
        first += 128 * dot16(w.a, x[at + 3u]);
        second += 128 * dot16(w.b, x[at + 4u]);
    }
    if GROUP == 16u {
        let half = fma(facts.x, weighed(first, facts.y, w.first), sum);
        return fma(facts.x, weighed(second, facts.z, w.second), half);
    }
    return fma(facts.x, weighed(first + second, facts.y + facts.z, w.first), sum);
}
