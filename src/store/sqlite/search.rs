//! Pages over everything on record. A page looks at a bounded number of rows, so that it takes a bounded time whatever the
//! record's size; what an index finds narrows that down first.

use rusqlite::{Connection, Row, params_from_iter, types::Value as Sql};

use super::read::load;
use crate::store::{Found, Mark, Order, Search, StoreError};

/// Rows that a page looks at.
const ROWS: usize = 20_000;
/// The same where their words are read.
const TEXTS: usize = 2000;

pub fn search(connection: &mut Connection, search: &Search) -> Result<Found, StoreError> {
    let transaction = connection.transaction()?;
    let window = if search.contains.is_some() { TEXTS } else { ROWS };
    let (sql, values) = page_sql(search, window);
    let mark = |row: &Row<'_>| -> rusqlite::Result<(Mark, bool)> {
        Ok((Mark { created_ms: row.get(0)?, row: row.get::<_, i64>(1)? as u64 }, row.get(2)?))
    };
    let (mut wanted, mut seen, mut last) = (Vec::new(), 0, None);
    let mut select = transaction.prepare_cached(&sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        let (here, fits) = mark(row)?;
        seen += 1;
        last = Some(here);
        if fits {
            wanted.push(here);
            if wanted.len() == search.limit {
                break;
            }
        }
    }
    drop(rows);
    let whole = wanted.len() < search.limit && seen < window;
    let completions = wanted.iter().map(|mark| load(&transaction, mark.row as i64, None)).collect::<Result<_, _>>()?;
    Ok(Found { completions, next: last.filter(|_| !whole) })
}

/// Selects time, row and whether it fits, of the rows that an index finds, in order.
fn page_sql(search: &Search, window: usize) -> (String, Vec<Sql>) {
    let (comparison, direction) = match search.order {
        Order::OldestFirst => (">", "ASC"),
        Order::NewestFirst => ("<", "DESC"),
    };
    let (mut narrow, mut narrowed) = (Conditions::default(), Conditions::default());
    if !search.user.is_empty() {
        let list = vec!["?"; search.user.len()].join(", ");
        narrow.add(&format!("user IN ({list})"), search.user.iter().map(|name| name.clone().into()));
    }
    narrow.add_some("conversation = ?", search.conversation.clone());
    narrow.add_some("adapter = ?", search.adapter.clone());
    narrow.add_some("created_ms >= ?", search.since_ms);
    narrow.add_some("created_ms < ?", search.until_ms);
    if let Some(after) = search.after {
        let values = [after.created_ms.into(), (after.row as i64).into()];
        narrow.add(&format!("(created_ms, seq) {comparison} (?, ?)"), values.into_iter());
    }
    narrowed.add_some("model = ?", search.model.clone());
    narrowed.add_some("lower(hex(adapter_version)) GLOB ? || '*'", search.version.clone());
    narrowed.add_some("key = ?", search.key.clone());
    narrowed.add_some("split = ?", search.split.map(|split| split.as_str().to_owned()));
    narrowed.add_some("origin = ?", search.origin.map(|origin| origin.as_str().to_owned()));
    narrowed.add_some(
        "EXISTS (SELECT 1 FROM choices WHERE completion = completions.seq AND ending = ?)",
        search.ending.clone(),
    );
    if let Some(words) = &search.contains {
        // Answers stand there as they are, everything else as JSON.
        let quoted = serde_json::Value::from(words.as_str()).to_string();
        narrowed.add(
            "EXISTS (SELECT 1 FROM content WHERE completion = completions.seq
                AND instr(text, CASE role WHEN 1 THEN ? ELSE ? END) > 0)",
            [words.clone().into(), quoted[1..quoted.len() - 1].to_owned().into()].into_iter(),
        );
    }
    let mut values = narrowed.values;
    let fits = if narrowed.text.is_empty() { "TRUE".to_owned() } else { narrowed.text };
    let among = if narrow.text.is_empty() { "TRUE".to_owned() } else { narrow.text };
    values.extend(narrow.values);
    values.push((window as i64).into());
    // Without statistics of the tables the planner might walk all of time for one user.
    let index = match search {
        Search { conversation: Some(_), .. } => "INDEXED BY completions_by_conversation",
        Search { user, .. } if !user.is_empty() => "INDEXED BY completions_by_user",
        Search { adapter: Some(_), .. } => "INDEXED BY completions_by_adapter",
        Search { .. } => "INDEXED BY completions_by_time",
    };
    let sql = format!(
        "SELECT created_ms, seq, {fits} FROM completions {index} WHERE {among}
         ORDER BY created_ms {direction}, seq {direction} LIMIT ?"
    );
    (sql, values)
}

#[derive(Default)]
struct Conditions {
    text: String,
    values: Vec<Sql>,
}

impl Conditions {
    fn add(&mut self, condition: &str, values: impl Iterator<Item = Sql>) {
        if !self.text.is_empty() {
            self.text += " AND ";
        }
        self.text += condition;
        self.values.extend(values);
    }

    fn add_some(&mut self, condition: &str, value: Option<impl Into<Sql>>) {
        if let Some(value) = value {
            self.add(condition, std::iter::once(value.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrations::migrate;

    #[test]
    fn every_page_walks_an_index() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory".as_ref()).unwrap();
        let some = || Some("x".to_owned());
        let after = Some(Mark { created_ms: 1, row: 2 });
        for (search, index, sorted) in [
            (Search::default(), "completions_by_time", true),
            (Search { after, since_ms: Some(1), until_ms: Some(9), ..Search::default() }, "completions_by_time", true),
            (Search { after, adapter: some(), contains: some(), ..Search::default() }, "completions_by_adapter", true),
            (Search { after, user: vec!["x".to_owned()], ..Search::default() }, "completions_by_user", true),
            (Search { user: vec!["x".to_owned(), "y".to_owned()], ..Search::default() }, "completions_by_user", false),
            (
                Search { after, conversation: some(), user: vec!["x".to_owned()], ..Search::default() },
                "completions_by_conversation",
                false,
            ),
        ] {
            let (sql, values) = page_sql(&search, 10);
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let lines = plan.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
            let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
            assert!(plan.contains(index), "{sql}: {plan}");
            assert!(!sorted || !plan.contains("ORDER BY"), "{sql}: {plan}");
        }
    }
}
