//! New connections to a server, or to one of the addresses of its name.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::{InFlight, Lease, Open, Pool};
use crate::upstream::Protocol;
use crate::upstream::budget::Place;
use crate::upstream::connection::{Connection, Shared};
use crate::upstream::dial::{Dialled, Stream, dial_any};
use crate::upstream::error::{NoLease, Unopened};
use crate::upstream::sharing::{Carrier, Sharing, Turn};
use crate::upstream::tls::Needs;

/// An open connection, by what is spoken on it.
enum Spoken {
    Http1(Connection),
    Http2(Rc<Shared>),
}

/// The same in its place.
enum Opened {
    Exclusive(Open),
    Shared(Rc<Carrier>),
}

impl Pool {
    /// A new connection to the first of these servers, within the time `connect`. They are addresses of one name: if the first does
    /// not take a connection at once, the next one is tried beside it, and so on (RFC 8305).
    ///
    /// Where connections are shared, it may be one that another request opened meanwhile.
    ///
    /// Returns with it the place of the server that it leads to.
    pub(in crate::upstream) async fn lease_new(
        all: &[&Rc<Self>],
        (connect, needs): (Duration, Needs),
    ) -> Result<(usize, Lease), NoLease> {
        let [first, ..] = all else { return Err(NoLease::Unreachable) };
        let _waiting = InFlight::begin(first);
        if needs == Needs::Nothing
            && first.may_share()
            && let Some(leased) = Box::pin(Self::lease_shared(all, first, connect)).await?
        {
            return Ok(leased);
        }
        let place = first.room.place().await?;
        let (at, opened) = Self::open(all, place, (connect, needs)).await?;
        Ok((at, all[at].lease_opened(opened).await?))
    }

    /// A place on a connection that others share; `None` where the server does not speak HTTP/2.
    async fn lease_shared(
        all: &[&Rc<Self>],
        first: &Rc<Self>,
        connect: Duration,
    ) -> Result<Option<(usize, Lease)>, NoLease> {
        let place = first.room.budget.place().await.ok_or(NoLease::Crowded)?;
        let now = || first.clock.mono();
        let look = |_: &Sharing| {
            all.iter().enumerate().find_map(|(at, pool)| Some((at, pool.sharing.take_first(now())?)))
        };
        let opening = match first.sharing.turn(now, look).await? {
            None => return Ok(None),
            Some(Turn::Carried((at, carrier))) => {
                return Ok(Some((at, all[at].lease_on(carrier, place, true))));
            }
            Some(Turn::Opens(opening)) => opening,
        };
        // Where the upstream has all connections that it may have, a place on one of them may become free.
        let of_upstream = match &first.room.of_upstream {
            None => None,
            Some(places) => tokio::select! {
                biased;
                occupied = places.place(&first.room.idle) => Some(occupied.ok_or(NoLease::Full)?),
                (at, carrier) = first.sharing.freed(look) => {
                    return Ok(Some((at, all[at].lease_on(carrier, place, true))));
                }
            },
        };
        match Self::open(all, place.with(of_upstream), (connect, Needs::Nothing)).await {
            Ok((at, opened)) => {
                if matches!(opened, Opened::Exclusive(_)) {
                    opening.found_http1();
                    return Ok(Some((at, all[at].lease_opened(opened).await?)));
                }
                // Those that wait look for a place only after this.
                let leased = all[at].lease_opened(opened).await?;
                drop(opening);
                Ok(Some((at, leased)))
            }
            Err(why) => {
                opening.fail(why);
                Err(why)
            }
        }
    }

