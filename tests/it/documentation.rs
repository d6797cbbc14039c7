//! The pages of this repository say what is so: links resolve, the binary takes every block of commands and of
//! configuration, and every block of commands is marked: `<!-- run: NAME -->` runs in its order, word for word, and
//! `<!-- build -->` builds, tests or measures with what is there.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use keygate::cli::read;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::process::keygate;
use crate::harness::{Authority, PATIENCE, RedisServer, Upstream, eventually};

/// In the order in which somebody reads them who begins with the README.
const PAGES: [&str; 12] = [
    "README.md",
    "config/README.md",
    "deploy/README.md",
    "src/README.md",
    "src/api/README.md",
    "benches/README.md",
    "tests/README.md",
    "tests/threats.md",
    "tests/supply_chain.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct Page {
    name: &'static str,
    blocks: Vec<Block>,
    /// Without what stands in blocks.
    prose: Vec<String>,
}

struct Block {
    language: String,
    /// What the HTML comment right above it says.
    mark: String,
    lines: Vec<String>,
    /// Where it begins, for whoever mends it.
    place: String,
}

impl Block {
    fn text(&self) -> String {
        self.lines.iter().fold(String::new(), |text, line| text + line + "\n")
    }
}

fn pages() -> Vec<Page> {
    PAGES.map(read_page).into()
}

fn read_page(name: &'static str) -> Page {
    let text = fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut page = Page { name, blocks: Vec::new(), prose: Vec::new() };
    let (mut open, mut mark) = (None::<(Block, usize)>, String::new());
    for (n, line) in text.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (open.take(), fence) {
            (Some((block, _)), Some(_)) => page.blocks.push(block),
            (Some((mut block, indent)), None) => {
                block.lines.push(line.get(indent..).unwrap_or_default().to_owned());
                open = Some((block, indent));
            }
            (None, Some(language)) => {
                let place = format!("{name}:{}", n + 1);
                let block = Block {
                    language: language.trim().to_owned(),
                    mark: std::mem::take(&mut mark),
                    lines: vec![],
                    place,
                };
                open = Some((block, line.len() - line.trim_start().len()));
            }
            (None, None) => {
                let comment = line.trim().strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
                comment.unwrap_or_default().clone_into(&mut mark);
                page.prose.push(line.to_owned());
            }
        }
    }
    assert!(open.is_none(), "{name}: a block is not closed");
    page
}

/// Targets of `[text](target)`.
fn links(page: &Page) -> Vec<&str> {
    let targets = page.prose.iter().flat_map(|line| line.split("](").skip(1));
    targets.filter_map(|rest| rest.split(')').next()).collect()
}

