//! The structure of `src/`: imports point one way, no circles, nothing too long to be read.
//!
//! The source is parsed, not searched: what stands in a comment, a string or a test module does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The layers from the bottom up. A module may import those of its own layer and below.
const LAYERS: [&[&str]; 10] = [
    &["secret_file", "tls", "vocabulary"],
    &["dial", "policy"],
    &["telemetry"],
    &["store", "upstream"],
    &["lifecycle"],
    &["api"],
    &["gateway", "operators"],
    &["downstream"],
    &["app", "config"],
    &["cli"],
];
/// The only top-level modules that may import the configuration.
const SEE_THE_CONFIGURATION: [&str; 3] = ["app", "cli", "config"];

/// What a reader can take in at once.
const TOP_ENTRIES: usize = 20;
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 60;
const PARAMETERS: usize = 5;

#[test]
fn imports_point_one_way() {
    assert_none(&Source::read().upward_imports());
}

#[test]
fn only_app_and_the_command_line_see_the_configuration() {
    assert_none(&Source::read().imports_of_the_configuration());
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    assert_none(&Source::read().circles());
}

#[test]
fn the_top_of_the_source_fits_on_a_page() {
    let entries = fs::read_dir(root()).unwrap().count();
    assert!(entries <= TOP_ENTRIES, "src/ has {entries} entries, more than {TOP_ENTRIES}");
}

#[test]
fn no_file_is_too_long_to_read() {
    assert_none(&Source::read().long_files());
}

#[test]
fn a_function_fits_on_a_screen() {
    assert_none(&Source::read().long_functions());
}

#[test]
fn no_function_has_too_many_parameters() {
    assert_none(&Source::read().functions_with_many_parameters());
}

fn assert_none(offences: &[String]) {
    assert!(offences.is_empty(), "{offences:#?}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// A module of the crate by its path, such as `["gateway", "headers"]`; the crate's root is empty.
type Module = Vec<String>;

/// The source without its tests.
struct Source {
    files: BTreeMap<Module, SourceFile>,
}

struct SourceFile {
    path: PathBuf,
    is_folder: bool,
    lines: usize,
    functions: Vec<Function>,
    imports: BTreeSet<Module>,
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
    parameters: usize,
}

impl Source {
    fn read() -> Self {
        let root = root();
        let mut parsed = BTreeMap::new();
        parse_module(&root.join("lib.rs"), Vec::new(), &mut parsed);
        let modules: BTreeSet<Module> = parsed.keys().cloned().collect();
        let files = parsed.into_iter().map(|(module, (path, text, syntax))| {
            let is_folder = path.ends_with("mod.rs") || module.is_empty();
            let mut reader = Reader {
                module: module.clone(),
                modules: &modules,
                functions: Vec::new(),
                imports: BTreeSet::new(),
                test_lines: 0,
            };
            reader.visit_file(&syntax);
            reader.imports.remove(&module);
            let Reader { functions, imports, test_lines, .. } = reader;
            let lines = text.lines().count() - test_lines;
            let path = path.strip_prefix(&root).unwrap_or(&path).to_path_buf();
            (module, SourceFile { path, is_folder, lines, functions, imports })
        });
        Self { files: files.collect() }
    }

    fn edges(&self) -> impl Iterator<Item = (&Module, &Module)> {
        self.files.iter().flat_map(|(from, file)| file.imports.iter().map(move |to| (from, to)))
    }

    fn upward_imports(&self) -> Vec<String> {
        let layer = |module: &Module| LAYERS.iter().position(|layer| layer.contains(&module[0].as_str()));
        let inner = self.edges().filter(|(from, to)| !from.is_empty() && !to.is_empty());
        inner.filter(|(from, to)| layer(from).is_none() || layer(from) < layer(to)).map(describe).collect()
    }

    fn imports_of_the_configuration(&self) -> Vec<String> {
        let sees =
            |module: &Module| module.first().is_none_or(|top| SEE_THE_CONFIGURATION.contains(&top.as_str()));
        let wrong =
            self.edges().filter(|(from, to)| to.first().is_some_and(|top| top == "config") && !sees(from));
        wrong.map(describe).collect()
    }

    /// Groups of files that import each other, unless they are two files of one folder. A `mod.rs` may name what is in
    /// its own folder.
    fn circles(&self) -> Vec<String> {
        let counts = |from: &Module, to: &Module| !(self.files[from].is_folder && to.starts_with(from));
        let edges: BTreeMap<&Module, Vec<&Module>> = self
            .files
            .iter()
            .map(|(from, file)| (from, file.imports.iter().filter(|to| counts(from, to)).collect()))
            .collect();
        let reach: BTreeMap<&Module, BTreeSet<&Module>> =
            edges.keys().map(|from| (*from, reachable(from, &edges))).collect();
        let mut circles = BTreeSet::new();
        for (from, reached) in &reach {
            let circle: Vec<&Module> =
                reached.iter().filter(|to| reach[**to].contains(from)).copied().collect();
            let folders: BTreeSet<_> =
                circle.iter().map(|module| self.files[*module].path.parent()).collect();
            if circle.len() > 2 || folders.len() > 1 {
                let inside: Vec<String> = circle
                    .iter()
                    .flat_map(|a| edges[a].iter().filter(|b| circle.contains(b)).map(|b| describe((a, b))))
                    .collect();
                circles.insert(inside.join(", "));
            }
        }
        circles.into_iter().collect()
    }

    fn long_files(&self) -> Vec<String> {
        let long = self.files.values().filter(|file| file.lines > FILE_LINES);
        long.map(|file| format!("{}: {} lines without its tests", file.path.display(), file.lines)).collect()
    }

    fn long_functions(&self) -> Vec<String> {
        self.functions(|function| function.lines > FUNCTION_LINES)
    }

    fn functions_with_many_parameters(&self) -> Vec<String> {
        self.functions(|function| function.parameters > PARAMETERS)
    }

    fn functions(&self, wanted: impl Fn(&Function) -> bool) -> Vec<String> {
        let all =
            self.files.values().flat_map(|file| file.functions.iter().map(move |function| (file, function)));
        all.filter(|(_, function)| wanted(function))
            .map(|(file, Function { name, line, lines, parameters })| {
                format!(
                    "{}:{line}: {name} has {lines} lines and {parameters} parameters",
                    file.path.display()
                )
            })
            .collect()
    }
}

fn describe((from, to): (&Module, &Module)) -> String {
    format!("{} imports {}", from.join("::"), to.join("::"))
}

fn reachable<'m>(from: &'m Module, edges: &BTreeMap<&'m Module, Vec<&'m Module>>) -> BTreeSet<&'m Module> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for next in edges.get(module).into_iter().flatten() {
            if reached.insert(*next) {
                open.push(next);
            }
        }
    }
    reached
}

