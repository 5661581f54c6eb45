// Says that a number is the same in 64 neighbouring lanes: here it changes nothing.
fn same_in_64(x: u32) -> u32 {
    return x;
}
