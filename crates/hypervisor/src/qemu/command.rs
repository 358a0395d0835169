//! QEMU's command line.
//!
//! Devices have fixed places on the PCI bus, so that a guest finds its disks and interfaces under the same names when
//! another one was added or removed, and so that both ends of a migration agree.

use std::os::fd::RawFd;

use serde_json::{Value, json};

use crate::accel::AcceleratorKind;
use crate::machine::{Aio, Boot, DiskSource, DiskSpec, MachineSpec, NicModel, NicSpec, RebootBehavior};

/// The first PCI slot of network interfaces; [`MAX_NICS`](crate::MAX_NICS) follow.
const FIRST_NIC: usize = 0x03;
/// The first PCI slot of disks; [`MAX_DISKS`](crate::MAX_DISKS) follow.
const FIRST_DISK: usize = 0x0c;
/// The set of descriptors that holds the console's log; a disk's is its slot.
const CONSOLE_SET: usize = 1;

/// What the command line needs to know beyond the machine. Descriptors go by their numbers in the daemon.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub accelerator: AcceleratorKind,
    /// The versioned machine type.
    pub machine: String,
    /// Listening sockets for QMP.
    pub qmp: RawFd,
    pub qmp2: RawFd,
    /// The console's listening socket and log, if the machine has a console.
    pub serial: Option<(RawFd, RawFd)>,
    /// What each disk is behind its descriptor; in the order of the machine's disks.
    pub disks: Vec<Backing>,
    /// The taps, in the order of the machine's interfaces.
    pub taps: Vec<RawFd>,
}

/// How the guest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// From its firmware or kernel.
    Boot,
    /// With the memory of a guest on another node.
    Incoming,
}

/// What is behind a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// An opened file.
    File(RawFd),
    /// An opened block device.
    Device(RawFd),
    /// Nothing that the daemon opens.
    Server,
}

/// The arguments that make the machine, paused.
pub(super) fn arguments(spec: &MachineSpec, begin: Begin, around: &Surroundings) -> Vec<String> {
    let mut line = Line(Vec::new());
    line.flag("-S");
    if begin == Begin::Incoming {
        line.option("-incoming", "defer");
    }
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-display", "none");
    line.option("-msg", "timestamp=on");
    line.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    line.option("-name", format!("guest={},debug-threads=on", spec.instance));
    if let Some(uuid) = &spec.uuid {
        line.option("-uuid", uuid);
    }
    processor(&mut line, spec, around);
    line.option("-rtc", "base=utc");
    line.option("-boot", "menu=off,strict=on");
    if spec.reboot == RebootBehavior::Exit {
        line.option("-action", "reboot=shutdown");
    }
    monitors(&mut line, around);
    boot(&mut line, &spec.boot);
    for (index, (disk, backing)) in spec.disks.iter().zip(&around.disks).enumerate() {
        add_disk(&mut line, disk, *backing, FIRST_DISK + index, boot_index(&spec.boot, &disk.id));
    }
    for (index, (nic, tap)) in spec.nics.iter().zip(&around.taps).enumerate() {
        add_nic(&mut line, nic, *tap, FIRST_NIC + index, boot_index(&spec.boot, &nic.id));
    }
    line.0.extend(spec.extra_args.iter().cloned());
    line.0
}

struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }
}

fn processor(line: &mut Line, spec: &MachineSpec, around: &Surroundings) {
    // A crash of QEMU must not write the guest's memory to the node's disk.
    let acpi = if spec.acpi { "" } else { ",acpi=off" };
    line.option("-machine", format!("{},usb=off,dump-guest-core=off{acpi}", around.machine));
    let (accel, best_cpu) = match around.accelerator {
        AcceleratorKind::Kvm => ("kvm", "host"),
        AcceleratorKind::Tcg => ("tcg,thread=multi", "max"),
    };
    line.option("-accel", accel);
    line.option("-cpu", spec.cpu_type.as_deref().unwrap_or(best_cpu));
    line.option("-smp", format!("cpus={}", spec.vcpus));
    line.option("-m", format!("size={}M", spec.memory_mib));
}

fn monitors(line: &mut Line, around: &Surroundings) {
    for (id, fd) in [("qmp", around.qmp), ("qmp2", around.qmp2)] {
        line.option("-chardev", format!("socket,id={id},fd={fd},server=on,wait=off"));
        line.option("-mon", format!("chardev={id},mode=control"));
    }
    if let Some((socket, log)) = around.serial {
        line.option("-add-fd", format!("set={CONSOLE_SET},fd={log},opaque=console-log"));
        line.option(
            "-chardev",
            format!("socket,id=serial,fd={socket},server=on,wait=off,logfile=/dev/fdset/{CONSOLE_SET},logappend=on"),
        );
        line.option("-serial", "chardev:serial");
    }
}