/// Reads a file and, as its `mod` lines say, those beneath it; not those of tests.
fn parse_module(path: &Path, module: Module, parsed: &mut BTreeMap<Module, (PathBuf, String, syn::File)>) {
    let text = fs::read_to_string(path).unwrap();
    let syntax = syn::parse_file(&text).unwrap();
    for item in &syntax.items {
        let syn::Item::Mod(beneath) = item else { continue };
        if beneath.content.is_some() || is_for_tests(&beneath.attrs) {
            continue;
        }
        let name = beneath.ident.to_string();
        let file = path.with_file_name(format!("{name}.rs"));
        let file = if file.exists() { file } else { path.with_file_name(&name).join("mod.rs") };
        parse_module(&file, [&module[..], &[name]].concat(), parsed);
    }
    parsed.insert(module, (path.to_path_buf(), text, syntax));
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    let is_test = |list: &syn::MetaList| list.path.is_ident("cfg") && list.tokens.to_string() == "test";
    attributes.iter().any(|attribute| attribute.meta.require_list().is_ok_and(is_test))
}

/// Collects what one file has and names.
struct Reader<'m> {
    /// The module that is being read, modules within the file included.
    module: Module,
    modules: &'m BTreeSet<Module>,
    functions: Vec<Function>,
    imports: BTreeSet<Module>,
    test_lines: usize,
}

impl Reader<'_> {
    fn note_path(&mut self, names: &[String]) {
        let mut base = match names.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.module.clone(),
            _ => return,
        };
        for name in names {
            match name.as_str() {
                "crate" | "self" => {}
                "super" => {
                    base.pop();
                }
                name => base.push(name.to_owned()),
            }
        }
        // The longest beginning that is a file: the rest are items in it.
        while !self.modules.contains(&base) {
            base.pop();
        }
        self.imports.insert(base);
    }

    fn note_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.note_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) if name.ident == "self" => self.note_path(before),
            syn::UseTree::Name(name) => self.note_path(&with(&name.ident)),
            syn::UseTree::Rename(rename) => self.note_path(&with(&rename.ident)),
            syn::UseTree::Glob(_) => self.note_path(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_tree(before, tree)),
        }
    }

    fn note_function(&mut self, signature: &syn::Signature, whole: proc_macro2::Span) {
        let first = signature.span().start().line;
        let parameters =
            signature.inputs.iter().filter(|input| matches!(input, syn::FnArg::Typed(_))).count();
        self.functions.push(Function {
            name: signature.ident.to_string(),
            line: first,
            lines: whole.end().line + 1 - first,
            parameters,
        });
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Const(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if is_for_tests(attributes) {
            self.test_lines += item.span().end().line + 1 - item.span().start().line;
        } else {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note_path(&names);
        visit::visit_path(self, path);
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.note_function(&function.sig, function.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.note_function(&function.sig, function.span());
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        self.note_function(&function.sig, function.span());
        visit::visit_trait_item_fn(self, function);
    }
}
