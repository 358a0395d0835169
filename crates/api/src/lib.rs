//! The daemon's API over HTTP.
//!
//! [`router`] has the routes; who asks is decided before, where the connection comes in, and travels with the request as a
//! [`Caller`]. [`serve_socket`] serves them on a unix socket, where the kernel says who the caller is.
//!
//! | route | for |
//! |---|---|
//! | `POST` [`CALL_PATH`](opcodes::wire::CALL_PATH) | a [`Request`](opcodes::wire::Request); the reply is JSON, or a [`Failure`](opcodes::Failure) with a status of 400 or more |
//! | `POST` [`CONSOLE_PATH`](opcodes::wire::CONSOLE_PATH)`/{instance}` | a console: after status 101 the connection carries the guest's bytes, until either side ends it |
//! | `GET` [`STATUS_PATH`] | what this node is, for probes and for people with `curl` |

mod access;
mod refusal;
mod routes;
mod socket;

pub use access::Caller;
pub use routes::{BODY_LIMIT, STATUS_PATH, router};
pub use socket::{ApiError, GROUP, Server, serve_socket};
