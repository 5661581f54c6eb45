// One head of one token in the cache: DIM elements, padded to DIM4 * 4, then in 8 bits the scales
// in bf16, two to a word. KV 0: f32; 1: IEEE half; 2: bf16; 3: 8 bits.
//
// Heads lie in the order (page, head, token): KEY_WORDS and VALUE_WORDS from one to the next.

// Where a head begins, in heads, given a page's number times its tokens and the token in it.
fn head_at(slot: u32, head: u32, kv_heads: u32) -> u32 {
    let page = slot / PAGE;
    return (page * kv_heads + head) * PAGE + slot % PAGE;
}
