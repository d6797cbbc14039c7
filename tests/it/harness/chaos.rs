//! A TCP proxy that a test can break: without a fault it carries everything.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// The fault of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Fair,
    /// Connections are accepted, and no bytes pass in either direction. Bytes sent meanwhile arrive
    /// afterwards.
    Stalled,
    /// The same, but only for connections that follow the events.
    Deaf,
    /// Connections are closed, and new ones too.
    Cut,
    /// All bytes are delayed by this time in each direction.
    Slow(Duration),
    /// Half of the next answer arrives, then the connection is closed; the same for new connections.
    HalfAnswers,
}

/// The proxy. It ends with the test's process; its connections end with it.
pub(crate) struct Chaos {
    address: SocketAddr,
    sky: Arc<Sky>,
}

struct Sky {
    weather: Mutex<Weather>,
    changed: Condvar,
    streams: Mutex<Vec<TcpStream>>,
}

impl Chaos {
    /// A proxy in front of `server`.
    pub(crate) fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, changed) = (Mutex::new(Weather::Fair), Condvar::new());
        let sky = Arc::new(Sky { weather, changed, streams: Mutex::default() });
        let above = Arc::clone(&sky);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if above.weather() == Weather::Cut {
                    continue;
                }
                let Ok(server) = TcpStream::connect(server) else { continue };
                carry_both(client, server, &above);
            }
        });
        Self { address, sky }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub(crate) fn turn(&self, weather: Weather) {
        *self.sky.weather.lock().unwrap() = weather;
        if weather == Weather::Cut {
            for stream in self.sky.streams.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        self.sky.changed.notify_all();
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.turn(Weather::Cut);
    }
}

impl Sky {
    fn weather(&self) -> Weather {
        *self.weather.lock().unwrap()
    }

    /// Waits until the fault lets bytes pass on a connection that `follows` the events or not, and returns it.
    fn wait(&self, follows: &AtomicBool) -> Weather {
        let stands = |weather: &mut Weather| match weather {
            Weather::Stalled => true,
            Weather::Deaf => follows.load(Ordering::SeqCst),
            _ => false,
        };
        *self.changed.wait_while(self.weather.lock().unwrap(), stands).unwrap()
    }
}

fn carry_both(client: TcpStream, server: TcpStream, sky: &Arc<Sky>) {
    let ends = [&client, &server];
    for end in ends {
        end.set_nodelay(true).unwrap();
        sky.streams.lock().unwrap().push(end.try_clone().unwrap());
    }
    let questions = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let follows = Arc::new(AtomicBool::new(false));
    for ((from, to), answers) in [(questions, false), ((server, client), true)] {
        let (sky, follows) = (Arc::clone(sky), Arc::clone(&follows));
        thread::spawn(move || carry(from, to, &sky, &follows, answers));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, sky: &Sky, follows: &AtomicBool, answers: bool) {
    let mut part = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut part) {
        if !answers && part[..n].windows(5).any(|word| word == b"XREAD") {
            follows.store(true, Ordering::SeqCst);
        }
        let bytes = match sky.wait(follows) {
            Weather::HalfAnswers if answers => &part[..n / 2],
            Weather::Slow(by) => {
                thread::sleep(by);
                &part[..n]
            }
            _ => &part[..n],
        };
        if to.write_all(bytes).is_err() || bytes.len() < n {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
