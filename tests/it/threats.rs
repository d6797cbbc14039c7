//! `tests/threats.md` says what is so: each threat is there once, and what it names is in the source and in the suite.
//!
//! The source is read as text: nothing of it runs here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

const PAGE: &str = "tests/threats.md";
/// How many threats the list has that keygate was designed against. Their numbers begin with 1.
const THREATS: usize = 82;
/// Macros of the suite that make a test of each name.
const MAKERS: [&str; 2] = ["on_both_stores", "contract"];

#[test]
fn each_threat_is_stopped_where_the_page_says_and_shown_by_tests_that_exist() {
    let page = fs::read_to_string(root().join(PAGE)).unwrap();
    let offences = Checked::default().page(&page);
    assert!(offences.is_empty(), "{PAGE}: {offences:#?}");
}

#[test]
fn a_row_that_names_what_is_not_there_is_found() {
    let row = |place: &str, test: &str| format!("| 1 | a threat | {place} | {test} |");
    let (place, test) = ("`tests/it/threats.rs` `Checked::page`, `PAGE`", "`threats`");
    for (row, offence) in [
        (row(place, test), ""),
        (row("**Not yet**: it is to be done. Until then do not", "none"), ""),
        (row("`src/lib.rs` `gateway`", "`threats::a_row_that_names_what_is_not_there_is_found`"), ""),
        (
            row(
                "`Cargo.toml` `unwrap_used`",
                "`api_model::no_way_leads_from_one_organisation_to_another_or_from_few_scopes_to_more`",
            ),
            "",
        ),
        (row("", test), "empty"),
        (row(place, ""), "empty"),
        (row("`src/nowhere.rs` `gateway`", test), "src/nowhere.rs"),
        (row("`src/lib.rs` `Gateway::nowhere`", test), "Gateway::nowhere"),
        (row("`src/lib.rs` `gateway`, `nowhere`", test), "nowhere"),
        (row("`Cargo.toml` `nowhere`", test), "nowhere"),
        (row("`src/lib.rs` `gateway` and elsewhere `nowhere`", test), "nowhere"),
        (row("in the whole source", test), "no place"),
        (row("**Not yet**", "none"), "what to do"),
        (row(place, "none"), "no test"),
        (row(place, "`threats::nowhere`"), "threats::nowhere"),
        (row(place, "`nowhere`"), "nowhere"),
        (row(place, "`harness::metrics`"), "harness::metrics"),
        (row(place, "`threats::root`"), "threats::root"),
        (row(place, test) + "\n" + &row(place, test), "1 is there twice"),
    ] {
        let offences = Checked::default().page(&row);
        let others: Vec<_> = offences.iter().filter(|said| !said.ends_with("is missing")).collect();
        match offence {
            "" => assert_eq!(others, Vec::<&String>::new(), "{row}"),
            offence => assert!(others.len() == 1 && others[0].contains(offence), "{offence}: {others:?}"),
        }
        assert_eq!(offences.len() - others.len(), THREATS - 1, "the other numbers are missing");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files that rows have named so far, each read once.
#[derive(Default)]
struct Checked {
    files: BTreeMap<PathBuf, Items>,
}

impl Checked {
    /// Everything that is not as the page says.
    fn page(&mut self, page: &str) -> Vec<String> {
        let (mut offences, mut seen) = (Vec::new(), BTreeSet::new());
        for line in page.lines().filter(|line| line.starts_with('|')) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if cells[0] == "#" || cells[0].starts_with("---") {
                continue;
            }
            let mut tell = |what: &str| offences.push(format!("{}: {what}", cells[0]));
            if !seen.insert(cells[0].to_owned()) {
                tell(&format!("{} is there twice", cells[0]));
                continue;
            }
            let [_, _, places, tests] = cells[..] else {
                tell("there are four cells in a row");
                continue;
            };
            if cells.iter().any(|cell| cell.is_empty()) {
                tell("a cell is empty");
                continue;
            }
            self.places(places, &mut tell);
            self.tests(tests, places.contains("**Not yet**"), &mut tell);
        }
        let missing = (1..=THREATS).filter(|number| !seen.contains(&number.to_string()));
        offences.extend(missing.map(|number| format!("{number} is missing")));
        offences
    }

    /// Files in backticks, each with items behind it that it has: `` `src/a.rs` `A::b`, `C` ``.
    fn places(&mut self, cell: &str, tell: &mut impl FnMut(&str)) {
        let (mut named, mut file) = (0, None);
        // Outside and inside of backticks in turns.
        for (n, part) in cell.split('`').enumerate() {
            if n % 2 == 0 {
                file = file.filter(|_| [" ", ", "].contains(&part));
            } else if is_file(part) {
                named += 1;
                file = Some(root().join(part));
                if !root().join(part).is_file() {
                    tell(&format!("there is no file {part}"));
                    return;
                }
            } else if part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':') {
                match &file {
                    None => tell(&format!("{part} stands behind no file")),
                    Some(file) if !self.items(file).has(part) => {
                        tell(&format!("{} has no {part}", file.display()));
                    }
                    Some(_) => {}
                }
            }
        }
        for mark in ["**Not yet**", "**In part**"] {
            let rest = cell.split_once(mark).map(|(_, rest)| rest);
            if rest.is_some_and(|rest| rest.len() < 20) {
                tell(&format!("{mark} says what is missing and what to do until then"));
            }
        }
        if named == 0 && !cell.contains("**Not yet**") {
            tell("it names no place");
        }
    }

    /// Names of tests and of modules of tests, in backticks.
    fn tests(&mut self, cell: &str, may_be_none: bool, tell: &mut impl FnMut(&str)) {
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && !may_be_none {
            tell("it names no test");
        }
        for name in names {
            let alone = module(name).is_some_and(|file| !self.items(&file).tests.is_empty());
            let of_module = name.rsplit_once("::").and_then(|(path, test)| Some((module(path)?, test)));
            let one = of_module.is_some_and(|(file, test)| self.items(&file).tests.contains(test));
            if !(alone || one) {
                tell(&format!("there is no test {name}"));
            }
        }
    }

    fn items(&mut self, file: &Path) -> &Items {
        self.files.entry(file.to_path_buf()).or_insert_with(|| Items::read(file))
    }
}

