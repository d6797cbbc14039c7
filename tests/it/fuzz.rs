//! The properties of the fuzz targets, checked with their seeds and with some mutations of them; and the whole pipeline, with
//! many scripts by chance.
//!
//! `KEYGATE_LONG=1 cargo test --test it fuzz:: -- --nocapture` runs 50 times as many scripts.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;

#[path = "../fuzz/properties.rs"]
mod properties;

use crate::harness::is_long;
use properties::pipeline::{Random, World, generate, mutate};
use properties::{TARGETS, Target};

/// The number of cases per target. The fuzzer itself runs millions.
const CASES: u32 = 400;
/// The number of scripts by chance for the whole pipeline.
const SCRIPTS: usize = 12_000;

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

#[test]
fn what_is_forwarded_is_what_was_authorised_whatever_a_client_sends() {
    let pipeline = TARGETS.iter().find(|target| target.name == "pipeline").unwrap();
    let seeds = seeds(pipeline);
    let mut world = World::start();
    for seed in &seeds {
        world.check(seed).unwrap_or_else(|why| panic!("{why}"));
    }
    // The same scripts each time, and others.
    let by_chance = RandomState::new().hash_one(());
    for seed in [1, by_chance] {
        let mut random = Random::new(seed);
        for number in 0..if is_long() { 50 * SCRIPTS } else { SCRIPTS } / 2 {
            let mut script = if number % 2 == 0 {
                generate(&mut random)
            } else {
                seeds[random.below(seeds.len())].clone()
            };
            if number % 4 > 0 {
                mutate(&mut script, &mut random);
            }
            world.check(&script).unwrap_or_else(|why| panic!("script {number} of seed {seed}: {why}"));
        }
    }
    let totals = world.totals();
    println!("{totals:?}, the last seed was {by_chance}");
    assert!(
        totals.forwarded.min(totals.answers) > totals.scripts / 4,
        "too little passed to show anything: {totals:?}"
    );
}
