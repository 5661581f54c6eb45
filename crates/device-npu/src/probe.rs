//! Which row counts of a piece compute a row alike.
//!
//! Kernels may add in another order for another number of rows, or for the last rows of a batch.
//! The contract wants a row's bits to depend on nothing but the row, so every piece is asked, once
//! it is compiled: five rows of numbers run at every place of every row count, and only row counts
//! that give the same bits everywhere stay in use.

use crate::session::Bound;

/// Different rows; no row count is a multiple of it.
const ROWS: usize = 5;

/// A row count's results: `(rows, width)` of each output, for the test rows; `None` if one of them
/// had other bits at another place.
type Found = Option<Vec<Vec<u32>>>;

/// Positions in `sessions` (in order of their row counts) of the greatest set that agrees; of sets
/// of one size the one with the larger batches. Empty if no row count agrees with itself.
///
/// `inputs` and `outputs`: names and widths.
pub(crate) fn agreeing(
    sessions: &mut [Bound],
    inputs: &[(String, usize)],
    outputs: &[(String, usize)],
) -> Result<Vec<usize>, ort::Error> {
    let test: Vec<Vec<f32>> = inputs
        .iter()
        .enumerate()
        .map(|(index, (_, width))| numbers(index as u64 + 1, ROWS * width))
        .collect();
    let mut found: Vec<Found> = Vec::new();
    for session in sessions.iter_mut() {
        found.push(one(session, &test, inputs, outputs)?);
    }
    let alike = |of: &Found| -> Vec<usize> {
        (0..found.len()).filter(|&index| of.is_some() && found[index] == *of).collect()
    };
    let sets = found.iter().map(alike);
    Ok(sets.max_by_key(|set| (set.len(), set.last().copied())).unwrap_or_default())
}

fn one(
    session: &mut Bound,
    test: &[Vec<f32>],
    inputs: &[(String, usize)],
    outputs: &[(String, usize)],
) -> Result<Found, ort::Error> {
    let mut results: Found = Some(vec![Vec::new(); outputs.len()]);
    let mut seen = 0;
    // Every test row has to run, and every place of the batch.
    while seen < ROWS.max(session.rows) {
        let rows = session.rows;
        let which: Vec<usize> = (seen..seen + rows).map(|row| row % ROWS).collect();
        let batch: Vec<Vec<f32>> = test
            .iter()
            .zip(inputs)
            .map(|(x, (_, width))| {
                which.iter().flat_map(|row| &x[row * width..][..*width]).copied().collect()
            })
            .collect();
        let reads: Vec<(&str, &[f32])> =
            inputs.iter().zip(&batch).map(|((name, _), x)| (name.as_str(), &x[..])).collect();
        let mut written: Vec<Vec<f32>> =
            outputs.iter().map(|(_, width)| vec![0.0; rows * width]).collect();
        let mut writes: Vec<(&str, &mut [f32])> = outputs
            .iter()
            .zip(&mut written)
            .map(|((name, _), y)| (name.as_str(), &mut y[..]))
            .collect();
        session.run(&reads, &mut writes)?;
        for (output, (y, (_, width))) in written.iter().zip(outputs).enumerate() {
            for (place, (row, &of)) in y.chunks(*width).zip(&which).enumerate() {
                let bits = row.iter().map(|x| x.to_bits());
                let Some(all) = &mut results else { return Ok(None) };
                if seen + place < ROWS {
                    all[output].extend(bits);
                } else if !bits.eq(all[output][of * width..][..*width].iter().copied()) {
                    results = None;
                }
            }
        }
        seen += rows;
    }
    Ok(results)
}

/// Numbers between -1 and 1 (splitmix64), now and then much larger, as activations are.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut one = || {
        let random = next();
        let unit = (random >> 40) as f32 / (1_u64 << 23) as f32 - 1.0;
        if random.is_multiple_of(40) { unit * 30.0 } else { unit }
    };
    (0..count).map(|_| one()).collect()
}
