"""Varied texts for comparing tokenizers: hand-picked ones, and seeded random ones of many kinds."""

import random

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>",
            "<gh_stars>", "<issue_start>", "<jupyter_code>", "<empty_output>"]

PICKED = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\t\t\n  \t", "a", " a", "a ", "  a", "a  ", "a\n", "\na",
    "Hello, world!", "Hello  world", "Hello   world", " Hello world", "hello\tworld", "in 2024", " in 2024", "1", "12", "123",
    "1234", "12345678901234567890", "3.14159", "-273.15", "1,000,000", "1e-9", "0x1F600", "2024-02-29T12:34:56Z", "v1.2.3-rc.4",
    "٣٤٥", "१२३", "½ ⅓ ² ³ ⁴ ₅", "ⅧⅨ", "①②③", "𝟘𝟙𝟚", "１２３", "I'm you're we've he'll she'd it's don't",
    "I'M YOU'RE WE'VE HE'LL SHE'D IT'S DON'T", "I’m you’re", "rock 'n' roll '90s", "'", "''", "' s", "'s", "'S", "'ſ", "x'ſ", "K's",
    "C'est l'été à l'Île-d'Yeu, où Zoë naît déjà.", "Ærøskøbing, Malmö, Łódź, Çeşme, Hà Nội", "Straße ẞ ﬁ ﬂ ŉ",
    "e\u0301 vs é, a\u030a vs å, n\u0303 vs ñ", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!", "Привет, мир! Ёлка — ёж.", "Γειά σου Κόσμε· ΑΒΓ",
    "שלום עולם! בְּרֵאשִׁית", "مرحبا بالعالم، كيف الحال؟", "نص \u200fمختلط\u200f with English", "नमस्ते दुनिया, क्षत्रिय", "สวัสดีชาวโลก ภาษาไทย", "வணக்கம் உலகம்",
    "你好，世界！", "今天天气很好。我们去公园吧？", "東京タワーは333メートルです。", "こんにちは世界、カタカナとひらがな", "안녕하세요 세계, 한국어입니다", "\u1112\u1161\u11ab\u1100\u1173\u11af", "ภ", "𠮷野家で𩸽を食べる",
    "😀", "😀😃", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇩🇪", "❤️", "a😀b", "😀 😀", "🤷🏻‍♀️ shrug", "✈️ → ★", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋", "α→β ⇒ ∂f/∂x ≤ ∞",
    "\u200b", "zero\u200bwidth", "soft\u00adhyphen", "\ufeffbom", "nbsp\u00a0here", "\u2003em\u2003space", "\u3000全角", "line\u2028sep\u2029para", "\x85next", "\x0b\x0c",
    "\x00", "\x01\x02\x7f", "\x1b[31mred\x1b[0m", "\u0378", "\U000e0001", "\ue000", "\U0010ffff", "\ufffd", "\ufffd\ufffd", "\ufffe", "\ud7ff", "a\u0300\u0301\u0302\u0303",
    "def f(x):\n    return x ** 2\n", "if (a && !b) { c->d[i++] += 0xFF; }\n", "fn main() {\n    println!(\"{:?}\", vec![1, 2, 3]);\n}\n",
    "SELECT * FROM t WHERE a <> 'b''c' AND d IS NOT NULL;", "<html>\n  <body class=\"x\">&amp;&nbsp;</body>\n</html>", "{\"a\": [1, 2.5, null, true], \"b\\n\": \"\\u00e9\"}",
    "#!/bin/sh\nset -eu\nfor f in *.txt; do echo \"$f\"; done\n", "\\frac{a}{b} \\cdot \\sum_{i=0}^{n} x_i^2", "a_b_c camelCase PascalCase SCREAMING_CASE kebab-case", "x=1;y=2;;z", "::::", "....", "----", "====", "!!!???", "/* c */ // d",
    "https://example.org/a/b?c=d&e=%20f#g", "me+tag@example.co.uk", "C:\\Users\\me\\file.txt", "/usr/local/lib/x86_64-linux-gnu/", "\\\\server\\share",
    "$5.00 €3,50 £2 ¥100 ₹50 ¢", "50% ± 3°C", "§ 12 ¶ † ‡ • … ‰", "“quoted” ‘single’ «guillemets» „low“", "a—b–c−d‐e‑f", "(a)[b]{c}<d>", "~`@#$%^&*()_+-=[]{}|;:'\",.<>/?",
    "the the the the", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ab" * 40, " " * 100, "\n" * 50, "\t" * 30, "a " * 50, "\r\n" * 10, "0" * 60, "é" * 30, "中" * 30, "😀" * 12, "=" * 80,
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_start|>", "x<|im_end|>y", "<|im_<|im_end|>end|>", "<|im_end|", "|im_end|>", "<|IM_END|>", "< |im_end| >", "<|endoftext|><|endoftext|>", "<s>", "</s>", "[INST]", "<unk>",
    "<0x0A>", "<0xE2>", "▁", "▁▁a", "Ġ", "Ċ", "Ã©", "Ġhello", "\u0120\u010a",
]

