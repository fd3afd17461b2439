//! Finds what an answer of an earlier turn was placed as.

use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use crate::{
    store::{EarlierTurn, Matched, StoreError},
    terms::{Assignment, ConversationBy, Placement, Split, SplitBy},
};

const COLUMNS: &str = "SELECT id, conversation, conversation_by, split, split_by, audit_share FROM completions";

pub fn find(connection: &mut Connection, of: &EarlierTurn<'_>) -> Result<Option<(Matched, Placement)>, StoreError> {
    let transaction = connection.transaction()?;
    let first = |condition: &str, value: &dyn ToSql| -> Result<Option<Placement>, StoreError> {
        let sql = format!("{COLUMNS} WHERE {condition} AND split IS NOT NULL ORDER BY seq DESC LIMIT 1");
        transaction.prepare_cached(&sql)?.query_row([value], |row| Ok(placement(row))).optional()?.transpose()
    };
    if let Some(conversation) = of.conversation
        && let Some(found) = first("conversation = ?1", &conversation)?
    {
        return Ok(Some((Matched::Conversation, found)));
    }
    for thread in of.threads {
        let by_thread = "seq = (SELECT max(completion) FROM choices WHERE thread = ?1)";
        if let Some(found) = first(by_thread, &thread.0)? {
            return Ok(Some((Matched::Thread, found)));
        }
    }
    match of.user {
        Some(user) => Ok(first("user = ?1 AND split_by = 'user'", &user)?.map(|found| (Matched::User, found))),
        None => Ok(None),
    }
}

fn placement(row: &Row<'_>) -> Result<Placement, StoreError> {
    read(row)?.ok_or_else(|| StoreError::Corrupt { id: row.get("id").unwrap_or_default(), reason: WORDS.to_owned() })
}

pub const WORDS: &str = "its conversation or split has an unknown name";

/// `None` for names that are not known.
pub fn read(row: &Row<'_>) -> Result<Option<Placement>, rusqlite::Error> {
    let name = |column: &str| row.get_ref(column).and_then(|value| Ok(value.as_str()?));
    let names = (
        ConversationBy::parse(name("conversation_by")?),
        Split::parse(name("split")?),
        SplitBy::parse(name("split_by")?),
    );
    let (Some(conversation_by), Some(split), Some(by)) = names else { return Ok(None) };
    let assignment = Assignment { split, by, audit_share: row.get("audit_share")? };
    Ok(Some(Placement { conversation: row.get("conversation")?, conversation_by, assignment }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrations::migrate;

    #[test]
    fn earlier_turns_are_found_by_index() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, "memory".as_ref()).unwrap();
        for (condition, index) in [
            ("conversation = ?1", "completions_by_conversation"),
            ("user = ?1 AND split_by = 'user'", "completions_by_user"),
            ("seq = (SELECT max(completion) FROM choices WHERE thread = ?1)", "choices_by_thread"),
        ] {
            let sql = format!("EXPLAIN QUERY PLAN {COLUMNS} WHERE {condition} ORDER BY seq DESC LIMIT 1");
            let mut plan = connection.prepare(&sql).unwrap();
            let lines = plan.query_map(["x"], |row| row.get::<_, String>(3)).unwrap();
            let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
            assert!(plan.contains(index) && !plan.contains("SCAN"), "{condition}: {plan}");
        }
    }
}
