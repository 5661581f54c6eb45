// Multiplies four integers of 8 bits at a time and adds, in registers: as `compute.wgsl`, with as
// many chains.
@group(0) @binding(0) var<storage, read> data: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let a = data[id.x % 64u];
    let b = data[id.x % 64u + 64u];
    @CHAINS var s$ = i32(a + $u);
    for (var i = 0u; i < ROUNDS; i++) {
        @CHAINS s$ = dot4I8Packed(bitcast<u32>(s$), a) + i32(b);
    }
    var sum = 0;
    @CHAINS sum += s$;
    out[id.x] = bitcast<u32>(sum);
}
