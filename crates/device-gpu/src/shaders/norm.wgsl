// Root mean square norms: one workgroup for every run of `width` elements. ADD 1: of the sum of x
// and delta, which is written too.
struct Shape {
    // Elements of a run, and runs of a row.
    width: u32,
    runs: u32,
    x_stride: u32,
    delta_stride: u32,
    y_stride: u32,
    sum_stride: u32,
    eps: f32,
    tokens: u32,
}

@group(0) @binding(1) var<uniform> shape: Shape;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> delta: array<f32>;
@group(0) @binding(5) var<storage, read_write> sum: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

var<workgroup> squares: array<f32, 128>;

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y;
    let first = group.x * shape.width;
    let x_at = row * shape.x_stride + first;
    let y_at = row * shape.y_stride + first;
    var s = 0.0;
    for (var i = lane; i < shape.width; i += 128u) {
        var v = x[x_at + i];
        if ADD == 1u {
            v += delta[row * shape.delta_stride + first + i];
            sum[row * shape.sum_stride + first + i] = v;
        }
        s = fma(v, v, s);
    }
    squares[lane] = s;
    workgroupBarrier();
    for (var step = 64u; step > 0u; step >>= 1u) {
        if lane < step {
            squares[lane] += squares[lane + step];
        }
        workgroupBarrier();
    }
    let root = sqrt(squares[0] / f32(shape.width) + shape.eps);
    for (var i = lane; i < shape.width; i += 128u) {
        var v = x[x_at + i];
        if ADD == 1u {
            v += delta[row * shape.delta_stride + first + i];
        }
        y[y_at + i] = gain[i] * v / root;
    }
}
