// Reads a buffer once, from beginning to end: what memory gives at most.
@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    var sum = vec4(0u);
    let first = group.x * 4096u + lane;
    for (var i = 0u; i < 64u; i++) {
        sum ^= data[first + i * 64u];
    }
    out[group.x * 64u + lane] = sum.x ^ sum.y ^ sum.z ^ sum.w;
}
