"""Writes tests/golden/tokens: the ids that transformers and open_clip give for awkward texts.

    python tests/python/make_token_golden.py [CLIP_DIR ROBERTA_DIR MINILM_DIR]

`kinds.json` holds those of small vocabularies of each kind, which lie beside it in their own folders, for each way in which the
references clean, cut and pad; `cleaning.json` what open_clip's cleanings make of texts. With the three folders, `ids.json` is
written too: the ids of transformers' fast tokenizers over real vocabularies.
Made with transformers 5.23.0, open_clip 3.3.0, ftfy 6.3.1 and sentencepiece 0.2.3. open_clip's ftfy runs without its repair of
mojibake, which the crate does not have. The folders hold openai/clip-vit-base-patch32's, FacebookAI/roberta-base's and
sentence-transformers/all-MiniLM-L6-v2's tokenizer files; `tiny` is assets/tiny of this repository.
"""

import json
import pathlib
import shutil
import sys

import open_clip.tokenizer
from token_cases import CONTROLS, WORDS, hf_tokenizer, hugging_face, rules, simple, small_folders, without_mojibake
from token_cases import texts as made_texts
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




def kinds():
    """Small vocabularies of each kind and what the references make of texts with them."""
    folder = OUT.parent
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    folders, fix = small_folders(folder, small=True), without_mojibake()
    texts = [text for text in made_texts(200) if len(text) < 80][::3] + TEXTS[:12] + [" ".join(WORDS[:40])]
    texts = list(dict.fromkeys(texts))
    cases = []

    def case(name, ours, reference):
        cases.append(dict(folder=name, rules=ours, ids=[reference(text) for text in texts]))

    classes = dict(
        clip="CLIPTokenizer", roberta="RobertaTokenizer", bert="BertTokenizer", bert_cased="BertTokenizer", mpnet="MPNetTokenizer",
        xlm_roberta="XLMRobertaTokenizer", t5="T5Tokenizer", gemma="GemmaTokenizer",
    )
    for name, cls in classes.items():
        case(name, rules(16), hugging_face(folders[name], 16, cls))
    case("siglip", rules(16, cleaning="siglip"), hugging_face(folders["siglip"], 16, "SiglipTokenizer"))
    for clean in ("lower", "whitespace", "canonicalize"):
        ours = rules(12, "context_length", 0, cleaning=f"open_clip_{clean}", splitting="open_clip")
        case("clip", ours, simple(folders["clip"], 12, clean, fix))
    canonical = dict(cleaning="open_clip_canonicalize")
    bert = folders["bert"]
    case("bert", rules(12, "context_length", separator="zero", **canonical), hf_tokenizer(bert, 12, fix, clean="canonicalize", strip_sep_token=True))
    case("t5", rules(12, "context_length", **canonical), hf_tokenizer(folders["t5"], 12, fix, clean="canonicalize"))
    case("xlm_roberta", rules(12, "context_length", cleaning="open_clip_whitespace"), hf_tokenizer(folders["xlm_roberta"], 12, fix))
    clips = dict(special="clips", **canonical)
    case("xlm_roberta", rules(12, "context_length", **clips), hf_tokenizer(folders["xlm_roberta"], 12, fix, clean="canonicalize", tokenizer_mode="clips"))
    write(folder / "kinds.json", "cases", dict(texts=texts), cases)


def cleaning():
    """What open_clip's cleanings make of texts."""
    open_clip.tokenizer.ftfy.fix_text = without_mojibake()
    cleanings = [open_clip.tokenizer.get_clean_fn(name) for name in ("lower", "whitespace", "canonicalize")]
    texts = made_texts(400)[len(WORDS) :: 2] + WORDS + [f"a{c}b" for c in CONTROLS]
    texts += [f"a{chr(c)}b{chr(c)}" for c in (*range(0x80), *range(0x80, 0xA1), *range(0x2000, 0x2070), *range(0xFF00, 0xFFFE))]
    texts += [f"&#{n};x&#x{n:X} y" for n in (*range(0x20), 0x7F, *range(0x80, 0xA0), 0xD800, 0xFDD0, 0xFFFE, 0x10FFFF, 0x110000, 10**30)]
    texts += ["&" + name + "x" for name in ("amp", "AMP", "notin", "notit;", "no", "n", "lt;gt", "Lt;", "hearts;", "EACUTE;", "SZLIG;", "x" * 40)]
    texts += ["&amp;amp;amp;lt;", "<p>&eacute;</p>\n&eacute;", "&eacute;\n<p>&eacute;</p>", "a\r\nb\rc", "\x1b[31;1mred\x1b[0m", "\x1b[x\x1b["]
    rows = [[text, *(clean(text) for clean in cleanings)] for text in dict.fromkeys(texts)]
    write(OUT.parent / "cleaning.json", "rows", dict(columns=["text", "lower", "whitespace", "canonicalize"]), rows)


def write(path, name, head, rows):
    """JSON with one row a line."""
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(json.dumps(head)[:-1] + f',\n"{name}": [\n{lines}\n]}}\n')


def main():
    kinds()
    cleaning()
    if len(sys.argv) > 1:
        real()


def real():
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
