//! The time as `strftime_now` tells it: that of the clock on the wall, in the words of Python's `datetime.strftime`.

use chrono::{DateTime, Local, NaiveDateTime};

/// Bytes that a letter of a format becomes at most.
pub(super) const FIELD_BYTES: u64 = 32;

/// Letters that mean the same in C, and so in Python, as in chrono.
const SHARED: &str = "YCymbBhdeaAwuUWGgVjDxFHkIlPpMSRTXrcnt%";

/// Writes the local time, by the time zone of the environment or of the system.
pub(super) fn now(format: &str) -> String {
    let now: DateTime<Local> = Local::now();
    written(format, now.naive_local(), now.timestamp())
}

/// Writes a time; `seconds` are those since 1970. A letter that C does not know stays as it is.
fn written(format: &str, time: NaiveDateTime, seconds: i64) -> String {
    let (mut out, mut letters) = (String::new(), format.chars().peekable());
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let flag = letters.next_if(|sign| matches!(sign, '-' | '_' | '0' | '^'));
        let Some(field) = letters.next() else {
            out.extend(std::iter::once('%').chain(flag));
            break;
        };
        match field {
            // A time without a zone, as Python's is, has neither.
            'z' | 'Z' => {}
            'f' => out.push_str(&format!("{:06}", time.and_utc().timestamp_subsec_micros())),
            's' => out.push_str(&seconds.to_string()),
            field if SHARED.contains(field) => {
                let flagged: String = match flag {
                    Some(flag) if flag != '^' && !"aAbBhpPcxXDFTRrnt%".contains(field) => {
                        ['%', flag, field].iter().collect()
                    }
                    _ => ['%', field].iter().collect(),
                };
                // chrono knows the field, so that this cannot fail.
                let text = time.format(&flagged).to_string();
                out.push_str(&if flag == Some('^') { text.to_uppercase() } else { text });
            }
            other => out.extend(std::iter::once('%').chain(flag).chain([other])),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn at(format: &str, seconds: i64) -> String {
        written(format, DateTime::from_timestamp(seconds, 7000).unwrap().naive_utc(), seconds)
    }

    /// As `datetime.strftime` of Python writes them.
    #[test]
    fn times_are_written_as_python_writes_them() {
        let day = |seconds| at("%Y-%m-%d %a %H:%M:%S %I %p %b %y %%", seconds);
        assert_eq!(day(0), "1970-01-01 Thu 00:00:00 12 AM Jan 70 %");
        assert_eq!(day(951_782_400), "2000-02-29 Tue 00:00:00 12 AM Feb 00 %");
        assert_eq!(day(1_767_225_599), "2025-12-31 Wed 23:59:59 11 PM Dec 25 %");
        assert_eq!(at("%d %B %Y, %A", 1_709_164_800), "29 February 2024, Thursday");
        let all = "%a|%A|%w|%d|%b|%B|%m|%y|%Y|%H|%I|%p|%M|%S|%f|%z|%Z|%j|%U|%W|%c|%x|%X|%%|%G|%u|%V";
        assert_eq!(
            at(all, 1_735_877_045),
            "Fri|Friday|5|03|Jan|January|01|25|2025|04|04|AM|04|05|000007|||003|00|00|Fri Jan  3 04:04:05 2025|01/03/25|\
             04:04:05|%|2025|5|01"
        );
        let others = "%C|%D|%e|%F|%g|%h|%k|%l|%n|%P|%r|%R|%s|%t|%T|%-d|%-m|%_d|%^a|%-I|%q|%+|%v|%";
        assert_eq!(
            at(others, 1_735_877_045),
            "20|01/03/25| 3|2025-01-03|25|Jan| 4| 4|\n|am|04:04:05 AM|04:04|1735877045|\t|04:04:05|3|1| 3|FRI|4|%q|%+|%v|%"
        );
    }
}
