#![no_main]

#[path = "../properties.rs"]
#[expect(dead_code, reason = "each target needs one property of it")]
mod properties;

use properties::pipeline::{Random, generate, mutate};

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::pipeline(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let (mut script, mut random) = (data[..size].to_vec(), Random::new(u64::from(seed)));
    // An empty corpus begins with one byte.
    if size < 8 {
        script = generate(&mut random);
    } else {
        mutate(&mut script, &mut random);
    }
    script.truncate(max_size);
    data[..script.len()].copy_from_slice(&script);
    script.len()
});
