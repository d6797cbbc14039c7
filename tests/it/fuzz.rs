//! The properties of the fuzz targets, checked with their seeds and with some mutations of them.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;

#[path = "../fuzz/properties.rs"]
mod properties;

use properties::{TARGETS, Target};

/// The number of cases per target. The fuzzer itself runs millions.
const CASES: u32 = 400;

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let folder = fs::read_dir(folder().join("seeds").join(target.name)).unwrap();
    folder.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// A seed with some parts overwritten, doubled or removed.
fn changed(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let part = (any::<prop::sample::Index>(), 0_usize..24, vec(any::<u8>(), 0..12), any::<bool>());
    (prop::sample::select(seeds), vec(part, 0..5)).prop_map(|(mut bytes, parts)| {
        for (at, len, by, repeats) in parts {
            let at = at.index(bytes.len() + 1);
            let end = (at + len).min(bytes.len());
            let by = if repeats { bytes[at..end].repeat(2) } else { by };
            bytes.splice(at..end, by);
        }
        bytes
    })
}

#[test]
fn the_fuzz_properties_hold_for_the_seeds_and_mutations_of_them() {
    let mut runner = prop::test_runner::TestRunner::new(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    for target in TARGETS {
        let seeds = seeds(target);
        seeds.iter().for_each(|seed| (target.holds)(seed));
        let ran = runner.run(&changed(seeds), |bytes| {
            (target.holds)(&bytes);
            Ok(())
        });
        assert!(ran.is_ok(), "{}: {}", target.name, ran.unwrap_err());
    }
}

#[test]
fn every_property_has_a_target_for_the_fuzzer() {
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
    for Target { name, .. } in TARGETS {
        let source = fs::read_to_string(folder().join(format!("targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("properties::{name}(data)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
