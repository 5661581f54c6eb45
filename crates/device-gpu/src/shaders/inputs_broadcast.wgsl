// Inputs that every lane reads an eighth of: software that runs kernels on vectors of the central
// processor gathers what it reads lane by lane, whether or not that is the same.

var<private> place_of_8: u32;

// The sum and the products of a chunk, one after the other.
fn add_chunk(sum: f32, w: Chunk, row: u32, chunk: u32) -> f32 {
    let mine = four(row + chunk * 8u + place_of_8, chunk * 32u + 4u * place_of_8);
    var s = add4(sum, subgroupBroadcast(mine, 0u), w.v0);
    s = add4(s, subgroupBroadcast(mine, 1u), w.v1);
    s = add4(s, subgroupBroadcast(mine, 2u), w.v2);
    s = add4(s, subgroupBroadcast(mine, 3u), w.v3);
    s = add4(s, subgroupBroadcast(mine, 4u), w.v4);
    s = add4(s, subgroupBroadcast(mine, 5u), w.v5);
    s = add4(s, subgroupBroadcast(mine, 6u), w.v6);
    return add4(s, subgroupBroadcast(mine, 7u), w.v7);
}
