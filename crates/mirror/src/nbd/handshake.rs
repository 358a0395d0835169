//! The fixed newstyle handshake: from the greeting until a client may send requests.

use std::io;
use std::time::Duration;

use bytes::BufMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::export::{Admission, Export, ExportTable};
use super::wire::{
    ClientOption, INFO_BLOCK_SIZE, INFO_EXPORT, MAX_PAYLOAD, Misbehaviour, OptionHead, ReplyForm, client_flags,
    greeting, option_reply, reply,
};

/// A client has this long to say what it wants. Waiting for an export to settle does not count.
const PATIENCE: Duration = Duration::from_secs(30);
/// What clients are told to prefer, in bytes.
const PREFERRED_BLOCK: u32 = 4096;

/// Why a connection ended before or in transmission.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the client breaks the protocol: {0}")]
    Misbehaviour(#[from] Misbehaviour),
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// A client that may send requests.
pub(super) struct Negotiated {
    pub admission: Admission,
    pub form: ReplyForm,
}

/// Leads a client through the handshake. `None` if it took its leave.
pub(super) async fn negotiate(
    stream: &mut UnixStream,
    exports: &ExportTable,
) -> Result<Option<Negotiated>, ConnectionError> {
    let mut handshake =
        Handshake { stream, deadline: Instant::now() + PATIENCE, form: ReplyForm::Simple, no_zeroes: false };
    handshake.send(&greeting()).await?;
    let mut flags = [0; 4];
    handshake.receive(&mut flags).await?;
    handshake.no_zeroes = client_flags(flags)?;
    loop {
        match handshake.option(exports).await? {
            Next::Option => {}
            Next::Leave => return Ok(None),
            Next::Transmission(admission) => {
                return Ok(Some(Negotiated { admission, form: handshake.form }));
            }
        }
    }
}

enum Next {
    Option,
    Leave,
    Transmission(Admission),
}

struct Handshake<'a> {
    stream: &'a mut UnixStream,
    deadline: Instant,
    form: ReplyForm,
    no_zeroes: bool,
}

impl Handshake<'_> {
    async fn option(&mut self, exports: &ExportTable) -> Result<Next, ConnectionError> {
        let mut head = [0; OptionHead::LEN];
        self.receive(&mut head).await?;
        let head = OptionHead::parse(&head)?;
        let mut data = vec![0; head.len as usize];
        self.receive(&mut data).await?;
        let mut out = Vec::new();
        match ClientOption::parse(head.code, &data) {
            ClientOption::ExportName(name) => return self.export_name(exports, &name).await,
            ClientOption::Abort => {
                option_reply(&mut out, head.code, reply::ACK, &[]);
                // The client may close without reading this.
                let _ = self.send(&out).await;
                return Ok(Next::Leave);
            }
            ClientOption::List => {
                for name in exports.names() {
                    let mut entry = Vec::with_capacity(4 + name.len());
                    entry.put_u32(name.len() as u32);
                    entry.put_slice(name.as_bytes());
                    option_reply(&mut out, head.code, reply::SERVER, &entry);
                }
                option_reply(&mut out, head.code, reply::ACK, &[]);
            }
            ClientOption::Info { name, block_size, go } => {
                let Some(export) = exports.find(&name) else {
                    option_reply(&mut out, head.code, reply::ERR_UNKNOWN, b"there is no export of this name");
                    self.send(&out).await?;
                    return Ok(Next::Option);
                };
                let admission = if go { self.admit(export.clone()).await? } else { None };
                if go && admission.is_none() {
                    option_reply(&mut out, head.code, reply::ERR_UNKNOWN, b"the export was taken away");
                } else {
                    self.describe(&mut out, head.code, &export, block_size);
                    option_reply(&mut out, head.code, reply::ACK, &[]);
                }
                self.send(&out).await?;
                return Ok(admission.map_or(Next::Option, Next::Transmission));
            }
            ClientOption::StructuredReply => {
                self.form = ReplyForm::Structured;
                option_reply(&mut out, head.code, reply::ACK, &[]);
            }
            ClientOption::Unknown => option_reply(&mut out, head.code, reply::ERR_UNSUP, &[]),
            ClientOption::Invalid => option_reply(&mut out, head.code, reply::ERR_INVALID, &[]),
        }
        self.send(&out).await?;
        Ok(Next::Option)
    }

    async fn export_name(&mut self, exports: &ExportTable, name: &str) -> Result<Next, ConnectionError> {
        let export = exports.find(name).ok_or(Misbehaviour::NoExport)?;
        let admission = self.admit(export).await?.ok_or(Misbehaviour::NoExport)?;
        let mut out = Vec::with_capacity(10 + 124);
        out.put_u64(admission.export().device.size());
        out.put_u16(admission.export().flags(self.structured()));
        if !self.no_zeroes {
            out.put_bytes(0, 124);
        }
        self.send(&out).await?;
        Ok(Next::Transmission(admission))
    }

    /// Waits for a place in the export, for as long as the client does.
    async fn admit(&mut self, export: std::sync::Arc<Export>) -> Result<Option<Admission>, ConnectionError> {
        let admission = tokio::select! {
            admission = export.admit() => admission,
            () = closed(self.stream) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        };
        self.deadline = Instant::now() + PATIENCE;
        Ok(admission)
    }

    fn describe(&self, out: &mut Vec<u8>, option: u32, export: &Export, block_size: bool) {
        let mut info = Vec::with_capacity(14);
        info.put_u16(INFO_EXPORT);
        info.put_u64(export.device.size());
        info.put_u16(export.flags(self.structured()));
        option_reply(out, option, reply::INFO, &info);
        if block_size {
            info.clear();
            let block = export.device.block_size();
            info.put_u16(INFO_BLOCK_SIZE);
            info.put_u32(block);
            info.put_u32(block.max(PREFERRED_BLOCK));
            info.put_u32(MAX_PAYLOAD);
            option_reply(out, option, reply::INFO, &info);
        }
    }

    fn structured(&self) -> bool {
        self.form == ReplyForm::Structured
    }

    async fn receive(&mut self, into: &mut [u8]) -> Result<(), ConnectionError> {
        match timeout_at(self.deadline, self.stream.read_exact(into)).await {
            Ok(result) => Ok(result.map(drop)?),
            Err(_) => Err(Misbehaviour::Slow.into()),
        }
    }

    async fn send(&mut self, data: &[u8]) -> Result<(), ConnectionError> {
        match timeout_at(self.deadline, self.stream.write_all(data)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Misbehaviour::Slow.into()),
        }
    }
}

/// Waits until the other side closed, without reading what it may have sent before.
async fn closed(stream: &UnixStream) {
    super::transmission::read_closed(|interest| stream.ready(interest)).await;
}