SENTENCES = [
    "The {a} pump failed at {n} °C after {m} hours.", "Please reset {a}'s password; it doesn't work.", "She said: \"{a}, {b}!\" and left.", "Can't we just use {a}-{b} (v{n}.{m})?",
    "El {a} señaló que el niño comió piñas.", "Der {a} läuft über die Brücke: {n} Stück à {m} €.", "L'{a} coûte {n},{m} € — c'est déjà ça.", "Быстрая {a} прыгает через {n} собак.",
    "{a}は{n}個あります。", "这个{a}的价格是{n}元。", "{a}는 {n}개입니다.", "הדגם {a} עולה {n} שקלים", "سعر {a} هو {n} دينار", "{a} की कीमत {n} रुपये है।", "ราคา{a}คือ {n} บาท",
]
WORDS = ["compressor", "widget", "Zürich", "naïve", "API", "don't", "e-mail", "O'Brien", "GPU", "x86_64", "ticket", "überholt", "façade", "Łukasz", "server", "re-entry", "µm", "piñata", "Ω", "co-op", "HTTP/2", "ça", "THE", "Iñtërnâtiônàl", "ﬁne", "日本", "мир"]
CODE = [
    "for ({t} i = 0; i < {n}; ++i) {{\n{s}{a}[i] = {b}(i, {m});\n}}\n", "def {a}({b}: int = {n}) -> str:\n{s}return f\"{{{b}:>{m}}}\"\n", "const {a} = ({b}) => {b} ?? {n};\n", "let mut {a}: Vec<{t}> = Vec::with_capacity({n});\n",
    "{a}.{b}({n}, '{m}')  # {a}", "#define {a} (({t}*){b} + {n})\n", "<{t} id=\"{a}\">{b}</{t}>\n", "{a}:\n{s}- {b}: {n}\n{s}- {t}\n", "UPDATE {a} SET {b} = {n} WHERE id IN ({m}, {n});\n", "\\begin{{{a}}}\n{s}{b} &= {n} \\\\\n\\end{{{a}}}\n",
]
IDENTIFIERS = ["foo", "bar_baz", "fooBar", "HTTPServer", "x1", "_tmp", "__init__", "MAX_LEN", "i", "self.value", "std::vector", "kPi", "αβ"]
TYPES = ["int", "u64", "float", "String", "div", "char", "size_t", "T"]
BLANKS = [" ", "  ", "   ", "    ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u2009", "\t ", "      \n   "]
BLOCKS = [(0x20, 0x7E), (0xA0, 0x17F), (0x180, 0x24F), (0x250, 0x2AF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x531, 0x58F), (0x591, 0x5F4),
          (0x600, 0x6FF), (0x900, 0x97F), (0xE01, 0xE5B), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFE), (0x2000, 0x206F), (0x20A0, 0x20BF), (0x2100, 0x214F), (0x2150, 0x218B),
          (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2300, 0x23FF), (0x2460, 0x24FF), (0x2500, 0x257F), (0x2600, 0x26FF), (0x2700, 0x27BF), (0x3000, 0x303F), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF),
          (0xF900, 0xFAD9), (0xFB00, 0xFB06), (0xFE70, 0xFEFC), (0xFF01, 0xFFEE), (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF), (0xE0020, 0xE007F)]


