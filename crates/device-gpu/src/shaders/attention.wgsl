// Attention of a tile of ROWS rows of one sequence, for one key head and the GROUP query heads that
// read it. ALONE 1: one row and one page, whose results are left for merge.wgsl; else all pages
// that the rows see, in order.
struct Shape {
    heads: u32,
    kv_heads: u32,
    // Tokens that a row sees, itself included; 0: all.
    window: u32,
    y_stride: u32,
    scale: f32,
    // 0: none.
    softcap: f32,
    unused0: u32,
    unused1: u32,
}

@group(0) @binding(1) var<uniform> shape: Shape;
@group(0) @binding(2) var<storage, read> batch: array<u32>;
@group(0) @binding(3) var<storage, read> queries: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> keys: array<u32>;
@group(0) @binding(5) var<storage, read> values: array<u32>;
// (pages, kv_heads, GROUP, DIM4 + 1): values, then the greatest score, the sum of exponentials, and
// whether there is anything.
@group(0) @binding(6) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

var<workgroup> query: array<vec4<f32>, QUERIES * DIM4>;
var<workgroup> score: array<f32, QUERIES * PAGE>;
// Of every query the greatest score in this page.
var<workgroup> greatest: array<f32, QUERIES>;
// Of every query the sum of exponentials in this page.
var<workgroup> sums: array<f32, QUERIES>;
// Factors of the next fold, and whether there is one.
var<workgroup> by: array<vec4<f32>, QUERIES>;
var<workgroup> found: array<Found, QUERIES>;

