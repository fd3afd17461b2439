//! The same vocabulary under every splitting rule that is served, held to llama.cpp and to Hugging Face.

use std::{collections::HashMap, fs::File, io::BufReader, path::Path};

use super::{
    encoder::{Encoder, Specials},
    gguf::{Field, read_tokenizer_fields},
    gguf_vocabulary::{GgufVocabulary, Refused},
};

#[derive(serde::Deserialize)]
struct Golden {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    /// So many of the texts were tried with other rules.
    few: usize,
    families: HashMap<String, Family>,
}

/// By the text's place: llama.cpp's ids where they are not those of the vocabulary's own rule, and Hugging Face's where
/// they are not llama.cpp's.
#[derive(serde::Deserialize)]
struct Family {
    differs: HashMap<usize, Vec<u32>>,
    hugging_face: HashMap<usize, Vec<u32>>,
}

fn fields() -> HashMap<String, Field> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer/smollm2.gguf");
    read_tokenizer_fields(&mut BufReader::new(File::open(path).expect("is there"))).expect("reads")
}

fn with(key: &str, value: Field) -> Result<GgufVocabulary, Refused> {
    let mut fields = fields();
    fields.insert(format!("tokenizer.ggml.{key}"), value);
    GgufVocabulary::from_fields(fields)
}

#[test]
fn every_familys_ids_are_those_of_its_models() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer/smollm2.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).expect("is there")).expect("is JSON");
    assert_eq!(golden.families.len(), 5);
    for (family, rules) in &golden.families {
        assert!(!rules.differs.is_empty(), "{family} is a rule of its own");
        let vocabulary = with("pre", Field::Text(family.clone())).expect("is known");
        let encoder = Encoder::new(vocabulary.tokenizer().expect("builds")).expect("builds");
        let mut wrong = Vec::new();
        for (at, text) in golden.texts[..golden.few].iter().enumerate() {
            let expected = rules.hugging_face.get(&at).or(rules.differs.get(&at)).unwrap_or(&golden.ids[at]);
            let ids = encoder.encode(text, Specials::AsText).expect("encodes");
            if ids != *expected {
                wrong.push(format!("{text:?}\n  ours {ids:?}\n  wanted {expected:?}"));
            }
        }
        assert!(wrong.is_empty(), "{family}: {} differ:\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[test]
fn tokenizers_of_other_kinds_are_refused_by_name() {
    for (key, name, shown) in [
        ("model", "bert", "bert"),
        ("model", "t5", "t5"),
        ("model", "rwkv", "rwkv"),
        ("pre", "deepseek-v3", "gpt2 with pre 'deepseek-v3'"),
    ] {
        match with(key, Field::Text(name.into())) {
            Err(Refused::Unsupported(said)) => assert_eq!(said, shown),
            Err(Refused::Reason(reason)) => panic!("{name}: {reason}"),
            Ok(_) => panic!("{name} was accepted"),
        }
    }
}

#[test]
fn entries_that_do_not_fit_each_other_are_refused() {
    for (key, value) in [
        ("tokens", Field::Texts(Vec::new())),
        ("tokens", Field::Signeds(vec![1])),
        ("token_type", Field::Signeds(vec![1, 2, 3])),
        ("token_type", Field::Signeds(vec![9; 49_152])),
        ("scores", Field::Floats(vec![0.0])),
        ("merges", Field::Text("a b".into())),
        ("bos_token_id", Field::Unsigned(49_152)),
        ("eos_token_id", Field::Text("2".into())),
        ("add_bos_token", Field::Unsigned(1)),
        ("model", Field::Bool(true)),
    ] {
        let shown = format!("{key}: {value:.40?}");
        assert!(matches!(with(key, value), Err(Refused::Reason(_))), "{shown}");
    }
    for merges in [vec!["Ġ".to_owned()], vec!["Ġ nosuchtoken".to_owned()], vec!["é".to_owned()], vec!["".to_owned()]]
    {
        let vocabulary = with("merges", Field::Texts(merges.clone())).expect("reads");
        assert!(vocabulary.tokenizer().is_err(), "{merges:?}");
    }
    let vocabulary = with("model", Field::Text("llama".into())).expect("reads");
    assert!(matches!(vocabulary.tokenizer(), Err(Refused::Reason(reason)) if reason.contains("scores")));
}