def fill(rng, form, words):
    return form.format(a=rng.choice(words), b=rng.choice(words), t=rng.choice(TYPES), n=rng.randrange(10 ** rng.randrange(1, 7)), m=rng.randrange(100), s=rng.choice(["  ", "    ", "\t", "        "]))


def from_blocks(rng):
    blocks = rng.sample(BLOCKS, rng.choice([1, 1, 2, 4]))
    return "".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(rng.randrange(1, 24)))


def blanks_between(rng):
    parts = [rng.choice(WORDS + IDENTIFIERS + [str(rng.randrange(1000)), "!", ",", "(", "..."]) for _ in range(rng.randrange(1, 8))]
    return "".join(rng.choice(BLANKS) * rng.choice([0, 1, 1, 2, 3]) + part for part in parts) + rng.choice(["", rng.choice(BLANKS) * 2])


def numbers(rng):
    digits = rng.choice(["0123456789", "0123456789", "0123456789abcdef", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９", "²³¹⁰⁴₅½¼⅔Ⅷ①"])
    return rng.choice(["", " ", "#", "-", "$", "x"]) + "".join(rng.choice(digits) + rng.choice([""] * 8 + [".", ",", " ", ":", "/", "e"]) for _ in range(rng.randrange(1, 20)))


def broken_bytes(rng):
    raw = bytearray(rng.choice(WORDS + SENTENCES).encode())
    for _ in range(rng.randrange(1, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return raw.decode(errors="replace")


def around_specials(rng):
    parts = [rng.choice(SPECIALS), rng.choice(SPECIALS)[: rng.randrange(1, 9)], rng.choice(WORDS), rng.choice(BLANKS), rng.choice(SPECIALS)[rng.randrange(1, 6) :]]
    rng.shuffle(parts)
    return "".join(parts[: rng.randrange(1, 6)])


def contractions(rng):
    quote = rng.choice(["'", "'", "’", "`", "''"])
    return rng.choice(["", " "]).join(rng.choice(["I", "you", "IT", "Don", "ça", "x1", "日", "5", "_", " ", "\n"]) + quote + rng.choice(["s", "S", "t", "T", "re", "RE", "Re", "ve", "m", "ll", "LL", "d", "D", "x", "ſ", "1", " s"]) for _ in range(rng.randrange(1, 5)))


def texts(seed, count, pieces):
    """The hand-picked texts and `count` random ones; `pieces` are a vocabulary's own texts, for texts rich in merges."""
    rng = random.Random(seed)
    kinds = [
        lambda: fill(rng, rng.choice(SENTENCES), WORDS),
        lambda: fill(rng, rng.choice(CODE), IDENTIFIERS),
        lambda: from_blocks(rng),
        lambda: blanks_between(rng),
        lambda: numbers(rng),
        lambda: broken_bytes(rng),
        lambda: around_specials(rng),
        lambda: contractions(rng),
        lambda: "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 12))),
        lambda: rng.choice(["", " ", "\n"]).join(rng.choice(kinds[:9])() for _ in range(3)),
    ]
    found = list(PICKED)
    while len(found) < len(PICKED) + count:
        found.append(kinds[len(found) % len(kinds)]())
    return list(dict.fromkeys(found))


def common(seed, count):
    """Ordinary sentences, code and spacing, to train a small vocabulary on."""
    rng = random.Random(seed)
    return [rng.choice([lambda: fill(rng, rng.choice(SENTENCES), WORDS), lambda: fill(rng, rng.choice(CODE), IDENTIFIERS), lambda: blanks_between(rng)])() for _ in range(count)]
