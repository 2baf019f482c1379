"""What make_token_golden.py and check_tokens.py share: texts, small vocabularies, and the rules of each reference."""

import functools
import io
import json
import pathlib
import random
import shutil
import unicodedata

WORDS = """a photo of the cat dog Cats DOGS don't we'll they've I'm O'Neil's snake_case camelCase e-mail: 3.14159 1,000 $9.99
50% 2023-11-23 http://x.yz/?q=1&r=[2] café naïve Ångström STRAẞE İstanbul ΣΊΣΥΦΟΣ ΑΣ. Ελληνικά Русский ЁЖ नमस्ते ไทย مرحبا
قطة שלום 一只猫 ひらがな ｶﾀｶﾅ 한국어 🐱 👨‍👩‍👧 🇩🇪 👍🏽 ﬁne ﬀ Ⅷ ½ Ａ ｆｕｌｌ “curly” ‘single’ «guille» … — -- ; ' " ` ^ _ __ ~ # @ \\ | { } ( )
&lt; &gt; &amp;amp; &amp &#39; &#x27; &notit; &NTILDE; &#150; &#0; &#xFFFE; &copy &hearts; & &; &# 'ſ ſ K Å ǅ ŉ ĳ x² e\u0301 \u0301\u0302 \u0345
<|startoftext|> <|endoftext|> <start_of_text> <end_of_text> !!<end_of_text> <END_OF_TEXT> <s> </s> <pad> <unk> <mask> [CLS] [SEP] [PAD]
[MASK] <b>bold</b> ▁under ▁ pneumonoultramicroscopicsilicovolcanoconiosis 𝒜𝓂 ϒ ℌ ʼn \u0149 #hash @name 12345 ½cup ①② ㍿ ﷺ""".split()
SPACES = [" "] * 12 + ["", "", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2028", "\x1c", "\x85", "\ufeff", "   "]
CONTROLS = ["\0", "\x07", "\x1b[31m", "\x7f", "\u200d", "\u202e", "\ufffd", "\u206a", "\ufffc", "\x9f", "\U0001d173", "\ue000"]
PLAIN = ["", " ", "   ", "\t\n \u00a0\u3000", "a photo of a cat", "A PHOTO of a CAT!", " a", "a ", "  two  spaces ", "\0", "a\0b", "_", "."]


def character(rng):
    """Any character that this Python knows: newer ones are of a class of their own in each library's Unicode tables."""
    while True:
        c = chr(rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x250, 0xD800), rng.randrange(0xE000, 0x1FA00)]))
        if unicodedata.category(c) != "Cn":
            return c


def texts(count, seed=0):
    """Texts made of awkward parts; the first ones are always the same."""
    rng = random.Random(seed)
    out = list(PLAIN) + WORDS
    while len(out) < count:
        kind, parts = rng.random(), []
        for _ in range(rng.randint(1, 14)):
            if kind < 0.75:
                parts.append(rng.choice(WORDS[:40] if kind < 0.3 else WORDS))
            else:
                parts.append(character(rng))
            parts.append(rng.choice(CONTROLS) if rng.random() < 0.04 else rng.choice(SPACES))
        text = "".join(parts)
        out.append(text.upper() if rng.random() < 0.05 else text)
    return out[:count]


def without_mojibake():
    """ftfy's repairs but the one that guesses encodings."""
    import ftfy

    return functools.partial(ftfy.fix_text, fix_encoding=False)


def rules(context_length, padding="longest", pad=None, special="add", **more):
    pad_id = {"from_files": {"otherwise": 0}} if pad is None else {"fixed": pad}
    return dict(context_length=context_length, padding=padding, pad_id=pad_id, special_tokens=special, **more)


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False))


def older(source, target, *names, config=True):
    """A copy of a folder without tokenizer.json."""
    target.mkdir(parents=True)
    for name in names + (("tokenizer_config.json", "special_tokens_map.json") if config else ()):
        shutil.copy(source / name, target / name)
    return target


def small_bpe(target, suffix):
    """vocab.json and merges.txt of a byte-level BPE: CLIP's with the suffix `</w>`, RoBERTa's with none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix=suffix, show_progress=False)
    tokenizer.train_from_iterator([text.lower() for text in texts(600)] if suffix else texts(600), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    if suffix:
        pieces += [c + suffix for c in sorted(alphabet) if c + suffix not in model["vocab"]]
        pieces += ["<|startoftext|>", "<|endoftext|>"]
    else:
        pieces = ["<s>", "<pad>", "</s>", "<unk>"] + pieces + ["<mask>"]
    target.mkdir(parents=True)
    write_json(target / "vocab.json", {piece: i for i, piece in enumerate(dict.fromkeys(pieces))})
    merges = "".join(f"{' '.join(m) if isinstance(m, list) else m}\n" for m in model["merges"])
    (target / "merges.txt").write_text("#version: 0.2\n" + merges)
    return target


def small_words(target, special, config):
    """vocab.txt of a WordPiece vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=config.get("do_lower_case", True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, limit_alphabet=250, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts(400), trainer)
    vocab = tokenizer.get_vocab()
    target.mkdir(parents=True)
    (target / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocab, key=vocab.get)))
    write_json(target / "tokenizer_config.json", config)
    return target


