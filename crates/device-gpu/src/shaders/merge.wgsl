// Adds the pages of rows that attended page by page: a lane has four elements of one query.
struct Shape {
    heads: u32,
    kv_heads: u32,
    window: u32,
    y_stride: u32,
    scale: f32,
    softcap: f32,
    unused0: u32,
    unused1: u32,
}

@group(0) @binding(1) var<uniform> shape: Shape;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
// As attention.wgsl leaves them.
@group(0) @binding(3) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let head = id.x / DIM4;
    if head >= shape.heads {
        return;
    }
    let i = id.x % DIM4;
    let tile = run.singles_at + id.y * 8u;
    let row = batch[tile];
    let pages = batch[tile + 4u];
    let partial = batch[tile + 6u];
    var found = Found(0.0, 0.0, 0.0);
    var out = vec4(0.0);
    for (var page = 0u; page < pages; page++) {
        let at = ((partial + page) * shape.heads + head) * (DIM4 + 1u);
        let of_page = partials[at + DIM4];
        if of_page.z == 1.0 {
            let by = factors(found, of_page.x);
            found = fold(found, of_page.x, of_page.y, by);
            out = fold_values(out, partials[at + i], by);
        }
    }
    let at = row * shape.y_stride + head * DIM + i * 4u;
    let z = out / found.sum;
    if i * 4u < DIM { y[at] = z.x; }
    if i * 4u + 1u < DIM { y[at + 1u] = z.y; }
    if i * 4u + 2u < DIM { y[at + 2u] = z.z; }
    if i * 4u + 3u < DIM { y[at + 3u] = z.w; }
}
