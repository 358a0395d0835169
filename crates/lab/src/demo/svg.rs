//! A small writer of SVG: what the demo's drawings need, and no more.

use std::fmt::Write as _;

/// A drawing of a given size, in pixels. Shapes cover those that were drawn before them.
#[derive(Debug)]
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// How a line or an outline is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stroke {
    pub colour: &'static str,
    pub width: f64,
    pub dashed: bool,
}

/// How a text is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Font {
    /// Height, pixels.
    pub size: f64,
    pub bold: bool,
    pub colour: &'static str,
}

/// Which end of a text its place means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A rectangle, pixels from the upper left corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

impl Area {
    pub fn right(self) -> f64 {
        self.x + self.width
    }
    pub fn bottom(self) -> f64 {
        self.y + self.height
    }
    pub fn middle(self) -> f64 {
        self.y + self.height / 2.0
    }
}

/// Width of a character against its height, at the most on the average of a word: the reader's fonts are not known.
const BREADTH: f64 = 0.6;
const BREADTH_BOLD: f64 = 0.66;

/// How wide a text is at the most, pixels.
pub(super) fn width_of(text: &str, font: Font) -> f64 {
    text.chars().count() as f64 * font.size * if font.bold { BREADTH_BOLD } else { BREADTH }
}

/// The text, or as much of its beginning as there is room for.
pub(super) fn fitted(text: &str, font: Font, room: f64) -> String {
    if width_of(text, font) <= room {
        return text.to_owned();
    }
    let mut short: String = text.to_owned();
    while short.pop().is_some() {
        let cut = format!("{}…", short.trim_end());
        if width_of(&cut, font) <= room {
            return cut;
        }
    }
    String::new()
}

/// The words of a text on lines for which there is room, as far as that can be.
pub(super) fn lines(text: &str, font: Font, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width_of(&format!("{line} {word}"), font) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

impl Svg {
    /// An empty one.
    pub fn new(width: f64, height: f64) -> Svg {
        Svg { width, height, body: String::new() }
    }

    /// A box with round corners. `class` says what it stands for.
    pub fn area(&mut self, class: &str, area: Area, radius: f64, fill: &str, stroke: Stroke) {
        let Area { x, y, width, height } = area;
        let _ = writeln!(
            self.body,
            r#"<rect class="{}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" {}/>"#,
            escaped(class),
            attributes(stroke)
        );
    }

    /// A line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64), stroke: Stroke) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.body,
            r#"<line class="{}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {}/>"#,
            escaped(class),
            attributes(stroke)
        );
    }

    /// A cross: what is here is broken.
    pub fn cross(&mut self, x: f64, y: f64, colour: &'static str) {
        const ARM: f64 = 6.0;
        let stroke = Stroke { colour, width: 3.0, dashed: false };
        self.line("cross", (x - ARM, y - ARM), (x + ARM, y + ARM), stroke);
        self.line("cross", (x - ARM, y + ARM), (x + ARM, y - ARM), stroke);
    }

    /// A text on a base line, cut where it would be wider than `room`.
    pub fn text(&mut self, at: (f64, f64), anchor: Anchor, font: Font, room: f64, text: &str) {
        let (x, y) = at;
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if font.bold { r#" font-weight="bold""# } else { "" };
        let _ = writeln!(
            self.body,
            r#"<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{}"{weight} fill="{}">{}</text>"#,
            font.size,
            font.colour,
            escaped(&fitted(text, font, room))
        );
    }

    /// The file. `title` is what it shows, for who can't see it.
    pub fn finish(self, title: &str) -> String {
        let Svg { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" \
             font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n\
             <title>{}</title>\n\
             <rect class=\"ground\" width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{body}</svg>\n",
            escaped(title)
        )
    }
}

fn attributes(stroke: Stroke) -> String {
    let dashes = if stroke.dashed { r#" stroke-dasharray="6 4""# } else { "" };
    format!(r#"stroke="{}" stroke-width="{}"{dashes}"#, stroke.colour, stroke.width)
}

/// A text as XML has it. Characters that XML can't have at all are replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            control if control.is_control() => escaped.push('\u{fffd}'),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(escaped("a<b> & \"c\"\n\u{1b}[0m'ü"), "a&lt;b&gt; &amp; &quot;c&quot; \u{fffd}[0m'ü");
    }

    #[test]
    fn texts_are_broken_between_words() {
        let font = Font { size: 10.0, bold: false, colour: "#000000" };
        assert_eq!(lines("one two three  four", font, 60.0), ["one two", "three four"]);
        assert_eq!(lines("toolongforit a b", font, 30.0), ["toolongforit", "a b"]);
        assert_eq!(lines(" ", font, 30.0), [""; 0]);
    }

    #[test]
    fn texts_are_cut_to_the_room_that_there_is() {
        let font = Font { size: 10.0, bold: false, colour: "#000000" };
        assert_eq!(fitted("running", font, 42.0), "running");
        assert_eq!(fitted("ERROR_nodedown", font, 42.0), "ERROR_…");
        assert_eq!(fitted("a name", font, 18.0), "a…");
        assert_eq!(fitted("x", font, 1.0), "");
    }
}
