//! What the installed QEMU is: asked once, of a QEMU without a machine.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::process::Command;

use super::qmp::{Qmp, QmpError};
use crate::error::{Error, Result};

/// How long QEMU may take to tell.
const PATIENCE: Duration = Duration::from_secs(30);

/// The installed QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// `10.0.2 (Debian 1:10.0.2+ds-2)`.
    pub version: String,
    /// Major and minor version.
    pub release: (u32, u32),
    /// The versioned type that `pc` stands for. A guest keeps it, so that it can migrate to another version of QEMU.
    pub machine: String,
}

#[derive(Deserialize)]
struct Version {
    qemu: Numbers,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct Numbers {
    major: u32,
    minor: u32,
    micro: u32,
}

#[derive(Deserialize)]
struct Machine {
    name: String,
    alias: Option<String>,
}

/// Asks the program.
pub(super) async fn ask(binary: &Path) -> Result<Capabilities> {
    let (ours, its) = socket_pair().map_err(Error::io("make a socket pair"))?;
    let spawned = Command::new(binary)
        .args(["-machine", "none", "-accel", "tcg", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-S", "-qmp", "stdio"])
        .env("LC_ALL", "C")
        .stdin(its.0)
        .stdout(its.1)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|source| spawn_error(binary, source))?;
    let (qmp, conversation) = Qmp::open(ours, "(none)", |_| {});
    let told = async {
        let version = qmp.execute("query-version", Value::Null, PATIENCE).await?;
        let machines = qmp.execute("query-machines", Value::Null, PATIENCE).await?;
        understand(version, machines).map_err(|error| QmpError::Lost {
            instance: "(none)".into(),
            command: "query-machines".into(),
            reason: error.to_string(),
        })
    };
    let told = told.await;
    conversation.abort();
    // What it has to say it has said; what is left is to reap it.
    let _ = child.start_kill();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    told.map_err(|source| Error::Capabilities {
        binary: binary.to_owned(),
        said: match output {
            Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
            _ => String::new(),
        },
        source: Box::new(source),
    })
}

/// A connection: our end, and the other one as a program's standard input and output.
fn socket_pair() -> io::Result<(UnixStream, (OwnedFd, OwnedFd))> {
    let (ours, its) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, (its.try_clone()?.into(), its.into())))
}

fn understand(version: Value, machines: Value) -> serde_json::Result<Capabilities> {
    let version: Version = serde_json::from_value(version)?;
    let machines: Vec<Machine> = serde_json::from_value(machines)?;
    let pc = machines.into_iter().find(|machine| machine.alias.as_deref() == Some("pc"));
    let Numbers { major, minor, micro } = version.qemu;
    let package = version.package;
    Ok(Capabilities {
        version: if package.is_empty() {
            format!("{major}.{minor}.{micro}")
        } else {
            format!("{major}.{minor}.{micro} ({package})")
        },
        release: (major, minor),
        machine: pc.map_or_else(|| "pc".to_owned(), |machine| machine.name),
    })
}

/// A program that can't be started: most often it isn't there.
pub(super) fn spawn_error(binary: &Path, source: std::io::Error) -> Error {
    if source.kind() == std::io::ErrorKind::NotFound {
        Error::MissingBinary { binary: binary.to_owned(), package: "qemu-system-x86" }
    } else {
        Error::io(format!("start {}", binary.display()))(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_versioned_machine_behind_pc_is_found() {
        let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "Debian 1:10.0.2"});
        let machines = json!([
            {"name": "pc-i440fx-9.2", "cpu-max": 255},
            {"name": "pc-q35-10.0", "alias": "q35"},
            {"name": "pc-i440fx-10.0", "alias": "pc", "x-new": true},
        ]);
        let told = understand(version, machines).unwrap();
        assert_eq!(told.version, "10.0.2 (Debian 1:10.0.2)");
        assert_eq!(told.machine, "pc-i440fx-10.0");
    }

    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        // ls knows none of QEMU's options.
        let message = ask(Path::new("/bin/ls")).await.unwrap_err().to_string();
        assert!(message.contains("invalid option"), "{message}");
    }

    #[tokio::test]
    async fn a_missing_program_names_its_package() {
        let error = ask(Path::new("/nonexistent/qemu-system-x86_64")).await.unwrap_err();
        let message = error.to_string();
        assert!(message.contains("/nonexistent/qemu") && message.contains("qemu-system-x86"), "{message}");
    }
}
