//! What a call's caller may do, where its request says with which collector.

use std::sync::Arc;

use tonic::{Extensions, Status};

use super::{
    authenticate::{Admission, Guard},
    status::{self, Forbidden},
};
use crate::{
    callers::{Caller, Share},
    limiter::Payer,
    method::Method,
};

/// What one call may do: everything, where no callers are configured.
pub(super) struct Access(Option<(Arc<Guard>, Arc<Caller>)>);

impl Access {
    /// Fails if there are callers and the call is of none of them: a call that came by another way than through the door.
    pub fn of(guard: Option<&Arc<Guard>>, extensions: &Extensions) -> Result<Self, Status> {
        let Some(guard) = guard else { return Ok(Self(None)) };
        let caller = extensions.get::<Arc<Caller>>().ok_or_else(status::unauthenticated)?;
        Ok(Self(Some((guard.clone(), caller.clone()))))
    }

    /// Whose part of the rate a call is paid from.
    pub fn payer(&self) -> Payer {
        match &self.0 {
            None => Payer::ANONYMOUS,
            Some((_, caller)) => {
                let share = caller.share.map(Share::fraction);
                Payer::new(caller.id.0, share, caller.all_shares)
            }
        }
    }

    pub fn may_use(&self, collector_id: &str) -> bool {
        self.0.as_ref().is_none_or(|(_, caller)| caller.may_use(collector_id))
    }

    /// May the caller use this collector? None at all (`""`) means all of them.
    pub fn collector(&self, method: Method, collector_id: &str) -> Result<(), Status> {
        match &self.0 {
            Some((guard, caller)) if !caller.may_use(collector_id) => {
                Err(guard.forbid(caller, method, Forbidden::Collector))
            }
            _ => Ok(()),
        }
    }
}

/// The same of a stream, whose caller may be taken away or narrowed while it is open.
pub(super) struct StreamAccess {
    access: Access,
    admission: Option<Admission>,
}

impl StreamAccess {
    pub fn of(guard: Option<&Arc<Guard>>, extensions: &Extensions) -> Result<Self, Status> {
        Ok(Self {
            access: Access::of(guard, extensions)?,
            admission: extensions.get::<Admission>().cloned(),
        })
    }

    /// Asks again who the caller is, if the callers' file has changed. An error ends the stream.
    pub fn renew(&mut self) -> Result<(), Status> {
        let (Some((guard, caller)), Some(admission)) = (&mut self.access.0, &mut self.admission) else {
            return Ok(());
        };
        if guard.has_changed(&admission.callers) {
            let (now, callers) = guard.caller(&admission.credentials)?;
            if !now.may_call(Method::StreamAdd) {
                return Err(guard.forbid(&now, Method::StreamAdd, Forbidden::Method));
            }
            *caller = now;
            admission.callers = callers;
        }
        Ok(())
    }

    /// Whose part of the rate an item is paid from.
    pub fn payer(&self) -> Payer {
        self.access.payer()
    }

    /// May it send an item with this collector? An error is this item's alone.
    pub fn collector(&self, collector_id: &str) -> Result<(), Status> {
        self.access.collector(Method::StreamAdd, collector_id)
    }
}
