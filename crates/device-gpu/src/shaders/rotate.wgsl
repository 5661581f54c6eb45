// Rotates queries and keys and writes keys and values to the cache. A workgroup has one head of one
// row: query heads come first, then key heads, then value heads.
struct Shape {
    heads: u32,
    kv_heads: u32,
    // Half of the elements that are rotated; 0: none.
    half: u32,
    interleaved: u32,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    q_first: u32,
    k_first: u32,
    v_first: u32,
    // Half of the elements that have angles in `batch`.
    angles: u32,
    unused: u32,
}

@group(0) @binding(1) var<uniform> shape: Shape;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
@group(0) @binding(3) var<storage, read> q: array<f32>;
@group(0) @binding(4) var<storage, read> k: array<f32>;
@group(0) @binding(5) var<storage, read> v: array<f32>;
// Rotated queries, (rows, heads, DIM4 * 4).
@group(0) @binding(6) var<storage, read_write> queries: array<f32>;
@group(0) @binding(7) var<storage, read_write> keys: array<u32>;
@group(0) @binding(8) var<storage, read_write> values: array<u32>;

const PADDED = DIM4 * 4u;
var<workgroup> head: array<f32, PADDED>;

// Element i after rotation, given where its head begins: kind 0 is in q, 1 in k, 2 in v.
fn element(kind: u32, at: u32, i: u32) -> f32 {
    if kind == 0u {
        return q[at + i];
    } else if kind == 1u {
        return k[at + i];
    }
    return v[at + i];
}

fn rotated(kind: u32, at: u32, i: u32, row: u32) -> f32 {
    let x = element(kind, at, i);
    if kind == 2u || i >= 2u * shape.half {
        return x;
    }
    var pair = i % shape.half;
    var other = select(i - shape.half, i + shape.half, i < shape.half);
    var second = i >= shape.half;
    if shape.interleaved == 1u {
        pair = i / 2u;
        other = i ^ 1u;
        second = (i & 1u) == 1u;
    }
    let angles = run.angles_at + row * 2u * shape.angles + pair;
    let c = bitcast<f32>(batch[angles]);
    let s = bitcast<f32>(batch[angles + shape.angles]);
    let y = element(kind, at, other);
    return select(x * c - y * s, y * s + x * c, second);
}

// Scale of `len` elements from `first` on, as bf16 bits.
fn scale_of(first: u32, len: u32) -> u32 {
    var amax = 0.0;
    for (var i = first; i < min(first + len, DIM); i++) {
        let x = abs(head[i]);
        if !is_finite(x) {
            return 0x7fc0u;
        }
        amax = max(amax, x);
    }
    if amax < 1.0e-30 {
        return 0u;
    }
    let exact = bitcast<u32>(divide(amax, 127.0));
    return (exact + 0x7fffu + ((exact >> 16u) & 1u)) >> 16u;
}

// Word i of what the cache keeps of `head`, whose groups of 8 bits have `len` elements.
fn word_of(i: u32, len: u32) -> u32 {
    if KV == 0u {
        return bitcast<u32>(head[i]);
    } else if KV == 1u {
        return half_of(head[2u * i]) | (half_of(head[2u * i + 1u]) << 16u);
    } else if KV == 2u {
        return bf16_of(head[2u * i]) | (bf16_of(head[2u * i + 1u]) << 16u);
    }
    if i >= DIM4 {
        let first = (i - DIM4) * 2u * len;
        return scale_of(first, len) | (scale_of(first + len, len) << 16u);
    }
    let scale = bitcast<f32>(scale_of(i * 4u / len * len, len) << 16u);
    if !(scale > 0.0) {
        return 0u;
    }
    let inverse = divide(1.0, scale);
    let x = vec4(head[4u * i], head[4u * i + 1u], head[4u * i + 2u], head[4u * i + 3u]);
    let code = vec4<i32>(clamp(round(x * inverse), vec4(-127.0), vec4(127.0)));
    let bytes = vec4<u32>(code) & vec4(255u);
    return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y;
    var kind = 0u;
    var index = group.x;
    var at = row * shape.q_stride + shape.q_first + index * DIM;
    if group.x >= shape.heads + shape.kv_heads {
        kind = 2u;
        index = group.x - shape.heads - shape.kv_heads;
        at = row * shape.v_stride + shape.v_first + index * DIM;
    } else if group.x >= shape.heads {
        kind = 1u;
        index = group.x - shape.heads;
        at = row * shape.k_stride + shape.k_first + index * DIM;
    }
    for (var i = lane; i < PADDED; i += 64u) {
        var x = 0.0;
        if i < DIM {
            x = rotated(kind, at, i, row);
        }
        head[i] = x;
        if kind == 0u {
            // Over caches of fewer bits, attention multiplies bf16.
            if KV >= 2u {
                x = bitcast<f32>(bf16_of(x) << 16u);
            }
            queries[(row * shape.heads + index) * PADDED + i] = x;
        }
    }
    workgroupBarrier();
    let to = head_at(batch[run.slots_at + row], index, shape.kv_heads);
    if kind == 1u {
        for (var i = lane; i < KEY_WORDS; i += 64u) {
            keys[to * KEY_WORDS + i] = word_of(i, 16u);
        }
    } else if kind == 2u {
        for (var i = lane; i < VALUE_WORDS; i += 64u) {
            values[to * VALUE_WORDS + i] = word_of(i, 32u);
        }
    }
}
