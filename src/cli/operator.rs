//! The common parts of the operators' commands: reaching the store, sending commands, printing.
//!
//! A running gateway executes a command, over its admin socket or, on another machine, over TCP. If no gateway
//! runs, this process opens the store itself.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use http::uri::{Authority, Uri};
use rustix::process::getuid;
use rustix::termios::tcgetwinsize;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::secrecy::parse_shown_text;
use super::table::{Column, Table};
use super::unreachable::explain;
use super::{Outcome, dev, load};
use crate::app::{KeyTools, StoreError, open_store};
use crate::config::{Config, StoreSettings};
use crate::lifecycle::{Lifecycle, Origin};
use crate::operators::admin::{self, ClientError, Command, Order, Reply, Secret, Way};
use crate::secret_file;
use crate::store::Store;
use crate::store::embedded::OpenError;
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::record::Sealer;
use crate::vocabulary::network::Server;
use crate::vocabulary::text::{escaped, escaped_lines, to_json};

/// The variable with the token for `--admin-url`, used without `--token-file`.
const TOKEN_VARIABLE: &str = "KEYGATE_ADMIN_TOKEN";

// No doc comments here and on `Access`: clap would show them as the help of every command.
#[derive(Debug, clap::Args)]
pub(super) struct Args<A: Act> {
    #[command(subcommand)]
    action: A,
    #[command(flatten)]
    access: Access,
}

/// The subcommands of one command. Their help is the help of the command.
pub(super) trait Act: Subcommand {
    /// Runs one subcommand.
    ///
    /// # Errors
    /// The reason why it failed, as text for the operator.
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure>;
}

// The way to the store, and the form of the output.
#[derive(Debug, clap::Args)]
pub(super) struct Access {
    /// The gateway's configuration file. The command goes to the gateway's admin socket or, if no gateway runs, to its store
    /// [default: keygate.toml, or that of `keygate dev` in .keygate]
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Send the command to a gateway on another machine: the address in its admin.listen, as in http://127.0.0.1:9465
    #[arg(long, value_name = "URL", value_parser = parse_url, global = true)]
    admin_url: Option<Authority>,
    /// Do not ask the gateway of the configuration: work on the store itself, which for the embedded store takes that no gateway
    /// runs
    #[arg(long, conflicts_with = "admin_url", global = true)]
    store: bool,
    /// The file with the token for --admin-url, of mode 0600 [default: the token in the variable KEYGATE_ADMIN_TOKEN]
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    /// Why you make a change; the audit trail shows it
    #[arg(long, value_name = "TEXT", value_parser = parse_shown_text, global = true)]
    reason: Option<String>,
}

fn parse_url(text: &str) -> Result<Authority, &'static str> {
    const ADVICE: &str = "write http://HOST:PORT, as in http://127.0.0.1:9465";
    let uri: Uri = text.parse().map_err(|_| ADVICE)?;
    let bare = uri.path_and_query().is_none_or(|target| target.as_str() == "/");
    match (uri.scheme_str(), uri.authority()) {
        (Some("https"), _) => {
            Err("https is not supported; use a tunnel to the gateway, for example ssh -L, and http://")
        }
        // `Uri` ignores an invalid port, and the token would be sent to port 80.
        (Some("http"), Some(authority)) if bare && Server::parse(authority.as_str()).is_ok() => {
            Ok(authority.clone())
        }
        _ => Err(ADVICE),
    }
}

