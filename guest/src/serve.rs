//! The continuity service: one line in, `<boot_id> <counter>` out, durable before it is sent.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::journal::Journal;

/// Longest request line, in bytes; a longer one ends the connection.
const MAX_REQUEST: u64 = 256;

/// Most clients at a time; each costs a thread, and a guest may have 64 MiB.
const MAX_CLIENTS: usize = 64;

/// A client's thread needs little more than its line.
const STACK: usize = 64 * 1024;

/// Serves until something goes wrong with the disk or the socket.
///
/// # Errors
/// A text that names the file or the address.
pub fn run(path: &Path, listen: &str) -> Result<(), String> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|e| format!("boot id: {e}"))?;
    let boot_id = boot_id.trim();
    let journal = Journal::open(path, boot_id).map_err(|e| format!("{}: {e}", path.display()))?;
    let listener = TcpListener::bind(listen).map_err(|e| format!("{listen}: {e}"))?;
    println!("cardume-guest: serving on {listen}, boot {boot_id}, counter at {}", journal.last());
    accept(&listener, journal, boot_id)
}

fn accept(listener: &TcpListener, journal: Journal, boot_id: &str) -> Result<(), String> {
    let journal = Arc::new(Mutex::new(journal));
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        // An error here is the client's (gone before it was accepted), not the listener's.
        let Ok(stream) = stream else { continue };
        if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            clients.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (journal, counter, boot_id) = (Arc::clone(&journal), Arc::clone(&clients), boot_id.to_owned());
        let started = thread::Builder::new().stack_size(STACK).spawn(move || {
            answer(stream, &journal, &boot_id);
            counter.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Answers one client's lines until it leaves.
fn answer(stream: TcpStream, journal: &Mutex<Journal>, boot_id: &str) {
    let _ = stream.set_nodelay(true);
    let Ok(mut out) = stream.try_clone() else { return };
    let mut input = BufReader::with_capacity(MAX_REQUEST as usize, stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match input.by_ref().take(MAX_REQUEST).read_until(b'\n', &mut line) {
            Ok(_) if line.ends_with(b"\n") => {}
            _ => return,
        }
        let number = match journal.lock() {
            Ok(mut journal) => journal.append(),
            Err(_) => return,
        };
        match number {
            Ok(number) => {
                if writeln!(out, "{boot_id} {number}").is_err() {
                    return;
                }
            }
            // Never go on after a failed sync: init starts us anew and we read what the disk has.
            Err(error) => {
                eprintln!("cardume-guest: the journal could not be written: {error}");
                std::process::exit(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const BOOT: &str = "01234567-89ab-cdef-0123-456789abcdef";

    fn ask(client: &mut BufReader<TcpStream>) -> u64 {
        client.get_mut().write_all(b"\n").unwrap();
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        let (boot, number) = line.trim().split_once(' ').unwrap();
        assert_eq!(boot, BOOT);
        number.parse().unwrap()
    }

    #[test]
    fn concurrent_clients_never_get_a_number_twice_and_all_are_on_disk() {
        let dir = std::env::temp_dir().join(format!("cardume-guest-{}-serve", std::process::id()));
        let path = dir.join("counter");
        let journal = Journal::open(&path, BOOT).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || accept(&listener, journal, BOOT));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                thread::spawn(move || {
                    let mut client = BufReader::new(TcpStream::connect(address).unwrap());
                    (0..20).map(|_| ask(&mut client)).collect::<Vec<_>>()
                })
            })
            .collect();
        let answers: Vec<Vec<u64>> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        assert!(answers.iter().all(|numbers| numbers.is_sorted()));
        let all: BTreeSet<u64> = answers.into_iter().flatten().collect();
        assert_eq!(all, (1..=80).collect());
        let summary = crate::journal::read(&path).unwrap();
        assert_eq!((summary.last, summary.holes), (80, vec![]));
        fs::remove_dir_all(dir).unwrap();
    }
}
