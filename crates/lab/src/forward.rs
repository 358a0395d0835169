//! From the machine into a node: the lab's networks can't be reached from outside, so a port of a node is
//! offered on 127.0.0.1.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use network::netns::NetNs;
use nix::sys::socket::{self, shutdown};

use crate::{Error, Node};

/// A TCP port of a node, reachable from the machine until this is dropped. Connections that are open then go on.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    /// Offers `port` of `node`'s public address on 127.0.0.1:`local`; 0 for `local` lets the system choose.
    pub fn start(node: &Node, port: u16, local: u16) -> Result<Forward, Error> {
        let what = format!("forward to port {port}");
        let failed = |error| Error::exec(&node.name, &what)(error);
        let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, local)).map_err(failed)?);
        let address = listener.local_addr().map_err(failed)?;
        let (node, accept) = (node.clone(), Arc::clone(&listener));
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accept.accept() {
                let node = node.clone();
                // A node that is down closes the connection, as a machine that is there but does not serve would.
                thread::spawn(move || connect(&node, port).and_then(|to| copy_both(stream, to)));
            }
        });
        Ok(Forward { address, listener, thread: Some(thread) })
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forwards until the process ends.
    pub fn serve(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Makes the thread's `accept` return.
        let _ = shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Connects from inside the node's network namespace, in which the socket stays.
fn connect(node: &Node, port: u16) -> io::Result<TcpStream> {
    let namespace: NetNs = node.network().map_err(io::Error::other)?;
    namespace.run(|| TcpStream::connect((node.address, port))).map_err(io::Error::other)?
}

fn copy_both(a: TcpStream, b: TcpStream) -> io::Result<()> {
    let (mut from_a, mut to_b) = (a.try_clone()?, b.try_clone()?);
    let there = thread::spawn(move || {
        let result = io::copy(&mut from_a, &mut to_b);
        let _ = to_b.shutdown(Shutdown::Write);
        result
    });
    let (mut from_b, mut to_a) = (b, a);
    let result = io::copy(&mut from_b, &mut to_a);
    let _ = to_a.shutdown(Shutdown::Write);
    let _ = there.join();
    result.map(|_| ())
}
