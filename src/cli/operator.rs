//! How a command reaches the store: the gateway that holds it carries the command out, over its admin socket;
//! where none runs, this process opens the store itself.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use tokio::runtime::Handle;

use crate::admin::{self, ClientError, Command, Order, Reply};
use crate::app::{KeyTools, StoreError, open_store};
use crate::clock::Clock;
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::store::embedded::OpenError;

/// Who carries commands out.
pub(super) enum Operator {
    /// The gateway behind this socket; where none answers, the store itself.
    Socket {
        socket: PathBuf,
        config: Box<Config>,
    },
    Store(Lifecycle),
}

impl Operator {
    pub(super) fn connect(mut config: Config) -> Result<Self, String> {
        match config.admin.socket.take() {
            Some(socket) => Ok(Self::Socket { socket, config: Box::new(config) }),
            None => open(&config).map(Self::Store),
        }
    }

    pub(super) async fn ask(&self, command: Command) -> Result<Reply, String> {
        let order = Order { operator: operator_name(), command };
        let reply = match self {
            Self::Store(lifecycle) => admin::execute(lifecycle, order).await,
            Self::Socket { socket, config } => match admin::call(socket, &order).await {
                Ok(reply) => reply,
                Err(ClientError::Absent) => admin::execute(&open(config)?, order).await,
                Err(error) => return Err(error.to_string()),
            },
        };
        match reply {
            Reply::Failed { message } => Err(message),
            reply => Ok(reply),
        }
    }
}

fn open(config: &Config) -> Result<Lifecycle, String> {
    let tools = KeyTools::new(&config.keys).map_err(|error| error.to_string())?;
    let store = open_store(&config.store, tools.sealer.clone(), &Handle::current()).map_err(|error| match error {
        StoreError::Embedded(OpenError::InUse { .. }) => format!(
            "{error}: a gateway holds it; set admin.socket in its configuration, restart it, and this command will ask it"
        ),
        error => error.to_string(),
    })?;
    let settings = tools.lifecycle(config.signup.clone());
    Ok(Lifecycle::new(store, settings, config.scopes.clone(), Clock::system()))
}

/// Who sits at the terminal, for the record.
fn operator_name() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    let name: String =
        user.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(64).collect();
    if name.is_empty() { "operator".to_owned() } else { name }
}

pub(super) fn unexpected() -> String {
    "the gateway answered something else than it was asked; are both the same version?".to_owned()
}

/// Asks a person, who must be there to be asked.
pub(super) fn confirmed(question: &str, err: &mut impl Write) -> Result<bool, String> {
    if !io::stdin().is_terminal() {
        return Err("this cannot be undone: add --yes".to_owned());
    }
    write!(err, "{question} [y/N] ").and_then(|()| err.flush()).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| error.to_string())?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
