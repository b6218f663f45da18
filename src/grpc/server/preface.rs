//! What an HTTP/2 client says first (RFC 9113, section 3.4): a fixed text and a SETTINGS frame. hyper would wait for both
//! without end, so they are read before it gets the connection.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

const MAGIC: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const SETTINGS: u8 = 4;
/// What a peer may send in one frame as long as it was told nothing else.
const MAX_FRAME: usize = 16 * 1024;

/// Reads until both are complete: the same stream, all that was read to be read again. Fails at the first byte that is
/// something else.
pub async fn read<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<Rewound<S>> {
    let mut seen = Vec::with_capacity(128);
    loop {
        if stream.read_buf(&mut seen).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match length(&seen) {
            Some(Some(length)) if seen.len() >= length => {
                return Ok(Rewound {
                    stream,
                    seen: seen.into(),
                });
            }
            Some(_) => {}
            None => return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2")),
        }
    }
}

/// A stream whose first bytes come again.
pub struct Rewound<S> {
    stream: S,
    seen: Bytes,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.seen.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.seen.len().min(buf.remaining());
        buf.put_slice(&self.seen[..count]);
        self.seen.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The bytes of the whole preface, `Some(None)` if that can't be known yet; `None` if it is none.
fn length(seen: &[u8]) -> Option<Option<usize>> {
    let Some((magic, rest)) = seen.split_at_checked(MAGIC.len()) else {
        return MAGIC.starts_with(seen).then_some(None);
    };
    if magic != MAGIC {
        return None;
    }
    let Some(&[a, b, c, kind, flags, stream @ ..]) = rest.first_chunk::<FRAME_HEADER>() else {
        return Some(None);
    };
    let payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    let is_settings = kind == SETTINGS && flags == 0 && stream == [0; 4];
    (is_settings && payload <= MAX_FRAME).then_some(Some(MAGIC.len() + FRAME_HEADER + payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preface_is_the_magic_and_one_settings_frame() {
        let mut preface = MAGIC.to_vec();
        preface.extend([0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]);
        for seen in 0..MAGIC.len() + FRAME_HEADER {
            assert_eq!(length(&preface[..seen]), Some(None), "{seen}");
        }
        for seen in MAGIC.len() + FRAME_HEADER..=preface.len() {
            assert_eq!(length(&preface[..seen]), Some(Some(preface.len())), "{seen}");
        }
    }

    #[test]
    fn anything_else_is_known_by_its_first_wrong_byte() {
        for wrong in [&b"G"[..], b"PRI * HTTP/1", b"\x16\x03\x01"] {
            assert_eq!(length(wrong), None, "{wrong:?}");
        }
        // A PING, an acknowledgement, a stream's frame, and one that is too large.
        for header in [
            [0, 0, 8, 6, 0, 0, 0, 0, 0],
            [0, 0, 0, SETTINGS, 1, 0, 0, 0, 0],
            [0, 0, 0, SETTINGS, 0, 0, 0, 0, 1],
            [1, 0, 0, SETTINGS, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(length(&[&MAGIC[..], &header].concat()), None, "{header:?}");
        }
    }
}
