//! Quotas, in Redis.

use std::time::Duration;

use super::{Inner, Redis};
use crate::store::quotas::{Admission, Quota, Quotas};
use crate::store::{StoreFault, StoreFuture};
use crate::vocabulary::clock::UnixMillis;

impl Quotas for Redis {
    fn admit(&self, quotas: Vec<Quota>, now: UnixMillis) -> StoreFuture<'_, Result<Admission, StoreFault>> {
        Box::pin(self.inner.admit(quotas, now))
    }
}

impl Inner {
    async fn admit(&self, quotas: Vec<Quota>, now: UnixMillis) -> Result<Admission, StoreFault> {
        let places = quotas.iter().map(|quota| self.names.quota(&quota.name));
        let call = self.writing(&self.scripts.admit, places).arg(now.0.to_string());
        let call = quotas.iter().fold(call, |call, quota| {
            call.arg(quota.limit.to_string()).arg(quota.window.as_millis().to_string())
        });
        let mut reply = self.ask(&call).await?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        self.check_age(status.as_deref(), &mut reply)?;
        let mut next = || reply.text().map_err(|error| self.fault(error));
        match status.as_deref() {
            Some("done") => Ok(Admission::Admitted),
            Some("used up") => {
                let wait = next()?.and_then(|wait| wait.parse().ok()).map(Duration::from_millis);
                let retry_after = wait.ok_or_else(|| self.fault("the wait for a quota does not read"))?;
                Ok(Admission::Refused { retry_after })
            }
            _ => Err(self.changed()),
        }
    }
}
