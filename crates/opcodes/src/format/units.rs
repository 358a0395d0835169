//! Sizes.

/// How sizes are written (Ganeti's `--units`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// With the unit that fits: `512M`, `7.8G`, `1.5T`.
    Human,
    /// As a number of MiB.
    Mebibytes,
    /// As a number of GiB, with one decimal.
    Gibibytes,
    /// As a number of TiB, with one decimal.
    Tebibytes,
}

impl Units {
    /// From the letter of the option; `None` for another one.
    pub fn from_letter(letter: &str) -> Option<Self> {
        match letter {
            "h" => Some(Units::Human),
            "m" => Some(Units::Mebibytes),
            "g" => Some(Units::Gibibytes),
            "t" => Some(Units::Tebibytes),
            _ => None,
        }
    }
}

/// Writes a size given in MiB.
pub fn size(mib: f64, units: Units) -> String {
    const GIB: f64 = 1024.0;
    const TIB: f64 = 1024.0 * 1024.0;
    match units {
        Units::Human if mib < GIB => format!("{mib:.0}M"),
        Units::Human if mib < TIB => format!("{:.1}G", mib / GIB),
        Units::Human => format!("{:.1}T", mib / TIB),
        Units::Mebibytes => format!("{mib:.0}"),
        Units::Gibibytes => format!("{:.1}", mib / GIB),
        Units::Tebibytes => format!("{:.1}", mib / TIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_in_ganeti() {
        for (mib, human) in
            [(0.0, "0M"), (64.0, "64M"), (1023.0, "1023M"), (1024.0, "1.0G"), (8000.0, "7.8G"), (1572864.0, "1.5T")]
        {
            assert_eq!(size(mib, Units::Human), human);
        }
        assert_eq!(size(96.0, Units::Mebibytes), "96");
        assert_eq!(size(1536.0, Units::Gibibytes), "1.5");
        assert_eq!(size(1572864.0, Units::Tebibytes), "1.5");
    }
}
