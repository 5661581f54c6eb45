// What all kernels of a run know: how many rows there are, and where things are in `batch`.
struct Run {
    // Rows of the batch.
    rows: u32,
    // Rows whose logits are wanted.
    logits: u32,
    // Indices in `batch`: for every row the place of its key and value in the cache, a page's
    // number times its tokens and the token in it;
    slots_at: u32,
    // for every row whose logits are wanted its number;
    wanted_at: u32,
    // for every row the cosines and then the sines of its position;
    angles_at: u32,
    // eight words for each tile of rows that attends in one piece;
    tiles_at: u32,
    // the same for rows that attend page by page.
    singles_at: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> run: Run;

// Rows of a value: of all tokens, or of those whose logits are wanted.
fn rows_of(tokens: u32) -> u32 {
    return select(run.logits, run.rows, tokens == 1u);
}
