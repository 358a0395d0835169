//! The ACPI power button: what the cluster presses when an instance is to shut down in order.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Bytes of the kernel's `struct input_event` on a 64-bit machine: time (16), type (2), code (2), value (4).
const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Waits for the power button and starts the shutdown.
///
/// # Errors
/// A text, when the input devices or `poweroff` fail.
pub fn run() -> Result<(), String> {
    let devices = wait_for_devices().map_err(|e| format!("/dev/input: {e}"))?;
    let (pressed, wait) = mpsc::channel();
    for path in devices {
        let pressed = pressed.clone();
        thread::spawn(move || {
            let Ok(mut device) = File::open(&path) else { return };
            let mut event = [0; EVENT];
            while device.read_exact(&mut event).is_ok() {
                if is_power_press(&event) {
                    let _ = pressed.send(());
                }
            }
        });
    }
    drop(pressed);
    wait.recv().map_err(|_| "every input device has gone")?;
    println!("cardume-guest: power button pressed, powering off");
    let status = Command::new("/sbin/poweroff").status().map_err(|e| format!("poweroff: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("poweroff: {status}")) }
}

/// The button's driver may come up after us; it is the only device in such a guest, so wait for the first.
fn wait_for_devices() -> std::io::Result<Vec<PathBuf>> {
    loop {
        let found: Vec<PathBuf> = match fs::read_dir("/dev/input") {
            Ok(entries) => entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("event")))
                .collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        if !found.is_empty() {
            return Ok(found);
        }
        thread::sleep(Duration::from_millis(500));
    }
}

fn is_power_press(event: &[u8; EVENT]) -> bool {
    let kind = u16::from_ne_bytes([event[16], event[17]]);
    let code = u16::from_ne_bytes([event[18], event[19]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    (kind, code, value) == (EV_KEY, KEY_POWER, PRESSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> [u8; EVENT] {
        let mut event = [0; EVENT];
        event[16..18].copy_from_slice(&kind.to_ne_bytes());
        event[18..20].copy_from_slice(&code.to_ne_bytes());
        event[20..24].copy_from_slice(&value.to_ne_bytes());
        event
    }

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        assert!(is_power_press(&event(EV_KEY, KEY_POWER, PRESSED)));
        assert!(!is_power_press(&event(EV_KEY, KEY_POWER, 0)), "release");
        assert!(!is_power_press(&event(EV_KEY, 30, PRESSED)), "another key");
        assert!(!is_power_press(&event(0, 0, 0)), "sync");
    }
}
