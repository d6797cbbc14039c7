//! What is built: packages of one registry with their checksums, and no code on the building machine that is not listed
//! in `tests/supply_chain.md`. What `deny.toml` says is checked by cargo-deny, which `tests/run` starts.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGE: &str = "tests/supply_chain.md";
const REGISTRY: &str = "\"registry+https://github.com/rust-lang/crates.io-index\"";

#[test]
fn every_package_comes_from_one_registry_and_has_its_checksum() {
    let lock = read(&root().join("Cargo.lock"));
    let packages: Vec<&str> = lock.split("[[package]]\n").skip(1).collect();
    let others = packages.iter().filter(|package| value(package, "name") != Some("\"keygate\""));
    let wrong = others.filter(|package| {
        let checksum = value(package, "checksum").unwrap_or_default();
        value(package, "source") != Some(REGISTRY) || checksum.len() != "\"\"".len() + 64
    });
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<&&str>::new());
    assert!(packages.len() > 100, "Cargo.lock is read");
}

#[test]
fn all_code_that_runs_while_building_is_listed_with_its_reason() {
    let page = read(&root().join(PAGE));
    let (listed, mut offences) = listed(&page);
    let found = in_the_tree();
    for (name, Built { kinds, ships }) in &found {
        let kind = kinds.iter().copied().collect::<Vec<_>>().join(", ");
        match listed.get(name) {
            None => offences.push(format!(
                "{name} ({kind}) is in the tree and not in the table: read it, and say why it is there"
            )),
            Some(row) if *row != (kind.clone(), *ships) => {
                offences.push(format!("{name} is: {kind}; ships: {ships}. The table says {row:?}"));
            }
            Some(_) => {}
        }
    }
    let gone = listed.keys().filter(|name| !found.contains_key(*name));
    offences.extend(gone.map(|name| format!("{name} is in the table and runs nothing any more")));
    assert!(offences.is_empty(), "{PAGE}: {offences:#?}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The value of a key as it stands in its line. cargo writes each on a line of its own, in the files read here.
fn value<'t>(toml: &'t str, key: &str) -> Option<&'t str> {
    toml.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))
}

/// The table: by name what it is and whether it ships; and what is wrong with the table itself.
fn listed(page: &str) -> (BTreeMap<String, (String, bool)>, Vec<String>) {
    let (mut rows, mut offences) = (BTreeMap::new(), Vec::new());
    for line in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| package")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, ships, does, why] = cells[..] else { panic!("five cells in {line}") };
        if does.is_empty() || why.is_empty() || !["yes", "no"].contains(&ships) {
            offences.push(format!("{name} says what it does, why it is there, and yes or no"));
        }
        if rows.insert(name.to_owned(), (kind.to_owned(), ships == "yes")).is_some() {
            offences.push(format!("{name} is there twice"));
        }
    }
    (rows, offences)
}

#[derive(Default)]
struct Built {
    kinds: BTreeSet<&'static str>,
    ships: bool,
}

/// The packages that run code while keygate and its suite are built for this machine.
fn in_the_tree() -> BTreeMap<String, Built> {
    let shipped = tree("normal,build");
    let mut found = BTreeMap::<String, Built>::new();
    for package in tree("normal,build,dev") {
        let mut kinds = BTreeSet::new();
        if package.ends_with(" (proc-macro)") {
            kinds.insert("macro");
        }
        let mut words = package.split(' ');
        let (name, version) = (words.next().unwrap(), words.next().unwrap().trim_start_matches('v'));
        if has_build_script(&unpacked(name, version)) {
            kinds.insert("build script");
        }
        if !kinds.is_empty() {
            let built = found.entry(name.to_owned()).or_default();
            built.kinds.extend(kinds);
            built.ships |= shipped.contains(&package);
        }
    }
    assert!(found.len() > 20, "the tree is read");
    found
}

/// The packages of the tree, each as `name vVERSION`, and `(proc-macro)` behind it where it is one.
fn tree(edges: &str) -> BTreeSet<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments =
        ["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p}", "--edges", edges];
    let ran = Command::new(cargo).args(arguments).current_dir(root()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let text = String::from_utf8(ran.stdout).unwrap();
    let lines = text.lines().map(|line| line.trim_end_matches(" (*)"));
    lines.filter(|line| !line.is_empty() && !line.starts_with("keygate ")).map(str::to_owned).collect()
}

/// Where cargo has unpacked a package.
fn unpacked(name: &str, version: &str) -> PathBuf {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"))).unwrap();
    let registries = fs::read_dir(home.join("registry/src")).unwrap();
    let mut places = registries.map(|registry| registry.unwrap().path().join(format!("{name}-{version}")));
    places.find(|place| place.is_dir()).unwrap_or_else(|| panic!("{name} {version} is not unpacked"))
}

fn has_build_script(package: &Path) -> bool {
    let manifest = read(&package.join("Cargo.toml"));
    let about = manifest.split("\n[").find(|section| section.trim_start_matches('[').starts_with("package]"));
    let about = about.unwrap_or_else(|| panic!("{} has no [package]", package.display()));
    match value(about, "build") {
        Some(build) => build != "false",
        None => package.join("build.rs").exists(),
    }
}