# A normaliser small enough for the repository: widths, a ligature, an accent put together, a control made a space.
NORMALIZER = {"Ａ": "A", "ｆ": "f", "ｕ": "u", "ｌ": "l", "ﬁ": "fi", "e\u0301": "é", "\u200b": " ", "\t": " ", "\n": " ", "\u3000": " ", "…": "...", "▁": " "}


def small_sentencepiece(target, name, config, small=False, **options):
    """A SentencePiece model under `name`, with the normaliser nmt_nfkc or, `small`, with NORMALIZER."""
    import sentencepiece

    model = io.BytesIO()
    target.mkdir(parents=True)
    if small:
        points = lambda text: " ".join(f"{ord(c):X}" for c in text)
        rules = target / "rules.tsv"
        rules.write_text("".join(f"{points(a)}\t{points(b)}\n" for a, b in NORMALIZER.items()))
        options["normalization_rule_tsv"] = str(rules)
    rng = random.Random(1)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(1500)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, minloglevel=2, num_threads=1, hard_vocab_limit=False, **options
    )
    if small:
        rules.unlink()
    (target / name).write_bytes(model.getvalue())
    write_json(target / "tokenizer_config.json", config)
    return target


def small_folders(root, small=False):
    """All small vocabularies (SentencePiece's with a small normaliser if asked); those of SentencePiece only where the package is there."""
    root = pathlib.Path(root)
    bert = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    mpnet = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]
    folders = {
        "clip": small_bpe(root / "clip", "</w>"),
        "roberta": small_bpe(root / "roberta", ""),
        "bert": small_words(root / "bert", bert, dict(tokenizer_class="BertTokenizer", do_lower_case=True)),
        "bert_cased": small_words(
            root / "bert_cased",
            bert,
            dict(tokenizer_class="BertTokenizer", do_lower_case=False, strip_accents=True, tokenize_chinese_chars=False),
        ),
        "mpnet": small_words(root / "mpnet", mpnet, dict(do_lower_case=True)),
    }
    try:
        import sentencepiece  # noqa: F401
    except ImportError:
        return folders
    unigram = dict(small=small, model_type="unigram", vocab_size=600, character_coverage=0.98)
    xlm = dict(tokenizer_class="XLMRobertaTokenizer", mask_token=dict(__type="AddedToken", content="<mask>", lstrip=True, rstrip=False, normalized=True, single_word=False))
    t5 = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    gemma = dict(
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, model_type="bpe", vocab_size=900, byte_fallback=True, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        user_defined_symbols=["<mask>", "<2mass>", "\n\n"], normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, split_digits=True, character_coverage=0.98,
    )
    folders |= {
        "xlm_roberta": small_sentencepiece(root / "xlm_roberta", "sentencepiece.bpe.model", xlm, **unigram),
        "t5": small_sentencepiece(root / "t5", "spiece.model", dict(tokenizer_class="T5Tokenizer", extra_ids=5), **unigram, **t5),
        "siglip": small_sentencepiece(root / "siglip", "spiece.model", dict(tokenizer_class="SiglipTokenizer", model_max_length=64), **unigram, **t5),
        "gemma": small_sentencepiece(root / "gemma", "tokenizer.model", dict(tokenizer_class="GemmaTokenizer", add_bos_token=False, add_eos_token=True), **gemma),
    }
    return folders


def hugging_face(folder, context_length, cls="AutoTokenizer"):
    """Ids by transformers, one text at a time, without padding."""
    import transformers

    tokenizer = getattr(transformers, cls).from_pretrained(folder)
    return lambda text: tokenizer(text, truncation=True, max_length=context_length)["input_ids"]


def simple(folder, context_length, clean, fix_text):
    """Ids by open_clip's SimpleTokenizer; a small vocabulary is laid under the class, which knows only CLIP's."""
    import open_clip.tokenizer as module

    module.ftfy.fix_text = fix_text
    tokenizer = module.SimpleTokenizer(context_length=context_length, clean=clean)
    vocab = json.loads((folder / "vocab.json").read_text())
    if len(vocab) != 49408:
        renamed = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}
        tokenizer.encoder = {renamed.get(piece, piece): i for piece, i in vocab.items()}
        lines = (folder / "merges.txt").read_text().split("\n")[1:-1]
        tokenizer.bpe_ranks = {tuple(line.split(" ")): i for i, line in enumerate(lines)}
        tokenizer.sot_token_id, tokenizer.eot_token_id = (tokenizer.encoder[name] for name in renamed.values())
        tokenizer.cache = {name: name for name in renamed.values()}
    return lambda text: tokenizer([text])[0].tolist()


def hf_tokenizer(folder, context_length, fix_text, **options):
    """Ids by open_clip's HFTokenizer."""
    import open_clip.tokenizer as module

    module.ftfy.fix_text = fix_text
    tokenizer = module.HFTokenizer(str(folder), context_length=context_length, **options)
    return lambda text: tokenizer([text])[0].tolist()
