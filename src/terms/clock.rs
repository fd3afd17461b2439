//! Moments as people write them, in UTC: for templates that ask for the date, and for lines that name a time.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// A moment by the Gregorian calendar, in UTC.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Days since 1970-01-01.
    days: i64,
    second_of_day: i64,
}

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
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

impl Moment {
    pub fn now() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
        Self::from_unix(seconds as i64)
    }

    /// Milliseconds since the Unix epoch, now.
    pub fn unix_ms() -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as i64)
    }

    /// Seconds since the Unix epoch, as a moment.
    pub fn from_unix(seconds: i64) -> Self {
        Self { days: seconds.div_euclid(86_400), second_of_day: seconds.rem_euclid(86_400) }
    }

    /// Year, month from 1, day from 1, day of the year from 1.
    fn date(self) -> (i64, usize, i64, i64) {
        let leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let (mut year, mut day) = (1970 + self.days.div_euclid(146_097) * 400, self.days.rem_euclid(146_097));
        while day >= 365 + i64::from(leap(year)) {
            day -= 365 + i64::from(leap(year));
            year += 1;
        }
        let of_year = day + 1;
        let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 0;
        while day >= lengths[month] {
            day -= lengths[month];
            month += 1;
        }
        (year, month + 1, day + 1, of_year)
    }

    /// As C's `strftime` in the C locale.
    ///
    /// # Errors
    /// The directive that is not known.
    pub fn format(self, format: &str) -> Result<String, String> {
        let (year, month, day, of_year) = self.date();
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let hour12 = (hour + 11) % 12 + 1;
        let month_name = MONTHS[month - 1];
        let weekday = self.days.rem_euclid(7);
        let weekday_name = WEEKDAYS[weekday as usize];
        let mut text = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let mut directive = rest.next().ok_or_else(String::new)?;
            let unpadded = directive == '-';
            if unpadded {
                directive = rest.next().ok_or("-")?;
            }
            let padded = |number: i64, width: usize| {
                if unpadded { number.to_string() } else { format!("{number:0width$}") }
            };
            text += &match directive {
                'Y' => year.to_string(),
                'y' => padded(year % 100, 2),
                'm' => padded(month as i64, 2),
                'd' => padded(day, 2),
                'e' if unpadded => day.to_string(),
                'e' => format!("{day:2}"),
                'j' => padded(of_year, 3),
                'H' => padded(hour, 2),
                'I' => padded(hour12, 2),
                'M' => padded(minute, 2),
                'S' => padded(second, 2),
                'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
                'B' => month_name.to_owned(),
                'b' | 'h' => month_name[..3].to_owned(),
                'A' => weekday_name.to_owned(),
                'a' => weekday_name[..3].to_owned(),
                'w' => ((weekday + 4) % 7).to_string(),
                'F' => self.format("%Y-%m-%d")?,
                'T' => self.format("%H:%M:%S")?,
                'D' | 'x' => self.format("%m/%d/%y")?,
                'R' => self.format("%H:%M")?,
                'X' => self.format("%H:%M:%S")?,
                'c' => self.format("%a %b %e %H:%M:%S %Y")?,
                'Z' => "UTC".to_owned(),
                'z' => "+0000".to_owned(),
                '%' => "%".to_owned(),
                'n' => "\n".to_owned(),
                't' => "\t".to_owned(),
                other => return Err(other.to_string()),
            };
        }
        Ok(text)
    }
}

/// `2024-02-29 12:34:56 UTC`
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day, _) = self.date();
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        write!(f, "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_strftime_writes_them() {
        // `date -u -d @1709210096 +…`
        let leap_day = Moment::from_unix(1_709_210_096);
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %e %-d %I %p %w %F %T %D %Z%%";
        assert_eq!(
            leap_day.format(all),
            Ok("2024-02-29 12:34:56 Thu Thursday Feb February 060 24 29 29 12 PM 4 2024-02-29 12:34:56 02/29/24 UTC%"
                .into())
        );
        assert_eq!(Moment::from_unix(0).format("%d %B %Y, %A"), Ok("01 January 1970, Thursday".into()));
        assert_eq!(Moment::from_unix(4_107_542_399).format("%F %T"), Ok("2100-02-28 23:59:59".into()));
        assert_eq!(Moment::from_unix(4_107_542_400).format("%F %-j"), Ok("2100-03-01 60".into()));
        assert_eq!(leap_day.to_string(), "2024-02-29 12:34:56 UTC");
        assert_eq!(leap_day.format("%Q"), Err("Q".into()));
        assert_eq!(leap_day.format("50%"), Err(String::new()));
    }
}
