//! A server's answers as tables. Texts of others are escaped: what an adapter says of itself may not drive a terminal.

use serde_json::Value;

use crate::cli::table::{moment, short, table, text};

/// One line for each adapter.
pub fn list(answer: &Value) -> String {
    let adapters = answer["data"].as_array().map_or(&[][..], Vec::as_slice);
    if adapters.is_empty() {
        return "no adapters; `tunegate adapter load NAME PATH` loads one\n".to_owned();
    }
    let mut rows =
        vec![["NAME", "VERSION", "TIER", "BYTES", "RANK", "LEASES", "MANAGED BY", "SINCE", ""].map(str::to_owned)];
    for adapter in adapters {
        let marks = [("pinned", "pinned"), ("hold", "on hold")];
        let mut notes: Vec<String> =
            marks.into_iter().filter(|(key, _)| adapter[*key] == true).map(|(_, mark)| mark.to_owned()).collect();
        if adapter["status"] == "refused" {
            notes.push(format!("refused: {}", reason(&adapter["refused"])));
        } else if adapter["quarantine"].is_object() {
            notes.push(format!("quarantined: {}", text(&adapter["quarantine"]["reason"])));
        }
        rows.push([
            text(&adapter["id"]),
            short(&adapter["version"]),
            text(&adapter["tier"]),
            text(&adapter["bytes"]),
            text(&adapter["rank"]),
            text(&adapter["leases"]),
            text(&adapter["managed_by"]),
            moment(&adapter["since"]),
            notes.join(", "),
        ]);
    }
    table(&rows)
}

/// A name after a change.
pub fn change(answer: &Value) -> String {
    let (name, was) = (text(&answer["id"]), &answer["was"]);
    if answer["status"] == "unloaded" {
        return format!("{name} is unloaded; it was {}\n", short(was));
    }
    let now = short(&answer["version"]);
    let mut line = match (answer["changed"] == true, was.is_null(), short(was) == now) {
        (false, _, _) => format!("{name} is {now}, as before"),
        (true, true, _) => format!("{name} is {now}"),
        (true, false, true) => format!("{name} is still {now}"),
        (true, false, false) => format!("{name} is {now}; it was {}", short(was)),
    };
    for (key, mark) in [("pinned", "; pinned"), ("hold", "; on hold, until its file may move it again")] {
        if answer[key] == true {
            line.push_str(mark);
        }
    }
    line + "\n"
}

/// A name's versions, then its steps, the latest first.
pub fn history(answer: &Value) -> String {
    let mut rows =
        vec![["VERSION", "TIER", "BYTES", "ON DISK", "LEASES", "LAST USED", "LOAD MS", ""].map(str::to_owned)];
    for version in answer["versions"].as_array().into_iter().flatten() {
        let load = &version["load"];
        let ms: Option<f64> = ["read_ms", "check_ms", "pack_ms"].into_iter().map(|stage| load[stage].as_f64()).sum();
        rows.push([
            short(&version["version"]),
            text(&version["tier"]),
            text(&version["bytes"]),
            text(&version["kept_bytes"]),
            text(&version["leases"]),
            moment(&version["last_used"]),
            ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}")),
            if version["current"] == true { "current".to_owned() } else { String::new() },
        ]);
    }
    let mut steps = vec![["WHEN", "STEP", "VERSION", "MANAGED BY", "WHO", "WHY", "SOURCE"].map(str::to_owned)];
    for step in answer["history"].as_array().into_iter().flatten() {
        steps.push([
            moment(&step["at"]),
            text(&step["operation"]),
            short(&step["version"]),
            text(&step["managed_by"]),
            text(&step["who"]),
            text(&step["why"]),
            text(&step["source"]),
        ]);
    }
    format!("{} is {}\n\n{}\n{}", text(&answer["id"]), text(&answer["status"]), table(&rows), table(&steps))
}