/// The reason why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// A message for the operator.
    Told(String),
    /// The arguments do not say enough.
    Usage(String),
    /// The output cannot be written.
    Output(io::Error),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Told(message)
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        Self::Told(message.to_owned())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Runs one action.
pub(super) fn run(
    args: Args<impl Act>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<Outcome> {
    let Args { action, access } = args;
    let environment: Vec<_> = environment.into_iter().collect();
    let operator = match reach(&access, &environment, err)? {
        Ok(operator) => operator,
        Err(outcome) => return Ok(outcome),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (operator, json) = (Arc::new(operator), access.json);
    let mut session =
        Session { operator, reason: access.reason, environment, json, out: BufWriter::new(out), err };
    let acted = runtime.block_on(action.act(&mut session));
    session.out.flush()?;
    match acted {
        Ok(outcome) => Ok(outcome),
        Err(Failure::Output(error)) => Err(error),
        Err(Failure::Told(message)) => {
            writeln!(session.err, "keygate: {}", escaped_lines(&message))?;
            Ok(Outcome::Refused)
        }
        Err(Failure::Usage(message)) => {
            writeln!(session.err, "keygate: {}", escaped_lines(&message))?;
            Ok(Outcome::Unusable)
        }
    }
}

/// The executor of commands.
enum Operator {
    Remote {
        authority: Authority,
        token: Secret,
    },
    /// The gateway behind this socket; the store itself if no gateway answers.
    Local {
        socket: Option<PathBuf>,
        /// The gateway is not asked.
        direct: bool,
        config: Box<Config>,
        /// Opened at most once per command, because opening takes time.
        store: OnceCell<Box<Lifecycle>>,
    },
}

fn reach(
    access: &Access,
    environment: &[(OsString, OsString)],
    err: &mut impl Write,
) -> io::Result<Result<Operator, Outcome>> {
    let Some(authority) = access.admin_url.clone() else {
        if access.token_file.is_some() {
            writeln!(err, "keygate: --token-file needs --admin-url; add it, or remove --token-file")?;
            return Ok(Err(Outcome::Unusable));
        }
        let path = configuration(access.config.as_deref(), err)?;
        let loaded = load(&path, environment.iter().cloned(), err)?;
        return Ok(loaded.map(|mut config| {
            let socket = config.admin.socket.take();
            Operator::Local { socket, direct: access.store, config: config.into(), store: OnceCell::new() }
        }));
    };
    match find_token(access.token_file.as_deref(), environment) {
        Ok(token) => Ok(Ok(Operator::Remote { authority, token })),
        Err(message) => {
            writeln!(err, "keygate: {message}")?;
            Ok(Err(Outcome::Unusable))
        }
    }
}

/// The configuration that is named, or the one of this folder: first its own, then that of a demonstration.
fn configuration(named: Option<&Path>, err: &mut impl Write) -> io::Result<PathBuf> {
    let own = PathBuf::from("keygate.toml");
    let dev = Path::new(dev::FOLDER).join(&own);
    Ok(match named {
        Some(path) => path.to_owned(),
        None if own.exists() || !dev.exists() => own,
        None => {
            writeln!(err, "keygate: this is the demonstration of `keygate dev`: {}", dev.display())?;
            dev
        }
    })
}

fn find_token(file: Option<&Path>, environment: &[(OsString, OsString)]) -> Result<Secret, String> {
    let variable = || environment.iter().find(|(name, _)| name == TOKEN_VARIABLE).map(|(_, value)| value);
    let text = match (file, variable()) {
        (Some(path), _) => {
            let bytes = secret_file::read("--token-file", path).map_err(|error| error.to_string())?;
            String::from_utf8_lossy(&bytes).trim().to_owned()
        }
        (None, Some(value)) => value.to_string_lossy().trim().to_owned(),
        (None, None) => {
            return Err(format!(
                "--admin-url needs a token: pass --token-file FILE, or set {TOKEN_VARIABLE}"
            ));
        }
    };
    Ok(Secret::new(text))
}

impl Operator {
    async fn ask(&self, command: Command, reason: Option<String>) -> Result<Reply, String> {
        let order = Order { operator: operator_name(), reason, command };
        let (socket, config, store) = match self {
            Self::Local { socket, direct, config, store } => {
                (socket.as_ref().filter(|_| !direct), config, store)
            }
            Self::Remote { authority, token } => {
                let way = Way::Remote { authority, token };
                return admin::call(way, &order).await.map_err(|error| explain(&error, way));
            }
        };
        if let (Some(socket), false) = (socket, store.initialized()) {
            let way = Way::Socket(socket);
            match admin::call(way, &order).await {
                Err(ClientError::Absent) => {}
                replied => return replied.map_err(|error| explain(&error, way)),
            }
        }
        let open = async || {
            let lifecycle = open(config)?;
            lifecycle.read_prefixes().await;
            Ok::<_, String>(Box::new(lifecycle))
        };
        Ok(execute(store.get_or_try_init(open).await?, order).await)
    }
}

async fn execute(lifecycle: &Lifecycle, order: Order) -> Reply {
    let origin = admin::local_operator(&order.operator, getuid().as_raw());
    match origin.because(order.reason.as_deref()) {
        Ok(origin) => admin::execute(lifecycle, &origin, order.command).await,
        Err(mistake) => Reply::Failed { message: mistake.to_string() },
    }
}

fn open(config: &Config) -> Result<Lifecycle, String> {
    const ADVICE: &str =
        "set admin.socket in its configuration and restart it; then this command uses the socket";
    open_as(config, &config.store, open_store, ADVICE)
}

/// A function that opens a store.
pub(super) type Open = fn(&StoreSettings, Sealer, &Handle, &Clock) -> Result<Arc<dyn Store>, StoreError>;

/// Opens a store directly, with the other settings of the configuration. The error ends with `advice` if a running
/// gateway holds the store.
pub(super) fn open_as(
    config: &Config,
    store: &StoreSettings,
    open: Open,
    advice: &str,
) -> Result<Lifecycle, String> {
    let tools = KeyTools::new(&config.keys).map_err(|error| error.to_string())?;
    let clock = Clock::system();
    let store =
        open(store, tools.sealer.clone(), &Handle::current(), &clock).map_err(|error| match error {
            StoreError::Embedded(OpenError::InUse { .. }) => {
                format!("{error}: a running gateway holds it; {advice}")
            }
            error => error.to_string(),
        })?;
    let settings = tools.lifecycle(config.signup.clone(), &config.retention);
    Ok(Lifecycle::new(store, settings, config.scopes.clone(), clock))
}

/// The operator who runs this command.
pub(super) fn operator() -> Origin {
    admin::local_operator(&operator_name(), getuid().as_raw())
}

/// The name of the local user, as the environment has it; anyone can set it.
fn operator_name() -> String {
    std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default()
}

/// A command that is being executed.
pub(super) struct Begun(JoinHandle<Result<Reply, String>>);

impl Begun {
    /// As [`Session::ask`].
    pub(super) async fn finish(self) -> Result<Reply, Failure> {
        answered(self.0.await.unwrap_or_else(|error| Err(error.to_string())))
    }
}

fn answered(replied: Result<Reply, String>) -> Result<Reply, Failure> {
    match replied? {
        Reply::Failed { message } => Err(message.into()),
        reply => Ok(reply),
    }
}

/// A command while it runs: its executor and its outputs.
pub(super) struct Session<'s> {
    operator: Arc<Operator>,
    reason: Option<String>,
    environment: Vec<(OsString, OsString)>,
    pub(super) json: bool,
    pub(super) out: BufWriter<&'s mut dyn Write>,
    pub(super) err: &'s mut dyn Write,
}

impl Session<'_> {
    /// The configuration, for a command that opens the store itself.
    ///
    /// # Errors
    /// With `--admin-url`.
    pub(super) fn config(&self) -> Result<&Config, Failure> {
        match &*self.operator {
            Operator::Local { config, .. } => Ok(config),
            Operator::Remote { .. } => Err("this command opens the store itself: remove --admin-url".into()),
        }
    }

    /// Loads another configuration, with the same environment variables.
    pub(super) fn load(&mut self, path: &Path) -> io::Result<Result<Config, Outcome>> {
        load(path, self.environment.iter().cloned(), &mut self.err)
    }

    /// The admin socket in the configuration.
    pub(super) fn socket(&self) -> Option<&Path> {
        match &*self.operator {
            Operator::Local { socket, .. } => socket.as_deref(),
            Operator::Remote { .. } => None,
        }
    }

    /// Executes a command.
    ///
    /// # Errors
    /// The reason of a failure, here or in the gateway.
    pub(super) async fn ask(&mut self, command: Command) -> Result<Reply, Failure> {
        answered(self.operator.ask(command, self.reason.clone()).await)
    }

    /// Begins to execute a command and returns at once.
    pub(super) fn begin(&self, command: Command) -> Begun {
        let (operator, reason) = (Arc::clone(&self.operator), self.reason.clone());
        Begun(tokio::spawn(async move { operator.ask(command, reason).await }))
    }

    /// Prints one line of JSON.
    pub(super) fn print_json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        self.out.write_all(&to_json(value).map_err(io::Error::from)?)?;
        Ok(writeln!(self.out)?)
    }

    /// Prints a line of text. Characters that deceive its reader are escaped, also within a name in it.
    pub(super) fn print_line(&mut self, text: &str) -> Result<(), Failure> {
        Ok(writeln!(self.out, "{}", escaped(text))?)
    }

    /// Prints names and values, one pair per line, without the pairs that have no value.
    pub(super) fn print_fields(&mut self, fields: &[(&str, Option<String>)]) -> Result<(), Failure> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in fields {
            if let Some(value) = value {
                writeln!(self.out, "{name:<width$}  {}", escaped(value))?;
            }
        }
        Ok(())
    }

    /// Begins a table, as wide as the terminal if the output is one. Prints its head, except with `--json`; so the first
    /// answer comes before it, and a failed command prints nothing on standard output.
    pub(super) fn table(&mut self, columns: &'static [Column]) -> Result<Table, Failure> {
        let stdout = io::stdout();
        let width =
            stdout.is_terminal().then(|| tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col)));
        let table = Table::new(columns, width.flatten().filter(|width| *width > 0));
        if !self.json {
            self.out.write_all(table.head().as_bytes())?;
        }
        Ok(table)
    }

    /// Prints a remark on standard error.
    pub(super) fn remark(&mut self, text: &str) {
        // If standard error cannot be written, there is no other place for the remark.
        let _ = writeln!(self.err, "keygate: {}", escaped_lines(text));
    }

    /// Shows the progress on a line that the next progress replaces; only on a terminal.
    pub(super) fn show_progress(&mut self, text: &str) {
        if io::stderr().is_terminal() {
            let _ = write!(self.err, "\r\x1b[K{text}").and_then(|()| self.err.flush());
        }
    }

    /// Asks for confirmation on the terminal.
    ///
    /// # Errors
    /// If the answer is no, or standard input or standard error is not a terminal.
    pub(super) fn confirm(&mut self, question: &str) -> Result<(), Failure> {
        if self.asked(question, Asked::OnStdin)? { Ok(()) } else { Err("nothing was changed".into()) }
    }

    /// As [`Self::confirm`], but reads the answer from `/dev/tty`, because standard input has other data.
    pub(super) fn confirm_beside_stdin(&mut self, question: &str) -> Result<(), Failure> {
        if self.asked(question, Asked::OnTerminal)? { Ok(()) } else { Err("nothing was changed".into()) }
    }

    fn asked(&mut self, question: &str, place: Asked) -> Result<bool, Failure> {
        let question = escaped_lines(question);
        let no_terminal = || format!("not a terminal: pass --yes to say yes to this: {question}");
        let interactive =
            io::stderr().is_terminal() && (matches!(place, Asked::OnTerminal) || io::stdin().is_terminal());
        if !interactive {
            return Err(no_terminal().into());
        }
        self.out.flush()?;
        write!(self.err, "{question} [y/N] ").and_then(|()| self.err.flush())?;
        let mut answer = String::new();
        match place {
            Asked::OnStdin => io::stdin().lock().read_line(&mut answer)?,
            Asked::OnTerminal => {
                let terminal = std::fs::File::open("/dev/tty").map_err(|_| no_terminal())?;
                BufReader::new(terminal).read_line(&mut answer)?
            }
        };
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

#[derive(Clone, Copy)]
enum Asked {
    OnStdin,
    OnTerminal,
}

/// A time for tables: to the second.
pub(super) fn to_the_second(time: &str) -> String {
    time.get(..19).map_or_else(|| time.to_owned(), |time| format!("{time}Z"))
}

pub(super) fn unexpected() -> Failure {
    "unexpected answer from the gateway; check that it has the same version as this command (keygate --version)".into()
}

#[cfg(test)]
mod tests {
    use super::parse_url;

    #[test]
    fn an_admin_url_is_a_host_and_a_port() {
        for good in ["http://127.0.0.1:9465", "http://[::1]:9465/", "http://gateway:80"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:9465", "https://127.0.0.1:9465", "http://a@b:1", "http://a/b", "unix:/x"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }
}
