//! Definitions of operating systems that are shell scripts.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Writes a usable definition of the interface's version 20 with the variants `default` and `small`, the parameter
/// `release`, and this script `create`.
pub fn define(search: &Path, name: &str, create: &str) -> PathBuf {
    let folder = search.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("ganeti_api_version"), "20\n15\n").unwrap();
    fs::write(folder.join("variants.list"), "# the usual one first\ndefault\n\nsmall\n").unwrap();
    fs::write(folder.join("parameters.list"), "release\tWhich release to install\nquiet\n").unwrap();
    for name in ["import", "export", "rename", "verify"] {
        script(&folder, name, "exit 0");
    }
    script(&folder, "create", create);
    folder
}

/// Writes a script.
pub fn script(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}
