//! What a line of the log tells: two closed lists, each with the name and the level that a line is written with.
//!
//! A line that strangers or an outage can cause many times is an [`Event`], of which [few](super::throttle) are written. What
//! only operators cause, or what happens once, is a [`Notice`].

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    /// Somebody should look at it in the daytime.
    Warn,
    /// Good requests, changes or evidence are concerned.
    Error,
}

impl Level {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// How an event comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recurrence {
    /// One by one, each for itself.
    Repeats,
    /// As one of two states that follow each other: it has an end, which is a [`Notice`].
    Flaps,
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $label:literal $level:ident $recurrence:ident $words:literal,)*) => {
        /// What strangers or an outage can cause many times.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])* $name,)*
        }

        impl Event {
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$name),*];

            /// The name in the log and in metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }

            pub(super) const fn level(self) -> Level {
                match self { $(Self::$name => Level::$level),* }
            }

            pub(super) const fn recurrence(self) -> Recurrence {
                match self { $(Self::$name => Recurrence::$recurrence),* }
            }

            /// What happened, for the line about those that were withheld.
            pub(super) const fn described(self) -> &'static str {
                match self { $(Self::$name => $words),* }
            }
        }
    };
}

macro_rules! notices {
    ($($(#[$doc:meta])* $name:ident = $label:literal $level:ident,)*) => {
        /// What operators cause, or what happens once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Notice {
            $($(#[$doc])* $name,)*
        }

        impl Notice {
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$name),*];

            /// The name in the log.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }

            pub(super) const fn level(self) -> Level {
                match self { $(Self::$name => Level::$level),* }
            }
        }
    };
}

events! {
    /// The store does not answer lookups of keys.
    LookupsFail = "lookups_fail" Error Flaps "keys cannot be looked up",
    /// The store answers, and the record of a key cannot be read.
    RecordUnreadable = "record_unreadable" Error Repeats "records of keys cannot be read",
    /// The store did not carry an operation of the API for keys out.
    OperationUnavailable = "operation_unavailable" Error Repeats "an operation could not be carried out",
    /// Something is wrong here, and an operation of the API for keys failed of it.
    OperationFailed = "operation_failed" Error Repeats "an operation failed",
    /// A change is in no replica of Redis.
    NotReplicated = "not_replicated" Error Repeats "a change has reached no replica of Redis",
    /// Redis answers and takes no changes, or takes them again.
    StoreDoubted = "store_doubted" Error Repeats "Redis takes no changes, or takes them again",
    /// Redis has failed several calls in a row.
    BreakerOpen = "breaker_open" Error Flaps "Redis is spared calls",
    /// The file of the embedded store fails.
    StoreFile = "store_file" Error Repeats "the file of the store failed",
    /// The link by which a gateway hears of changes.
    EventLink = "event_link" Error Flaps "the event link is down",
    /// A gateway with a lease does not confirm changes.
    GatewaySilent = "gateway_silent" Warn Repeats "a gateway confirms no changes",
    /// The store has lost a revocation.
    RevocationLost = "revocation_lost" Error Repeats "the store has lost the revocation of a key",
    /// The store has an older record than this gateway remembers.
    ChangeLost = "change_lost" Error Repeats "the store has lost the last change of a key or an organisation",
    TrailNotCompared = "trail_not_compared" Warn Repeats "records cannot be compared with an audit trail",
    /// The clock of the machine and that of the store differ.
    ClockOff = "clock_off" Warn Flaps "the clocks of this machine and its store differ",
    /// Nothing is removed for its age, because two clocks differ or one cannot be read.
    TrimmingHeld = "trimming_held" Warn Flaps "no audit record is removed for its age",
    TrailNotTrimmed = "trail_not_trimmed" Warn Repeats "an audit trail cannot be trimmed",
    /// All connections that there may be are there.
    ConnectionsFull = "connections_full" Error Repeats "refusing connections: server.max_connections is reached",
    /// A client has all connections that it may have.
    ClientFull = "client_full" Warn Repeats "refusing connections: a client has server.max_connections_per_client",
    /// A listener's socket fails.
    CannotAccept = "cannot_accept" Error Repeats "connections cannot be accepted",
    /// A client asks too much of an HTTP/2 connection.
    ConnectionCut = "connection_cut" Warn Repeats "cutting an HTTP/2 connection",
    /// A fault of keygate's own, which a connection could repeat.
    StreamsMixedUp = "streams_mixed_up" Error Repeats "HTTP/2: requests and streams did not take turns",
    /// An endpoint cannot be connected to.
    UpstreamUnreachable = "upstream_unreachable" Error Flaps "an upstream cannot be reached",
    /// The name of an endpoint cannot be resolved.
    UpstreamUnresolved = "upstream_unresolved" Error Flaps "the name of an upstream cannot be resolved",
    /// The name of an endpoint has more addresses than are used.
    UpstreamAddresses = "upstream_addresses" Warn Repeats "the name of an upstream has more addresses than are used",
    /// An endpoint fails its checks.
    UpstreamCheckFails = "upstream_check_fails" Error Flaps "an upstream fails its checks",
    /// An endpoint answers nobody properly.
    UpstreamFailsRequests = "upstream_fails_requests" Error Flaps "an upstream answers nobody properly",
    UpstreamBrokeOff = "upstream_broke_off" Warn Repeats "an upstream broke off before it answered",
    UpstreamInvalidAnswer = "upstream_invalid_answer" Warn Repeats "an upstream gave an answer that cannot be passed on",
    UpstreamBrokenBody = "upstream_broken_body" Warn Repeats "an upstream broke off in the middle of an answer",
    /// The receiver of news of organisations does not take them.
    NewsNotDelivered = "news_not_delivered" Error Flaps "news could not be delivered",
    /// Somebody without a valid token at the admin API.
    AdminStranger = "admin_stranger" Warn Repeats "the admin API refused a command: no valid token",
    /// An operator whose token is not good for the command.
    AdminLacking = "admin_lacking" Warn Repeats "the admin API refused a command: the token is not good for it",
    /// The file of tokens cannot be read.
    AdminTokens = "admin_tokens" Error Repeats "admin.tokens_file cannot be read",
    /// A fault of keygate itself.
    Panicked = "panicked" Error Repeats "a part of keygate has failed by a fault of its own",
    CommandFailed = "command_failed" Warn Repeats "an operator's command failed",
    MetricsFailed = "metrics_failed" Error Repeats "the metrics cannot be written",
    /// Standard output takes no records of requests.
    RecordsNotWritten = "records_not_written" Error Flaps "records of requests cannot be written",
}

notices! {
    /// How the process shares its descriptors and its memory out.
    Room = "room" Info,
    /// A setting that works and is probably not meant so.
    Remark = "remark" Warn,
    CertificateUnusable = "certificate_unusable" Error,
    /// Where connections are accepted.
    Started = "started" Info,
    Stopping = "stopping" Info,
    Stopped = "stopped" Info,
    /// A new process takes over, or does not come to it.
    HandOver = "hand_over" Info,
    ConfigurationRead = "configuration_read" Info,
    ConfigurationRefused = "configuration_refused" Error,
    /// Files of the log were opened again, or one could not be.
    LogReopened = "log_reopened" Info,
    LogNotReopened = "log_not_reopened" Error,
    /// Lines of the log were lost before this one.
    LinesLost = "lines_lost" Warn,
    RecordsWritten = "records_written" Info,
    LookupsBack = "lookups_back" Info,
    EventLinkUp = "event_link_up" Info,
    EventsLost = "events_lost" Warn,
    /// A revocation that the store has lost, and that this gateway cannot write again.
    RevocationNotKept = "revocation_not_kept" Error,
    LeaseNotGivenUp = "lease_not_given_up" Warn,
    StoreAccepted = "store_accepted" Warn,
    StoreOutdated = "store_outdated" Warn,
    /// Redis would throw keys away when its memory is full.
    StoreEvicts = "store_evicts" Error,
    StoreBack = "store_back" Info,
    DiskFull = "disk_full" Error,
    DiskHasRoom = "disk_has_room" Info,
    /// The file of the embedded store was copied into a smaller one.
    StoreCompacted = "store_compacted" Info,
    StoreNotCompacted = "store_not_compacted" Warn,
    IndexIncomplete = "index_incomplete" Error,
    MemoryNotRead = "memory_not_read" Warn,
    MemoryNotWritten = "memory_not_written" Error,
    MemoryFull = "memory_full" Warn,
    PasswordAccepted = "password_accepted" Info,
    PepperInForce = "pepper_in_force" Info,
    PepperWaits = "pepper_waits" Warn,
    PrefixWaits = "prefix_waits" Warn,
    PrefixAccepted = "prefix_accepted" Info,
    PrefixesUnknown = "prefixes_unknown" Warn,
    PrefixOfNewKeys = "prefix_of_new_keys" Info,
    /// What an operator did could not be written to the operators' audit trail.
    ActNotRecorded = "act_not_recorded" Warn,
    /// A record and its audit trail contradict each other.
    TrailDiffers = "trail_differs" Error,
    /// The head of an audit trail, for `keygate audit verify --heads`.
    AuditHead = "audit_head" Info,
    /// The machine was paused, or its date was set.
    MachinePaused = "machine_paused" Warn,
    ClockInStep = "clock_in_step" Info,
    TrimmingResumed = "trimming_resumed" Info,
    NewsUnproven = "news_unproven" Warn,
    NewsDelivered = "news_delivered" Info,
    EndpointReachable = "endpoint_reachable" Info,
    EndpointResolves = "endpoint_resolves" Info,
    EndpointPasses = "endpoint_passes" Info,
    EndpointAnswers = "endpoint_answers" Info,
    FieldRemoved = "field_removed" Info,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_words_and_no_two_have_the_same() {
        let names = || Event::ALL.map(Event::as_str).into_iter().chain(Notice::ALL.map(Notice::as_str));
        assert_eq!(names().collect::<HashSet<_>>().len(), Event::ALL.len() + Notice::ALL.len());
        assert!(names().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
