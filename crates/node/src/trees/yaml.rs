//! A check, for tests, that text is YAML of the plain kind that `info` commands write: block mappings and block lists with
//! plain values on one line.

/// Checks each line; the text of the first one that a YAML parser would refuse or read otherwise is in the message.
pub fn check(text: &str) {
    // Indentation of the mappings and lists that are open, and whether the last key had a value on its line.
    let mut open: Vec<usize> = vec![0];
    let mut may_nest = true;
    for line in text.lines() {
        let mut rest = line.trim_start_matches(' ');
        let mut column = line.len() - rest.len();
        let deepest = open.last().copied().unwrap_or(0);
        if column > deepest {
            assert!(may_nest, "deeper than a value can be: {line:?}");
        } else {
            while open.last().is_some_and(|level| *level > column) {
                open.pop();
            }
            assert_eq!(open.last(), Some(&column), "no level is open at this column: {line:?}");
        }
        let mut is_item = false;
        while let Some(item) = rest.strip_prefix("- ") {
            open_at(&mut open, column);
            (rest, column, is_item) = (item, column + 2, true);
        }
        open_at(&mut open, column);
        let (key, value) = match rest.split_once(": ") {
            Some((key, value)) => (Some(key), value),
            None => (None, rest),
        };
        assert!(key.is_some() || is_item, "neither a key nor an item: {line:?}");
        for text in key.into_iter().chain([value]) {
            assert!(!text.contains(": ") && !text.ends_with(':'), "a second key: {line:?}");
            assert!(!text.contains(" #") && text == text.trim(), "a comment or a space: {line:?}");
            let flow = text.starts_with('[') && text.ends_with(']');
            let indicators = "-?:,[]{}#&*!|>'\"%@`";
            assert!(flow || !text.starts_with(|first| indicators.contains(first)), "an indicator: {line:?}");
        }
        may_nest = key.is_some() && value.is_empty();
    }
}

fn open_at(open: &mut Vec<usize>, column: usize) {
    if open.last().is_none_or(|level| *level < column) {
        open.push(column);
    }
}

#[test]
fn what_is_not_yaml_is_found() {
    check("a: 1\nb: \n  c: x\n  d: \n    - e: \n      f: g\n    - h\ni: [1, 2]\n");
    for wrong in ["a", "a: b: c", "a: 1\n  b: 2", "a: \n    b: 1\n  c: 2", "a: x #y", "a: *b", "a: @b", "- a: x:"] {
        assert!(std::panic::catch_unwind(|| check(wrong)).is_err(), "{wrong:?}");
    }
}
