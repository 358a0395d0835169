//! What a lab's guests are made of: QEMU, a kernel, and the OS definition. All of it is the machine's; a lab brings none.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// Where `scripts/guest-kernel.sh` puts the kernel.
const KERNEL: &str = "/var/cache/cardume/guest";
/// The OS definition of the lab's guests.
const SYSTEM: &str = "busybox";
/// Environment variable with folders of OS definitions; the daemon knows it too.
const SEARCH_PATH: &str = "CARDUME_OS_SEARCH_PATH";
/// Where `make guest` puts the definition, with our static program in it.
const ASSEMBLED: &str = "/var/cache/cardume/os";
/// Where a package puts definitions.
const INSTALLED: &str = "/usr/share/cardume/os";

/// The parts that real guests need, found on this machine.
#[derive(Debug, Clone)]
pub struct Guests {
    systems: PathBuf,
}

impl Guests {
    /// Looks for everything that real guests need. The error is one line that says what is missing and how to get it.
    pub fn find() -> Result<Guests, String> {
        const PACKAGES: [(&str, &str); 5] = [
            ("qemu-system-x86_64", "qemu-system-x86"),
            ("mke2fs", "e2fsprogs"),
            ("busybox", "busybox-static"),
            ("ping", "iputils-ping"),
            ("tc", "iproute2"),
        ];
        for (program, package) in PACKAGES {
            if !is_program(program) {
                return Err(format!("{program} is missing; install Debian's package {package} ('make demo' does)"));
            }
        }
        for file in ["vmlinuz", "initrd.img"] {
            if !Path::new(KERNEL).join(file).is_file() {
                return Err(format!("the guests' {KERNEL}/{file} is missing; scripts/guest-kernel.sh makes it"));
            }
        }
        let systems = search_path().into_iter().find(|folder| folder.join(SYSTEM).is_dir()).ok_or_else(|| {
            format!(
                "the OS definition '{SYSTEM}' is not found; 'make guest' makes it, or set {SEARCH_PATH} to where it is"
            )
        })?;
        if !systems.join(SYSTEM).join("cardume-guest").is_file() {
            return Err(format!("{}/{SYSTEM} is not complete; 'make guest' completes it", systems.display()));
        }
        Ok(Guests { systems })
    }

    /// Options of the daemon with which it finds the OS definition.
    pub fn daemon_options(&self) -> [String; 2] {
        ["--os-search-path".to_owned(), self.systems.display().to_string()]
    }

    /// What `gnt-cluster init` is given with `-H`: guests boot our kernel from their own disk.
    pub fn parameters(&self) -> String {
        format!(
            "kvm:kernel_path={KERNEL}/vmlinuz,initrd_path={KERNEL}/initrd.img,root_path=/dev/vda,kernel_args=ro quiet"
        )
    }
}

/// Folders that may hold the definition: those named, the assembled one's, the package's. Absolute: a daemon's working
/// directory is another.
fn search_path() -> Vec<PathBuf> {
    let named = std::env::var_os(SEARCH_PATH).unwrap_or_default();
    let named = std::env::split_paths(&named).filter(|folder| !folder.as_os_str().is_empty());
    named.chain([ASSEMBLED.into(), INSTALLED.into()]).filter_map(|folder| std::path::absolute(folder).ok()).collect()
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let mut folders = std::env::split_paths(&path).chain(usual);
    folders.any(|folder| access(&folder.join(name), AccessFlags::X_OK).is_ok())
}
