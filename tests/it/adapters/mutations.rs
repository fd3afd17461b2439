//! Whatever a folder holds, it is read or refused; nothing panics.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use tunegate::adapters::{folder::AdapterFiles, peft};

use super::draft::{Draft, LIMITS, LLAMA, safetensors};

static PATTERNS: LazyLock<Draft> = LazyLock::new(|| {
    let mut draft = Draft::of("adapters/llama/patterns");
    draft.put(
        "adapter.toml",
        "description = 'x'\n[sampling]\ntemperature = 0.5\n[[golden]]\nprompt = 'a'\nanswer = 'b'\n",
    );
    draft
});

/// Reads and checks; an adapter that is accepted also packs.
fn survive(config: Vec<u8>, weights: Vec<u8>, manifest: Option<Vec<u8>>) -> bool {
    let files = AdapterFiles::new(config, weights, manifest);
    match peft::read(&files, &LLAMA.identity.shape, LIMITS, Some(LLAMA.weights.as_ref())) {
        Ok(adapter) => {
            LLAMA.packer.pack(files.version(), adapter.sites).unwrap();
            true
        }
        Err(refusals) => {
            assert!(!refusals.is_empty(), "refused without a reason");
            false
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![any::<i64>(), -2i64..70].prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        r"[qkvo]_proj|\(?[.*+?|\\d\[\]{}()^$a-q0-3]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_.*]{0,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_value_under_any_key_of_the_configuration(key in 0usize..64, value in any_json()) {
        let mut config = PATTERNS.config.clone();
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        let key = keys.get(key).cloned().unwrap_or_else(|| "something_new".to_owned());
        config[key] = value;
        survive(config.to_string().into_bytes(), PATTERNS.weights(), None);
    }

    #[test]
    fn any_bytes_in_the_place_of_others(
        file in 0usize..3,
        place in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..9),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut files = [
            PATTERNS.config.to_string().into_bytes(),
            PATTERNS.weights(),
            PATTERNS.files["adapter.toml"].clone().unwrap(),
        ];
        let changed = &mut files[file];
        let start = place.index(changed.len());
        for (old, new) in changed[start..].iter_mut().zip(bytes) {
            *old = new;
        }
        if let Some(cut) = cut {
            let end = cut.index(changed.len());
            changed.truncate(end);
        }
        let [config, weights, manifest] = files;
        survive(config, weights, Some(manifest));
    }

    #[test]
    fn any_entry_in_the_header_of_the_weights(
        entry in any::<prop::sample::Index>(),
        field in prop_oneof![Just("dtype"), Just("shape"), Just("data_offsets"), Just("extra")],
        value in prop_oneof![
            any_json(),
            prop::collection::vec(prop_oneof![0u64..4096, any::<u64>()], 0..4).prop_map(Value::from),
            prop_oneof![Just("F16"), Just("BF16"), Just("I64"), Just("BOOL"), Just("F4")].prop_map(Value::from),
        ],
    ) {
        let (mut header, data) = PATTERNS.parts();
        let names: Vec<String> = header.as_object().unwrap().keys().cloned().collect();
        header[&names[entry.index(names.len())]][field] = value;
        survive(PATTERNS.config.to_string().into_bytes(), safetensors(header.to_string().as_bytes(), &data), None);
    }

    #[test]
    fn bytes_that_were_never_a_file(bytes in prop::collection::vec(any::<u8>(), 0..200), header in "[ -~]{0,80}") {
        survive(bytes.clone(), bytes.clone(), Some(bytes.clone()));
        survive(json!({"peft_type": "LORA"}).to_string().into_bytes(), safetensors(header.as_bytes(), &bytes), None);
    }
}

#[test]
fn what_the_mutations_begin_with_is_healthy() {
    let manifest = PATTERNS.files["adapter.toml"].clone();
    assert!(survive(PATTERNS.config.to_string().into_bytes(), PATTERNS.weights(), manifest));
}
