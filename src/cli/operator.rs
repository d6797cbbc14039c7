//! What the commands of operators share: how they reach the store, how they ask, and how they print.
//!
//! The gateway that holds the store carries a command out, over its admin socket or, elsewhere, over TCP; where
//! none runs, this process opens the store itself.

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

use super::table::{Column, Table};
use super::{Outcome, load};
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

/// Where the token for `--admin-url` is looked for if no file is named.
const TOKEN_VARIABLE: &str = "KEYGATE_ADMIN_TOKEN";

// Documentation of this and of `Access` would become the help of every command, in place of that of its actions.
#[derive(Debug, clap::Args)]
pub(super) struct Args<A: Act> {
    #[command(subcommand)]
    action: A,
    #[command(flatten)]
    access: Access,
}

/// What one command of operators can do: its subcommands, whose help is that of the command.
pub(super) trait Act: Subcommand {
    /// Does one of them.
    ///
    /// # Errors
    /// Why it was not done, for whoever asked.
    async fn act(self, session: &mut Session<'_>) -> Result<Outcome, Failure>;
}

// How the store is reached, and how answers are printed.
#[derive(Debug, clap::Args)]
pub(super) struct Access {
    /// The configuration file of the gateway; its admin socket is asked, or where no gateway runs, its store
    #[arg(long, short, value_name = "FILE", default_value = "keygate.toml", global = true)]
    config: PathBuf,
    /// Ask the gateway whose admin.listen this is, as in http://127.0.0.1:9465, instead
    #[arg(long, value_name = "URL", value_parser = parse_url, global = true)]
    admin_url: Option<Authority>,
    /// The file with the token for --admin-url, of mode 0600 [default: the variable KEYGATE_ADMIN_TOKEN]
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

fn parse_url(text: &str) -> Result<Authority, &'static str> {
    const ADVICE: &str = "write http://, a host and a port, as in http://127.0.0.1:9465";
    let uri: Uri = text.parse().map_err(|_| ADVICE)?;
    let bare = uri.path_and_query().is_none_or(|target| target.as_str() == "/");
    match (uri.scheme_str(), uri.authority()) {
        (Some("https"), _) => {
            Err("https is not spoken here; tunnel to the gateway, with ssh -L for instance")
        }
        // A port that does not read would be taken for none, and the token sent to whoever has the usual one.
        (Some("http"), Some(authority)) if bare && Server::parse(authority.as_str()).is_ok() => {
            Ok(authority.clone())
        }
        _ => Err(ADVICE),
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// What to tell whoever asked.
    Told(String),
    /// Nobody takes the output any more.
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

/// Has one action carried out.
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
    let mut session = Session { operator, environment, json, out: BufWriter::new(out), err };
    let acted = runtime.block_on(action.act(&mut session));
    session.out.flush()?;
    match acted {
        Ok(outcome) => Ok(outcome),
        Err(Failure::Output(error)) => Err(error),
        Err(Failure::Told(message)) => {
            writeln!(session.err, "keygate: {message}")?;
            Ok(Outcome::Refused)
        }
    }
}

/// Who carries commands out.
enum Operator {
    Remote {
        authority: Authority,
        token: Secret,
    },
    /// The gateway behind this socket; where none answers, the store itself.
    Local {
        socket: Option<PathBuf>,
        config: Box<Config>,
        /// Opened once and kept open: what one command asks belongs together, and opening costs.
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
            writeln!(err, "keygate: --token-file is for --admin-url")?;
            return Ok(Err(Outcome::Unusable));
        }
        let loaded = load(&access.config, environment.iter().cloned(), err)?;
        return Ok(loaded.map(|mut config| {
            let socket = config.admin.socket.take();
            Operator::Local { socket, config: config.into(), store: OnceCell::new() }
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

fn find_token(file: Option<&Path>, environment: &[(OsString, OsString)]) -> Result<Secret, String> {
    let variable = || environment.iter().find(|(name, _)| name == TOKEN_VARIABLE).map(|(_, value)| value);
    let text = match (file, variable()) {
        (Some(path), _) => {
            let bytes = secret_file::read("--token-file", path).map_err(|error| error.to_string())?;
            String::from_utf8_lossy(&bytes).trim().to_owned()
        }
        (None, Some(value)) => value.to_string_lossy().trim().to_owned(),
        (None, None) => {
            return Err(format!("--admin-url needs a token: --token-file FILE, or {TOKEN_VARIABLE}"));
        }
    };
    Ok(Secret::new(text))
}

impl Operator {
    async fn ask(&self, command: Command) -> Result<Reply, String> {
        let order = Order { operator: operator_name(), command };
        let (socket, config, store) = match self {
            Self::Local { socket, config, store } => (socket, config, store),
            Self::Remote { authority, token } => {
                let way = Way::Remote { authority, token };
                return admin::call(way, &order).await.map_err(|error| match error {
                    ClientError::Absent => format!("no gateway answers on {authority}"),
                    error => error.to_string(),
                });
            }
        };
        if let (Some(socket), false) = (socket, store.initialized()) {
            match admin::call(Way::Socket(socket), &order).await {
                Err(ClientError::Absent) => {}
                replied => return replied.map_err(|error| error.to_string()),
            }
        }
        Ok(execute(store.get_or_try_init(async || open(config).map(Box::new)).await?, order).await)
    }
}

async fn execute(lifecycle: &Lifecycle, order: Order) -> Reply {
    let origin = admin::local_operator(&order.operator, getuid().as_raw());
    admin::execute(lifecycle, &origin, order.command).await
}

fn open(config: &Config) -> Result<Lifecycle, String> {
    const ADVICE: &str = "set admin.socket in its configuration, restart it, and this command will ask it";
    open_as(config, &config.store, open_store, ADVICE)
}

/// How a store is opened.
pub(super) type Open = fn(&StoreSettings, Sealer, &Handle) -> Result<Arc<dyn Store>, StoreError>;

/// Opens a store itself, with the rest as the configuration has it; `advice` is for where a gateway holds it.
pub(super) fn open_as(
    config: &Config,
    store: &StoreSettings,
    open: Open,
    advice: &str,
) -> Result<Lifecycle, String> {
    let tools = KeyTools::new(&config.keys).map_err(|error| error.to_string())?;
    let store = open(store, tools.sealer.clone(), &Handle::current()).map_err(|error| match error {
        StoreError::Embedded(OpenError::InUse { .. }) => format!("{error}: a gateway holds it; {advice}"),
        error => error.to_string(),
    })?;
    let settings = tools.lifecycle(config.signup.clone());
    Ok(Lifecycle::new(store, settings, config.scopes.clone(), Clock::system()))
}

/// Who gives this command.
pub(super) fn operator() -> Origin {
    admin::local_operator(&operator_name(), getuid().as_raw())
}

/// Who sits at the terminal, by their own account.
fn operator_name() -> String {
    std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default()
}

/// A command that is being carried out.
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

/// A command while it runs: whom it asks, and where it prints.
pub(super) struct Session<'s> {
    operator: Arc<Operator>,
    environment: Vec<(OsString, OsString)>,
    pub(super) json: bool,
    pub(super) out: BufWriter<&'s mut dyn Write>,
    pub(super) err: &'s mut dyn Write,
}

impl Session<'_> {
    /// The configuration, for a command that opens the store itself.
    ///
    /// # Errors
    /// Where a gateway elsewhere is to be asked.
    pub(super) fn config(&self) -> Result<&Config, Failure> {
        match &*self.operator {
            Operator::Local { config, .. } => Ok(config),
            Operator::Remote { .. } => {
                Err("this command opens the store itself: leave --admin-url out".into())
            }
        }
    }

    /// Another configuration, under the same variables.
    pub(super) fn load(&mut self, path: &Path) -> io::Result<Result<Config, Outcome>> {
        load(path, self.environment.iter().cloned(), &mut self.err)
    }

    /// The socket of the gateway that this configuration is of.
    pub(super) fn socket(&self) -> Option<&Path> {
        match &*self.operator {
            Operator::Local { socket, .. } => socket.as_deref(),
            Operator::Remote { .. } => None,
        }
    }

    /// Has a command carried out.
    ///
    /// # Errors
    /// Why it was not, also where the gateway says so.
    pub(super) async fn ask(&mut self, command: Command) -> Result<Reply, Failure> {
        answered(self.operator.ask(command).await)
    }

    /// Has a command carried out while this one goes on.
    pub(super) fn begin(&self, command: Command) -> Begun {
        let operator = Arc::clone(&self.operator);
        Begun(tokio::spawn(async move { operator.ask(command).await }))
    }

    /// One line of JSON.
    pub(super) fn print_json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.out, value).map_err(io::Error::from)?;
        Ok(writeln!(self.out)?)
    }

