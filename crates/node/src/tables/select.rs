//! Which objects a command is about.

use std::collections::BTreeSet;

use opcodes::Failure;
use opcodes::format::natural_cmp;

/// The objects that are named, in the order of the names; all in natural order without names. A name may contain `*` for
/// any text and `?` for one character: such a pattern stands for all that match, which may be none. No object comes twice.
///
/// # Errors
/// A name that none of them has; `kind` is what it should have been, `Instance`.
pub fn select<T>(kind: &str, names: Option<&[String]>, objects: Vec<(String, T)>) -> Result<Vec<T>, Failure> {
    let mut objects = objects;
    objects.sort_by(|(left, _), (right, _)| natural_cmp(left, right));
    let Some(names) = names else {
        return Ok(objects.into_iter().map(|(_, object)| object).collect());
    };
    let mut order = Vec::new();
    let mut taken = BTreeSet::new();
    for name in names {
        if name.contains(['*', '?']) {
            let matching = objects.iter().enumerate().filter(|(_, (known, _))| matches(name, known));
            order.extend(matching.map(|(index, _)| index).filter(|index| taken.insert(*index)));
        } else {
            let index = objects.iter().position(|(known, _)| known == name);
            let index = index.ok_or_else(|| Failure::unknown(kind, name))?;
            order.extend(taken.insert(index).then_some(index));
        }
    }
    let mut objects: Vec<Option<T>> = objects.into_iter().map(|(_, object)| Some(object)).collect();
    Ok(order.into_iter().filter_map(|index| objects[index].take()).collect())
}

/// Whether a name matches a pattern. Time is bounded by the product of their lengths.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The last star, and how much of the name it stands for so far: only the last one has to be tried again.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, matching) in [
            ("*", "", true),
            ("*", "vm1", true),
            ("vm?", "vm1", true),
            ("vm?", "vm10", false),
            ("vm?", "vm", false),
            ("*.example.com", "vm1.example.com", true),
            ("*.example.com", "vm1.example.com.org", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "acb", false),
            ("**", "x", true),
            ("?*", "", false),
        ] {
            assert_eq!(matches(pattern, name), matching, "{pattern} {name}");
        }
    }
}
