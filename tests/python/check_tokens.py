"""Compares the ids of this crate with those of transformers and open_clip on thousands of texts.

    cargo build --release --example tokenizer
    python tests/python/check_tokens.py --tokenizers DIR [--count 4000] [--example target/release/examples/tokenizer]

DIR holds the tokenizer files of real checkpoints in `clip` (openai/clip-vit-base-patch32) and `roberta`
(FacebookAI/roberta-base); small vocabularies of the other kinds are made on the spot, those of SentencePiece if the package is
there. open_clip's ftfy runs without its repair of mojibake, which the crate does not have; how many texts that repair changes is
printed. Made for transformers 5.23.0 and open_clip 3.3.0. Exits 0 with a reason where these or the example are absent.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(0)


try:
    import ftfy
    import open_clip  # noqa: F401
    import tokenizers  # noqa: F401
    import transformers
except ImportError as error:
    skip(error)
from token_cases import hf_tokenizer, hugging_face, older, rules, simple, small_folders, texts, without_mojibake

transformers.logging.set_verbosity_error()
FIX = without_mojibake()


def cases(folders, real, scratch):
    """(name, folder, rules, reference)"""
    for size, by_name in (("small", folders), ("real", real)):
        clip, roberta = by_name.get("clip"), by_name.get("roberta")
        if clip:
            yield f"{size} clip", clip, rules(77), hugging_face(clip, 77, "CLIPTokenizer")
            for clean in ("lower", "whitespace", "canonicalize"):
                for length in (77, 16):
                    extra = dict(cleaning=f"open_clip_{clean}", splitting="open_clip")
                    ours = rules(length, "context_length", 0, **extra)
                    yield f"{size} open_clip {clean} {length}", clip, ours, simple(clip, length, clean, FIX)
        if roberta:
            yield f"{size} roberta", roberta, rules(64), hugging_face(roberta, 64, "RobertaTokenizer")
            ours = rules(77, "context_length", cleaning="open_clip_whitespace")
            config = roberta / "tokenizer_config.json"
            if config.is_file():
                yield f"{size} open_clip roberta", roberta, ours, hf_tokenizer(roberta, 77, FIX)
                ours = rules(20, "context_length", cleaning="open_clip_canonicalize", special="clips")
                options = dict(clean="canonicalize", tokenizer_mode="clips")
                yield f"{size} open_clip clips", roberta, ours, hf_tokenizer(roberta, 20, FIX, **options)
    for name in ("clip", "roberta"):
        if name in real:
            for config in (True, False):
                folder = older(real[name], scratch / f"{name}_{config}", "vocab.json", "merges.txt", config=config)
                cls = dict(clip="CLIPTokenizer", roberta="RobertaTokenizer")[name]
                yield f"real {name}, older files, config {config}", folder, rules(77), hugging_face(folder, 77, cls)
    classes = dict(
        bert="BertTokenizer", bert_cased="BertTokenizer", mpnet="MPNetTokenizer", xlm_roberta="XLMRobertaTokenizer", t5="T5Tokenizer", gemma="GemmaTokenizer",
    )
    for name, cls in classes.items():
        if name in folders:
            yield f"small {name}", folders[name], rules(32), hugging_face(folders[name], 32, cls)
    strip = rules(32, "context_length", cleaning="open_clip_lower", separator="zero")
    yield "open_clip bert strip_sep", folders["bert"], strip, hf_tokenizer(folders["bert"], 32, FIX, clean="lower", strip_sep_token=True)
    if "siglip" in folders:
        reference = hugging_face(folders["siglip"], 64, "SiglipTokenizer")
        yield "small siglip", folders["siglip"], rules(64, cleaning="siglip"), reference
        for name in ("t5", "gemma"):
            ours = rules(64, "context_length", cleaning="open_clip_canonicalize")
            yield f"open_clip siglip {name}", folders[name], ours, hf_tokenizer(folders[name], 64, FIX, clean="canonicalize")


def run(example, folder, ours, lines):
    command = [example, "--encode", folder, "--rules", json.dumps(ours), "--texts-from", lines]
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"{folder}: {out.stderr}")
    return [json.loads(line) for line in out.stdout.splitlines()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizers", type=pathlib.Path, default=ROOT / "../shared/tokenizers")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--show", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--example", default=ROOT / "target/release/examples/tokenizer", type=pathlib.Path)
    args = parser.parse_args()
    if not args.example.is_file():
        skip(f"{args.example} is not built")
    real = {path.name: path for path in args.tokenizers.glob("*") if (path / "vocab.json").is_file()}
    if not real:
        print(f"{args.tokenizers} holds no real vocabularies; the small ones alone are compared")
    all_texts, bad, compared = texts(args.count), 0, 0
    original = ftfy.fix_text
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        lines = scratch / "texts.txt"
        lines.write_text("".join(json.dumps(text) + "\n" for text in all_texts))
        for name, folder, ours, reference in cases(small_folders(scratch / "small"), real, scratch):
            if args.only not in name:
                continue
            found = run(args.example, folder, ours, lines)
            expected = [reference(text) for text in all_texts]
            wrong = [i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
            print(f"{name}: {len(all_texts)} texts, {len(wrong)} differ", flush=True)
            for i in wrong[: args.show]:
                print(f"   {all_texts[i]!a}\n      here   {found[i][:40]}\n      python {expected[i][:40]}")
            bad, compared = bad + len(wrong), compared + len(all_texts)
    repaired = sum(original(text) != FIX(text) for text in all_texts)
    print(f"{compared} comparisons, {bad} differences; ftfy's repair of mojibake changes {repaired} of {len(all_texts)} texts")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
