//! What a mistaken command prints: nothing secret, nothing on standard output, and what to do.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};
use tempfile::TempDir;

use crate::harness::desk::{Desk, Ran, Way, write_secret};
use crate::harness::process::{copy_binary, keygate};

/// The exit code and the outputs of a command without a gateway.
fn ran(folder: &TempDir, arguments: &[&str]) -> Ran {
    let output = keygate(folder.path(), arguments).output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
fn assert_told(ran: &Ran, code: i32, out: &str, err: &str) {
    assert_eq!((ran.code, &*ran.out, &*ran.err), (code, out, err));
}

/// A secret in each place of an argument.
fn misplaced(secret: &str) -> Vec<Vec<String>> {
    let key = "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM";
    let lines = [
        "keys show SECRET",
        "keys show KEY SECRET",
        "keys show --secret-file SECRET",
        "keys edit SECRET --note x",
        "keys edit KEY --scopes SECRET",
        "keys edit KEY --expires-in SECRET",
        "keys edit KEY --allow SECRET",
        "keys edit KEY --name SECRET",
        "keys rotate SECRET",
        "keys rotate KEY --overlap SECRET",
        "keys revoke SECRET",
        "keys revoke KEY SECRET --yes",
        "keys disable SECRET",
        "keys disable KEY --reason SECRET",
        "keys enable SECRET",
        "keys create --name SECRET --scopes jobs:read",
        "keys create --name x --owner SECRET --scopes jobs:read",
        "keys create --name x --note SECRET --scopes jobs:read",
        "keys create --name x --org SECRET --scopes jobs:read",
        "keys create --name x --org=SECRET --scopes jobs:read",
        "keys create --name x --scopes SECRET",
        "keys create --name x --environment SECRET",
        "keys list --org SECRET",
        "keys list --status SECRET",
        "keys list --older-than SECRET",
        "keys list SECRET",
        "keys list --SECRET",
        "keys import SECRET",
        "keys import --org SECRET keys.jsonl",
        "keys export --org SECRET",
        "orgs show SECRET",
        "orgs suspend SECRET",
        "orgs resume SECRET",
        "orgs verify SECRET",
        "orgs rename SECRET x",
        "orgs rename x SECRET",
        "orgs create SECRET",
        "audit list --org SECRET",
        "audit list --type SECRET",
        "audit list --since SECRET",
        "audit export --org SECRET",
        "audit verify --org SECRET",
        "audit verify --heads SECRET",
        "admin token SECRET",
        "keys list --config SECRET",
        "keys list --admin-url SECRET",
        "keys list --admin-url http://SECRET@127.0.0.1",
        "keys list --admin-url http://127.0.0.1:9 --token-file SECRET",
        "SECRET",
        "keys SECRET",
        "serve SECRET",
        "check --config SECRET",
    ];
    let words = |line: &&str| -> Vec<String> {
        line.split(' ').map(|word| word.replace("SECRET", secret).replace("KEY", key)).collect()
    };
    lines.iter().map(words).collect()
}

#[test]
fn no_command_repeats_a_secret_wherever_it_is_typed() {
    let folder = TempDir::new().unwrap();
    assert_eq!(ran(&folder, &["init"]).code, 0);
    assert_eq!(ran(&folder, &["orgs", "create", "Example Ltd"]).code, 0);
    let minted = KeyFormat::new(&Prefix::default(), false).mint(Environment::Live).unwrap();
    let token = ran(&folder, &["admin", "token", "ada"]).out;
    let foreign = "sk-4bC2eF6hJ8kL0mN2pQ4rS6tU8";
    for secret in [minted.expose(), token.trim(), foreign] {
        for line in misplaced(secret) {
            for json in [&[][..], &["--json"]] {
                let words: Vec<&str> = line.iter().map(String::as_str).chain(json.iter().copied()).collect();
                let ran = ran(&folder, &words);
                // A name may be any word that is no key and no token, and is shown.
                if ran.code == 0 && secret == foreign {
                    continue;
                }
                let rest = secret.rsplit(['_', '-']).next().unwrap();
                assert!(!format!("{}{}", ran.out, ran.err).contains(&rest[..12]), "{words:?}: {ran:?}");
                assert_ne!(ran.code, 0, "{words:?}: {ran:?}");
            }
        }
    }
}

#[test]
fn a_secret_in_the_place_of_an_id_is_told_where_it_belongs_and_nothing_else_is_repeated_either() {
    let folder = TempDir::new().unwrap();
    let told = |wrong: &str| {
        format!("error: invalid value '…' for {wrong}\n\nFor more information, try '--help'.\n")
    };
    let secret = "this looks like a secret, and other users of this machine can see arguments; \
                  `keygate keys show --secret-stdin` reads a secret from standard input and shows its key";
    let form =
        "expected `key_` followed by the 26 characters of a ULID, as in key_01J9ZQ6T5N8XKD3V4WPYB7C2HM";
    let show = ran(&folder, &["keys", "show", "fh_live_sk_0123456789abcdefghij", "--json"]);
    assert_told(&show, 2, "", &told(&format!("'[KEY_ID]': {secret}")));
    let show = ran(&folder, &["keys", "show", "open sesame"]);
    assert_told(&show, 2, "", &told(&format!("'[KEY_ID]': {form}")));
    let revoke = ran(&folder, &["keys", "revoke", "hunter2"]);
    assert_told(&revoke, 2, "", &told(&format!("'[KEY_ID]...': {form}")));
    let list = ran(&folder, &["keys", "list", "--org", "kgadmin_0123456789"]);
    assert_told(&list, 2, "", &told(&format!("'--org <ORG>': {secret}")));
    let name = ran(&folder, &["keys", "create", "--all-scopes", "--name", "fh_live_sk_0123456789abcdefghij"]);
    let shown = "'--name <NAME>': this has a secret in it, and other people read it";
    assert_told(&name, 2, "", &told(shown));
}

#[test]
fn a_list_that_fails_prints_nothing_on_standard_output() {
    let folder = TempDir::new().unwrap();
    write_secret(&folder.path().join("token"), "kgadmin_0123");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let way = ["--admin-url", &format!("http://{nobody}"), "--token-file", "token"];
    let told =
        format!("keygate: no gateway answers at {nobody}; check the address, and that the gateway runs\n");
    for list in
        [&["keys", "list"][..], &["orgs", "list"], &["audit", "list"], &["audit", "list", "--operator"]]
    {
        assert_told(&ran(&folder, &[list, &way].concat()), 1, "", &told);
    }
}

#[test]
fn a_gateway_that_takes_a_connection_and_never_answers_ends_the_command_and_says_what_to_do() {
    let folder = TempDir::new().unwrap();
    write_secret(&folder.path().join("token"), "kgadmin_0123");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let way = ["--admin-url", &format!("http://{address}"), "--token-file", "token"];
    let told = |place: &str, elsewhere: &str| {
        format!(
            "keygate: the gateway does not answer: pass --store{elsewhere} to work on the store itself. There was no sign of \
             life {place} for 5 s; its log may say why. If it hangs, restart it. The command may have been carried out: look \
             before you repeat it\n"
        )
    };
    let list = ran(&folder, &[&["orgs", "list"][..], &way].concat());
    let elsewhere = ", on a machine that has its configuration,";
    assert_told(&list, 1, "", &told(&format!("at {address}"), elsewhere));

    assert_eq!(ran(&folder, &["init"]).code, 0);
    let socket = std::os::unix::net::UnixListener::bind(folder.path().join("keygate.sock")).unwrap();
    let list =
        keygate(folder.path(), &["keys", "list"]).env("KEYGATE__ADMIN__SOCKET", "keygate.sock").output();
    let told = told("behind the admin socket keygate.sock", "");
    assert_eq!(String::from_utf8(list.unwrap().stderr).unwrap(), told);
    drop(socket);
}

/// The first line of a request, and where to answer. The connection ends with an answer.
fn request(stream: TcpStream) -> (String, TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    (first, reader.into_inner())
}

#[test]
fn a_command_that_takes_longer_is_waited_for_while_the_gateway_shows_that_it_lives() {
    const SIGNS: usize = 3;
    let folder = TempDir::new().unwrap();
    write_secret(&folder.path().join("token"), "kgadmin_0123");
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let way = ["--admin-url", &format!("http://{}", busy.local_addr().unwrap()), "--token-file", "token"];
    let list = keygate(folder.path(), &[&["orgs", "list", "--json"][..], &way].concat());
    let signs = AtomicUsize::new(0);
    let answer = |mut stream: TcpStream, body: &str| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        // The command may have left.
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
        let _ = stream.read(&mut [0; 1 << 12]);
    };
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            let mut command = None;
            while signs.load(Ordering::Relaxed) < SIGNS {
                let (first, stream) = request(busy.accept().unwrap().0);
                if first.starts_with("POST /v1/command ") {
                    command = Some(stream);
                } else {
                    assert_eq!(first, "GET /v1/openapi.json HTTP/1.1\r\n");
                    answer(stream, "{}");
                    signs.fetch_add(1, Ordering::Relaxed);
                }
            }
            answer(command.unwrap(), r#"{"reply":"orgs","orgs":[]}"#);
        });
        let mut list = list;
        list.output().unwrap()
    });
    assert_eq!(signs.load(Ordering::Relaxed), SIGNS);
    assert_eq!((done.status.code(), &*done.stdout, &*done.stderr), (Some(0), &b""[..], &b""[..]));
}

