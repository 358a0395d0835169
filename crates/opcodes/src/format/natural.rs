//! Natural order: numbers within names count as numbers.

use std::cmp::Ordering;

/// Compares names so that `node2` comes before `node10`.
///
/// Names that differ only in leading zeros are told apart by their bytes, so the order is total.
pub fn natural_cmp(left: &str, right: &str) -> Ordering {
    let mut a = left.as_bytes();
    let mut b = right.as_bytes();
    loop {
        let order = match (a.first(), b.first()) {
            (None, None) => return left.cmp(right),
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (x, rest_a) = digits(a);
                let (y, rest_b) = digits(b);
                (a, b) = (rest_a, rest_b);
                // Without leading zeros the longer number is the larger one, whatever its size.
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            (Some(x), Some(y)) => {
                let order = x.cmp(y);
                (a, b) = (&a[1..], &b[1..]);
                order
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// The number at the start, without its leading zeros, and what follows it.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let zeros = number.iter().position(|byte| *byte != b'0').unwrap_or(number.len());
    (&number[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["node10", "vm", "node2", "node1.b", "node1.a10", "node1.a9", "a", "node02", "node2x"];
        names.sort_by(|a, b| natural_cmp(a, b));
        assert_eq!(names, ["a", "node1.a9", "node1.a10", "node1.b", "node02", "node2", "node2x", "node10", "vm"]);
    }

    proptest::proptest! {
        #[test]
        fn it_is_a_total_order(a in "[a0-2.]{0,6}", b in "[a0-2.]{0,6}", c in "[a0-2.]{0,6}") {
            assert_eq!(natural_cmp(&a, &b), natural_cmp(&b, &a).reverse());
            assert_eq!(natural_cmp(&a, &b) == Ordering::Equal, a == b);
            if natural_cmp(&a, &b).is_le() && natural_cmp(&b, &c).is_le() {
                assert!(natural_cmp(&a, &c).is_le());
            }
        }
    }
}