fn boot(line: &mut Line, boot: &Boot) {
    let Boot::Kernel { kernel, initrd, args } = boot else {
        return;
    };
    line.option("-kernel", kernel.to_string_lossy());
    if let Some(initrd) = initrd {
        line.option("-initrd", initrd.to_string_lossy());
    }
    line.option("-append", args);
}

/// `,bootindex=N` for a device that the firmware is to try.
fn boot_index(boot: &Boot, id: &str) -> String {
    let Boot::Disk { order } = boot else {
        return String::new();
    };
    let place = order.iter().position(|device| device == id);
    place.map_or_else(String::new, |place| format!(",bootindex={}", place + 1))
}

fn add_disk(line: &mut Line, disk: &DiskSpec, backing: Backing, slot: usize, boot_index: String) {
    let (source, direct) = match (&disk.source, backing) {
        (DiskSource::File { direct, aio, .. }, Backing::File(fd) | Backing::Device(fd)) => {
            line.option("-add-fd", format!("set={slot},fd={fd},opaque={}", disk.id));
            let driver = if matches!(backing, Backing::Device(_)) { "host_device" } else { "file" };
            let aio = match aio {
                Aio::Threads => "threads",
                Aio::Native => "native",
                Aio::IoUring => "io_uring",
            };
            let file = json!({"driver": driver, "filename": format!("/dev/fdset/{slot}"), "aio": aio});
            (file, *direct)
        }
        (DiskSource::Nbd { socket, export, reconnect_delay_s }, _) => {
            let server = json!({"type": "unix", "path": socket.to_string_lossy()});
            let nbd = json!({
                "driver": "nbd", "server": server, "export": export, "reconnect-delay": reconnect_delay_s,
            });
            // The server has the disk; a cache on this side would only copy.
            (nbd, true)
        }
        (DiskSource::File { .. }, Backing::Server) => return,
    };
    let node = |mut node: Value| {
        node["read-only"] = disk.read_only.into();
        node["cache"] = json!({"direct": direct, "no-flush": false});
        node["discard"] = "unmap".into();
        node
    };
    let mut raw = node(json!({"driver": "raw", "node-name": disk.id}));
    raw["file"] = node(source);
    line.option("-blockdev", raw.to_string());
    // A disk that fails stops the guest rather than telling it: nothing that was acknowledged turns into an error,
    // and the guest goes on when the disk is back.
    line.option(
        "-device",
        format!("virtio-blk-pci,id={0}-dev,drive={0},addr={slot:#04x},werror=stop,rerror=stop{boot_index}", disk.id),
    );
}

