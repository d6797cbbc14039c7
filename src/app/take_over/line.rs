//! The connection between the old process and the new one: messages of bounded length, and descriptors beside them.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::protocol::{LONGEST, Message, SOCKETS};

/// One side of the connection. A message is its length in four bytes, and JSON. Descriptors come with the length.
#[derive(Debug)]
pub(super) struct Line {
    stream: UnixStream,
}

impl Line {
    pub(super) const fn over(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Whether the other side is of the same user, or root. The system says who it is.
    pub(super) fn is_of_own_user(&self) -> io::Result<bool> {
        let other = socket_peercred(&self.stream)?.uid;
        Ok(other == geteuid() || other.is_root())
    }

    /// # Errors
    /// When the other side is gone, or does not take it in time.
    pub(super) fn send(&self, message: &Message, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_be_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        self.stream.set_write_timeout(Some(super::protocol::STEP))?;
        let first = [IoSlice::new(&length)];
        let sent = retry_on_intr(|| sendmsg(&self.stream, &first, &mut beside, SendFlags::NOSIGNAL))?;
        (&self.stream).write_all(&length[sent..])?;
        (&self.stream).write_all(&text)
    }

    /// Who is on the other side, as the system says: the ids of its user and of its process.
    pub(super) fn other(&self) -> io::Result<(u32, i32)> {
        let other = socket_peercred(&self.stream)?;
        Ok((other.uid.as_raw(), other.pid.as_raw_nonzero().get()))
    }

    /// The next message, with its descriptors.
    ///
    /// # Errors
    /// When the other side is gone, says what is no message, or says nothing for so long.
    pub(super) fn receive(&self, within: Duration) -> io::Result<(Message, Vec<OwnedFd>)> {
        self.stream.set_read_timeout(Some(within))?;
        let mut length = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut length)];
        // Where there is a time limit, a signal or a pause of this process interrupts it (signal(7)). Nobody has died then.
        let receive = || recvmsg(&self.stream, &mut into, &mut beside, RecvFlags::CMSG_CLOEXEC);
        let read = retry_on_intr(receive)?.bytes;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut sockets = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors);
            }
        }
        (&self.stream).read_exact(&mut length[read..])?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = vec![0; length];
        (&self.stream).read_exact(&mut text)?;
        Ok((serde_json::from_slice(&text)?, sockets))
    }

    /// Whether the other side has gone, or said something out of turn.
    pub(super) fn is_broken(&self) -> bool {
        let mut byte = [0];
        self.stream.set_nonblocking(true).is_err()
            || !matches!((&self.stream).read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            || self.stream.set_nonblocking(false).is_err()
    }

    /// Ends the process on the other side, if it still lives.
    pub(super) fn end_other(&self) {
        let other = socket_peercred(&self.stream).ok().map(|other| other.pid);
        if let Some(other) = other.filter(|other| *other != Pid::INIT && !self.is_broken()) {
            let _ = kill_process(other, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;
    use crate::app::take_over::protocol::{Passed, StoreKind, VERSION};

    const AT_ONCE: Duration = Duration::from_secs(20);

    fn pair() -> (Line, Line) {
        let (one, other) = UnixStream::pair().unwrap();
        (Line::over(one), Line::over(other))
    }

    #[test]
    fn a_socket_arrives_beside_its_message() {
        let (one, other) = pair();
        assert!(one.is_of_own_user().unwrap());
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let message =
            Message::Sockets { sockets: vec![Passed { name: "server".to_owned(), is_kept: false }] };
        one.send(&message, &[socket.as_fd()]).unwrap();
        let (came, mut sockets) = other.receive(AT_ONCE).unwrap();
        assert_eq!((&came, sockets.len()), (&message, 1));
        let arrived = TcpListener::from(sockets.remove(0));
        assert_eq!(arrived.local_addr().unwrap(), socket.local_addr().unwrap());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for bytes in [&b"\0\0\0\x02{}"[..], b"\xff\xff\xff\xff", b"\0\0\0\x04nope", b"\0\0\0\x10{"] {
            let (one, other) = pair();
            (&one.stream).write_all(bytes).unwrap();
            drop(one);
            assert!(other.receive(AT_ONCE).is_err(), "{bytes:?}");
        }
        let (one, other) = pair();
        assert!(!other.is_broken());
        drop(one);
        assert!(other.is_broken());
        assert!(other.receive(AT_ONCE).is_err());
    }

    #[test]
    fn silence_ends_after_its_time() {
        let (one, other) = pair();
        assert!(other.receive(Duration::from_millis(1)).is_err());
        one.send(&Message::Ask { version: VERSION, store: StoreKind::Redis }, &[]).unwrap();
        assert!(other.receive(AT_ONCE).is_ok());
    }
}
