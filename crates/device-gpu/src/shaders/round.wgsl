// Rows in front of quantised weights, rounded as `tangor_device::rounding` says: one workgroup for
// every row, one lane for every group of elements.
//
// DIGITS 0: as the numbers that they stand for. 1: as `inputs_digits.wgsl` reads them, chunks of 32
// elements in 20 words: the size of a step, the sums of the steps of both halves, and 1 if there
// are high digits, in f32; 8 words of low digits, 8 of high ones. An element is low + 128 * high
// steps, and 0 after the last one.
struct Shape {
    width: u32,
    // Elements of a group, and groups of a row.
    len: u32,
    groups: u32,
    stride: u32,
    tokens: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
}

@group(0) @binding(1) var<uniform> shape: Shape;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;

// Of every group the greatest magnitude, -1 where it is not finite; then its scale.
var<workgroup> greatest: array<f32, MOST_GROUPS>;
// The factor that turns elements into steps.
var<workgroup> steps: array<f32, MOST_GROUPS>;
var<workgroup> reduced: array<f32, 64>;

// An element in steps; what is not finite becomes NaN with its group, by the size of the step.
fn steps_of(row: u32, i: u32) -> f32 {
    if i >= shape.width {
        return 0.0;
    }
    let by = steps[i / shape.len];
    return round(select(0.0, x[row + i], by > 0.0) * by);
}

fn four_steps(row: u32, i: u32) -> vec4<i32> {
    return vec4<i32>(vec4(
        steps_of(row, i), steps_of(row, i + 1u), steps_of(row, i + 2u), steps_of(row, i + 3u),
    ));
}

// Sixteen steps added up.
fn sum_of(v: vec4<i32>) -> u32 {
    return bitcast<u32>(f32(v.x + v.y + v.z + v.w));
}

fn low_digits(v: vec4<i32>, wide: bool) -> vec4<i32> {
    return select(v, ((v + 64) & vec4(127)) - 64, wide);
}

// The chunk of a row that begins at `first`.
fn put_chunk(to: u32, row: u32, first: u32) {
    @WORDS let v$ = four_steps(row, first + 4u * $u);
    var most = vec4(0);
    @WORDS most = max(most, abs(v$));
    let wide = max(max(most.x, most.y), max(most.z, most.w)) > 127;
    y[to] = bitcast<u32>(greatest[first / shape.len]);
    y[to + 1u] = sum_of(v0 + v1 + v2 + v3);
    y[to + 2u] = sum_of(v4 + v5 + v6 + v7);
    y[to + 3u] = bitcast<u32>(select(0.0, 1.0, wide));
    @WORDS y[to + 4u + $u] = pack4xI8(low_digits(v$, wide));
    if wide {
        @WORDS y[to + 12u + $u] = pack4xI8((v$ - low_digits(v$, true)) / 128);
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = group.y * shape.stride;
    var most = 0.0;
    for (var g = lane; g < shape.groups; g += 64u) {
        let end = min((g + 1u) * shape.len, shape.width);
        var amax = 0.0;
        for (var i = g * shape.len; i < end; i++) {
            let v = abs(x[at + i]);
            if !is_finite(v) || amax < 0.0 {
                amax = -1.0;
            } else {
                amax = max(amax, v);
            }
        }
        greatest[g] = amax;
        most = max(most, amax);
    }
    reduced[lane] = most;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step >>= 1u) {
        if lane < step {
            reduced[lane] = max(reduced[lane], reduced[lane + step]);
        }
        workgroupBarrier();
    }
    // Squares of what is divided by a power of two near the greatest element neither vanish nor
    // overflow.
    let exponent = clamp(bitcast<u32>(reduced[0]) >> 23u, 1u, 253u);
    let down = bitcast<f32>((254u - exponent) << 23u);
    workgroupBarrier();
    var squares = 0.0;
    for (var g = lane; g < shape.groups; g += 64u) {
        let v = max(greatest[g], 0.0) * down;
        squares += v * v;
    }
    reduced[lane] = squares;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step >>= 1u) {
        if lane < step {
            reduced[lane] += reduced[lane + step];
        }
        workgroupBarrier();
    }
    let limit = sqrt(reduced[0] / f32(shape.groups)) * 1.5;
    for (var g = lane; g < shape.groups; g += 64u) {
        let amax = greatest[g];
        if amax < 0.0 {
            greatest[g] = bitcast<f32>(0x7fc00000u + (run.rows & 0u));
            steps[g] = 0.0;
        } else if amax < 1.0e-30 {
            greatest[g] = 0.0;
            steps[g] = 0.0;
        } else {
            let count = select(127.0, 16256.0, amax * down > limit);
            greatest[g] = divide(amax, count);
            steps[g] = divide(count, amax);
        }
    }
    workgroupBarrier();
    if DIGITS == 0u {
        for (var i = lane; i < shape.width; i += 64u) {
            y[at + i] = bitcast<u32>(steps_of(at, i) * greatest[i / shape.len]);
        }
        return;
    }
    let chunks = (shape.width + 31u) / 32u;
    for (var chunk = lane; chunk < chunks; chunk += 64u) {
        put_chunk((group.y * chunks + chunk) * 20u, at, chunk * 32u);
    }
}
