"""Writes tests/golden/tokens/ids.json: the ids that transformers' fast tokenizers give for awkward texts.

    python tests/python/make_token_golden.py CLIP_DIR ROBERTA_DIR MINILM_DIR

Made with transformers 5.23.0. The folders hold openai/clip-vit-base-patch32's, FacebookAI/roberta-base's and
sentence-transformers/all-MiniLM-L6-v2's tokenizer files; `tiny` is assets/tiny of this repository.
"""

import json
import pathlib
import sys

from transformers import AutoTokenizer

ROOT = pathlib.Path(__file__).parents[2]
OUT = ROOT / "tests/golden/tokens/ids.json"
TEXTS = [
    "",
    "   ",
    "\t\n \u00a0\u3000",
    "a photo of a cat",
    "A PHOTO of a CAT!",
    "Café naïve Ångström STRAẞE İstanbul",
    "Cafe\u0301 nai\u0308ve ﬁne Ⅷ ½",
    "🐱 a cat 👨‍👩‍👧 🇩🇪 👍🏽",
    "一只猫坐在 沙发上。ひらがな 한국어",
    "مرحبا بالعالم ‏قطة",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; &#39;quoted&#39;",
    "nul\u0000 bell\u0007 tab\t newline\n carriage\r zero\u200bwidth \ufeffbom \u202eoverride \ufffd",
    "don't we'll they've I'm you'd 'twas O'Neil's",
    "12345 3.14159 1,000 $9.99 50% 2023-11-23",
    "e-mail: a.b@c.org http://x.yz/?q=1&r=[2]#{3}",
    "semi;colon -- dash — em … ellipsis “curly” ‘single’ «guillemets»",
    "<|startoftext|> <|endoftext|> <s> </s> <pad> <mask> [CLS] [SEP] [PAD] [UNK]",
    "x<|endoftext|>y a</s>b <mask>c  <mask> [MASK]d",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "snake_case camelCase  double  spaces   and trailing   ",
    "Ελληνικά ΣΊΣΥΦΟΣ Русский ЁЖ नमस्ते ไทย",
    "a" * 300,
    "\u0301\u0302 combining first",
    "𝒜 𝓂𝒶𝓉𝒽 Ａ ｆｕｌｌ",
]
# 100 kB each: only what is left of them is stored. The test makes the same texts.
LONG = {
    "words": lambda: "a dog runs over the green grass . " * 3000,
    "one_word": lambda: "abc" * 33334,
    "spaces": lambda: " " * 100000 + "end",
    "emoji": lambda: "🐱" * 25000,
}
CONTEXT = {"clip": 77, "roberta": 512, "minilm": 128, "tiny": 64}


def main():
    folders = dict(zip(("clip", "roberta", "minilm"), sys.argv[1:4], strict=True), tiny=ROOT / "assets/tiny")
    vocabularies = {}
    for name, folder in folders.items():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        cut = dict(truncation=True, max_length=CONTEXT[name])
        batch = tokenizer(TEXTS[:5], padding=True, **cut)
        vocabularies[name] = dict(
            context_length=CONTEXT[name],
            pad_id=tokenizer.pad_token_id,
            ids=[tokenizer(text, **cut)["input_ids"] for text in TEXTS],
            long={key: tokenizer(make(), **cut)["input_ids"] for key, make in LONG.items()},
            batch_ids=batch["input_ids"],
            batch_mask=batch["attention_mask"],
        )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in vocabularies.items())
    OUT.write_text(f'{{"texts": {json.dumps(TEXTS)},\n{lines}}}\n')


main()
