//! Work for the guest's disk: writes without a pause, and looks whether what it reads is what it wrote.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Bytes of a block: what direct I/O is aligned to.
const BLOCK: usize = 4096;

/// Blocks in the file.
const BLOCKS: usize = 256;

/// After how many writes comes a sync.
const SYNC: u64 = 32;

/// `O_DIRECT` on x86-64: what is read comes from the disk, not from the page cache.
const DIRECT: i32 = 0o40000;

/// Works, and answers each line on the port with how many blocks it has written and read back, and `ok` or what is wrong.
///
/// # Errors
/// A text that names the file or the address.
pub fn run(path: &Path, listen: &str) -> Result<(), String> {
    let mut file = WorkFile::create(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let listener = TcpListener::bind(listen).map_err(|e| format!("{listen}: {e}"))?;
    println!("cardume-guest: working, told on {listen}");
    let told = Arc::new(Mutex::new((0, "ok".to_owned())));
    let of_worker = Arc::clone(&told);
    thread::spawn(move || {
        for number in 1.. {
            let outcome = file.step(number);
            let mut told = of_worker.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(()) => told.0 = number,
                // What comes after an error proves nothing any more.
                Err(error) => {
                    told.1 = error;
                    return;
                }
            }
        }
    });
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let Ok(input) = stream.try_clone() else { continue };
        for _ in BufReader::new(input).lines().map_while(Result::ok) {
            let (number, how) = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if writeln!(stream, "{number} {how}").is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// The file, and what each of its blocks holds.
struct WorkFile {
    file: File,
    /// Room for a block that is aligned as direct I/O wants it.
    room: Vec<u8>,
    numbers: Vec<u64>,
    random: u64,
}

impl WorkFile {
    fn create(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        // Written in full beforehand, so that no later write changes metadata.
        let file = File::create(path)?;
        file.write_all_at(&[0; BLOCK * BLOCKS], 0)?;
        file.sync_all()?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(DIRECT).open(path)?;
        Ok(Self { file, room: vec![0; 2 * BLOCK], numbers: vec![0; BLOCKS], random: 1 })
    }

    /// Reads a block that must be as it was left, and writes it anew.
    fn step(&mut self, number: u64) -> Result<(), String> {
        // Any order will do that is not the disk's (Knuth's generator).
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (self.random >> 33) as usize % BLOCKS;
        let at = (place * BLOCK) as u64;
        let start = self.room.as_ptr().align_offset(BLOCK);
        let room = &mut self.room[start..start + BLOCK];
        self.file.read_exact_at(room, at).map_err(|e| format!("block {place} can't be read: {e}"))?;
        let before = self.numbers[place];
        if let Some(byte) = (0..BLOCK).find(|byte| room[*byte] != content(place, before, *byte)) {
            return Err(format!("block {place} is not as write {before} left it: byte {byte} is {}", room[byte]));
        }
        (0..BLOCK).for_each(|byte| room[byte] = content(place, number, byte));
        self.file.write_all_at(room, at).map_err(|e| format!("block {place} can't be written: {e}"))?;
        self.numbers[place] = number;
        if number.is_multiple_of(SYNC) {
            self.file.sync_data().map_err(|e| format!("write {number} can't be synced: {e}"))?;
        }
        Ok(())
    }
}

/// A byte of a block: zero before its first write; else different from block to block and from write to write.
fn content(place: usize, number: u64, byte: usize) -> u8 {
    let word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (place as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    if number == 0 { 0 } else { word.to_le_bytes()[byte % 8] ^ (byte / 8) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_expected_and_nothing_else() {
        let dir = std::env::temp_dir().join(format!("cardume-guest-{}-work", std::process::id()));
        let path = dir.join("work");
        let mut file = WorkFile::create(&path).unwrap();
        (1..2000).for_each(|number| file.step(number).unwrap());
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0xee; BLOCK * BLOCKS], 0).unwrap();
        assert!(file.step(2000).unwrap_err().contains("is not as write"));
        fs::remove_dir_all(dir).unwrap();
    }
}
