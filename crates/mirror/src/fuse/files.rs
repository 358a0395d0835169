//! The file system: a directory with one file.

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tokio::sync::RwLock;

use crate::device::{Device, IoRefusal};

const ROOT: INodeNo = INodeNo(1);
const FILE: INodeNo = INodeNo(2);
/// Bytes of the largest request; more than the kernel asks for by default.
const MAX_WRITE: u32 = 1 << 20;
/// The kernel asks each time: a disk may have grown.
const TTL: Duration = Duration::ZERO;

/// Whether the disk may still be asked.
#[derive(Debug)]
pub(super) struct Gate {
    closed: AtomicBool,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { closed: AtomicBool::new(false) })
    }

    /// No request that comes from now on reaches the disk.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), Errno> {
        if self.closed.load(Ordering::SeqCst) { Err(Errno::ESHUTDOWN) } else { Ok(()) }
    }
}

/// The file's device, as requests of the kernel use it.
struct Disk {
    device: Arc<dyn Device>,
    gate: Arc<Gate>,
    /// Writes of whole blocks share this; a write of parts of blocks, which reads them first, has it alone.
    parts: RwLock<()>,
}

/// The file system.
pub(super) struct DiskFile {
    name: OsString,
    disk: Arc<Disk>,
    runtime: Handle,
    mounted: SystemTime,
}

impl DiskFile {
    pub fn new(name: OsString, device: Arc<dyn Device>, runtime: Handle, gate: Arc<Gate>) -> Self {
        let disk = Arc::new(Disk { device, gate, parts: RwLock::new(()) });
        Self { name, disk, runtime, mounted: SystemTime::now() }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size, perm, nlink) = match inode {
            ROOT => (FileType::Directory, 0, 0o700, 2),
            FILE => (FileType::RegularFile, self.disk.device.size(), 0o600, 1),
            _ => return None,
        };
        let time = self.mounted;
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn reply_attributes(&self, inode: INodeNo, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Runs a request beside others; the reply is sent when it has ended.
    fn start<F, W>(&self, work: W)
    where
        W: FnOnce(Arc<Disk>) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        self.runtime.spawn(work(self.disk.clone()));
    }

    fn flush_to(&self, reply: ReplyEmpty) {
        self.start(|disk| async move {
            match disk.flush().await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            }
        });
    }
}

impl Filesystem for DiskFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The nearest allowed is taken where this is not.
        if let Err(nearest) = config.set_max_write(MAX_WRITE) {
            let _ = config.set_max_write(nearest);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attributes) if parent == ROOT && name == self.name => reply.entry(&TTL, &attributes, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.reply_attributes(inode, reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // A disk keeps its size. Programs that would cut a file before they write it get what they get of a device:
        // nothing happens. Who wants more than there is has to know.
        if size.is_some_and(|size| size > self.disk.device.size()) {
            return reply.error(Errno::EFBIG);
        }
        self.reply_attributes(inode, reply);
    }

    fn open(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match inode {
            // Past the page cache: what is written here is read elsewhere, and the other way round.
            FILE => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES),
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.start(|disk| async move {
            match disk.read(offset, size).await {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(error),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = flags.0 & (libc::O_DSYNC | libc::O_SYNC) != 0;
        let data = Bytes::copy_from_slice(data);
        self.start(|disk| async move {
            match disk.write(offset, data, durable).await {
                Ok(written) => reply.written(written),
                Err(error) => reply.error(error),
            }
        });
    }

    /// Called at each close. A script that writes and closes, and never heard of fsync, is done when it is done.
    fn flush(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.flush_to(reply);
    }

    fn fsync(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        self.flush_to(reply);
    }

    fn fsyncdir(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // Whoever makes a hole in a file counts on zeroes there, and mkfs leaves them unwritten: a trim, which may be
        // ignored, is not enough.
        let may_unmap = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => true,
            libc::FALLOC_FL_ZERO_RANGE => false,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        self.start(|disk| async move {
            match disk.zero(offset, length, may_unmap).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            }
        });
    }

    fn readdir(&self, _request: &Request, inode: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if inode != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (ROOT, FileType::Directory, OsStr::new(".")),
            (ROOT, FileType::Directory, OsStr::new("..")),
            (FILE, FileType::RegularFile, &self.name),
        ];
        for (next, (inode, kind, name)) in (1..).zip(entries).skip(offset as usize) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let blocks = self.disk.device.size().div_ceil(4096);
        reply.statfs(blocks, 0, 0, 1, 0, 4096, 255, 4096);
    }
}

impl Disk {
    /// What there is of the range; nothing behind the end.
    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        self.gate.check()?;
        let len = u64::from(len).min(self.device.size().saturating_sub(offset));
        if len == 0 {
            return Ok(Bytes::new());
        }
        let outer = self.outer(offset..offset + len);
        let data = self.device.read(outer.start, (outer.end - outer.start) as u32).await.map_err(errno)?;
        let start = (offset - outer.start) as usize;
        // A device that answers with too little is no reason to panic.
        let inner = data.get(start..start + len as usize).ok_or(Errno::EIO)?;
        Ok(data.slice_ref(inner))
    }

    /// Writes what has room and answers how much that is.
    async fn write(&self, offset: u64, mut data: Bytes, durable: bool) -> Result<u32, Errno> {
        self.gate.check()?;
        let room = self.device.size().saturating_sub(offset);
        data.truncate(data.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        if data.is_empty() {
            return Err(Errno::ENOSPC);
        }
        let written = data.len() as u32;
        let range = offset..offset + u64::from(written);
        let outer = self.outer(range.clone());
        if outer == range {
            let _shared = self.parts.read().await;
            self.gate.check()?;
            self.device.write(offset, data, durable).await.map_err(errno)?;
            return Ok(written);
        }
        let _alone = self.parts.write().await;
        self.gate.check()?;
        let whole = self.device.read(outer.start, (outer.end - outer.start) as u32).await.map_err(errno)?;
        let mut whole = Vec::from(whole);
        let start = (offset - outer.start) as usize;
        whole.get_mut(start..start + data.len()).ok_or(Errno::EIO)?.copy_from_slice(&data);
        self.device.write(outer.start, whole.into(), durable).await.map_err(errno)?;
        Ok(written)
    }

    /// Makes the part of the range that is on the disk read as zeroes.
    async fn zero(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        let end = offset.saturating_add(len).min(self.device.size());
        if offset >= end {
            return Ok(());
        }
        // Parts of blocks at both ends are written; all between is asked for as one.
        let block = u64::from(self.device.block_size());
        let (first, last) = (offset.next_multiple_of(block), end - end % block);
        if first >= last {
            return self.write(offset, vec![0; (end - offset) as usize].into(), false).await.map(drop);
        }
        if offset < first {
            self.write(offset, vec![0; (first - offset) as usize].into(), false).await?;
        }
        if last < end {
            self.write(last, vec![0; (end - last) as usize].into(), false).await?;
        }
        let _shared = self.parts.read().await;
        self.gate.check()?;
        self.device.write_zeroes(first, last - first, false, may_unmap).await.map_err(errno)
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.gate.check()?;
        self.device.flush().await.map_err(errno)
    }

    /// The smallest range of whole blocks around another.
    fn outer(&self, range: Range<u64>) -> Range<u64> {
        let block = u64::from(self.device.block_size());
        range.start - range.start % block..range.end.next_multiple_of(block)
    }
}

fn errno(refusal: IoRefusal) -> Errno {
    Errno::from_i32(refusal.errno())
}
