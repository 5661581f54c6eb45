// Multiplies and adds in registers: what the processors do at most.
@group(0) @binding(0) var<storage, read> data: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let a = data[id.x % 64u];
    let b = data[id.x % 64u + 64u];
    @CHAINS var s$ = a + f32($u);
    for (var i = 0u; i < ROUNDS; i++) {
        @CHAINS s$ = fma(s$, a, b);
    }
    var sum = 0.0;
    @CHAINS sum += s$;
    out[id.x] = sum;
}
