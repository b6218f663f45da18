//! The body of an answer: whole, or cut in the middle.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::webhook::Cut;

pub(super) struct Body {
    rest: Bytes,
    /// What the head promises and has not been handed out. More than `rest` when the body is to be cut.
    promised: u64,
    cut: Option<Cut>,
    /// The half is on its way to the socket: the next poll cuts.
    is_flushed: bool,
}

impl Body {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self {
            promised: bytes.len() as u64,
            rest: bytes,
            cut: None,
            is_flushed: false,
        }
    }

    /// The same length promised, half of it delivered.
    pub(super) fn halved(mut self, cut: Cut) -> Self {
        self.rest.truncate(self.rest.len() / 2);
        self.cut = Some(cut);
        self
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.promised -= rest.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(rest))));
        }
        match self.cut {
            None => Poll::Ready(None),
            // hyper drops what it has buffered when a body fails, and writes it out when a body isn't ready.
            Some(_) if !self.is_flushed => {
                self.is_flushed = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(cut) => Poll::Ready(Some(Err(cut))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.promised == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised)
    }
}
