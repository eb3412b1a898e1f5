//! Frames on a Unix socket, with at most one descriptor each.
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 4 | length of the document, big endian |
//! | 4 | length | the document |
//!
//! A descriptor (unix(7), `SCM_RIGHTS`) travels with the four bytes of the length. The receiver takes no other: whatever
//! more a peer passes on is closed, and the frame refused.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

const LENGTH_BYTES: usize = 4;

/// Sends a frame.
///
/// # Errors
/// When the socket fails, or the document is longer than a frame can be.
pub fn send(socket: &UnixStream, document: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let length = u32::try_from(document.len())
        .map_err(io::Error::other)?
        .to_be_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("there is no room for the descriptor"));
    }
    let sent = loop {
        match sendmsg(
            socket,
            &[IoSlice::new(&length)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    let mut socket = socket;
    socket.write_all(&length[sent..])?;
    socket.write_all(document)
}

/// Receives a frame of at most `bytes_max`; at its end `None`, where the peer has closed before it began.
///
/// # Errors
/// When the socket fails or ends within the frame, the frame is too long, or more than one descriptor came with it.
pub fn receive(socket: &UnixStream, bytes_max: usize) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut length = [0u8; LENGTH_BYTES];
    // Room for more than one, so that more are noticed; the kernel closes what has no room.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut descriptors = Vec::new();
    let mut done = 0;
    while done < LENGTH_BYTES {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut length[done..])];
        let received = match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        match received.bytes {
            0 if done == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > bytes_max {
        let text = format!("a document of {length} bytes, at most {bytes_max} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    if descriptors.len() > 1 {
        let text = format!("{} descriptors came with one document", descriptors.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut document = vec![0; length];
    let mut socket = socket;
    socket.read_exact(&mut document)?;
    Ok(Some((document, descriptors.pop())))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_document_and_its_descriptor_arrive() {
        let (one, two) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        send(&one, b"with", Some(file.as_fd())).unwrap();
        send(&one, b"", None).unwrap();
        drop(one);
        let (document, descriptor) = receive(&two, 4).unwrap().unwrap();
        assert_eq!(document, b"with");
        let received = std::fs::File::from(descriptor.unwrap());
        assert_eq!(received.metadata().unwrap().len(), 7);
        let (document, descriptor) = receive(&two, 4).unwrap().unwrap();
        assert!(document.is_empty() && descriptor.is_none());
        assert!(receive(&two, 4).unwrap().is_none());
    }

    #[test]
    fn documents_that_are_too_long_or_cut_are_refused() {
        for (bytes, expected) in [
            (&[0, 0, 0, 5, 1, 2, 3, 4, 5][..], io::ErrorKind::InvalidData),
            (&[0xff, 0xff, 0xff, 0xff], io::ErrorKind::InvalidData),
            (&[0, 0], io::ErrorKind::UnexpectedEof),
            (&[0, 0, 0, 4, 1], io::ErrorKind::UnexpectedEof),
        ] {
            let (mut one, two) = UnixStream::pair().unwrap();
            one.write_all(bytes).unwrap();
            drop(one);
            assert_eq!(receive(&two, 4).unwrap_err().kind(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn more_than_one_descriptor_is_refused() {
        let (one, two) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let both = [file.as_fd(), file.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&both)));
        sendmsg(
            &one,
            &[IoSlice::new(&[0, 0, 0, 0])],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .unwrap();
        assert!(receive(&two, 4).is_err());
    }
}
