//! Which version of HTTP a client speaks on plain text: the first bytes say it.
//!
//! HTTP/2 with prior knowledge begins with 24 fixed bytes (RFC 9113, section 3.4), and no HTTP/1 request begins
//! with them. Only as many bytes as needed are read here, under the watchdog of the connection, and the next
//! reader of the stream gets them again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear whether this is HTTP/2. A client that closes without sending a byte counts as
/// HTTP/1.
///
/// # Errors
/// When the stream cannot be read.
pub(super) async fn is_http2<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Rewound<S>, bool)> {
    let mut seen = [0; PREFACE.len()];
    let mut length = 0;
    while length < PREFACE.len() && seen[..length] == PREFACE[..length] {
        match stream.read(&mut seen[length..]).await? {
            0 => break,
            n => length += n,
        }
    }
    let is_http2 = seen == *PREFACE;
    Ok((Rewound { stream, seen, given: 0, length }, is_http2))
}

impl<S> Rewound<S> {
    /// Whether a byte has come.
    pub(super) const fn has_begun(&self) -> bool {
        self.length > 0
    }
}

/// A stream that gives the bytes already read of it once more.
#[derive(Debug)]
pub(super) struct Rewound<S> {
    stream: S,
    seen: [u8; PREFACE.len()],
    given: usize,
    length: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given < self.length {
            let end = self.length.min(self.given + buf.remaining());
            buf.put_slice(&self.seen[self.given..end]);
            self.given = end;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    /// The protocol of a client whose bytes come one by one, and the bytes that are read after that.
    fn read(bytes: &[u8]) -> (bool, Vec<u8>) {
        block_on(async {
            let slow = bytes
                .chunks(1)
                .fold(Box::new(tokio::io::empty()) as Box<dyn AsyncRead + Unpin>, |before, byte| {
                    Box::new(before.chain(io::Cursor::new(byte.to_vec())))
                });
            let (mut rewound, is_http2) = is_http2(slow).await.unwrap();
            let mut all = Vec::new();
            rewound.read_to_end(&mut all).await.unwrap();
            (is_http2, all)
        })
    }

    #[test]
    fn only_the_whole_preface_is_http_2_and_no_byte_is_lost() {
        let with_more = [&PREFACE[..], b"and more"].concat();
        assert_eq!(read(&with_more), (true, with_more.clone()));
        assert_eq!(read(PREFACE), (true, PREFACE.to_vec()));
        for other in [
            &b""[..],
            b"P",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
            b"POST / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(read(other), (false, other.to_vec()));
        }
    }
}
