// How what a query found in one page is added to what it found in the pages before: the sums of
// exponentials and of values, both below the greatest score so far. Pages are added in order, and
// every page is added up on its own, so that it does not matter who does it.
struct Found {
    // Greatest score, sum of exponentials, and 1 if there is anything yet.
    most: f32,
    sum: f32,
    any: f32,
}

// The factors on what was found before, and on what is found in the page.
fn factors(before: Found, most: f32) -> vec2<f32> {
    if before.any == 0.0 {
        return vec2(0.0, 1.0);
    }
    let both = max(before.most, most);
    return vec2(exp_of(before.most - both), exp_of(most - both));
}

fn fold(before: Found, most: f32, sum: f32, by: vec2<f32>) -> Found {
    let both = select(most, max(before.most, most), before.any == 1.0);
    return Found(both, fma(before.sum, by.x, sum * by.y), 1.0);
}

fn fold_values(before: vec4<f32>, values: vec4<f32>, by: vec2<f32>) -> vec4<f32> {
    return fma(before, vec4(by.x), values * by.y);
}
