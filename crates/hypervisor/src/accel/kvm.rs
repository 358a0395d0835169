//! A guest of a few bytes that counts down in 64-bit mode, timed.
#![allow(unsafe_code)] // Guest memory is lent to the kernel, and a stuck virtual CPU is interrupted by a signal.

use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

/// The device that everything goes through.
pub(super) const DEVICE: &str = "/dev/kvm";

/// Times round the loop of two instructions: 0.1 ms on hardware, 0.3 s where they are interpreted.
const LOOPS: u64 = 200_000;
/// `loop: dec rcx; jnz loop; hlt`
const CODE: [u8; 6] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4];

const PAGE: usize = 4096;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TEXT: u64 = 0x4000;
const PAGES: usize = 8;

/// Interrupts the virtual CPU. Blocked in its thread but for the time inside KVM_RUN, where it is the only one that
/// isn't: so it needs no handler and does nothing to anybody else, and no other signal disturbs the measurement.
const KICK: libc::c_int = libc::SIGUSR2;

/// Why the guest could not be timed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("can't be used: {0} failed ({1})")]
    Call(&'static str, kvm_ioctls::Error),
    #[error("ran a counting loop of {LOOPS} rounds to no end within {0:?}")]
    Stuck(Duration),
    #[error("ended a counting loop with {0} instead of a halt")]
    Exit(String),
    #[error("no thread could be started to try it")]
    NoThread,
}

/// Runs the guest in a thread of its own, so that nothing the kernel does can hold up the caller much longer than
/// `limit`.
pub(super) fn instructions_per_second(limit: Duration) -> Result<f64, ProbeError> {
    let (done, result) = mpsc::channel();
    let thread = thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(move || {
            // The caller may have given up waiting.
            let _ = done.send(run());
        })
        .map_err(|_| ProbeError::NoThread)?;
    if let Ok(outcome) = result.recv_timeout(limit) {
        return outcome;
    }
    // SAFETY: the thread was not joined, so its handle is valid even if it has ended. The signal is blocked there.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), KICK) };
    // What doesn't react to a signal either is left behind: one sleeping thread costs less than a hung daemon.
    let _ = result.recv_timeout(limit);
    Err(ProbeError::Stuck(limit))
}

#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; PAGE]);

fn run() -> Result<f64, ProbeError> {
    let call = |name| move |error| ProbeError::Call(name, error);
    block_signals();
    let kvm = Kvm::new().map_err(call("open"))?;
    let vm = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
    let mut memory = vec![Page([0; PAGE]); PAGES];
    let mut write = |at: u64, bytes: &[u8]| {
        memory[at as usize / PAGE].0[..bytes.len()].copy_from_slice(bytes);
    };
    // One 2 MiB page, mapped onto itself: present, writable; the last one large.
    write(PML4, &(PDPT | 0b11).to_le_bytes());
    write(PDPT, &(DIRECTORY | 0b11).to_le_bytes());
    write(DIRECTORY, &0b1000_0011_u64.to_le_bytes());
    write(TEXT, &CODE);
    let region = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: (PAGES * PAGE) as u64,
        userspace_addr: memory.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the pages are ours, aligned, and live until after the virtual machine, which is dropped before them.
    unsafe { vm.set_user_memory_region(region) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(call("KVM_CREATE_VCPU"))?;
    enter_long_mode(&vcpu)?;
    let_kick_through(&vcpu).map_err(call("KVM_SET_SIGNAL_MASK"))?;
    let start = Instant::now();
    let exit = vcpu.run().map(|exit| match exit {
        VcpuExit::Hlt => None,
        other => Some(format!("{other:?}")),
    });
    let took = start.elapsed();
    drop(vcpu);
    drop(vm);
    match exit.map_err(call("KVM_RUN"))? {
        None => Ok((2 * LOOPS) as f64 / took.as_secs_f64().max(1e-9)),
        Some(other) => Err(ProbeError::Exit(other)),
    }
}

/// Puts the virtual CPU where a 64-bit kernel would be, in front of the loop.
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), ProbeError> {
    let call = |name| move |error| ProbeError::Call(name, error);
    let mut sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    let flat = kvm_segment { base: 0, limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    // Accessed, readable code of 64 bits; accessed, writable data.
    sregs.cs = kvm_segment { selector: 8, type_: 11, l: 1, ..flat };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = PML4;
    sregs.cr4 = 1 << 5; // PAE
    sregs.cr0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1; // PG, WP, NE, ET, PE
    sregs.efer = 1 << 10 | 1 << 8; // LMA, LME
    vcpu.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: TEXT,
        rcx: LOOPS,
        rflags: 2, // the bit that is always set
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(call("KVM_SET_REGS"))
}

/// Blocks all signals in this thread.
fn block_signals() {
    // SAFETY: the set is initialised by sigfillset before it is used, and the mask is this thread's alone.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Unblocks the one signal while the guest runs: it ends KVM_RUN with EINTR and is blocked again before delivery.
fn let_kick_through(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    /// The kernel's `struct kvm_signal_mask` with its set of 64 signals.
    #[repr(C, packed)]
    struct Mask {
        len: u32,
        set: u64,
    }
    /// `_IOW(0xAE, 0x8b, struct kvm_signal_mask)`, whose size counts without the set.
    const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;
    let mask = Mask { len: 8, set: !(1 << (KICK - 1)) };
    // SAFETY: the kernel reads the header and the eight bytes that it announces, all of which are there.
    let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) };
    if done < 0 {
        return Err(kvm_ioctls::Error::last());
    }
    Ok(())
}
