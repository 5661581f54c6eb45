// What is done element by element. OP 0: a + b; 1: a * factor; 2: the row of a that is wanted;
// 3, 4, 5: silu(a) * b, the same with gelu, and with its approximation by tanh.
struct Shape {
    width: u32,
    // Elements of a row of a and b.
    a_stride: u32,
    b_stride: u32,
    y_stride: u32,
    // Where b begins in its row.
    b_first: u32,
    factor: f32,
    tokens: u32,
    // 1: row n of y is row n of a, also in OP 2.
    straight: u32,
}

@group(0) @binding(1) var<uniform> shape: Shape;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
@group(0) @binding(3) var<storage, read> a: array<f32>;
@group(0) @binding(4) var<storage, read> b: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

fn gate(x: f32) -> f32 {
    if OP == 3u {
        return x / (1.0 + exp_of(-x));
    } else if OP == 4u {
        return 0.5 * x * (1.0 + erf_of(x * 0.70710678));
    }
    return 0.5 * x * (1.0 + tanh_of(0.79788456 * fma(0.044715 * x * x, x, x)));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= shape.width {
        return;
    }
    var source = id.y;
    if OP == 2u && shape.straight == 0u {
        source = batch[run.wanted_at + id.y];
    }
    let v = a[source * shape.a_stride + id.x];
    let w = b[id.y * shape.b_stride + shape.b_first + id.x];
    var out = v;
    if OP == 0u {
        out = v + w;
    } else if OP == 1u {
        out = v * shape.factor;
    } else if OP >= 3u {
        out = gate(v) * w;
    }
    y[id.y * shape.y_stride + id.x] = out;
}
