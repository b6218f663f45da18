//! When the kernel received something, however late the process that reads it gets to run.

use std::{io, os::fd::AsRawFd as _};

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{note_arrivals, receive_now};
#[cfg(target_os = "linux")]
pub use linux::{note_arrivals, receive_now};
use tokio::{io::Interest, net::TcpStream};

/// Reads what there is into a buffer, and tells when the last of it came, in nanoseconds since 1970.
pub async fn receive(socket: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<(usize, u64)> {
    loop {
        socket.readable().await?;
        match socket.try_io(Interest::READABLE, || receive_now(socket.as_raw_fd(), buffer)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io,
        mem::{self, MaybeUninit},
        os::fd::{AsRawFd, RawFd},
        ptr,
        time::{SystemTime, UNIX_EPOCH},
    };

    /// Has the kernel note when the bytes of these connections come; those that a listener accepts inherit it.
    pub fn note_arrivals(socket: &impl AsRawFd) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the option's value is an int, and its length is given.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TIMESTAMPNS,
                (&raw const on).cast(),
                mem::size_of_val(&on) as libc::socklen_t,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// For control messages; they are aligned as their headers are.
    #[repr(C)]
    union Control {
        header: libc::cmsghdr,
        bytes: [u8; 128],
    }

    pub fn receive_now(socket: RawFd, buffer: &mut Vec<u8>) -> io::Result<(usize, u64)> {
        let room = buffer.spare_capacity_mut();
        let mut into = libc::iovec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: room.len(),
        };
        let mut control = MaybeUninit::<Control>::uninit();
        // SAFETY: all zeros is a message without anything.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut into;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of::<Control>();
        // SAFETY: the message points at room of the lengths that it tells, which outlives the call.
        let read = unsafe { libc::recvmsg(socket, &raw mut message, 0) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel has written so many bytes right behind those that were there.
        unsafe { buffer.set_len(buffer.len() + read) };
        // SAFETY: the kernel has told how much of the control messages is there, and the macros stay within that.
        let at = unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            let is_time = !header.is_null()
                && (*header).cmsg_level == libc::SOL_SOCKET
                && (*header).cmsg_type == libc::SCM_TIMESTAMPNS;
            is_time.then(|| ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::timespec>()))
        };
        Ok((
            read,
            match at {
                Some(at) => at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64,
                // The kernel begins to note them a moment after it was asked to.
                None => SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_err(io::Error::other)?
                    .as_nanos() as u64,
            },
        ))
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use std::{
        io,
        os::fd::{AsRawFd, RawFd},
    };

    pub fn note_arrivals(_: &impl AsRawFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn receive_now(_: RawFd, _: &mut Vec<u8>) -> io::Result<(usize, u64)> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