    /// Whether a connection to this server may be one that requests share.
    fn may_share(&self) -> bool {
        match self.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Auto => self.dialer.has_tls(),
        }
    }

    /// A lease of what was opened for it.
    async fn lease_opened(self: &Rc<Self>, opened: Opened) -> Result<Lease, NoLease> {
        match opened {
            Opened::Exclusive(open) => Ok(Lease { open, is_reused: false, request: InFlight::begin(self) }),
            Opened::Shared(carrier) => {
                carrier.requests_left.set(carrier.requests_left.get() - 1);
                // First: it has the first place.
                let connection = Connection::on(&carrier.shared);
                self.sharing.add(&carrier);
                let place = self.room.budget.place().await.ok_or(NoLease::Crowded)?;
                let open = Open { connection, until: None, requests_left: 1, place, carrier: Some(carrier) };
                Ok(Lease { open, is_reused: false, request: InFlight::begin(self) })
            }
        }
    }

    pub(super) fn lease_on(self: &Rc<Self>, carrier: Rc<Carrier>, place: Place, is_reused: bool) -> Lease {
        let connection = Connection::on(&carrier.shared);
        let open = Open { connection, until: None, requests_left: 1, place, carrier: Some(carrier) };
        Lease { open, is_reused, request: InFlight::begin(self) }
    }

    /// Opens a connection beside the requests.
    ///
    /// # Errors
    /// See [`Dialer::dial`](crate::upstream::dial::Dialer::dial).
    pub(in crate::upstream) async fn connect(&self, within: Duration) -> Result<Connection, Unopened> {
        Ok(match self.connection_over(self.reach(within).await, Needs::Nothing).await? {
            Spoken::Http1(connection) => connection,
            Spoken::Http2(shared) => Connection::on(&shared),
        })
    }

    /// Opens a connection to one of these servers. See [`Self::lease_new`].
    async fn open(
        all: &[&Rc<Self>],
        place: Place,
        (within, needs): (Duration, Needs),
    ) -> Result<(usize, Opened), NoLease> {
        let first = all[0];
        let dialers: Vec<_> = all.iter().map(|pool| &pool.dialer).collect();
        let Dialled { stream, at, failed, overtaken } =
            dial_any(&dialers, (within, needs), &first.room.budget.places()).await;
        let opened = all[at].connection_over(stream, needs).await;
        let now = first.clock.mono();
        for (at, error) in failed {
            all[at].note_connecting(Some(&error), now);
        }
        for at in overtaken {
            all[at].standing.note_overtaken(now);
        }
        let failure = opened.as_ref().err().map(|unopened| unopened as &dyn fmt::Display);
        all[at].note_connecting(failure, now);
        let connection = opened.map_err(|unopened| match unopened {
            Unopened::Connect(_) => NoLease::Unreachable,
            Unopened::Tls(_) => NoLease::NoTls,
        })?;
        let until = first.life.age_of_one().map(|age| now + age);
        let requests_left = first.life.requests_of_one();
        let opened = match connection {
            Spoken::Http1(connection) => {
                Opened::Exclusive(Open { connection, until, requests_left, place, carrier: None })
            }
            Spoken::Http2(shared) => Opened::Shared(Rc::new(Carrier {
                shared,
                until,
                requests_left: Cell::new(requests_left),
                unused_since: Cell::new(now),
                place,
            })),
        };
        Ok((at, opened))
    }

    /// Begins on a stream what the server speaks.
    async fn connection_over(
        &self,
        stream: Result<Stream, Unopened>,
        needs: Needs,
    ) -> Result<Spoken, Unopened> {
        let stream = stream?;
        let has_agreed = stream.has_agreed_on_http2();
        let is_http2 = match (self.protocol, needs) {
            (Protocol::Http1, _) | (_, Needs::Http1) => false,
            (Protocol::Auto, _) => has_agreed == Some(true),
            (Protocol::Http2, _) if has_agreed == Some(false) => {
                let text = "it does not agree on HTTP/2 (ALPN), which protocol = \"http2\" asks for; write \"auto\" or \"http1\"";
                return Err(Unopened::Tls(text.into()));
            }
            (Protocol::Http2, _) => true,
        };
        let connection = if is_http2 {
            Shared::open(stream, self.silence, self.sharing.changed()).await.map(Spoken::Http2)
        } else {
            // What follows the stream waits for nothing.
            Connection::open(stream).await.map(Spoken::Http1)
        };
        connection.map_err(Unopened::Connect)
    }
}
