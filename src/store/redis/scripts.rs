//! The scripts that run in Redis, and their calls.
//!
//! Everything that must happen at one moment is one script. Scripts are called by their hash. A Redis that does not
//! have a script, after a restart or a fail-over, gets the text and keeps it.

use std::collections::BTreeSet;
use std::fmt;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};

use crate::vocabulary::key::record::RecordFormat;

/// One script, and its hash.
pub(super) struct Script {
    text: &'static str,
    hash: String,
    reads_only: bool,
}

impl Script {
    fn reading(text: &'static str) -> Self {
        Self { reads_only: true, ..Self::writing(text) }
    }

    fn writing(text: &'static str) -> Self {
        Self { text, hash: ::redis::Script::new(text).get_hash().to_owned(), reads_only: false }
    }
}

/// All of them.
pub(super) struct Scripts {
    pub(super) lookup: Script,
    pub(super) half: Script,
    pub(super) read: Script,
    pub(super) list: Script,
    pub(super) watch: Script,
    pub(super) renew: Script,
    pub(super) leave: Script,
    pub(super) confirm: Script,
    pub(super) confirmed: Script,
    pub(super) gateways: Script,
    /// A mutation that may need more memory. Redis refuses it before it runs if there is none.
    pub(super) mutate: Script,
    /// A mutation that takes rights away. It runs even if the memory of Redis is full.
    pub(super) revoke: Script,
    pub(super) import: Script,
    pub(super) index: Script,
    pub(super) entries: Script,
    pub(super) trim: Script,
    pub(super) restore: Script,
    pub(super) usage: Script,
    pub(super) note_usage: Script,
    pub(super) news: Script,
    pub(super) backlog: Script,
    pub(super) held_news: Script,
    pub(super) claim_news: Script,
    pub(super) hold_news: Script,
    pub(super) release_news: Script,
    pub(super) delivered: Script,
    pub(super) admit: Script,
    pub(super) begin: Script,
    pub(super) accept: Script,
    pub(super) prefixes: Script,
    pub(super) rewrite_prefixes: Script,
    pub(super) begin_removal: Script,
    pub(super) peppers: Script,
    pub(super) reseal: Script,
    pub(super) ids: Script,
    pub(super) moment: Script,
    pub(super) begin_fill: Script,
    pub(super) fill: Script,
    pub(super) end_fill: Script,
    pub(super) bury: Script,
    pub(super) stones: Script,
    pub(super) rights: Script,
}

/// A script put together from files.
macro_rules! script {
    ($head:literal, $($file:literal),+) => { concat!($head, "\n", $(include_str!($file)),+) };
}

/// The same, of one that writes: first it checks the store.
macro_rules! ours {
    ($head:literal, $($file:literal),+) => {
        concat!($head, "\n", include_str!("ours.lua"), $(include_str!($file)),+)
    };
}

/// The same, of one whose arguments are parts.
macro_rules! with_parts {
    ($head:literal, $($file:literal),+) => { ours!($head, "graves.lua", "parts.lua", $($file),+) };
}

