//! The time zone of what people read.
//!
//! jiff finds a zone by its name in a list of all zones of the machine, which it keeps for ever: 120 KiB. So it is built without
//! that, and what `TZ` names is read here.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// Where the C library looks for zones.
const ZONES: &str = "/usr/share/zoneinfo";

/// Returns the time in the local zone.
pub(crate) fn now() -> Zoned {
    Timestamp::now().to_zoned(local())
}

/// Returns the zone that `TZ` says, else the one of the machine; UTC if neither can be read. When the machine's changes, it takes up
/// to five minutes.
pub fn local() -> TimeZone {
    static NAMED: LazyLock<Option<TimeZone>> = LazyLock::new(|| named(&std::env::var("TZ").ok()?));
    NAMED.clone().unwrap_or_else(TimeZone::system)
}

/// Returns the zone with this name, unless it is a rule or the path of a file, both of which jiff knows.
fn named(name: &str) -> Option<TimeZone> {
    let name = name.strip_prefix(':').unwrap_or(name);
    let content = fs::read(Path::new(ZONES).join(name)).ok()?;
    TimeZone::tzif(name, &content).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiff_keeps_no_list_of_all_zones() {
        assert_eq!(jiff::tz::db().available().count(), 0);
    }

    #[test]
    fn names_are_read_and_what_is_no_name_is_left_to_jiff() {
        let zones =
            [("UTC", true), (":UTC", true), ("", false), ("No/Such_Place", false), ("KNOCK-9:30", false)];
        if !Path::new(ZONES).join("UTC").exists() {
            return testbed::skip("it takes tzdata");
        }
        for (name, is_named) in zones {
            assert_eq!(named(name).is_some(), is_named, "{name:?}");
        }
    }
}
