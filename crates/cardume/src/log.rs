//! The log on standard error.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait to be written by [`Aside`]; what comes beyond that is lost.
const WAITING: usize = 1024;

/// How it is written.
#[derive(Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Begins the log.
pub fn begin<W>(format: LogFormat, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,openraft=off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Writes to standard error in a thread of its own: who logs never waits for a disk or a full pipe.
#[derive(Clone)]
pub struct Aside(SyncSender<Order>);

enum Order {
    Write(Vec<u8>),
    /// Answer when everything before is written.
    Answer(SyncSender<()>),
}

impl Aside {
    /// Starts the thread.
    pub fn new() -> Self {
        let (sender, orders) = sync_channel(WAITING);
        std::thread::spawn(|| write(orders));
        Self(sender)
    }

    /// Waits until what was said so far is written, but not for long.
    pub fn flush(&self) {
        let (answer, written) = sync_channel(1);
        if self.0.try_send(Order::Answer(answer)).is_ok() {
            // Whoever reads the log may be stuck.
            let _ = written.recv_timeout(std::time::Duration::from_secs(1));
        }
    }
}

fn write(orders: Receiver<Order>) {
    for order in orders {
        match order {
            // There is nobody to tell that it failed.
            Order::Write(line) => drop(io::stderr().write_all(&line)),
            Order::Answer(answer) => drop(answer.send(())),
        }
    }
}

impl Write for Aside {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Lost where too many wait.
        let _ = self.0.try_send(Order::Write(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Aside {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