/// These scripts, as a list. It does not compile if one is forgotten.
macro_rules! all_but_rights {
    ($scripts:ident: $($name:ident),+) => {{
        let Scripts { $($name,)+ rights: _ } = $scripts;
        [$($name),+]
    }};
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            lookup: Script::reading(include_str!("lookup.lua")),
            half: Script::reading(include_str!("half.lua")),
            read: Script::reading(include_str!("read.lua")),
            list: Script::reading(include_str!("list.lua")),
            watch: Script::reading(include_str!("watch.lua")),
            renew: Script::writing(include_str!("renew.lua")),
            leave: Script::writing(include_str!("leave.lua")),
            confirm: Script::writing(include_str!("confirm.lua")),
            confirmed: Script::reading(include_str!("confirmed.lua")),
            gateways: Script::reading(include_str!("gateways.lua")),
            mutate: Script::writing(with_parts!("#!lua", "sealed.lua", "streams.lua", "mutate.lua")),
            revoke: Script::writing(with_parts!(
                "#!lua flags=allow-oom",
                "sealed.lua",
                "streams.lua",
                "mutate.lua"
            )),
            import: Script::writing(with_parts!("#!lua", "sealed.lua", "import.lua")),
            index: Script::writing(with_parts!("#!lua", "index.lua")),
            entries: Script::reading(script!("#!lua flags=no-writes", "streams.lua", "entries.lua")),
            trim: Script::writing(ours!("#!lua flags=allow-oom", "streams.lua", "trim.lua")),
            restore: Script::writing(ours!("#!lua", "streams.lua", "restore.lua")),
            usage: Script::reading(include_str!("usage.lua")),
            note_usage: Script::writing(ours!("#!lua", "note_usage.lua")),
            news: Script::reading(include_str!("news.lua")),
            backlog: Script::reading(include_str!("backlog.lua")),
            held_news: Script::reading(include_str!("held_news.lua")),
            claim_news: Script::writing(ours!("#!lua flags=allow-oom", "sealed.lua", "claim_news.lua")),
            hold_news: Script::writing(ours!("#!lua flags=allow-oom", "sealed.lua", "hold_news.lua")),
            release_news: Script::writing(ours!("#!lua", "sealed.lua", "release_news.lua")),
            delivered: Script::writing(ours!("#!lua flags=allow-oom", "delivered.lua")),
            admit: Script::writing(ours!("#!lua", "admit.lua")),
            begin: Script::writing(include_str!("begin.lua")),
            accept: Script::writing(include_str!("accept.lua")),
            prefixes: Script::reading(include_str!("prefixes.lua")),
            rewrite_prefixes: Script::writing(with_parts!("#!lua", "rewrite_prefixes.lua")),
            begin_removal: Script::writing(ours!("#!lua", "begin_removal.lua")),
            peppers: Script::writing(ours!("#!lua", "sealed.lua", "peppers.lua")),
            reseal: Script::writing(ours!("#!lua", "sealed.lua", "reseal.lua")),
            ids: Script::reading(include_str!("ids.lua")),
            moment: Script::reading(script!("#!lua flags=no-writes", "streams.lua", "moment.lua")),
            begin_fill: Script::writing(include_str!("begin_fill.lua")),
            fill: Script::writing(script!("#!lua", "streams.lua", "graves.lua", "fill.lua")),
            end_fill: Script::writing(include_str!("end_fill.lua")),
            bury: Script::writing(with_parts!("#!lua flags=allow-oom", "bury.lua")),
            stones: Script::writing(with_parts!("#!lua", "stones.lua")),
            rights: Script::reading(include_str!("rights.lua")),
        }
    }

    /// The scripts that read, for a full gateway.
    pub(super) fn reading(&self) -> Vec<&Script> {
        self.all().into_iter().filter(|script| script.reads_only).collect()
    }

    /// The scripts that write, for a full gateway.
    pub(super) fn writing(&self) -> Vec<&Script> {
        self.all().into_iter().filter(|script| !script.reads_only).collect()
    }

    /// The scripts that read, for a proxy.
    pub(super) fn reading_of_proxy(&self) -> Vec<&Script> {
        vec![&self.lookup, &self.half, &self.watch, &self.gateways]
    }

    /// The scripts that write the lease, and nothing else.
    pub(super) fn writing_of_proxy(&self) -> Vec<&Script> {
        vec![&self.renew, &self.leave, &self.confirm]
    }

    /// All scripts except the one that asks for rights.
    fn all(&self) -> [&Script; 41] {
        all_but_rights!(
            self: lookup, half, read, list, watch, renew, leave, confirm, confirmed, gateways, mutate, revoke, import, index,
            entries, trim, restore, usage, note_usage, news, backlog, held_news, claim_news, hold_news, release_news, delivered,
            admit, begin, accept, prefixes, rewrite_prefixes, begin_removal, peppers, reseal, ids,
            moment, begin_fill, fill, end_fill, bury, stones
        )
    }
}

/// Every command that these scripts need.
pub(super) fn commands(scripts: &[&Script]) -> BTreeSet<Vec<&'static str>> {
    let calls = scripts.iter().flat_map(|script| script.text.split("redis.call(").skip(1));
    // The quoted words at the front: a command, and for some its subcommand.
    calls
        .map(|call| call.split(", ").map_while(|word| word.strip_prefix('\'')?.split('\'').next()).collect())
        .collect()
}

/// A script with its keys and arguments.
pub(super) struct Call<'s> {
    script: &'s Script,
    keys: Vec<String>,
    args: Vec<Vec<u8>>,
    durable: bool,
    /// The script for two nodes that each have a part of the keys.
    half: Option<&'s Script>,
}

impl<'s> Call<'s> {
    pub(super) fn new(script: &'s Script, keys: impl IntoIterator<Item = String>) -> Self {
        Self { script, keys: keys.into_iter().collect(), args: Vec::new(), durable: false, half: None }
    }

    pub(super) fn key(mut self, key: String) -> Self {
        self.keys.push(key);
        self
    }