    /// Names and values, one pair to a line; those without a value are left out.
    pub(super) fn print_fields(&mut self, fields: &[(&str, Option<String>)]) -> Result<(), Failure> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in fields {
            if let Some(value) = value {
                writeln!(self.out, "{name:<width$}  {}", value.replace('\n', "\\n"))?;
            }
        }
        Ok(())
    }

    /// A table as wide as the terminal, if the output goes to one; its head is printed, unless JSON is wanted.
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

    /// Something beside the output.
    pub(super) fn remark(&mut self, text: &str) {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(self.err, "keygate: {text}");
    }

    /// How far it has come, on a line of its own that the next one replaces; only for people.
    pub(super) fn show_progress(&mut self, text: &str) {
        if io::stderr().is_terminal() {
            let _ = write!(self.err, "\r\x1b[K{text}").and_then(|()| self.err.flush());
        }
    }

    /// Asks a person, who must be there to be asked, unless they said `yes` before.
    ///
    /// # Errors
    /// When they do not agree, or nobody is there.
    pub(super) fn confirm(&mut self, question: &str, yes: bool) -> Result<(), Failure> {
        if yes || self.asked(question, Asked::OnStdin)? { Ok(()) } else { Err("nothing was changed".into()) }
    }

    /// The same where standard input is taken: asks on the terminal itself.
    pub(super) fn confirm_beside_stdin(&mut self, question: &str, yes: bool) -> Result<(), Failure> {
        if yes || self.asked(question, Asked::OnTerminal)? {
            Ok(())
        } else {
            Err("nothing was changed".into())
        }
    }

    fn asked(&mut self, question: &str, place: Asked) -> Result<bool, Failure> {
        const NOBODY: &str = "nobody is at a terminal to be asked: add --yes";
        let people =
            io::stderr().is_terminal() && (matches!(place, Asked::OnTerminal) || io::stdin().is_terminal());
        if !people {
            return Err(NOBODY.into());
        }
        self.out.flush()?;
        write!(self.err, "{question} [y/N] ").and_then(|()| self.err.flush())?;
        let mut answer = String::new();
        match place {
            Asked::OnStdin => io::stdin().lock().read_line(&mut answer)?,
            Asked::OnTerminal => {
                let terminal = std::fs::File::open("/dev/tty").map_err(|_| NOBODY)?;
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

/// A time as tables show it: to the second.
pub(super) fn to_the_second(time: &str) -> String {
    time.get(..19).map_or_else(|| time.to_owned(), |time| format!("{time}Z"))
}

pub(super) fn unexpected() -> Failure {
    "the gateway answered something else than it was asked; are both the same version?".into()
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