fn add_nic(line: &mut Line, nic: &NicSpec, tap: RawFd, slot: usize, boot_index: String) {
    let model = match nic.model {
        NicModel::Virtio => "virtio-net-pci",
        NicModel::E1000 => "e1000",
        NicModel::Rtl8139 => "rtl8139",
    };
    line.option("-netdev", format!("tap,id={},fd={tap}", nic.id));
    // The option ROM (network boot) is a package of its own; only who boots from the interface needs it.
    let rom = if boot_index.is_empty() { ",romfile=" } else { "" };
    line.option(
        "-device",
        format!("{model},id={0}-dev,netdev={0},mac={1},addr={slot:#04x}{rom}{boot_index}", nic.id, nic.mac),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::path::PathBuf;
    use std::sync::Arc;

    fn around() -> Surroundings {
        Surroundings {
            accelerator: AcceleratorKind::Tcg,
            machine: "pc-i440fx-10.0".into(),
            qmp: 10,
            qmp2: 11,
            serial: Some((12, 13)),
            disks: vec![],
            taps: vec![],
        }
    }

    fn lines(spec: &MachineSpec, around: &Surroundings) -> String {
        let text = arguments(spec, Begin::Boot, around).join(" ");
        text.replace(" -", "\n-")
    }

    fn nic(id: &str) -> NicSpec {
        NicSpec {
            id: id.into(),
            mac: "aa:00:00:fa:3a:3f".into(),
            tap: Arc::new(File::open("/dev/null").unwrap().into()),
            model: NicModel::Virtio,
        }
    }

    #[test]
    fn a_guest_with_kernel_disks_and_network() {
        let boot = Boot::Kernel {
            kernel: "/boot/vmlinuz".into(),
            initrd: Some("/boot/initrd".into()),
            args: "root=/dev/vda console=ttyS0".into(),
        };
        let file = DiskSource::File { path: "/srv/vm1.disk0".into(), direct: true, aio: Aio::Threads };
        let nbd = DiskSource::Nbd {
            socket: PathBuf::from("/run/a,b.sock"),
            export: "run-7".into(),
            reconnect_delay_s: 86400,
        };
        let spec = MachineSpec {
            disks: vec![
                DiskSpec { id: "disk0".into(), source: file, read_only: false },
                DiskSpec { id: "disk1".into(), source: nbd, read_only: true },
            ],
            nics: vec![nic("nic0")],
            ..MachineSpec::new("vm1", "r1", 256, 2, boot)
        };
        let around = Surroundings { disks: vec![Backing::File(14), Backing::Server], taps: vec![15], ..around() };
        let want = r#"
-S
-nodefaults
-no-user-config
-display none
-msg timestamp=on
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-name guest=vm1,debug-threads=on
-machine pc-i440fx-10.0,usb=off,dump-guest-core=off
-accel tcg,thread=multi
-cpu max
-smp cpus=2
-m size=256M
-rtc base=utc
-boot menu=off,strict=on
-chardev socket,id=qmp,fd=10,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev socket,id=qmp2,fd=11,server=on,wait=off
-mon chardev=qmp2,mode=control
-add-fd set=1,fd=13,opaque=console-log
-chardev socket,id=serial,fd=12,server=on,wait=off,logfile=/dev/fdset/1,logappend=on
-serial chardev:serial
-kernel /boot/vmlinuz
-initrd /boot/initrd
-append root=/dev/vda console=ttyS0
-add-fd set=12,fd=14,opaque=disk0
-blockdev {"cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"raw","file":{"aio":"threads","cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"file","filename":"/dev/fdset/12","read-only":false},"node-name":"disk0","read-only":false}
-device virtio-blk-pci,id=disk0-dev,drive=disk0,addr=0x0c,werror=stop,rerror=stop
-blockdev {"cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"raw","file":{"cache":{"direct":true,"no-flush":false},"discard":"unmap","driver":"nbd","export":"run-7","read-only":true,"reconnect-delay":86400,"server":{"path":"/run/a,b.sock","type":"unix"}},"node-name":"disk1","read-only":true}
-device virtio-blk-pci,id=disk1-dev,drive=disk1,addr=0x0d,werror=stop,rerror=stop
-netdev tap,id=nic0,fd=15
-device virtio-net-pci,id=nic0-dev,netdev=nic0,mac=aa:00:00:fa:3a:3f,addr=0x03,romfile="#;
        assert_eq!(lines(&spec, &around), want.trim_start());
    }

    #[test]
    fn what_differs_from_case_to_case() {
        let device = DiskSource::File { path: "/dev/vg/a".into(), direct: false, aio: Aio::Native };
        let spec = MachineSpec {
            acpi: false,
            cpu_type: Some("EPYC,-svm".into()),
            uuid: Some("3b1f".into()),
            reboot: RebootBehavior::Exit,
            disks: vec![DiskSpec { id: "disk0".into(), source: device, read_only: false }],
            nics: vec![nic("nic0"), nic("nic1")],
            extra_args: vec!["-device".into(), "virtio-rng-pci".into()],
            ..MachineSpec::new("vm1", "r1", 64, 1, Boot::Disk { order: vec!["nic1".into(), "disk0".into()] })
        };
        let around = Surroundings {
            accelerator: AcceleratorKind::Kvm,
            serial: None,
            disks: vec![Backing::Device(14)],
            taps: vec![15, 16],
            ..around()
        };
        let text = lines(&spec, &around);
        for part in [
            "-machine pc-i440fx-10.0,usb=off,dump-guest-core=off,acpi=off\n",
            "-accel kvm\n-cpu EPYC,-svm\n",
            "-uuid 3b1f\n",
            "-action reboot=shutdown\n",
            r#""aio":"native""#,
            r#""driver":"host_device""#,
            "addr=0x0c,werror=stop,rerror=stop,bootindex=2\n",
            "addr=0x03,romfile=\n",
            "addr=0x04,bootindex=1\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.ends_with("-device virtio-rng-pci"));
        assert!(!text.contains("serial") && !text.contains("-kernel"));
        // A migration's destination is the same machine, however it begins.
        let incoming = arguments(&spec, Begin::Incoming, &around).join(" ").replace(" -", "\n-");
        assert_eq!(incoming, text.replace("-S\n", "-S\n-incoming defer\n"));
    }
}
