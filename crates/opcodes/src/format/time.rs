//! Times, in the zone of who reads them.

use jiff::Zoned;
use jiff::tz::TimeZone;
use model::Timestamp;

fn zoned(at: Timestamp, zone: &TimeZone) -> Option<Zoned> {
    let at = jiff::Timestamp::from_microsecond(i64::try_from(at.0).ok()?).ok()?;
    Some(at.to_zoned(zone.clone()))
}

/// A time that no calendar has is shown as its number.
fn written(at: Timestamp, zone: &TimeZone, format: &str) -> String {
    match zoned(at, zone) {
        Some(time) => time.strftime(format).to_string(),
        None => at.0.to_string(),
    }
}

/// `Mon Nov 23 05:02:47 2026`, as before each line of a job.
pub fn ctime(at: Timestamp, zone: &TimeZone) -> String {
    written(at, zone, "%a %b %e %H:%M:%S %Y")
}

/// `2026-11-23 05:02:47`.
pub fn date_time(at: Timestamp, zone: &TimeZone) -> String {
    written(at, zone, "%Y-%m-%d %H:%M:%S")
}

/// `2026-11-23 05:02:47.842465`, as in information about jobs.
pub fn date_time_micros(at: Timestamp, zone: &TimeZone) -> String {
    written(at, zone, "%Y-%m-%d %H:%M:%S.%6f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_in_ganeti() {
        let at = Timestamp(1_700_000_000_000_042);
        assert_eq!(ctime(at, &TimeZone::UTC), "Tue Nov 14 22:13:20 2023");
        assert_eq!(date_time(at, &TimeZone::UTC), "2023-11-14 22:13:20");
        assert_eq!(date_time_micros(at, &TimeZone::UTC), "2023-11-14 22:13:20.000042");
        assert_eq!(ctime(Timestamp(1_699_000_000_000_000), &TimeZone::UTC), "Fri Nov  3 08:26:40 2023");
        let east = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(date_time(at, &east), "2023-11-15 00:13:20");
    }

    #[test]
    fn a_time_out_of_range_does_no_harm() {
        assert_eq!(date_time(Timestamp(u64::MAX), &TimeZone::UTC), u64::MAX.to_string());
    }
}
