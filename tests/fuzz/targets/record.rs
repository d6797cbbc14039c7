#![no_main]

#[path = "../properties.rs"]
#[expect(dead_code, reason = "each target needs one property of it")]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::record(data));
