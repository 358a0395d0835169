//! An alarm by the clock of leases.
#![allow(unsafe_code)] // tokio wants a promise to watch a descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use ha::Now;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

/// Goes off at a time by `CLOCK_BOOTTIME`; at once when the machine wakes from a sleep that outlasted it, which the
/// runtime's own timers do not.
pub(super) struct Alarm(AsyncFd<Fd>);

struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        // SAFETY: the timer gives the same descriptor for its whole life, and keeps it open.
        Ok(Self(unsafe { AsyncFd::register(Fd(timer)) }?))
    }

    /// Returns at that time. Cancelling it does no harm.
    pub async fn at(&self, when: Now) -> io::Result<()> {
        // Zero would switch it off.
        let when = when.max(Now::from_nanos(1));
        let timer = &self.0.get_ref().0;
        timer.set(Expiration::OneShot(TimeSpec::from(when)), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        loop {
            let mut guard = self.0.readable().await?;
            // What went off before it was set anew counts for nothing: setting it forgets that.
            let read = guard.try_io(|fd| {
                let mut count = [0u8; 8];
                nix::unistd::read(fd.get_ref().0.as_fd(), &mut count).map(drop).map_err(io::Error::from)
            });
            match read {
                Ok(result) => return result,
                Err(_would_block) => continue,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::boottime;
    use std::time::Duration;

    #[tokio::test]
    async fn it_goes_off_at_the_time_and_not_before() {
        let alarm = Alarm::new().unwrap();
        let when = boottime() + Duration::from_millis(30);
        alarm.at(when).await.unwrap();
        assert!(boottime() >= when);
        alarm.at(Now::ZERO).await.unwrap();
        // Set anew after it went off unread.
        let soon = boottime() + Duration::from_millis(1);
        let never = tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>());
        tokio::select! { biased; _ = never => {}, _ = async { let _ = alarm.at(soon).await; std::future::pending::<()>().await } => {} }
        let when = boottime() + Duration::from_millis(30);
        alarm.at(when).await.unwrap();
        assert!(boottime() >= when);
    }
}
