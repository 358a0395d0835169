//! The OS definition that we ship, on real disks: with e2fsprogs, and with a real QEMU.
//!
//! `make guest` assembles the definition and the guests' kernel; without them these tests fail.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use images::{DiskEnv, Environment, NicEnv, System};
use model::DiskAccess;

const CACHE: &str = "/var/cache/cardume";

/// A guest that is not up after this long on the slowest machine never will be.
const BOOT_PATIENCE: Duration = Duration::from_secs(180);

/// A disk with the operating system on it.
struct Installed {
    dir: tempfile::TempDir,
    disk: PathBuf,
    system: System,
}

impl Installed {
    async fn new(size_mib: u64) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "OS scripts run as root: run the tests as root");
        let os = Path::new(CACHE).join("os");
        assert!(os.join("busybox").is_dir(), "{} is missing: make guest", os.join("busybox").display());
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        File::create(&disk).unwrap().set_len(size_mib << 20).unwrap();
        let system = images::find(&[os], "busybox+default").unwrap();
        let installed = Self { dir, disk, system };
        let environment = installed.environment("vm1.example.com", size_mib);
        images::verify(&installed.system, &environment).await.unwrap();
        let (log, lock) = (installed.dir.path().join("log"), installed.dir.path().join("lock"));
        images::create(&installed.system, &environment, &log, &lock).await.unwrap();
        installed
    }

    fn environment(&self, instance: &str, size_mib: u64) -> Environment {
        let nic = |mac: &str, ip: Option<&str>| NicEnv {
            mac: mac.into(),
            ip: ip.map(str::to_owned),
            mode: "bridged".into(),
            link: "br0".into(),
            vlan: None,
            uuid: "0d0c7d6e-0000-4000-8000-000000000002".into(),
            name: None,
            frontend: "paravirtual".into(),
        };
        Environment {
            instance: instance.into(),
            hypervisor: "kvm".into(),
            primary: "node01".into(),
            disks: vec![DiskEnv {
                path: self.disk.clone(),
                size_mib,
                uuid: "0d0c7d6e-0000-4000-8000-000000000001".into(),
                name: None,
                access: DiskAccess::Rw,
                frontend: "paravirtual".into(),
                backend: "file".into(),
            }],
            // What QEMU's own network gives to its first guest; and one without an address.
            nics: vec![nic("aa:00:00:00:00:01", Some("10.0.2.15")), nic("aa:00:00:00:00:02", None)],
            ..Environment::default()
        }
    }

    /// What debugfs answers to a request about the disk.
    fn debugfs(&self, request: &str) -> String {
        let output = Command::new("debugfs").arg("-R").arg(request).arg(&self.disk).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn assert_clean(&self) {
        let check = Command::new("e2fsck").arg("-fn").arg(&self.disk).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }
}

#[tokio::test]
async fn a_ten_gigabyte_disk_gets_a_clean_root_file_system_and_stays_sparse() {
    let installed = Installed::new(10 << 10).await;
    installed.assert_clean();
    let meta = fs::metadata(&installed.disk).unwrap();
    assert_eq!(meta.len(), 10 << 30);
    assert!(meta.blocks() * 512 < 32 << 20, "{} bytes are taken", meta.blocks() * 512);
    let blocks = installed.debugfs("stats -h");
    assert!(blocks.lines().any(|line| line.starts_with("Block count:") && line.ends_with(" 2621440")), "{blocks}");
}

#[tokio::test]
async fn the_root_file_system_knows_its_name_and_its_network() {
    let installed = Installed::new(64).await;
    installed.assert_clean();
    assert_eq!(installed.debugfs("cat /etc/hostname"), "vm1.example.com\n");
    assert!(installed.debugfs("cat /etc/hosts").contains("127.0.1.1 vm1.example.com vm1\n"));
    assert_eq!(
        installed.debugfs("cat /etc/network/interfaces"),
        "auto lo\niface lo inet loopback\n\
         \nauto eth0\niface eth0 inet static\n\taddress 10.0.2.15\n\tnetmask 255.255.255.0\n\
         \nauto eth1\niface eth1 inet manual\n\tup ip link set eth1 up\n"
    );
    // The tools' busybox is init too.
    assert!(installed.debugfs("stat /bin/init").contains("Fast link dest: \"busybox\""));
    assert!(installed.debugfs("stat /sbin").contains("Fast link dest: \"bin\""));
    let program = installed.debugfs("stat /bin/cardume-guest");
    assert!(program.contains("Mode:  0755") && program.contains("User:     0   Group:     0"), "{program}");
}

#[tokio::test]
async fn a_second_create_begins_anew() {
    let installed = Installed::new(64).await;
    let add = Command::new("debugfs").args(["-w", "-R", "mkdir /precious"]).arg(&installed.disk).status().unwrap();
    assert!(add.success() && installed.debugfs("stat /precious").contains("Type: directory"));
    let environment = installed.environment("vm1.example.com", 64);
    let (log, lock) = (installed.dir.path().join("log"), installed.dir.path().join("lock"));
    images::create(&installed.system, &environment, &log, &lock).await.unwrap();
    installed.assert_clean();
    assert!(!installed.debugfs("stat /precious").contains("Type: directory"));
}

#[tokio::test]
async fn a_name_that_would_break_the_configuration_is_refused() {
    let installed = Installed::new(64).await;
    let environment = installed.environment("vm1; reboot", 64);
    let (log, lock) = (installed.dir.path().join("log"), installed.dir.path().join("lock"));
    let error = images::create(&installed.system, &environment, &log, &lock).await.unwrap_err();
    assert!(error.to_string().contains("'vm1; reboot' is not a host name"), "{error}");
}

