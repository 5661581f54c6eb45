// Says that a number is the same in 64 neighbouring lanes, so that what is read by it is read once
// per subgroup. Subgroups have at most 64 lanes, and these are neighbours: opening the device has
// tried that.
fn same_in_64(x: u32) -> u32 {
    return subgroupBroadcastFirst(x);
}
