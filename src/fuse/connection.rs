//! The kernel's side of a mount, as far as one can ask whether there still is one.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The connection of one mount.
#[derive(Debug, Clone)]
pub(super) struct Connection(Arc<OwnedFd>);

impl Connection {
    /// The one behind `device`, an open `/dev/fuse`.
    pub(super) fn of(device: BorrowedFd<'_>) -> std::io::Result<Self> {
        Ok(Self(Arc::new(device.try_clone_to_owned()?)))
    }

    /// Whether the mount is there, in sight or not. One that was aborted (`/sys/fs/fuse/connections`) is not.
    ///
    /// Of a connection that has ended the kernel reports an error on the device, as libfuse's `fuse_kern_unmount` asks too.
    pub(super) fn is_alive(&self) -> bool {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut device = [PollFd::new(&*self.0, PollFlags::empty())];
        loop {
            match poll(&mut device, Some(&AT_ONCE)) {
                Err(Errno::INTR) => {}
                Ok(_) => return device.iter().all(|polled| !polled.revents().contains(PollFlags::ERR)),
                // Without an answer the table of mounts decides.
                Err(_) => return true,
            }
        }
    }
}
