use proptest::prelude::*;

use super::*;

fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> [u8; Request::LEN] {
    let mut raw = Vec::new();
    raw.put_u32(REQUEST_MAGIC);
    raw.put_u16(flags);
    raw.put_u16(kind);
    raw.put_u64(cookie);
    raw.put_u64(offset);
    raw.put_u32(len);
    raw.try_into().unwrap()
}

proptest! {
    /// No bytes of a client make a parser panic, or read more than it is allowed to.
    #[test]
    fn any_bytes_are_parsed(
        head: [u8; OptionHead::LEN],
        flags: [u8; 4],
        raw: [u8; Request::LEN],
        code in 0u32..12,
        data in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let _ = client_flags(flags);
        if let Ok(head) = OptionHead::parse(&head) {
            prop_assert!(head.len <= MAX_OPTION);
        }
        let _ = ClientOption::parse(code, &data);
        if let Ok(request) = Request::parse(&raw) {
            prop_assert!(request.payload <= MAX_PAYLOAD);
        }
    }

    /// The length of an option is believed only up to the limit, its magic not at all.
    #[test]
    fn option_heads_are_bounded(magic: u64, code: u32, len: u32, right: bool) {
        let magic = if right { OPTION_MAGIC } else { magic };
        let mut raw = [0; OptionHead::LEN];
        raw[..8].copy_from_slice(&magic.to_be_bytes());
        raw[8..12].copy_from_slice(&code.to_be_bytes());
        raw[12..].copy_from_slice(&len.to_be_bytes());
        let expected = if magic != OPTION_MAGIC {
            Err(Misbehaviour::OptionMagic(magic))
        } else if len > MAX_OPTION {
            Err(Misbehaviour::LongOption { code, len })
        } else {
            Ok(OptionHead { code, len })
        };
        prop_assert_eq!(OptionHead::parse(&raw), expected);
    }

    /// A request for information is understood if, and only if, its lengths are exact.
    #[test]
    fn information_requests_are_exact(
        name in "[a-z0-9/.-]{0,40}",
        kinds in proptest::collection::vec(0u16..6, 0..6),
        cut in 1usize..60,
        extra in 1usize..4,
    ) {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend((kinds.len() as u16).to_be_bytes());
        kinds.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
        let block_size = kinds.contains(&INFO_BLOCK_SIZE);
        prop_assert_eq!(ClientOption::parse(7, &data), ClientOption::Info { name, block_size, go: true });
        let short = &data[..data.len().saturating_sub(cut)];
        prop_assert_eq!(ClientOption::parse(6, short), ClientOption::Invalid);
        data.extend(vec![0; extra]);
        prop_assert_eq!(ClientOption::parse(6, &data), ClientOption::Invalid);
    }

    /// What passes the check lies on the disk, is aligned, and changes only what may be changed.
    #[test]
    fn what_passes_the_check_can_be_asked_for(
        flags in 0u16..64,
        kind in 0u16..8,
        offset in prop_oneof![0u64..9000, any::<u64>()],
        len in prop_oneof![0u32..9000, any::<u32>()],
        blocks in 0u64..16,
        read_only: bool,
    ) {
        let size = blocks * 512;
        let Ok(request) = Request::parse(&request(flags, kind, 7, offset, len)) else {
            prop_assert!(kind == 1 && len > MAX_PAYLOAD);
            return Ok(());
        };
        let Some(command) = request.command else { return Ok(()) };
        if request.check(command, size, 512, read_only).is_err() {
            return Ok(());
        }
        match command {
            Command::Flush | Command::Disconnect => prop_assert_eq!((offset, len), (0, 0)),
            Command::Read => {}
            _ => prop_assert!(!read_only),
        }
        if !matches!(command, Command::Flush | Command::Disconnect) {
            prop_assert!(offset + u64::from(len) <= size && len > 0);
            prop_assert!(offset % 512 == 0 && len % 512 == 0);
        }
    }
}

#[test]
fn flags_of_commands_are_known_or_refused() {
    const FAST_ZERO: u16 = 1 << 4;
    let command = |flags, kind| Request::parse(&request(flags, kind, 0, 0, 512)).unwrap().command;
    assert_eq!(command(0, 6), Some(Command::WriteZeroes { fua: false, may_unmap: true }));
    assert_eq!(command(COMMAND_NO_HOLE | COMMAND_FUA, 6), Some(Command::WriteZeroes { fua: true, may_unmap: false }));
    assert_eq!(command(FAST_ZERO, 6), None);
    assert_eq!(command(COMMAND_FUA, 1), Some(Command::Write { fua: true }));
    assert_eq!(command(COMMAND_NO_HOLE, 1), None);
    assert_eq!(command(COMMAND_DF, 0), Some(Command::Read));
    assert_eq!(command(COMMAND_FUA, 4), Some(Command::Trim { fua: true }));
    assert_eq!(command(0, 5), None);
}
