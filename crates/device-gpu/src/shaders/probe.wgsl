// Tries whether all lanes of a subgroup are in the same 64 lanes of a workgroup.
@group(0) @binding(0) var<storage, read_write> found: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) index: u32) {
    found[index] = select(0u, 1u, subgroupBroadcastFirst(index / 64u) == index / 64u);
}