    pub(super) fn arg(mut self, arg: impl Into<Vec<u8>>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The change must be on a replica before it counts as done.
    pub(super) fn durably(mut self) -> Self {
        self.durable = true;
        self
    }

    pub(super) const fn is_durable(&self) -> bool {
        self.durable
    }

    /// If no node has all keys, this script asks each node for those that it has.
    pub(super) const fn or_by_halves(mut self, half: &'s Script) -> Self {
        self.half = Some(half);
        self
    }

    pub(super) const fn has_halves(&self) -> bool {
        self.half.is_some()
    }

    /// Whether it may be sent twice.
    pub(super) const fn reads_only(&self) -> bool {
        self.script.reads_only
    }

    pub(super) async fn send(&self, connection: &mut MultiplexedConnection) -> Result<Reply, RedisError> {
        let (by_hash, by_text) =
            if self.script.reads_only { ("EVALSHA_RO", "EVAL_RO") } else { ("EVALSHA", "EVAL") };
        let mut answer = self.command(by_hash, &self.script.hash).query_async(connection).await;
        if matches!(&answer, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
            answer = self.command(by_text, self.script.text).query_async(connection).await;
        }
        Reply::parse(answer?)
    }

    /// Asks a node for its part of a lookup, even if it does not own the slot yet.
    pub(super) async fn send_half(
        &self,
        owner: &[u8],
        connection: &mut MultiplexedConnection,
    ) -> Result<Reply, RedisError> {
        let Some(half) = self.half else { return Err(unexpected()) };
        let mut asking = ::redis::pipe();
        // ASKING holds for the next command only. The text is sent each time: this is rare.
        asking.cmd("ASKING").ignore().cmd("EVAL_RO").arg(half.text).arg(0).arg(&self.keys);
        for arg in &self.args {
            asking.arg(&arg[..]);
        }
        let (answer,) = asking.arg(owner).query_async::<(Value,)>(connection).await?;
        Reply::parse(answer)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = ::redis::cmd(name);
        command.arg(script).arg(self.keys.len()).arg(&self.keys);
        for arg in &self.args {
            command.arg(&arg[..]);
        }
        command
    }
}

/// The answer of a script: the state of the store, then what was asked for.
pub(super) struct Reply {
    pub(super) meta: Meta,
    rest: std::vec::IntoIter<Value>,
}

/// The content of `meta`, as text where Redis has it as text.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) incarnation: Option<String>,
    pub(super) schema: Option<String>,
    pub(super) event: Option<u64>,
    /// The format of records that a gateway must be able to keep to join.
    pub(super) format: RecordFormat,
}

impl Reply {
    fn parse(value: Value) -> Result<Self, RedisError> {
        let Value::Array(values) = value else { return Err(unexpected()) };
        let mut reply = Self { meta: Meta::default(), rest: values.into_iter() };
        let (incarnation, schema) = (reply.text()?, reply.text()?);
        let event = reply.text()?.and_then(|event| event.parse().ok());
        let format = RecordFormat::named(reply.text()?.as_deref());
        reply.meta = Meta { incarnation, schema, event, format };
        Ok(reply)
    }

    /// An answer that was put together here.
    pub(super) fn of(meta: Meta, rest: [Option<Vec<u8>>; 4]) -> Self {
        let rest = rest.map(|bytes| bytes.map_or(Value::Nil, Value::BulkString));
        Self { meta, rest: Vec::from(rest).into_iter() }
    }

    /// The next value, or `None` for one that is not there.
    pub(super) fn bytes(&mut self) -> Result<Option<Vec<u8>>, RedisError> {
        match self.rest.next() {
            None | Some(Value::Nil) => Ok(None),
            Some(value) => bytes(value).map(Some),
        }
    }

    pub(super) fn text(&mut self) -> Result<Option<String>, RedisError> {
        let text = self.bytes()?.map(String::from_utf8).transpose();
        text.map_err(|_| unexpected())
    }

    /// Whether no value follows, not even an absent one.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.len() == 0
    }
}

/// The bytes of a string, which Redis sends in one of several types.
pub(super) fn bytes(value: Value) -> Result<Vec<u8>, RedisError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::Int(number) => Ok(number.to_string().into_bytes()),
        _ => Err(unexpected()),
    }
}

pub(super) fn unexpected() -> RedisError {
    (ErrorKind::UnexpectedReturnType, "an answer that keygate's scripts do not give").into()
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Script").field(&self.hash).finish()
    }
}
