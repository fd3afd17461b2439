"""The real demo model: its answers from the GGUF decoded to float32, with and without one small adapter; its chat template."""

import hashlib
import json
import pathlib
import shutil

import gguf
import tokenizers
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import adapters
import chat
import score
import verify
from common import ROOT, write_json

ADAPTER = "smollm2/adapter"
_ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "dtype": "float16"}

_PROSE = """\
The lighthouse keeper counted the steps every evening, although he knew that there were one hundred and forty-two of them. On the night of the \
storm he counted one hundred and forty-three. He stood on the landing with the lamp in his hand and listened to the wind, and then he went down \
again, slowly, touching the wall. At the bottom he found that the door had been opened from the outside. There was sand on the floor, and beside \
the stove, where the floor was dry, somebody had left a small wooden box. It was tied with a blue ribbon. He did not open it at once. He put the \
lamp on the table, hung up his coat, and made tea, because a man who has lived alone for eleven years learns to be careful with surprises. When the \
tea was ready he sat down, pulled the box towards him, and untied the ribbon. Inside lay a key, a photograph of the lighthouse that had been taken \
from the sea, and a letter in his own"""

_CODE = """\
from dataclasses import dataclass


@dataclass
class Reading:
    sensor: str
    value: float
    taken_at: int


def mean_by_sensor(readings):
    \"\"\"Return the mean value of each sensor, leaving out readings that are negative.\"\"\"
    totals = {}
    counts = {}
    for reading in readings:
        if reading.value < 0:
            continue
        totals[reading.sensor] = totals.get(reading.sensor, 0.0) + reading.value
        counts[reading.sensor] = counts.get(reading.sensor, 0) + 1
    return {sensor: totals[sensor] / counts[sensor] for sensor in totals}


def test_mean_by_sensor():
    readings = [Reading("a", 1.0, 10), Reading("a", 3.0, 20), Reading("b", -1.0, 30)]
    assert mean_by_sensor(readings) == {"a": """

_TICKET = [
    {"role": "system", "content": "You sort support tickets for a maker of packaging machines. Answer in two sentences."},
    {
        "role": "user",
        "content": "Hello, since Monday the shrink tunnel on line 7 (serial no. ST-4410-22) trips its breaker every 15 to 20 minutes. "
        "The display shows E-093 for a second before it goes dark. We have already cleaned the fans, checked the three fuses in the "
        "cabinet and swapped the thermocouple, which cost us 86.50 EUR, but nothing changed. When it is cold it runs for nearly an hour. "
        "The electrician measured 31 amperes on phase two and 24 on the others. We ship 12,000 packs a day and the other tunnel cannot "
        "carry both lines, so please tell me what is wrong, how urgent you think it is, and whether we may keep running until your "
        "technician comes on Thursday. Regards, Jana Weiß, Halle 3",
    },
]

_MIXED = """\
| City | Inhabitants | Greeting | Note |
|---|---|---|---|
| Zürich | 443,037 | Grüezi! | 8.1 °C at 06:30, −2 °C at night |
| São Paulo | 11,451,999 | Olá, tudo bem? | o café é forte ☕ |
| 京都 | 1,463,723 | こんにちは | 古い寺がたくさんあります |
| Москва | 13,104,177 | Здравствуйте | снег идёт с утра ❄️ |
| Kraków | 803,282 | Dzień dobry | św. Mikołaj, 6 grudnia |

Which of these cities has the most inhabitants, and which has the fewest? The most inhabitants are in"""


def write_smollm2(path):
    """Writes smollm2/: the adapter, scores.json and chat.json, from the demo model's GGUF file."""
    path = pathlib.Path(path)
    shutil.rmtree(ROOT / "smollm2", ignore_errors=True)
    bpe, template = read_tokenizer(path)
    chatty = PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=template)
    _write_chat(chatty)

    torch.manual_seed(0)
    adapters.make(load(path), "smollm2", dict(_ADAPTER), ROOT / ADAPTER, "HuggingFaceTB/SmolLM2-135M-Instruct")
    prompts = []
    texts = {
        "prose": _PROSE,
        "code": _CODE,
        "ticket": chatty.apply_chat_template(_TICKET, tokenize=False, add_generation_prompt=True),
        "mixed": _MIXED,
    }
    for name, text in texts.items():
        prompts.append({"name": name, "text": text, "tokens": bpe.encode(text, add_special_tokens=False).ids})
    cases = []
    for adapter in (None, ADAPTER):
        model = adapters.attach(load(path), ROOT / adapter) if adapter else load(path)
        cases.append(score.case(adapter, model, prompts))
        for prompt, answer in zip(prompts, cases[-1]["answers"]):
            text = json.dumps(bpe.decode(answer["greedy"]["tokens"], skip_special_tokens=False), ensure_ascii=False)
            print(f"{adapter} {prompt['name']}: least margin {min(answer['greedy']['margins']):.2g}, {text}", flush=True)
    whole = {
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "oracle": score.versions(),
        "prompts": prompts,
        "cases": cases,
    }
    write_json(ROOT / "smollm2" / "scores.json", whole)


def verify_smollm2(path):
    """Answers smollm2/scores.json again, with the adapter merged into the weights."""
    verify.verify_file(ROOT / "smollm2" / "scores.json", lambda: load(pathlib.Path(path)), 1e-3)


def load(path):
    """The oracle's model, every tensor decoded to float32 by gguf-py through transformers."""
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def read_tokenizer(path):
    """The file's tokenizer with SmolLM2's own pre-tokenizer (transformers' conversion loses the split of digits), and its chat template."""
    fields = {name: field for name, field in gguf.GGUFReader(path).fields.items() if name.startswith("tokenizer.")}
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    kinds = fields["tokenizer.ggml.token_type"].contents()
    bpe = Tokenizer(tokenizers.models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([token for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL])
    return bpe, fields["tokenizer.chat_template"].contents()


def _write_chat(chatty):
    conversations = []
    for name, messages in chat.CONVERSATIONS.items():
        for prompt in (True, False):
            text = chatty.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            ids = chatty.encode(text, add_special_tokens=False)
            special = "special tokens" in name
            conversations.append(
                {
                    "name": name,
                    "messages": messages,
                    "add_generation_prompt": prompt,
                    "text": text,
                    "ids": ids,
                    "special_in_content": special,
                }
            )
    write_json(ROOT / "smollm2" / "chat.json", {"conversations": conversations})