/// A command as a user who is not root, whoever runs the tests. The binary may lie where that user sees nothing.
fn as_nobody(folder: &TempDir, arguments: &[&str]) -> Command {
    const NOBODY: u32 = 65_534;
    let copy = folder.path().join("keygate");
    if !copy.exists() {
        copy_binary(folder.path());
    }
    let mut command = Command::new(copy);
    command.args(arguments).current_dir(folder.path()).env_clear();
    if rustix::process::getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

#[test]
fn the_admin_socket_of_another_user_is_told_with_its_owner() {
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(ran(&folder, &["init"]).code, 0);
    let socket = folder.path().join("keygate.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // Closed for its owner too, who may be the one who runs the tests.
    fs::set_permissions(&socket, PermissionsExt::from_mode(0o000)).unwrap();
    let uid = rustix::process::getuid().as_raw();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let own = users.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()));
    let own = own.and_then(|line| line.split(':').next()).expect("the user who runs the tests has a name");
    let list = as_nobody(&folder, &["keys", "list"]).env("KEYGATE__ADMIN__SOCKET", "keygate.sock").output();
    let list = list.unwrap();
    let told = format!(
        "keygate: the admin socket keygate.sock belongs to {own} (uid {uid}), and nobody else may use it; run the \
         command as that user, as in sudo -u {own} keygate …\n"
    );
    assert_eq!((String::from_utf8(list.stderr).unwrap(), list.stdout), (told, Vec::new()));
}

