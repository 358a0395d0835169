//! An identity on disk: `node.key` (mode 0600), `ca.crt` and `node.crt` in one directory, which QEMU can also read from.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Identity, IdentityError, encoding, read_key};

const KEY: &str = "node.key";
const CA: &str = "ca.crt";
/// Written last and removed first: its presence says that the other two are there and belong to it.
const CERT: &str = "node.crt";

impl Identity {
    /// Keeps the identity in a directory, which is made (mode 0700) if it is not there. Durable when this returns. An
    /// identity that was there before is replaced; after a crash half-way there is none.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let context = |action: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { action, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(context("create directory", dir))?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync_dir(parent).map_err(context("sync directory", parent))?;
        }

        let cert = dir.join(CERT);
        match fs::remove_file(&cert) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(context("remove", &cert)(e));
            }
            _ => sync_dir(dir).map_err(context("sync directory", dir))?,
        }
        for (name, label, der, mode) in [
            (KEY, "PRIVATE KEY", self.key.secret_pkcs8_der(), 0o600),
            (CA, "CERTIFICATE", self.ca.as_ref(), 0o644),
            (CERT, "CERTIFICATE", self.leaf.as_ref(), 0o644),
        ] {
            let path = dir.join(name);
            replace(dir, &path, encoding::pem(label, der).as_bytes(), mode).map_err(context("write", &path))?;
        }
        Ok(())
    }

    /// Reads the identity kept in a directory; `None` when there is none, that is before `init` or `join`.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let cert_path = dir.join(CERT);
        let cert = match fs::read_to_string(&cert_path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|source| IdentityError::Io { action: "read", path: cert_path.clone(), source })?,
        };
        let read = |name| {
            let path = dir.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => Ok((path, text)),
                Err(source) => Err(IdentityError::Io { action: "read", path, source }),
            }
        };
        let (key_path, key) = read(KEY)?;
        let (ca_path, ca) = read(CA)?;

        let key = read_key("the node key", &key).map_err(damaged(key_path))?;
        encoding::certificate("the CA certificate", &ca).map_err(damaged(ca_path))?;
        let leaf = encoding::certificate("the node certificate", &cert).map_err(damaged(cert_path.clone()))?;
        match Self::assemble(key, leaf, &ca) {
            Ok(identity) => Ok(Some(identity)),
            // An expired certificate or a wrong clock is no damage, and says so itself.
            Err(e @ IdentityError::Chain { .. }) => Err(e),
            Err(e) => Err(damaged(cert_path)(e)),
        }
    }
}

fn damaged(path: PathBuf) -> impl FnOnce(IdentityError) -> IdentityError {
    |source| IdentityError::Damaged { path, source: Box::new(source) }
}

/// Puts a file in the place of what may be there, so that after a crash there is either the old one or the new one, whole.
fn replace(dir: &Path, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // create_new: the mode counts only for a file that is made here, and nobody may have put one in place before.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
