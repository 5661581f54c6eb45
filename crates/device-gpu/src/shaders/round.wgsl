// Rows in front of quantised weights, rounded as `tangor_device::rounding` says: one workgroup for
// every row, one lane for every group of elements.
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
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// Of every group the greatest magnitude, -1 where it is not finite; then its scale.
var<workgroup> greatest: array<f32, MOST_GROUPS>;
// The factor that turns elements into steps.
var<workgroup> steps: array<f32, MOST_GROUPS>;
var<workgroup> reduced: array<f32, 64>;

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
    for (var i = lane; i < shape.width; i += 64u) {
        let g = i / shape.len;
        // What is not finite becomes NaN with its group.
        let v = select(0.0, x[at + i], steps[g] > 0.0);
        y[at + i] = round(v * steps[g]) * greatest[g];
    }
}
