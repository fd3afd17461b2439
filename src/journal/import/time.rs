//! Times as logs have them.

use serde_json::Value;

/// Milliseconds since the Unix epoch, of Unix seconds or milliseconds or of a text after RFC 3339. `None` if it is neither.
pub fn read(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => {
            let number = number.as_f64()?;
            // As seconds this would be the year 5138.
            let ms = if number.abs() < 1e11 { number * 1000.0 } else { number };
            (ms.abs() < 1e15).then_some(ms as i64)
        }
        Value::String(text) => match text.parse::<f64>() {
            Ok(number) => read(&serde_json::json!(number)),
            Err(_) => rfc3339(text),
        },
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn rfc3339(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, zone_ms) = match rest.strip_suffix(['Z', 'z']) {
        Some(clock) => (clock, 0),
        None => match rest.rfind(['+', '-']) {
            Some(at) => (&rest[..at], zone(&rest[at..])?),
            None => (rest, 0),
        },
    };
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (clock.next()?.parse::<i64>().ok()?, clock.next()?.parse::<i64>().ok()?);
    let second = clock.next()?.parse::<f64>().ok()?;
    let fine = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0.0..61.0).contains(&second);
    let minutes = days(year, month, day) * 1440 + hour * 60 + minute;
    fine.then(|| minutes * 60_000 + (second * 1000.0).round() as i64 - zone_ms)
}

fn zone(text: &str) -> Option<i64> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        (_, rest) => (-1, rest),
    };
    let (hours, minutes) = rest.split_once(':').or_else(|| rest.split_at_checked(2))?;
    Some(sign * (hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?) * 60_000)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March: then the day that some of them have more is their last.
    let year = if month > 2 { year } else { year - 1 };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_read_as_logs_write_them() {
        let expected = Some(1_790_000_000_123);
        for time in [
            json!(1_790_000_000.123),
            json!(1_790_000_000_123_i64),
            json!("1790000000.123"),
            json!("2026-09-21T14:13:20.123Z"),
            json!("2026-09-21 14:13:20.123"),
            json!("2026-09-21T16:13:20.123+02:00"),
            json!("2026-09-21t09:43:20.123-0430"),
        ] {
            assert_eq!(read(&time), expected, "{time}");
        }
        assert_eq!(read(&json!("1970-01-01T00:00:00Z")), Some(0));
        assert_eq!(read(&json!("2000-02-29T00:00:00Z")), Some(951_782_400_000));
        for bad in [
            json!("yesterday"),
            json!("2026-13-01T00:00:00Z"),
            json!("2026-09-21"),
            json!(null),
            json!("é26-09-21T00:00:00"),
        ] {
            assert_eq!(read(&bad), None, "{bad}");
        }
    }
}