/// What a heading is linked by: lower-case, blanks as hyphens, other punctuation left out.
fn anchors(page: &Page) -> BTreeSet<String> {
    let headings = page.prose.iter().filter(|line| line.starts_with('#'));
    let anchor = |heading: &String| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_are_there() {
    let pages = pages();
    let mut dead = Vec::new();
    for page in &pages {
        let folder = Path::new(page.name).parent().unwrap();
        for link in links(page).into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.name.into() } else { resolve(&folder.join(path)) };
            let other = pages.iter().find(|page| Path::new(page.name) == target);
            let anchored = anchor.is_empty() || other.is_some_and(|page| anchors(page).contains(anchor));
            if !root().join(&target).exists() || !anchored {
                dead.push(format!("{}: {link}", page.name));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

/// Without `..`.
fn resolve(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for part in path {
        if part == ".." {
            assert!(resolved.pop(), "{} leaves the repository", path.display());
        } else {
            resolved.push(part);
        }
    }
    resolved
}

#[test]
fn every_page_is_looked_at_and_the_first_is_short() {
    let mut found = BTreeSet::new();
    collect_pages(root(), Path::new(""), &mut found);
    assert_eq!(found, PAGES.map(PathBuf::from).into_iter().collect());
    let first = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(first.len() <= 8 << 10, "README.md has {} bytes", first.len());
}

fn collect_pages(root: &Path, folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let (name, path) = (entry.file_name(), folder.join(entry.file_name()));
        let name = name.to_str().unwrap();
        if entry.file_type().unwrap().is_dir() {
            if !name.starts_with('.') && !["target", "corpus"].contains(&name) {
                collect_pages(root, &path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.insert(path);
        }
    }
}

/// A folder with every file that the pages' configurations name.
fn folder_with_files(pages: &[Page]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["pepper", "new-pepper", "audit-key", "outbox-key", "redis-password", "sentinel-password"] {
        let path = folder.path().join(name);
        fs::write(&path, "a secret of thirty-two bytes or more\n").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    }
    let authority = Authority::new();
    for name in ["redis-ca", "reports-ca"] {
        authority.write(folder.path(), name);
    }
    for (file, name) in [
        ("api", "api.example.com"),
        ("wildcard", "*.example.com"),
        ("redis-client", "gateway"),
        ("keygate", "gateway"),
    ] {
        authority.issue(&[name]).write(folder.path(), file);
    }
    // As the page tells to make it.
    let mut shell = Shell::start(folder.path(), &[]);
    for block in pages.iter().flat_map(|page| &page.blocks).filter(|block| block.mark == "run: token") {
        shell.run(block);
    }
    folder
}

#[test]
fn check_accepts_every_configuration_and_every_policy() {
    let pages = pages();
    let folder = folder_with_files(&pages);
    let blocks = pages.iter().flat_map(|page| &page.blocks).filter(|block| block.language == "toml");
    let mut seen = 0;
    for block in blocks {
        let text = block.text();
        let is_policy = text.contains("[[route]]");
        let (configuration, policy) = if is_policy {
            (complete(&upstreams_of(&text)), text)
        } else {
            (complete(&text), ROUTE.to_owned())
        };
        fs::write(folder.path().join("keygate.toml"), &configuration).unwrap();
        fs::write(folder.path().join("policy.toml"), policy).unwrap();
        let checked = keygate(folder.path(), &["check"]).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{}\n{said}\n{configuration}", block.place);
        seen += 1;
    }
    assert!(seen >= 15, "{seen} blocks");
}

const ROUTE: &str =
    "[[route]]\nid = \"all\"\nmethods = [\"GET\"]\npaths = [\"/\"]\npublic = true\nupstream = \"api\"\n";
/// What a configuration must say, where the block does not.
const LEAST: [(&str, &[&str]); 3] = [
    ("[store]", &["kind = \"embedded\""]),
    ("[upstreams.api]", &["live = [\"http://127.0.0.1:9000\"]", "test = [\"http://127.0.0.1:9001\"]"]),
    ("[policy]", &["file = \"policy.toml\""]),
];

/// A configuration with what it must have besides.
fn complete(text: &str) -> String {
    let mut text = text.to_owned();
    for (section, lines) in LEAST {
        if !text.lines().any(|line| line == section) {
            let _ = writeln!(text, "{section}\n{}", lines.join("\n"));
        }
    }
    text
}

/// The upstreams that a policy names.
fn upstreams_of(policy: &str) -> String {
    let names: BTreeSet<&str> = policy
        .lines()
        .filter_map(|line| line.strip_prefix("upstream = \"")?.split('"').next())
        .filter(|name| *name != "api")
        .collect();
    names.into_iter().fold(String::new(), |text, name| {
        text + &format!("[upstreams.{name}]\nlive = [\"http://127.0.0.1:9000\"]\nshared = true\n")
    })
}

/// The arguments of a command of keygate, and where it stands.
type Typed = (Vec<String>, String);

/// Every command in a block that is not run.
fn commands_in_blocks(pages: &[Page]) -> Vec<Typed> {
    let blocks = pages.iter().flat_map(|page| &page.blocks);
    let blocks = blocks.filter(|block| block.language == "sh" && !block.mark.starts_with("run: "));
    let mut commands = Vec::new();
    for block in blocks {
        for line in &block.lines {
            let line = line.trim();
            let rest =
                ["keygate ", "cargo run --release -- "].iter().find_map(|start| line.strip_prefix(start));
            if let Some(rest) = rest {
                let script = format!("for word in {rest}\ndo printf '%s\\n' \"$word\"; done");
                let words = Command::new("sh").args(["-c", &script]).output().unwrap();
                assert!(words.status.success(), "{}: {line}", block.place);
                let words = String::from_utf8(words.stdout).unwrap();
                commands.push((words.lines().map(str::to_owned).collect(), block.place.clone()));
            }
        }
    }
    commands
}

/// Every command in the prose. Some are only named there, without their arguments.
fn commands_in_prose(pages: &[Page]) -> Vec<Typed> {
    let mut commands = Vec::new();
    let in_prose = pages.iter().flat_map(|page| {
        let spans = page.prose.iter().flat_map(|line| line.split('`').skip(1).step_by(2));
        spans.filter_map(|span| span.strip_prefix("keygate ")).map(|rest| (rest, page.name))
    });
    for (rest, page) in in_prose {
        // `COMMAND` stands for any of them.
        if !rest.split(' ').any(|word| word.bytes().all(|b| b.is_ascii_uppercase())) {
            commands.push((rest.split(' ').map(str::to_owned).collect(), page.to_owned()));
        }
    }
    commands
}

#[test]
fn the_command_line_takes_every_command() {
    let pages = pages();
    let (whole, named) = (commands_in_blocks(&pages), commands_in_prose(&pages));
    assert!(whole.len() >= 3 && named.len() >= 7, "{whole:#?} {named:#?}");
    for (words, place) in whole {
        let said = read(["keygate".into()].into_iter().chain(words.iter().map(OsString::from)));
        assert_eq!(said, Ok(()), "{place}: {words:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    for (mut words, place) in named {
        // It reads the words before it as it would without, but asks for no more of them.
        words.push("--help".to_owned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = keygate(folder.path(), &words).output().unwrap();
        assert!(said.status.success(), "{place}: {words:?}\n{}", String::from_utf8_lossy(&said.stderr));
    }
}

/// The blocks that run, each in one of the tests below.
const RUN: [&str; 7] =
    ["run: gateway", "run: api", "run: token", "run: secrets", "run: elsewhere", "run: move", "run: backup"];

#[test]
fn every_block_of_commands_runs_or_builds_with_what_is_there() {
    let pages = pages();
    let marks = |block: &Block| RUN.contains(&&*block.mark) || block.mark == "build";
    let blocks = || pages.iter().flat_map(|page| &page.blocks).filter(|block| block.language == "sh");
    let unmarked: Vec<&String> = blocks().filter(|block| !marks(block)).map(|block| &block.place).collect();
    assert!(unmarked.is_empty(), "{unmarked:#?}");
    for mark in RUN {
        assert!(blocks().any(|block| block.mark == mark), "{mark}");
    }
    let mut wrong = Vec::new();
    for block in blocks().filter(|block| block.mark == "build") {
        for line in &block.lines {
            let command = line.split(" #").next().unwrap_or_default();
            if let Err(missing) = build(&command.split_whitespace().collect::<Vec<_>>()) {
                wrong.push(format!("{}: {line}: {missing}", block.place));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether everything is there that a command of a build, a test or a measurement names.
fn build(words: &[&str]) -> Result<(), String> {
    let is_there = |there: bool, what: &str| if there { Ok(()) } else { Err(format!("there is no {what}")) };
    let text = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    match words {
        [] => Ok(()),
        [variable, rest @ ..] if variable.contains('=') => {
            let name = variable.split('=').next().unwrap_or_default();
            is_there(any_file_has("tests", name), name)?;
            build(rest)
        }
        ["chrt", "--rr", "1", rest @ ..] => build(rest),
        ["bash" | "python3", file] => is_there(root().join(file).is_file(), file),
        ["cargo", "build", "--profile", profile] => {
            is_there(text("Cargo.toml").contains(&format!("[profile.{profile}]")), profile)
        }
        // The command line takes them, as another test says.
        ["cargo", "run", "--release", "--", ..] | ["keygate", ..] => Ok(()),
        ["cargo", "deny", "check"] => is_there(root().join("deny.toml").is_file(), "deny.toml"),
        ["cargo", "fuzz", "run", ..] => {
            let target = words.iter().rev().nth(2).unwrap();
            let seeds = [format!("tests/fuzz/targets/{target}.rs"), format!("tests/fuzz/seeds/{target}")];
            seeds.iter().try_for_each(|path| is_there(root().join(path).exists(), path))
        }
        ["cargo", "test", rest @ ..] => {
            let suite = rest.windows(2).any(|pair| pair == ["--test", "it"]);
            let modules =
                if suite { text("tests/it/main.rs").replace("mod ", "::") } else { modules_of("src") };
            let values = ["--test", "--config", "--test-threads"];
            let filters = rest.iter().enumerate().filter(|(n, word)| {
                !word.starts_with('-')
                    && !n.checked_sub(1).is_some_and(|before| values.contains(&rest[before]))
            });
            filters.map(|(_, filter)| filter.trim_end_matches("::")).try_for_each(|filter| {
                let known = modules.lines().any(|line| line.contains(&format!("::{filter}")));
                is_there(known, filter)
            })
        }
        [other, ..] => Err(format!("nobody knows what {other} does")),
    }
}

fn any_file_has(folder: &str, text: &str) -> bool {
    let found = Command::new("grep").args(["-rqF", text, folder]).current_dir(root()).status();
    found.unwrap().success()
}

/// The paths of all modules below a folder, one on each line, as in `::store::cache::places`.
fn modules_of(folder: &str) -> String {
    let found = Command::new("find").args([folder, "-name", "*.rs"]).current_dir(root()).output().unwrap();
    let files = String::from_utf8(found.stdout).unwrap();
    files
        .trim_start_matches(folder)
        .replace(&format!("\n{folder}"), "\n")
        .replace(".rs", "")
        .replace('/', "::")
}

/// What a page says in order, for a block that is not on a page.
fn typed(shell: &mut Shell, commands: &str) -> Vec<(String, String)> {
    shell.run(&Block {
        lines: commands.lines().map(str::to_owned).collect(),
        language: "sh".to_owned(),
        mark: String::new(),
        place: String::new(),
    })
}

#[test]
fn the_secrets_of_the_checklist_are_taken_by_the_configuration_below_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(folder.path(), &[]);
    run_all(&mut shell, "run: secrets");
    let page = read_page("deploy/README.md");
    let at = page.blocks.iter().position(|block| block.mark == "run: secrets").unwrap();
    let configuration = complete(&page.blocks[at + 1].text());
    fs::write(folder.path().join("keygate.toml"), configuration).unwrap();
    fs::write(folder.path().join("policy.toml"), ROUTE).unwrap();
    let said = shell.type_in("keygate check");
    assert!(!said.contains("neither audit.key_file nor keys.pepper_file"), "{said}");
    let create = "keygate orgs create 'Example Ltd'\nkeygate audit verify";
    assert!(typed(&mut shell, create)[1].1.contains(" 0 findings"));
}

#[test]
fn an_operator_elsewhere_reaches_the_gateway_as_the_page_says() {
    let folder = tempfile::tempdir().unwrap();
    let page = read_page("deploy/README.md");
    let admin = page.blocks.iter().find(|block| block.text().contains("tokens_file")).unwrap().text();
    let free = complete(&admin.replace("127.0.0.1:9465\"", "127.0.0.1:0\""))
        + "[server]\nlisten = \"127.0.0.1:0\"\n[ops]\nlisten = \"127.0.0.1:0\"\n";
    fs::write(folder.path().join("keygate.toml"), free).unwrap();
    fs::write(folder.path().join("policy.toml"), ROUTE).unwrap();
    let mut shell = Shell::start(folder.path(), &[]);
    run_all(&mut shell, "run: token");
    typed(&mut shell, "keygate orgs create 'Example Ltd'\nkeygate serve > records.jsonl 2> gateway.log &");
    let mut log = String::new();
    eventually("the gateway listens to operators", || {
        log = fs::read_to_string(folder.path().join("gateway.log")).unwrap();
        log.lines().any(|line| line.contains("admin API on http://"))
    });
    let address = log.split_once("admin API on http://").unwrap().1.lines().next().unwrap();
    for block in page.blocks.iter().filter(|block| block.mark == "run: elsewhere") {
        let said = typed(&mut shell, &block.text().replace("127.0.0.1:9465", address));
        assert!(said[0].1.starts_with("ID "), "{said:?}");
    }
}

#[test]
fn the_move_to_redis_prints_what_the_page_shows() {
    let (folder, redis) = (tempfile::tempdir().unwrap(), RedisServer::start());
    let mut shell = Shell::start(folder.path(), &[]);
    typed(&mut shell, "keygate init\nkeygate keys create --org 'Example Ltd' --name a --all-scopes > key");
    run_all(&mut shell, "run: secrets");
    let target = format!(
        "[keys]\npepper_file = \"pepper\"\n[store]\nkind = \"redis\"\nurl = \"{}\"\nconnect_timeout = \"20s\"\n\
         lookup_timeout = \"20s\"\ncommand_timeout = \"20s\"\n",
        redis.url()
    );
    fs::write(folder.path().join("redis.toml"), complete(&target)).unwrap();
    let said = run_all(&mut shell, "run: move").remove(0).1;
    let page = read_page("deploy/README.md");
    let at = page.blocks.iter().position(|block| block.mark == "run: move").unwrap();
    let labels = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with("keygate: ") && !line.starts_with("copied"));
        lines.map(|line| line.split("  ").next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(labels(&said), labels(&page.blocks[at + 1].text()), "{said}");
}

#[test]
fn a_backup_is_restored_as_the_page_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(folder.path(), &[]);
    typed(&mut shell, "keygate init\nkeygate keys create --org 'Example Ltd' --name a --all-scopes > key");
    let all = run_all(&mut shell, "run: backup");
    assert!(said(&all, "keygate store restore").contains("keys"), "{all:#?}");
    let verified = said(&all, "keygate audit verify");
    assert!(verified.contains(" 0 findings"), "{all:#?}");
    let listed = typed(&mut shell, "keygate keys list");
    assert!(said(&listed, "keygate keys list").contains("Example Ltd"), "{listed:#?}");
}

#[test]
fn blocks_have_a_language_and_json_reads() {
    for block in pages().iter().flat_map(|page| &page.blocks) {
        let language = block.language.as_str();
        assert!(["", "text", "sh", "toml", "json"].contains(&language), "{}: {language}", block.place);
        if language == "json" {
            serde_json::from_str::<serde_json::Value>(&block.text())
                .unwrap_or_else(|error| panic!("{}: {error}", block.place));
        }
    }
}

#[test]
fn the_line_that_is_shown_for_an_import_can_be_imported() {
    let folder = tempfile::tempdir().unwrap();
    let output = |arguments: &[&str]| keygate(folder.path(), arguments).output().unwrap();
    assert!(output(&["init"]).status.success());
    assert!(output(&["orgs", "create", "Example Ltd"]).status.success());
    let pages = pages();
    let block = pages.iter().flat_map(|page| &page.blocks).find(|block| block.mark == "import").unwrap();
    fs::write(folder.path().join("keys.jsonl"), block.text()).unwrap();
    let orgs = String::from_utf8(output(&["orgs", "list", "--json"]).stdout).unwrap();
    let org: serde_json::Value = serde_json::from_str(&orgs).unwrap();
    let imported = output(&["keys", "import", "keys.jsonl", "--org", org["id"].as_str().unwrap()]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
}

#[test]
fn the_page_names_every_alert_that_is_shipped_and_no_other() {
    let alerts = fs::read_to_string(root().join("deploy/prometheus/alerts.yml")).unwrap();
    let shipped: BTreeSet<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let page = fs::read_to_string(root().join("deploy/README.md")).unwrap();
    let named = page.split('`').filter(|span| span.starts_with("Keygate") && !span.contains(['-', ' ']));
    assert_eq!(named.collect::<BTreeSet<_>>(), shipped);
}

/// A shell that is typed into line by line.
struct Shell {
    process: Child,
    out: Receiver<String>,
    /// What runs in the background.
    background: Option<Pid>,
}

impl Shell {
    fn start(folder: &Path, variables: &[(&str, &str)]) -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_keygate")).parent().unwrap();
        let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.current_dir(folder).env_clear().env("PATH", path).env("HOME", folder);
        command.envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (lines, out) = channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let mut shell = Self { process, out, background: None };
        shell.send("exec 2>&1");
        shell
    }

    fn send(&mut self, text: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{text}").unwrap();
    }

    /// Everything that the command prints; it must succeed.
    #[track_caller]
    fn type_in(&mut self, command: &str) -> String {
        const DONE: &str = "== it ended with ";
        self.send(&format!("{{ {command}\n}} </dev/null\necho '{DONE}'$?"));
        let mut said = String::new();
        loop {
            let line =
                self.out.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{command} does not end: {said}"));
            match line.split_once(DONE) {
                Some((last, status)) => {
                    said += last;
                    assert_eq!(status, "0", "{command}\n{said}");
                    return said;
                }
                None => said = said + &line + "\n",
            }
        }
    }

    /// Types a block in, command by command, and gives what each of them printed.
    fn run(&mut self, block: &Block) -> Vec<(String, String)> {
        let mut said = Vec::new();
        let mut command = String::new();
        for line in &block.lines {
            command += line;
            if line.ends_with('\\') {
                command.push('\n');
                continue;
            }
            let typed = std::mem::take(&mut command);
            if typed.trim().is_empty() || typed.starts_with('#') {
                continue;
            }
            let answer = self.type_in(&typed);
            if typed.trim_end().ends_with('&') {
                let pid = self.type_in("echo $!").trim().parse().unwrap();
                self.background = Pid::from_raw(pid);
                return self.run_rest(block, line, said);
            }
            said.push((typed, answer));
        }
        said
    }

    /// Goes on when the gateway that was just started is there, as a person would.
    fn run_rest(
        &mut self,
        block: &Block,
        line: &str,
        mut said: Vec<(String, String)>,
    ) -> Vec<(String, String)> {
        let mut log = String::new();
        eventually("the gateway listens", || {
            log = self.type_in("cat gateway.log || true");
            log.contains("listening on http://")
        });
        let address = log.split_once("listening on http://").unwrap().1.split(' ').next().unwrap().to_owned();
        // The page says where a gateway listens by default; here it may be taken.
        self.type_in(&format!("echo 'connect-to = \"127.0.0.1:8080:{address}\"' > .curlrc"));
        let at = block.lines.iter().position(|other| other == line).unwrap();
        let rest = Block {
            lines: block.lines[at + 1..].to_vec(),
            language: block.language.clone(),
            mark: block.mark.clone(),
            place: block.place.clone(),
        };
        said.extend(self.run(&rest));
        said
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(pid) = self.background {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the editor of the first steps does: it says where the API is, and takes ports that are free.
fn edits(live: &Upstream, test: &Upstream) -> String {
    format!(
        "s|http://127.0.0.1:9000|{}|\ns|http://127.0.0.1:9001|{}|\ns|^#listen = \"127.0.0.1:8080\"|listen = \"127.0.0.1:0\"|\n\
         s|^#listen = \"127.0.0.1:9464\"|listen = \"127.0.0.1:0\"|\n",
        live.url(),
        test.url()
    )
}

/// Runs every block with this mark, in the order of the pages.
fn run_all(shell: &mut Shell, mark: &str) -> Vec<(String, String)> {
    let pages = pages();
    let blocks = pages.iter().flat_map(|page| &page.blocks).filter(|block| block.mark == mark);
    blocks.flat_map(|block| shell.run(block)).collect()
}

#[track_caller]
fn said<'s>(all: &'s [(String, String)], command: &str) -> &'s str {
    let found = all.iter().find(|(typed, _)| typed.starts_with(command));
    &found.unwrap_or_else(|| panic!("nobody typed {command}")).1
}

#[test]
fn the_first_steps_and_day_2_run_in_their_order() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let script = elsewhere.path().join("edits.sed");
    fs::write(&script, edits(&live, &test)).unwrap();
    let editor = format!("sed -i -f {}", script.display());
    let mut shell = Shell::start(folder.path(), &[("EDITOR", &editor)]);
    let all = run_all(&mut shell, "run: gateway");
    assert!(said(&all, "curl -i http://127.0.0.1:8080/v1/reports").contains("HTTP/1.1 200 OK"), "{all:#?}");
    assert!(live.seen().iter().any(|seen| seen.request_line().starts_with("GET /v1/reports ")));
    assert!(said(&all, "keygate orgs list").contains("Example Ltd"));
    assert!(said(&all, "keygate keys show --secret-stdin").contains("this secret       valid"));
    assert!(
        said(&all, "keygate keys list --owner 'team b' --json | keygate keys revoke")
            .starts_with("revoked key_")
    );
    assert!(said(&all, "keygate audit list").contains("key.revoked"));
    assert!(said(&all, "keygate keys import keys.jsonl --org").contains('1'));
    let ended = shell.type_in("keygate keys show --secret-stdin < billing.key");
    assert!(ended.contains("no longer valid"), "{ended}");
}

#[test]
fn the_api_for_keys_answers_the_calls_of_its_page() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("edits.sed");
    fs::write(&script, edits(&live, &test) + "s|^#enabled = false|enabled = true|\n").unwrap();
    let mut shell = Shell::start(folder.path(), &[]);
    let first = "keygate init --example firsthand\nsed -i -f edits.sed keygate.toml\nkeygate orgs create operator\nkeygate serve > records.jsonl 2> gateway.log &";
    typed(&mut shell, first);
    let all = run_all(&mut shell, "run: api");
    assert!(said(&all, "curl -sf \"$API/v1/api_keys?limit=50\"").contains("nightly import"), "{all:#?}");
    assert!(said(&all, "curl -sf $API/v1/api_keys/$ID/rotate").contains("fh_test_sk_"));
    assert!(said(&all, "curl -sf \"$API/v1/audit_events").contains("key.rotated"));
}