fn pair_of(word: u32) -> vec2<f32> {
    if KV == 1u {
        return unpack2x16float(word);
    }
    return vec2(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

fn scaled(codes: u32, scales: u32, high: bool) -> vec4<f32> {
    let scale = bitcast<f32>(select(scales << 16u, scales & 0xffff0000u, high));
    // Over 8 bits, attention multiplies bf16.
    let bits = bitcast<vec4<u32>>(vec4<f32>(unpack4xI8(codes)) * scale);
    let nearest = bits + vec4(0x7fffu) + ((bits >> vec4(16u)) & vec4(1u));
    return bitcast<vec4<f32>>(nearest & vec4(0xffff0000u));
}

// Elements 4 i to 4 i + 3 of the key that begins at `at`.
fn key4(at: u32, i: u32) -> vec4<f32> {
    if KV == 0u {
        let w = at + 4u * i;
        return bitcast<vec4<f32>>(vec4(keys[w], keys[w + 1u], keys[w + 2u], keys[w + 3u]));
    } else if KV < 3u {
        return vec4(pair_of(keys[at + 2u * i]), pair_of(keys[at + 2u * i + 1u]));
    }
    return scaled(keys[at + i], keys[at + DIM4 + i / 8u], (i / 4u & 1u) == 1u);
}

// The same of a value.
fn value4(at: u32, i: u32) -> vec4<f32> {
    if KV == 0u {
        let w = at + 4u * i;
        return bitcast<vec4<f32>>(vec4(values[w], values[w + 1u], values[w + 2u], values[w + 3u]));
    } else if KV < 3u {
        return vec4(pair_of(values[at + 2u * i]), pair_of(values[at + 2u * i + 1u]));
    }
    return scaled(values[at + i], values[at + DIM4 + i / 16u], (i / 8u & 1u) == 1u);
}

fn capped(score: f32) -> f32 {
    let s = score * shape.scale;
    if shape.softcap > 0.0 {
        return shape.softcap * tanh_of(s / shape.softcap);
    }
    return s;
}

fn add4(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// The tokens of a page, from x to before y, that the row at `position` sees.
fn seen(position: u32, page: u32) -> vec2<u32> {
    var first = 0u;
    if shape.window > 0u && position + 1u > shape.window {
        first = position + 1u - shape.window;
    }
    let start = page * PAGE;
    let low = clamp(first, start, start + PAGE) - start;
    let high = clamp(position + 1u, start, start + PAGE) - start;
    return vec2(low, high);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let head = group.x;
    let tile = select(run.tiles_at, run.singles_at, ALONE == 1u) + group.y * 8u;
    let row = batch[tile];
    let rows = batch[tile + 1u];
    let position = batch[tile + 2u];
    let first_page = batch[tile + 3u];
    let pages = batch[tile + 4u];
    let table = batch[tile + 5u];
    let partial = batch[tile + 6u];
    if ALONE == 1u && group.z >= pages {
        return;
    }
    // Query number q is of row q / GROUP of the tile.
    let count = rows * GROUP;
    for (var i = lane; i < count * DIM4; i += 64u) {
        let q = i / DIM4;
        let source = (row + q / GROUP) * shape.heads + head * GROUP + q % GROUP;
        query[i] = queries[source * DIM4 + i % DIM4];
    }
    if lane < QUERIES {
        found[lane] = Found(0.0, 0.0, 0.0);
    }
    @ITEMS var out$ = vec4(0.0);
    var page = first_page;
    var end = first_page + pages;
    if ALONE == 1u {
        page += group.z;
        end = page + 1u;
    }
    for (; page < end; page++) {
        workgroupBarrier();
        let heads = (batch[table + page] * shape.kv_heads + head) * PAGE;
        // What the last row sees is all that is filled.
        let filled = seen(position + rows - 1u, page).y;
        for (var t = lane; t < filled; t += 64u) {
            let at = (heads + t) * KEY_WORDS;
            @QUERIES var s$ = 0.0;
            for (var i = 0u; i < DIM4; i++) {
                let key = key4(at, i);
                @QUERIES s$ = add4(s$, query[$u * DIM4 + i], key);
            }
            @QUERIES score[$u * PAGE + t] = capped(s$);
        }
        workgroupBarrier();
        if lane < count {
            let range = seen(position + lane / GROUP, page);
            var most = bitcast<f32>(0xff800000u + (run.rows & 0u));
            for (var t = range.x; t < range.y; t++) {
                most = max(most, score[lane * PAGE + t]);
            }
            greatest[lane] = most;
        }
        workgroupBarrier();
        for (var i = lane; i < count * PAGE; i += 64u) {
            let q = i / PAGE;
            let range = seen(position + q / GROUP, page);
            if i % PAGE >= range.x && i % PAGE < range.y {
                score[i] = exp_of(score[i] - greatest[q]);
            }
        }
        workgroupBarrier();
        if lane < count {
            let range = seen(position + lane / GROUP, page);
            by[lane] = vec4(0.0);
            if range.x < range.y {
                var sum = 0.0;
                for (var t = range.x; t < range.y; t++) {
                    sum += score[lane * PAGE + t];
                }
                let before = found[lane];
                let f = factors(before, greatest[lane]);
                by[lane] = vec4(f, 1.0, 0.0);
                found[lane] = fold(before, greatest[lane], sum, f);
            }
        }
        workgroupBarrier();
        @ITEMS out$ = add_page(out$, lane + $u * 64u, count, position, page, heads);
    }
    workgroupBarrier();
    @ITEMS put(out$, lane + $u * 64u, count, row, head, partial + group.z);
}

// Adds what one query finds in a page to four elements of its result.
fn add_page(
    before: vec4<f32>,
    item: u32,
    count: u32,
    position: u32,
    page: u32,
    heads: u32,
) -> vec4<f32> {
    let q = item / DIM4;
    if q >= count || by[min(q, QUERIES - 1u)].z == 0.0 {
        return before;
    }
    let range = seen(position + q / GROUP, page);
    var sum = vec4(0.0);
    for (var t = range.x; t < range.y; t++) {
        let value = value4((heads + t) * VALUE_WORDS, item % DIM4);
        sum = fma(vec4(score[q * PAGE + t]), value, sum);
    }
    return fold_values(before, sum, by[q].xy);
}

fn put(out: vec4<f32>, item: u32, count: u32, row: u32, head: u32, partial: u32) {
    let q = item / DIM4;
    if q >= count {
        return;
    }
    let i = item % DIM4;
    let f = found[q];
    if ALONE == 1u {
        let at = ((partial * shape.kv_heads + head) * GROUP + q) * (DIM4 + 1u);
        partials[at + i] = out;
        if i == 0u {
            partials[at + DIM4] = vec4(f.most, f.sum, f.any, 0.0);
        }
        return;
    }
    let at = (row + q / GROUP) * shape.y_stride + (head * GROUP + q % GROUP) * DIM + i * 4u;
    let z = out / f.sum;
    if i * 4u < DIM { y[at] = z.x; }
    if i * 4u + 1u < DIM { y[at + 1u] = z.y; }
    if i * 4u + 2u < DIM { y[at + 2u] = z.z; }
    if i * 4u + 3u < DIM { y[at + 3u] = z.w; }
}