fn is_file(part: &str) -> bool {
    [".rs", ".toml", ".lock"].iter().any(|end| part.ends_with(end))
}

/// The file of a module of the integration tests, else of `src/`.
fn module(path: &str) -> Option<PathBuf> {
    let path = path.replace("::", "/");
    ["tests/it", "src"]
        .iter()
        .flat_map(|folder| {
            let below = root().join(folder);
            [below.join(format!("{path}.rs")), below.join(&path).join("mod.rs")]
        })
        .find(|file| file.is_file())
}

/// What a file has.
#[derive(Default)]
struct Items {
    /// Of Rust: items, and `Type::name` for what belongs to a type.
    names: BTreeSet<String>,
    tests: BTreeSet<String>,
    /// Of another file: all of it.
    text: Option<String>,
    of: Option<String>,
}

impl Items {
    fn read(file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap();
        if file.extension().is_none_or(|extension| extension != "rs") {
            return Self { text: Some(text), ..Self::default() };
        }
        let mut items = Self::default();
        items.visit_file(&syn::parse_file(&text).unwrap());
        items
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name) || self.text.as_ref().is_some_and(|text| text.contains(name))
    }

    fn add(&mut self, name: &syn::Ident) {
        self.names.insert(match &self.of {
            Some(of) => format!("{of}::{name}"),
            None => name.to_string(),
        });
    }

    /// Goes on with what belongs to a type or a trait.
    fn within(&mut self, of: String, go_on: impl FnOnce(&mut Self)) {
        let before = self.of.replace(of);
        go_on(self);
        self.of = before;
    }
}

impl<'ast> Visit<'ast> for Items {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        match item {
            syn::Item::Const(item) => self.add(&item.ident),
            syn::Item::Static(item) => self.add(&item.ident),
            syn::Item::Struct(item) => self.add(&item.ident),
            syn::Item::Type(item) => self.add(&item.ident),
            syn::Item::Mod(item) => self.add(&item.ident),
            syn::Item::Fn(item) => {
                self.add(&item.sig.ident);
                let is_test = |attribute: &syn::Attribute| {
                    attribute.path().segments.last().is_some_and(|last| last.ident == "test")
                };
                if item.attrs.iter().any(is_test) {
                    self.tests.insert(item.sig.ident.to_string());
                }
                // What a function has inside is nobody else's.
                return;
            }
            syn::Item::Enum(item) => {
                self.add(&item.ident);
                self.within(item.ident.to_string(), |items| {
                    item.variants.iter().for_each(|variant| items.add(&variant.ident));
                });
            }
            syn::Item::Trait(item) => {
                self.add(&item.ident);
                self.within(item.ident.to_string(), |items| visit::visit_item_trait(items, item));
                return;
            }
            syn::Item::Impl(item) => {
                let syn::Type::Path(of) = &*item.self_ty else { return };
                let Some(last) = of.path.segments.last() else { return };
                self.within(last.ident.to_string(), |items| visit::visit_item_impl(items, item));
                return;
            }
            syn::Item::Macro(item) => {
                let maker = item.mac.path.segments.last().map(|last| last.ident.to_string());
                let text = item.mac.tokens.to_string();
                match maker.unwrap_or_default().as_str() {
                    maker if MAKERS.contains(&maker) => {
                        // Each test is named by one word.
                        self.tests.extend(text.split_whitespace().map(str::to_owned));
                    }
                    "proptest" => {
                        let named =
                            text.split("fn ").skip(1).filter_map(|rest| rest.split([' ', '(']).next());
                        self.tests.extend(named.map(str::to_owned));
                    }
                    // Such as a structure with pinned fields.
                    _ => {
                        if let Ok(inner) = syn::parse2::<syn::File>(item.mac.tokens.clone()) {
                            self.visit_file(&inner);
                        }
                    }
                }
            }
            _ => {}
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig.ident);
    }

    fn visit_impl_item_const(&mut self, constant: &'ast syn::ImplItemConst) {
        self.add(&constant.ident);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        self.add(&function.sig.ident);
    }
}