/// Folders with what they would change, or the reasons against them.
pub fn checked(checked: &[Value]) -> String {
    let mut shown = String::new();
    for one in checked {
        shown.push_str(&format!("{}\n", text(&one["name"])));
        match one.get("plan") {
            Some(plan) => {
                shown.push_str(&format!("version  {}\n", short(&plan["version"])));
                let mut rows = vec![["MODULE", "RANK", "ALPHA", "SCALE", "IN", "OUT", "DTYPE"].map(str::to_owned)];
                for site in plan["sites"].as_array().into_iter().flatten() {
                    let keys = ["module", "rank", "alpha", "scale", "inputs", "outputs", "dtype"];
                    rows.push(keys.map(|key| text(&site[key])));
                }
                shown.push_str(&table(&rows));
                for note in plan["notes"].as_array().into_iter().flatten() {
                    shown.push_str(&format!("note: {}\n", text(note)));
                }
            }
            None => {
                for refusal in one["refused"].as_array().into_iter().flatten() {
                    let [subject, reason, code] = ["subject", "reason", "code"].map(|key| text(&refusal[key]));
                    shown.push_str(&format!("refused  {subject}: {reason}  [{code}]\n"));
                }
            }
        }
        shown.push('\n');
    }
    shown
}

fn reason(refusals: &Value) -> String {
    let refusals = refusals.as_array().map_or(&[][..], Vec::as_slice);
    let first = refusals.first().map(|one| format!("{}: {}", text(&one["subject"]), text(&one["reason"])));
    let more = if refusals.len() > 1 { format!(" (and {} more)", refusals.len() - 1) } else { String::new() };
    first.unwrap_or_default() + &more
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_says_where_everything_is_and_what_is_wrong() {
        let version = "0123456789abcdef";
        let refused = json!([{"code": "rank", "subject": "r", "reason": "is 0"}, {}]);
        let shown = list(&json!({"data": [
            {"id": "poet", "status": "serving", "version": version, "tier": "memory", "bytes": 7, "rank": 8, "leases": 2,
             "managed_by": "api", "since": 0, "pinned": true, "hold": false},
            {"id": "x", "status": "refused", "version": null, "refused": refused},
            {"id": "y", "status": "quarantined", "version": null, "quarantine": {"reason": "it panicked"}},
        ]}));
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("NAME  VERSION"), "{shown}");
        for part in ["poet  0123456789ab  memory", "1970-01-01 00:00:00 UTC  pinned"] {
            assert!(lines[1].contains(part), "{shown}");
        }
        assert!(lines[2].ends_with("refused: r: is 0 (and 1 more)"), "{shown}");
        assert!(lines[3].ends_with("quarantined: it panicked"), "{shown}");
        assert!(list(&json!({"data": []})).starts_with("no adapters"));
    }

    #[test]
    fn a_change_is_one_line() {
        let line = |more: Value| {
            let mut answer =
                json!({"id": "a", "status": "serving", "version": "b".repeat(64), "was": null, "changed": true});
            for (key, value) in more.as_object().unwrap() {
                answer[key] = value.clone();
            }
            change(&answer)
        };
        assert_eq!(line(json!({})), "a is bbbbbbbbbbbb\n");
        assert_eq!(line(json!({"was": "c".repeat(64)})), "a is bbbbbbbbbbbb; it was cccccccccccc\n");
        assert_eq!(line(json!({"changed": false})), "a is bbbbbbbbbbbb, as before\n");
        assert_eq!(line(json!({"status": "unloaded", "was": "c".repeat(64)})), "a is unloaded; it was cccccccccccc\n");
        assert!(line(json!({"hold": true})).contains("on hold"));
    }

    #[test]
    fn words_of_others_cannot_drive_a_terminal() {
        let shown = history(&json!({"id": "a", "status": "serving", "versions": [], "history": [
            {"at": 0, "operation": "load", "version": null, "managed_by": "api", "who": "it's", "why": "\u{1b}[31m\n", "source": null},
        ]}));
        assert!(!shown.contains('\u{1b}') && shown.contains("\\u{1b}[31m\\n") && shown.contains("it's"), "{shown}");
    }
}
