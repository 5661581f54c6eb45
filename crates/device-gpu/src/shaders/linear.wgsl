// y = x W^T + bias. A workgroup computes M rows of 64 outputs; a lane has one output of each row.
//
// Inputs are cut into blocks of 128. A block is added up in order, and the blocks' sums are added
// in order: whatever M and SPLIT are, the same additions happen. SPLIT groups of 64 lanes take
// blocks in turn and leave their sums in shared memory.
struct Shape {
    packed: Packed,
    // Inputs and outputs.
    k: u32,
    n: u32,
    // Vectors in a row of x, elements in a row of y.
    x_stride: u32,
    y_stride: u32,
    // Column of y of the first output; the same of the bias.
    y_first: u32,
    // 1: rows of tokens, 0: of wanted logits.
    tokens: u32,
    // 1: there is a bias.
    biased: u32,
    unused: u32,
}

@group(0) @binding(1) var<uniform> shape: Shape;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

var<workgroup> parts: array<f32, SHARED>;

fn put(row: u32, n: u32, sum: f32) {
    if row < rows_of(shape.tokens) && n < shape.n {
        var out = sum;
        if shape.biased == 1u {
            out += bias[shape.y_first + n];
        }
        y[row * shape.y_stride + shape.y_first + n] = out;
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @BROADCAST @builtin(subgroup_invocation_id) place: u32,
) {
    @BROADCAST place_of_8 = place % 8u;
    let lane = index % 64u;
    // Where there is one group, compilers are to see that all lanes read the same inputs.
    var split = 0u;
    if SPLIT > 1u {
        split = same_in_64(index / 64u);
    }
    let tile = group.x;
    let row = group.y * M;
    let n = tile * 64u + lane;
    let last = rows_of(shape.tokens) - 1u;
    @M let x$ = min(row + $u, last) * shape.x_stride;
    @OWN var total$ = 0.0;
    let blocks = (shape.packed.chunks + 3u) / 4u;
    let rounds = (blocks + SPLIT - 1u) / SPLIT;
    for (var round = 0u; round < rounds; round++) {
        let block = round * SPLIT + split;
        let end = min(block * 4u + 4u, shape.packed.chunks);
        @M var part$ = 0.0;
        for (var chunk = block * 4u; chunk < end; chunk++) {
            let w = weights_of(tile, chunk, lane);
            @M part$ = add_chunk(part$, w, x$, chunk);
        }
        @ONE total$ += part$;
        @PARTS parts[(split * M + $u) * 64u + lane] = part$;
        if SPLIT > 1u {
            workgroupBarrier();
            let there = min(blocks - round * SPLIT, SPLIT);
            for (var other = 0u; other < there; other++) {
                @SHARES total$ += parts[(other * M + min(split + $u * SPLIT, M - 1u)) * 64u + lane];
            }
            workgroupBarrier();
        }
    }
    @ONE put(row + $u, n, total$);
    @SHARES if split + $u * SPLIT < M { put(row + split + $u * SPLIT, n, total$); }
}
