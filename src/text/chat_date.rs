//! `strftime_now` of chat templates: today's date as Python's `strftime` writes it, in UTC.

use std::time::{Duration, SystemTime};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const DAY_S: u64 = 24 * 60 * 60;

/// `now` in `format`. Directives that aren't known stay as they are; times before 1970 are 1970.
pub(super) fn format_time(now: SystemTime, format: &str) -> String {
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since_1970.as_ref().map_or(0, Duration::as_secs);
    let day = Day::from_days(seconds / DAY_S);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut text = String::with_capacity(format.len() * 2);
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        let directive = letters.next();
        match directive {
            Some('Y') => text += &day.year.to_string(),
            Some('y') => text += &digits(day.year % 100, 2),
            Some('m') => text += &digits(day.month as u64 + 1, 2),
            Some('B') => text += MONTHS[day.month],
            Some('b') => text += &MONTHS[day.month][..3],
            Some('d') => text += &digits(day.of_month, 2),
            Some('j') => text += &digits(day.of_year, 3),
            Some('A') => text += WEEKDAYS[day.weekday],
            Some('a') => text += &WEEKDAYS[day.weekday][..3],
            Some('H') => text += &digits(hour, 2),
            Some('I') => text += &digits((hour + 11) % 12 + 1, 2),
            Some('p') => text += if hour < 12 { "AM" } else { "PM" },
            Some('M') => text += &digits(minute, 2),
            Some('S') => text += &digits(second, 2),
            Some('%') | None => text.push('%'),
            Some(other) => text.extend(['%', other]),
        }
    }
    text
}

fn digits(number: u64, width: usize) -> String {
    format!("{number:0width$}")
}

/// A day of the Gregorian calendar.
struct Day {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    of_month: u64,
    /// From 1.
    of_year: u64,
    /// From 0, Monday.
    weekday: usize,
}

impl Day {
    /// The day so many days after 1 January 1970, a Thursday.
    fn from_days(days: u64) -> Self {
        // Times beyond this are a broken clock's; the loops below stay short.
        let days = days.min(400 * 366);
        let weekday = ((days + 3) % 7) as usize;
        let (mut year, mut of_year) = (1970, days);
        while of_year >= days_of_year(year) {
            of_year -= days_of_year(year);
            year += 1;
        }
        let february = 28 + u64::from(days_of_year(year) == 366);
        let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let (mut month, mut of_month) = (0, of_year);
        while of_month >= lengths[month] {
            of_month -= lengths[month];
            month += 1;
        }
        Self {
            year,
            month,
            of_month: of_month + 1,
            of_year: of_year + 1,
            weekday,
        }
    }
}

fn days_of_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    365 + u64::from(leap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, format: &str) -> String {
        format_time(
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            format,
        )
    }

    #[test]
    fn dates_are_written_as_python_writes_them() {
        // 2024-02-29 13:05:09 UTC.
        assert_eq!(
            at(
                1_709_211_909,
                "%A, %a %d %B %b %Y-%m-%d %y %H:%M:%S %I %p %j %% %Q %"
            ),
            "Thursday, Thu 29 February Feb 2024-02-29 24 13:05:09 01 PM 060 % %Q %"
        );
        assert_eq!(at(0, "%Y-%m-%d %I %p %a"), "1970-01-01 12 AM Thu");
        assert_eq!(at(946_684_799, "%Y-%m-%d %j"), "1999-12-31 365");
    }

    #[test]
    fn a_clock_that_is_far_off_does_no_harm() {
        assert!(at(u64::MAX >> 8, "%Y").len() == 4);
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(format_time(before, "%Y"), "1970");
    }
}
