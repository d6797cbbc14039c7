//! Imports point one way: vocabulary ← (store, upstream, telemetry) ← (gateway, lifecycle, admin) ← sockets ←
//! app ← command line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the bottom up. A module may name those of its own layer and below.
const LAYERS: [&[&str]; 7] = [
    &["pem", "vocabulary"],
    &["policy"],
    &["secret_file", "store", "telemetry", "upstream"],
    &["api", "gateway", "lifecycle", "operators"],
    &["downstream"],
    &["app", "config"],
    &["cli"],
];

#[test]
fn imports_point_one_way() {
    let layer: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(n, modules)| modules.iter().map(move |module| (*module, n)))
        .collect();
    let mut wrong = Vec::new();
    for (module, path, line_number, line) in source_lines() {
        let Some(own) = layer.get(module.as_str()) else {
            assert!(module == "lib" || module == "main", "{} has no layer: add it", path.display());
            continue;
        };
        for named in line.match_indices("crate::").map(|(at, _)| &line[at + 7..]) {
            for named in named.trim_start_matches('{').split(&[',', '}'][..]) {
                let name =
                    named.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                if layer.get(name).is_some_and(|other| other > own) {
                    wrong.push(format!("{}:{line_number}: {module} names {name}", path.display()));
                }
                if !line[line.find("crate::").unwrap()..].starts_with("crate::{") {
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nobody_but_app_and_the_command_line_sees_the_configuration() {
    let sees: Vec<String> = source_lines()
        .filter(|(module, _, _, line)| {
            line.contains("crate::config")
                && !["app", "cli", "config", "main", "lib"].contains(&module.as_str())
        })
        .map(|(module, path, ..)| format!("{} ({module})", path.display()))
        .collect();
    assert!(sees.is_empty(), "{sees:#?}");
}

/// Every line of the source without comments: its top-level module, its file, its number.
fn source_lines() -> impl Iterator<Item = (String, PathBuf, usize, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    files(&root).into_iter().flat_map(move |path| {
        let relative = path.strip_prefix(&root).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(n, line)| (module.clone(), path.clone(), n + 1, line.to_owned()))
            .collect();
        lines
    })
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
