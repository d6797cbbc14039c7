//! A TCP proxy that makes a server distant.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The proxy. What is sent arrives as much later as it is told, in each direction; any number of bytes is on the way
/// meanwhile. It ends with the test's process.
pub(crate) struct Distance {
    address: SocketAddr,
    micros: Arc<AtomicU64>,
}

impl Distance {
    /// A proxy in front of `server`, which is near at first.
    pub(crate) fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let micros = Arc::<AtomicU64>::default();
        let told = Arc::clone(&micros);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(server) = TcpStream::connect(server) else { continue };
                let copies = (client.try_clone().unwrap(), server.try_clone().unwrap());
                carry(client, server, &told);
                carry(copies.1, copies.0, &told);
            }
        });
        Self { address, micros }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// From now on it takes this time in each direction.
    pub(crate) fn be(&self, one_way: Duration) {
        self.micros.store(u64::try_from(one_way.as_micros()).unwrap(), Ordering::SeqCst);
    }
}

type Parcel = (Instant, Vec<u8>);

fn carry(from: TcpStream, to: TcpStream, micros: &Arc<AtomicU64>) {
    to.set_nodelay(true).unwrap();
    let (sender, receiver) = channel();
    let micros = Arc::clone(micros);
    thread::spawn(move || take(from, &sender, &micros));
    thread::spawn(move || deliver(&receiver, to));
}

fn take(mut from: TcpStream, parcels: &Sender<Parcel>, micros: &AtomicU64) {
    let mut part = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut part) {
        let due = Instant::now() + Duration::from_micros(micros.load(Ordering::SeqCst));
        if parcels.send((due, part[..n].to_vec())).is_err() {
            return;
        }
    }
}

fn deliver(parcels: &Receiver<Parcel>, mut to: TcpStream) {
    for (due, bytes) in parcels {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