/// What a shell offers for the last word of a command.
fn completed(folder: &TempDir, words: &[&str]) -> String {
    let script = format!(
        "source <(keygate completions bash)\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_keygate keygate '{}' '{}' 2>/dev/null\n\
         echo \"${{COMPREPLY[@]}}\"",
        words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2],
    );
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_keygate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let output =
        Command::new("bash").args(["-c", &script]).env("PATH", path).current_dir(folder.path()).output();
    String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn a_shell_completes_values_of_a_closed_list_and_offers_files_only_for_files() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("a-file"), "").unwrap();
    for (words, offered) in [
        (&["keygate", "keys", "list", "--status", ""][..], "active disabled expired revoked"),
        (&["keygate", "keys", "list", "--status", "re"], "revoked"),
        (&["keygate", "keys", "list", "--environment", ""], "live test"),
        (&["keygate", "keys", "create", "--environment", "t"], "test"),
        (&["keygate", "audit", "list", "--type", "org.s"], "org.suspended"),
        (&["keygate", "serve", "--role", ""], "full proxy"),
        (&["keygate", "admin", "token", "--role", ""], "read keys plans all"),
        (&["keygate", "keys", "list", "--org", ""], ""),
        (&["keygate", "keys", "create", "--scopes", ""], ""),
        (&["keygate", "keys", "create", "--expires-in", ""], ""),
        (&["keygate", "keys", "list", "--config", ""], "a-file"),
        (&["keygate", "admin", "token", "--add", ""], "a-file"),
    ] {
        assert_eq!(completed(&folder, words), offered, "{words:?}");
    }
}

#[test]
fn positional_arguments_have_help() {
    let folder = TempDir::new().unwrap();
    for (words, line) in [
        (&["keys", "show"][..], "[KEY_ID]  The id of the key, as `keygate keys list` shows it"),
        (&["keys", "revoke"], "[KEY_ID]...  The ids of the keys, as `keygate keys list` shows them"),
        (&["orgs", "create"], "<NAME>  The name of the organisation"),
        (&["orgs", "suspend"], "<ORG>  The organisation, by its id or its name"),
        (&["admin", "token"], "<NAME>  The operator who uses the token; the audit trail shows this name"),
        (&["keys", "import"], "<FILE>  The file with the keys, or - for standard input"),
    ] {
        let help = ran(&folder, &[words, &["-h"]].concat());
        assert!(help.out.contains(line), "{}", help.out);
    }
}

#[test]
fn a_desk_says_which_scopes_there_are_and_which_organisations() {
    let desk = Desk::new(Way::Socket);
    let create = ["keys", "create", "--org", "Example Ltd", "--name", "billing"];
    let scopes = "say what the key may do: --scopes with some scopes of the policy, separated by commas, or --all-scopes";
    let asked = desk.run(&create);
    assert_eq!((asked.code, &*asked.out), (2, ""));
    assert!(asked.err.starts_with(&format!("keygate: {scopes}. The policy has ")), "{asked:?}");
    assert!(asked.err.contains(", jobs:read, ") && asked.err.lines().count() == 1, "{asked:?}");
    assert_eq!(desk.done(&["orgs", "list", "--json"]).out, "", "nothing was made");

    let create = |more: &[&str]| {
        desk.run(&[&["keys", "create", "--name", "billing", "--scopes", "jobs:read"], more].concat())
    };
    let told = "keygate: there is no organisation yet; name the first one, as in --org 'Example Ltd'\n";
    assert_told(&create(&[]), 1, "", told);
    assert_eq!(create(&["--org", "Example Ltd"]).code, 0);
    assert_eq!(create(&[]).code, 0, "the only one");
    desk.done(&["orgs", "create", "Ada's"]);
    let told = "keygate: there are 2 organisations; say whose key this is: --org 'Ada'\\''s' or --org 'Example Ltd'\n";
    assert_told(&create(&[]), 1, "", told);
    let told = "keygate: there is no organisation \"Exmaple Ltd\"; `keygate orgs list` shows all of them\n";
    assert_told(&create(&["--org", "Exmaple Ltd"]), 1, "", told);
    for n in 0..4 {
        desk.done(&["orgs", "create", &format!("Org {n}")]);
    }
    let told = "keygate: there are more than 5 organisations; say whose key this is: pass --org with an id or a name \
                (`keygate orgs list` shows all)\n";
    assert_told(&create(&[]), 1, "", told);
}
