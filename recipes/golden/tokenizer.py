"""The tiny byte-level BPE tokenizer of every golden model: SmolLM2's structure, 512 tokens, ChatML."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from common import VOCAB

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BOS, EOS, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

TEMPLATE = """\
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' -}}
    {%- endif -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('unknown role: ' + message['role']) -}}
    {%- endif %}
    {%- set content = message['content'] -%}
    {%- if message['role'] == 'system' -%}
        {%- set content = content.strip() -%}
    {%- elif message['role'] == 'assistant' and '</think>' in content -%}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

TEXT = """\
The pump stopped at six in the morning, and the pressure in the second line fell to 2.4 bar.
Please check the valve before you start the motor again; the seal was replaced on Tuesday.
Our press reports error 17 when the door is open. It reports nothing when the door is closed.
Who has the key to the switch room? The operator says that the belt is loose and the bearing is hot.
A conveyor that runs without a load should not draw more than 12 amperes.
The customer writes: "I can't print the labels, and I've tried it three times already."
We'll send someone today. They're bringing a new sensor, a cable and the manual.
It is raining. The river is high, the bridge is closed, and the road along the hill is slow.
She read the letter twice, folded it, and put it under the lamp without a word.
There are seven bridges in the town, and nobody has walked all of them in one evening.
Give me a short answer. Give me the name of the machine, the fault and how urgent it is.
The answer is: {"machine": "press 4", "category": "electrical", "urgency": "high"}
fn main() { let total: u32 = (1..=10).sum(); println!("{total}"); }
for i in range(10):
    if i % 2 == 0:
        print(i, "is even")
Grüße aus Köln, das Förderband läuft wieder. Où est la clé ? El motor no arranca, señor.
If the light is red, wait; if it is green, press start and then hold the lever for 5 seconds.
The compressor in hall 3 is louder than the one in hall 1, but the oil level is normal.
One, two, three, four, five, six, seven, eight, nine, ten.
Nothing is as simple as it looks, and nothing is as hard as it looks at night.
"""


def train():
    """Trains the tokenizer on the text above; the result depends on nothing else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    return tokenizer


def save(tokenizer, folder, template_in_file=False):
    """Writes tokenizer.json and tokenizer_config.json; the template goes into chat_template.jinja when asked."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for index, token in enumerate(SPECIAL)
        },
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": 512,
        "pad_token": EOS,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
    }
    if template_in_file:
        (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    else:
        config["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def merges(tokenizer):
    """The tokenizer's merges as pairs, best first."""
    return json.loads(tokenizer.to_str())["model"]["merges"]
