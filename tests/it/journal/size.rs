//! What an answer takes on disk, as docs/operations.md states it.

use std::sync::Arc;

use tunegate::{
    journal::{ChoiceRecord, Completion, Content, Given, PromptContent, Thread},
    terms::{Digest, Message, Role, TokenScore},
};

use super::{Desk, choice, fact};

const ANSWERS: u64 = 400;

/// Bytes of database for each answer with `tokens` of prompt and of answer, and texts of four bytes a token.
async fn bytes_each(tokens: usize) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path());
    let messages = vec![Message { role: Role::User, content: "rain ".repeat(tokens * 4 / 5), name: None }];
    let ids = (0..tokens as u32).map(|at| at * 383 % 49_152).collect();
    let content = Arc::new(Content { prompts: vec![PromptContent { given: Given::Messages(messages), tokens: ids }] });
    for n in 0..ANSWERS {
        let digest = Digest::of(&n.to_le_bytes());
        let mut thread = [0; 16];
        thread.copy_from_slice(&digest.as_bytes()[..16]);
        let score =
            |at: usize| TokenScore { token: at as u32 * 383 % 49_152, logprob: -0.5, entropy: 1.0, top: Vec::new() };
        let answer = ChoiceRecord {
            text: Some("seal ".repeat(tokens * 4 / 5)),
            scores: (0..tokens).map(score).collect(),
            thread: Some(Thread(thread)),
            ..choice(0)
        };
        let (content, choices) = (Some(Arc::clone(&content)), vec![answer]);
        desk.record(Completion { content, choices, ..fact(&format!("chatcmpl-{}", &digest.to_string()[..32])) }).await;
    }
    // The last to go merges the log into the database.
    drop(desk);
    std::fs::metadata(folder.path().join("tunegate.db")).unwrap().len() / ANSWERS
}

#[tokio::test]
async fn an_answer_takes_what_the_manual_says() {
    let (none, small, large) = (bytes_each(0).await, bytes_each(64).await, bytes_each(256).await);
    println!("{none} bytes of facts; {small} with 64/64 tokens; {large} with 256/256");
    assert!((1500..=3000).contains(&none), "{none}");
    // Two bytes for a prompt token and six for one of the answer, beside their texts.
    let each = (small - none) / 64 - 2 * 4;
    assert!((7..=12).contains(&each), "{each} bytes a token of prompt and answer");
    // Long texts have pages of their own.
    assert!(large < 12 << 10, "{large}");
}
