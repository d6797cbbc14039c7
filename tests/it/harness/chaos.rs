//! A bad network: a TCP proxy that carries everything until it is told otherwise.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Fair,
    /// Connections are accepted and nothing is carried, in neither direction. What was sent meanwhile arrives
    /// afterwards.
    Stalled,
    /// Connections break, and new ones too.
    Cut,
    /// Everything takes this much longer, one way.
    Slow(Duration),
    /// Of the next answer half arrives; then the connection breaks. New ones do the same.
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
    /// In front of `server`.
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

    /// The weather, once it lets anything through.
    fn wait(&self) -> Weather {
        let weather = self.weather.lock().unwrap();
        *self.changed.wait_while(weather, |weather| *weather == Weather::Stalled).unwrap()
    }
}

fn carry_both(client: TcpStream, server: TcpStream, sky: &Arc<Sky>) {
    let ends = [&client, &server];
    for end in ends {
        end.set_nodelay(true).unwrap();
        sky.streams.lock().unwrap().push(end.try_clone().unwrap());
    }
    let questions = (client.try_clone().unwrap(), server.try_clone().unwrap());
    for ((from, to), answers) in [(questions, false), ((server, client), true)] {
        let sky = Arc::clone(sky);
        thread::spawn(move || carry(from, to, &sky, answers));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, sky: &Sky, answers: bool) {
    let mut part = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut part) {
        let bytes = match sky.wait() {
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