#[tokio::test]
async fn the_scripts_rename_export_and_import_carry_the_system_over() {
    let installed = Installed::new(64).await;
    let script = |name: &str| {
        let mut script = Command::new(installed.system.path.join(name));
        script.env_clear().env("INSTANCE_NAME", "vm9").env("DISK_0_PATH", &installed.disk);
        script
    };
    assert!(script("rename").stdout(Stdio::null()).status().unwrap().success());
    installed.assert_clean();
    assert_eq!(installed.debugfs("cat /etc/hostname"), "vm9\n");
    assert!(installed.debugfs("cat /etc/hosts").contains("127.0.1.1 vm9 vm9\n"));

    let copy = installed.dir.path().join("copy");
    File::create(&copy).unwrap().set_len(64 << 20).unwrap();
    let mut export = script("export").env("EXPORT_DEVICE", &installed.disk).stdout(Stdio::piped()).spawn().unwrap();
    let dump = export.stdout.take().unwrap();
    assert!(script("import").env("IMPORT_DEVICE", &copy).stdin(dump).status().unwrap().success());
    assert!(export.wait().unwrap().success());
    assert!(fs::read(&copy).unwrap() == fs::read(&installed.disk).unwrap(), "the copy differs");
}

/// A guest under QEMU; it ends with the value.
struct Guest {
    qemu: Child,
    qmp: BufReader<UnixStream>,
    console: PathBuf,
    port: u16,
}

impl Guest {
    fn boot(installed: &Installed) -> Self {
        let kernel = Path::new(CACHE).join("guest/vmlinuz");
        assert!(kernel.is_file(), "{} is missing: make guest", kernel.display());
        let (socket, console) = (installed.dir.path().join("qmp"), installed.dir.path().join("console"));
        let _ = fs::remove_file(&socket);
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-M", "pc", "-cpu", "max", "-m", "128", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-device", "virtio-net-pci,netdev=n0,romfile="])
            .args(["-netdev", "user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.2.15:7000"])
            .args(["-append", "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check root=/dev/vda ro"])
            .arg("-kernel")
            .arg(&kernel)
            .arg("-initrd")
            .arg(kernel.with_file_name("initrd.img"))
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio", installed.disk.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + BOOT_PATIENCE;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => panic!("QEMU opens no QMP socket: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(BOOT_PATIENCE)).unwrap();
        let mut guest = Self { qemu, qmp: BufReader::new(stream), console, port: 0 };
        guest.command("qmp_capabilities", "");
        let forwards = guest.command("human-monitor-command", r#","arguments":{"command-line":"info usernet"}"#);
        let mut words = forwards.split_whitespace().skip_while(|word| *word != "127.0.0.1");
        guest.port = words.nth(1).and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port: {forwards}"));
        guest
    }

    /// Sends a QMP command and returns the line that answers it.
    fn command(&mut self, name: &str, arguments: &str) -> String {
        writeln!(self.qmp.get_mut(), r#"{{"execute":"{name}"{arguments}}}"#).unwrap();
        self.wait_for("\"return\"")
    }

    /// Reads QMP lines up to one that contains `text`.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.qmp.read_line(&mut line).unwrap(), 0, "QEMU ended before '{text}'");
            assert!(!line.contains("\"error\""), "{line}");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Asks the continuity service, once it is there: boot id and counter.
    fn ask(&self) -> (String, u64) {
        let until = Instant::now() + BOOT_PATIENCE;
        loop {
            match self.try_ask() {
                Ok(answer) => return answer,
                Err(error) if Instant::now() > until => panic!("no answer: {error}\n{}", self.output()),
                // QEMU accepts for the guest, and hangs up while nothing listens in it.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn try_ask(&self) -> std::io::Result<(String, u64)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"?\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer = line.trim_end().split_once(' ');
        let answer = answer.and_then(|(boot, counter)| Some((boot.to_owned(), counter.parse().ok()?)));
        answer.ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    fn output(&self) -> String {
        let mut bytes = Vec::new();
        File::open(&self.console).unwrap().read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[tokio::test]
async fn a_guest_boots_counts_across_a_reset_and_obeys_the_power_button() {
    let installed = Installed::new(256).await;
    let mut guest = Guest::boot(&installed);
    let (boot, first) = guest.ask();
    let (again, second) = guest.ask();
    assert_eq!(boot, again);
    assert!(second > first, "{second} after {first}");

    // As the power cut does: without a word to the guest.
    guest.command("system_reset", "");
    let (after, third) = loop {
        let (after, third) = guest.ask();
        if after != boot {
            break (after, third);
        }
    };
    assert!(third > second, "{third} after {second}");
    assert_ne!(after, boot);

    guest.command("system_powerdown", "");
    guest.wait_for("\"guest-shutdown\"");
    assert!(guest.qemu.wait().unwrap().success());
    let output = guest.output();
    assert!(output.contains("root@vm1:"), "nobody is logged in at the console:\n{output}");
    assert!(output.contains("power button pressed"), "{output}");
    // It was unmounted in order, so there is no journal to replay.
    assert!(installed.debugfs("stats -h").contains("Filesystem state:         clean"));
    assert!(!installed.debugfs("stats -h").contains("needs_recovery"), "the journal was left open");

    let counter = installed.dir.path().join("counter");
    installed.debugfs(&format!("dump /var/lib/cardume/counter {}", counter.display()));
    let check = Command::new(installed.system.path.join("cardume-guest")).arg("check").arg(&counter).output().unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(
        check.status.success() && text.contains(&format!("boot_id={after} ")) && text.contains("holes=none"),
        "{text}"
    );
}
