//! The demo upstream behind `keygate dev`: a small API on loopback that shows what keygate tells an upstream.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::vocabulary::key::Environment;

/// The upstream of one environment, bound to a free port.
#[derive(Debug)]
pub(super) struct Demo {
    environment: Environment,
    listener: TcpListener,
}

impl Demo {
    /// # Errors
    /// When loopback has no port left.
    pub(super) fn bind(environment: Environment) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self { environment, listener })
    }

    /// # Errors
    /// When the operating system cannot tell the address of the socket.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers requests for as long as the caller's runtime runs.
    ///
    /// # Errors
    /// When the runtime cannot watch one more socket.
    pub(super) fn start(self) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(move |request| async move {
                    Ok::<_, Infallible>(answer(self.environment, &request))
                });
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        Ok(())
    }
}

fn answer(environment: Environment, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    #[expect(clippy::disallowed_methods, reason = "a stand-in for an upstream, behind the guard")]
    let path: Vec<&str> = request.uri().path().trim_start_matches('/').split('/').collect();
    let (status, body) = match (request.method().as_str(), path.as_slice()) {
        ("GET", ["v1", "jobs"]) => (StatusCode::OK, list(&job(environment))),
        ("POST", ["v1", "jobs"]) => (StatusCode::CREATED, job(environment)),
        ("GET", ["v1", "jobs", _]) => (StatusCode::OK, job(environment)),
        ("GET", ["v1", "submissions"] | ["v1", "jobs", _, "submissions"]) => {
            (StatusCode::OK, list(&submission(environment)))
        }
        _ => (StatusCode::OK, seen(environment, request)),
    };
    let mut response = Response::new(Full::new(Bytes::from(format!("{body:#}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let name = HeaderName::from_static("x-demo-upstream");
    response.headers_mut().insert(name, HeaderValue::from_static(environment.as_str()));
    response
}

/// Scores in the sandbox are synthetic: always four stars.
fn submission(environment: Environment) -> Value {
    let stars = match environment {
        Environment::Live => 5,
        Environment::Test => 4,
    };
    json!({
        "object": "submission",
        "id": "sub_01JD3N0DEM0000000000000000",
        "environment": environment,
        "stars": stars,
    })
}

fn job(environment: Environment) -> Value {
    json!({
        "object": "job",
        "id": "job_01JD3N0DEM0000000000000000",
        "environment": environment,
        "title": "Film a minute of your street",
        "best_submission": submission(environment),
    })
}

fn list(only: &Value) -> Value {
    json!({ "object": "list", "data": [only], "has_more": false, "next_cursor": null })
}

/// The answer to every other request: what arrived. It shows what an upstream is told.
fn seen(environment: Environment, request: &Request<Incoming>) -> Value {
    let headers: serde_json::Map<String, Value> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    json!({
        "object": "demo.request",
        "environment": environment,
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "headers": headers,
    })
}
