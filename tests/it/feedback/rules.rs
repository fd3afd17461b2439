//! Rules follow the record: nothing is missed, nothing is flagged twice, and a change holds from its time on.

use std::collections::HashSet;

use tunegate::{config::FlagRules, feedback::RuleSet, journal::Cursor};

use super::{Desk, TRUNCATED, asked, cut, fact, place};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_at_any_moment_misses_nothing_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = HashSet::new();
    let mut number = 0;
    for round in 0..12 {
        let desk = Desk::with(folder.path(), TRUNCATED);
        let following = desk.flags.follow();
        let facts: Vec<_> = (0..40)
            .map(|_| {
                number += 1;
                let id = format!("c{number}");
                match number % 3 {
                    0 => {
                        expected.insert(id.clone());
                        cut(&id)
                    }
                    _ => fact(&id, "It rained all day."),
                }
            })
            .collect();
        desk.record(facts).await;
        // It is ended wherever it is: before, in or after a batch, as the round has it.
        for _ in 0..round * 3 {
            tokio::task::yield_now().await;
        }
        drop(following);
    }
    let desk = Desk::with(folder.path(), TRUNCATED);
    let _following = desk.flags.follow();
    desk.looked().await;
    let flags = desk.all_flags().await;
    let found: HashSet<String> = flags.iter().map(|flag| flag.completion.clone()).collect();
    assert_eq!((found, flags.len()), (expected, 160));
    let rules = desk.journal.flag_rules().await.unwrap();
    assert_eq!((rules.len(), rules[0].flags), (1, 160));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_rule_holds_from_then_on_and_on_the_past_when_it_is_applied_there() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::with(folder.path(), TRUNCATED);
    let _following = desk.flags.follow();
    desk.looked().await;
    desk.record([cut("a"), fact("b", "short")]).await;
    desk.looked().await;
    let path = folder.path().join("rules.toml");
    std::fs::write(&path, "[[rule]]\nname = 'cut'\nkind = 'truncated'\nat_least_tokens = 50\n").unwrap();
    desk.flags.reload();
    desk.record([cut("c")]).await;
    desk.looked().await;
    assert_eq!(desk.all_flags().await.len(), 1, "five tokens are fewer than 50");

    let regex = "[[rule]]\nname = 'short'\nkind = 'regex'\npattern = '^short$'\n";
    std::fs::write(&path, [TRUNCATED, regex].concat()).unwrap();
    desk.flags.reload();
    desk.record([cut("d")]).await;
    desk.looked().await;
    let again = async |names: &[String], last: u64| {
        let mut running = desk.flags.watch_again();
        let stretch = desk.flags.again(names, last).unwrap();
        running.wait_for(Option::is_none).await.unwrap();
        stretch
    };
    let stretch = again(&["short".to_owned()], 1000).await;
    assert_eq!(stretch, (place(0), place(4)));
    let shown = async || {
        let mut shown: Vec<(String, String)> =
            desk.all_flags().await.into_iter().map(|flag| (flag.completion, flag.rule)).collect();
        shown.sort();
        shown
    };
    let pair = |id: &str, rule: &str| (id.to_owned(), rule.to_owned());
    assert_eq!(shown().await, [pair("a", "cut"), pair("b", "short"), pair("d", "cut")]);
    // All rules, twice: the second time finds nothing new. `c` came while the rule asked for 50 tokens.
    again(&[], 1000).await;
    again(&[], 1000).await;
    assert_eq!(shown().await, [pair("a", "cut"), pair("b", "short"), pair("c", "cut"), pair("d", "cut")]);
    let rules = desk.journal.flag_rules().await.unwrap();
    let spans = |name: &str| rules.iter().find(|kept| kept.rule.name == name && kept.flags > 0).unwrap().spans.clone();
    assert_eq!((spans("cut"), spans("short")), (vec![(place(0), place(4))], vec![(place(0), place(4))]));
    let unknown = desk.flags.again(&["shrot".to_owned()], 5).unwrap_err().to_string();
    assert_eq!(unknown, "there is no rule 'shrot'; there are cut, short");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_faults_changes_nothing_but_what_is_said_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::with(folder.path(), TRUNCATED);
    let _following = desk.flags.follow();
    desk.looked().await;
    let path = folder.path().join("rules.toml");
    std::fs::write(&path, "[[rule]]\nname = 'cut'\nkind = 'nonsense'\n").unwrap();
    desk.flags.reload();
    let loaded = desk.flags.loaded();
    assert!(loaded.faults[0].contains("no kind 'nonsense'"), "{:?}", loaded.faults);
    assert_eq!(desk.metrics.flag_rule_faults.get(), 1);
    desk.record([cut("a")]).await;
    desk.looked().await;
    assert_eq!(desk.all_flags().await.len(), 1, "the rules before it hold");
    std::fs::write(&path, TRUNCATED).unwrap();
    desk.flags.reload();
    assert!(desk.flags.loaded().faults.is_empty());
    assert_eq!(desk.metrics.flag_rule_faults.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_tried_on_the_past_tells_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path(), FlagRules::None);
    let _following = desk.flags.follow();
    desk.record((0..30).map(|at| if at % 3 == 0 { cut(&format!("c{at}")) } else { fact(&format!("c{at}"), "fine") }))
        .await;
    let rules = |more: &str| RuleSet::parse(&format!("{TRUNCATED}{more}"), None).unwrap();
    let tried = desk.flags.try_on_the_past(rules(""), 1000).await.unwrap();
    assert_eq!((tried.answers, tried.rules[0].looked, tried.rules[0].found), (30, 30, 10));
    let example = &tried.rules[0].examples[0];
    assert_eq!((example.completion.as_str(), example.reason.as_str()), ("c0", "cut off by its limit of 5 tokens"));
    assert_eq!(tried.rules[0].examples.len(), 5);
    let last = desk.flags.try_on_the_past(rules(""), 9).await.unwrap();
    assert_eq!((last.answers, last.rules[0].found), (9, 3));
    let elsewhere = desk.flags.try_on_the_past(rules("where = {model = 'lawyer'}"), 1000).await.unwrap();
    assert_eq!((elsewhere.rules[0].looked, elsewhere.rules[0].found), (0, 0));
    let sampled = desk.flags.try_on_the_past(rules("sample = 0.5"), 1000).await.unwrap();
    assert!((6..=24).contains(&sampled.rules[0].looked), "{}", sampled.rules[0].looked);
    assert!(desk.all_flags().await.is_empty());
    assert!(desk.journal.flag_rules().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_samples_and_actions_are_held() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "
        [[rule]]\nname = 'counted'\nkind = 'truncated'\naction = 'count'
        [[rule]]\nname = 'shop'\nkind = 'truncated'\nwhere = {key = ['shop', 'web'], metadata = {team = 'blue'}}
        [[rule]]\nname = 'poets'\nkind = 'truncated'\nwhere = {model = 'poet', kind = 'chat'}
        [[rule]]\nname = 'others'\nkind = 'truncated'\nwhere = {version = '000000'}
    ";
    let desk = Desk::with(folder.path(), rules);
    let _following = desk.flags.follow();
    desk.looked().await;
    let mut shop = cut("shop");
    shop.key = Some("shop".to_owned());
    shop.metadata.insert("team".to_owned(), "blue".into());
    let mut base = cut("base");
    (base.adapter, base.model) = (None, "smol".to_owned());
    desk.record([shop, base]).await;
    desk.looked().await;
    let mut found: Vec<(String, String)> =
        desk.all_flags().await.into_iter().map(|flag| (flag.rule, flag.completion)).collect();
    found.sort();
    let pair = |rule: &str, id: &str| (rule.to_owned(), id.to_owned());
    assert_eq!(found, [pair("poets", "shop"), pair("shop", "shop")]);
    let count = |name: &str| desk.metrics.flags.with_label_values(&[name]).get();
    assert_eq!((count("counted"), count("others"), count("poets")), (2, 0, 1));
    assert_eq!(desk.metrics.flag_looks.with_label_values(&["counted"]).get(), 2);
    assert_eq!(desk.metrics.flag_lag.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_before_a_question_that_comes_again_is_flagged_once() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::with(folder.path(), "[[rule]]\nname = 'again'\nkind = 'asked_again'\n");
    let _following = desk.flags.follow();
    desk.looked().await;
    let ask = |id: &str, user: &str, question: &str, after_s: i64| {
        let mut fact = fact(id, "It rained.");
        fact.user = Some(user.to_owned());
        fact.content = Some(asked(question));
        fact.created_ms += after_s * 1000;
        fact
    };
    let belt = "The drive belt of Norvik HX-310 has snapped, what now?";
    desk.record([ask("first", "ada", belt, 0)]).await;
    // The second is on record before the first of the other pair, whose answer took longer.
    desk.record([ask("second", "ada", "the drive belt of Norvik HX-310 has snapped, what now", 40)]).await;
    desk.record([ask("bob", "bob", belt, 45), ask("third", "ada", belt, 60), ask("late", "ada", belt, 300)]).await;
    desk.record([ask("other", "ada", "How do I order one?", 70), ask("slow", "bob", belt, 20)]).await;
    desk.looked().await;
    let mut found: Vec<String> = desk.all_flags().await.into_iter().map(|flag| flag.completion).collect();
    found.sort();
    assert_eq!(found, ["first", "second", "slow"], "each that was asked again within two minutes, by the same user");
    let flags = desk.all_flags().await;
    assert!(flags[0].reason.starts_with("the same user asked again 40 s later"), "{}", flags[0].reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn low_confidence_is_set_to_a_budget_and_finds_what_the_version_was_unsure_of() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "[[rule]]\nname = 'unsure'\nkind = 'low_confidence'\nbudget = 0.05\n";
    let desk = Desk::with(folder.path(), rules);
    let _following = desk.flags.follow();
    desk.looked().await;
    let mut seed = 11u64;
    let mut uniform = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut answer = |id: String, scale: f64| {
        let tokens = 4 + (uniform() * 40.0) as usize;
        let mut fact = fact(&id, "some words");
        fact.choices[0].tokens = tokens;
        for score in &mut fact.choices[0].scores {
            score.logprob = 0.0;
        }
        let one = fact.choices[0].scores[0].clone();
        fact.choices[0].scores =
            (0..tokens).map(|_| TokenScoreOf(one.clone()).with((uniform().max(1e-9).ln() * scale) as f32)).collect();
        fact
    };
    let clean: Vec<_> = (0..1200).map(|at| answer(format!("clean{at}"), 0.3)).collect();
    let unsure: Vec<_> = (0..60).map(|at| answer(format!("unsure{at}"), 0.9)).collect();
    desk.record(clean).await;
    desk.record(unsure).await;
    desk.looked().await;
    let flags = desk.all_flags().await;
    let found = |word: &str| flags.iter().filter(|flag| flag.completion.starts_with(word)).count();
    let (clean, unsure) = (found("clean"), found("unsure"));
    // 1,000 clean answers came after the first 200, which only make the reference.
    let (low, _) = tunegate::stats::wilson(clean as u64, 1000, 0.01).unwrap();
    assert!(low <= 0.05, "{clean} of 1000 are above the budget of 5 %");
    assert!(clean >= 15, "{clean} of 1000 are hardly any");
    assert!(unsure >= 50, "{unsure} of 60");
    assert!(flags.iter().all(|flag| flag.reason.contains("no measure of truth")), "{}", flags[0].reason);
    let early: Vec<_> =
        flags.iter().filter(|flag| (0..200).any(|at| flag.completion == format!("clean{at}"))).collect();
    assert!(early.is_empty(), "nothing is said before there is a reference: {early:?}");
}

struct TokenScoreOf(tunegate::terms::TokenScore);

impl TokenScoreOf {
    fn with(mut self, logprob: f32) -> tunegate::terms::TokenScore {
        self.0.logprob = logprob;
        self.0
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_words_are_looked_at_by_the_rules_that_need_none() {
    let folder = tempfile::tempdir().unwrap();
    let rules =
        [TRUNCATED, "[[rule]]\nname = 'loop'\nkind = 'loop'\n[[rule]]\nname = 'empty'\nkind = 'empty'\n"].concat();
    let desk = Desk::with(folder.path(), &rules);
    let _following = desk.flags.follow();
    desk.looked().await;
    let mut bare = cut("bare");
    bare.content = None;
    bare.choices[0].text = None;
    bare.choices[0].scores.clear();
    desk.record([bare]).await;
    desk.looked().await;
    let flags = desk.all_flags().await;
    assert_eq!(flags.iter().map(|flag| flag.rule.as_str()).collect::<Vec<_>>(), ["cut"]);
    let tried = desk.flags.try_on_the_past(RuleSet::parse(&rules, None).unwrap(), 10).await.unwrap();
    assert_eq!(tried.wordless, 1);
    assert_eq!(*desk.flags.watch_followed().borrow(), Cursor(1));
}
