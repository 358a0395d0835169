//! Values and running text.

use serde_json::Value;

/// A value as one piece of text, in Ganeti's manner: `True`, `None`, `a,b` for a list, `a=1, b=2` for a dictionary.
pub fn value(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(self::value).collect::<Vec<_>>().join(","),
        Value::Object(entries) => {
            let entries: Vec<_> = entries.iter().map(|(key, entry)| format!("{key}={}", self::value(entry))).collect();
            entries.join(", ")
        }
    }
}

/// Breaks text into lines of at most `width` characters, at spaces. Line breaks in the text stay; a word that is longer
/// than a line has one of its own.
pub fn wrap(text: &str, width: usize) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for (index, paragraph) in text.lines().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let indent = paragraph.len() - paragraph.trim_start().len();
        out.push_str(&paragraph[..indent]);
        let mut column = paragraph[..indent].chars().count();
        for (position, word) in paragraph[indent..].split_whitespace().enumerate() {
            let length = word.chars().count();
            if position > 0 {
                if column + 1 + length > width {
                    out.push('\n');
                    column = 0;
                } else {
                    out.push(' ');
                    column += 1;
                }
            }
            out.push_str(word);
            column += length;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_written_as_in_ganeti() {
        assert_eq!(value(&json!(null)), "None");
        assert_eq!(value(&json!(true)), "True");
        assert_eq!(value(&json!(["a", null, 3])), "a,None,3");
        assert_eq!(value(&json!({"a": "x", "b": false})), "a=x, b=False");
    }

    #[test]
    fn text_is_wrapped_at_spaces() {
        let question = "Instance vm2 will be migrated. Note that migration might impact the instance if anything goes \
                        wrong (e.g. due to bugs in the hypervisor). Continue?";
        assert_eq!(
            wrap(question, 70),
            "Instance vm2 will be migrated. Note that migration might impact the\n\
             instance if anything goes wrong (e.g. due to bugs in the hypervisor).\n\
             Continue?"
        );
        assert_eq!(wrap("a\n  b", 70), "a\n  b");
        assert_eq!(wrap("", 70), "");
    }

    proptest::proptest! {
        #[test]
        fn wrapping_loses_no_word(text in ".{0,200}", width in 1usize..80) {
            let wrapped = wrap(&text, width);
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&wrapped), words(&text));
        }
    }
}
