//! Network namespaces that leave no trace: none is given a name under `/run/netns`, each lives as long as a
//! process in it or a [`NetNs`] that refers to it.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Error, Netlink};

/// A reference to a network namespace. It keeps the namespace alive.
#[derive(Debug)]
pub struct NetNs(File);

impl NetNs {
    /// Makes a new, empty namespace: only a loopback interface, which is down. Needs root.
    pub fn create() -> Result<NetNs, Error> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            File::open("/proc/thread-self/ns/net")
        })
        .map(NetNs)
        .map_err(Error::namespace("create"))
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<NetNs, Error> {
        File::open("/proc/thread-self/ns/net").map(NetNs).map_err(Error::namespace("open"))
    }

    /// The namespace that a process is in.
    pub fn of_process(pid: i32) -> Result<NetNs, Error> {
        File::open(format!("/proc/{pid}/ns/net")).map(NetNs).map_err(Error::namespace("open"))
    }

    /// The descriptor, for `setns` and for netlink.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it. What `work` opens there
    /// (sockets) stays in the namespace.
    pub fn run<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send,
        F: FnOnce() -> T + Send,
    {
        in_thread(|| {
            setns(self.fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            Ok(work())
        })
        .map_err(Error::namespace("enter"))
    }

    /// Runs asynchronous work inside the namespace, with a netlink connection to it, and waits for it. It has a
    /// small runtime of its own, which ends with it.
    pub fn configure<T, F, Fut>(&self, work: F) -> Result<T, Error>
    where
        T: Send,
        F: FnOnce(Netlink) -> Fut + Send,
        Fut: Future<Output = Result<T, Error>>,
    {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(Error::namespace("work in"))?;
            runtime.block_on(async { work(Netlink::open()?).await })
        })?
    }
}

/// Namespaces belong to threads: one that has entered another namespace must never be used for anything else,
/// so each visit gets a thread that ends with it.
fn in_thread<T, F>(work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
