//! Makes a small tokenizer from a text file (WordPiece, lower-cased, `[CLS] … [SEP]`, `[PAD]` = 0, as BERT's), or prints the ids
//! that a checkpoint's tokenizer gives.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use diptych::text::{TextTokenizer, TokenRules};
use serde_json::json;
use tokenizers::TokenizerBuilder;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Trainer,
};

/// In the order of their ids.
const SPECIAL: [&str; 4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];

/// Make a small tokenizer from a text file, or print the ids that a checkpoint's tokenizer gives.
///
/// Without --encode it writes tokenizer.json and tokenizer_config.json, which `TextTokenizer` and transformers' `AutoTokenizer` read. The pieces
/// are those that are frequent in the text; every letter, digit and punctuation mark of ASCII is one, so that unseen
/// English words still split.
#[derive(Parser)]
#[command(
    after_long_help = "The bundled model's tokenizer was made from the training captions of Flickr8k, the class names of \
Caltech-101, Oxford flowers and a list of everyday words, the names thirty times over so that they become whole tokens:

  { awk -F, '$NF ~ /^train/' $DATA/flickr8k/captions.csv | sed 's/^[^,]*,//; s/,train.*$//'
    for i in $(seq 30); do
      cut -d, -f2 $DATA/caltech101/labels.csv $DATA/flowers/labels.csv | sort -u | tr _ ' '
      cat assets/tiny/words.txt
    done
  } > texts.txt
  cargo run --release --example tokenizer -- --texts-from texts.txt --out assets/tiny

The ids of a checkpoint's tokenizer, under rules written as JSON (all of them, as `TokenRules` is saved):

  cargo run --release --example tokenizer -- --texts-from texts.txt --encode DIR --rules \
    '{\"context_length\":77,\"padding\":\"context_length\",\"pad_id\":{\"fixed\":0},\"special_tokens\":\"add\",
      \"cleaning\":\"open_clip_lower\",\"splitting\":\"open_clip\"}'"
)]
struct Args {
    /// The text: one sentence a line (with --encode, a line that begins with `"` is read as a JSON string)
    #[arg(long, value_name = "FILE")]
    texts_from: PathBuf,
    /// How many tokens to make, special ones included
    #[arg(long, value_name = "N", default_value_t = 4000)]
    vocab_size: usize,
    /// The most tokens that a text may have: `model_max_length` of tokenizer_config.json
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(3..))]
    context_length: u32,
    /// The folder to write to; made if it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "encode")]
    out: Option<PathBuf>,
    /// Print the ids of each line by the tokenizer in this folder, one JSON list a line; makes no tokenizer
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    encode: Option<PathBuf>,
    /// How rows are made, as JSON; without it transformers' way: special tokens, up to --context-length, no padding
    #[arg(long, value_name = "JSON", requires = "encode")]
    rules: Option<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let named = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let text = fs::read_to_string(&args.texts_from).map_err(|e| named(&args.texts_from, &e))?;
    if let Some(folder) = &args.encode {
        return encode(folder, args, &text);
    }
    let Some(out) = &args.out else { return Err("--out: is missing".to_string()) };
    let least = SPECIAL.len() + alphabet().len() + inner_pieces().count();
    if args.vocab_size < least {
        return Err(format!("--vocab-size {}: the alphabet alone needs {least}", args.vocab_size));
    }
    if text.trim().is_empty() {
        return Err(named(&args.texts_from, &"holds no text"));
    }
    let (tokenizer, count) = train(&text, args.vocab_size).map_err(|e| e.to_string())?;

    fs::create_dir_all(out).map_err(|e| named(out, &e))?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": args.context_length,
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
    });
    let config = serde_json::to_string_pretty(&config).map_err(|e| e.to_string())? + "\n";
    for (name, content) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)] {
        let path = out.join(name);
        fs::write(&path, content).map_err(|e| named(&path, &e))?;
    }
    println!("{count} tokens in {}", out.display());
    Ok(())
}

/// Prints the ids of each line of `text`.
fn encode(folder: &Path, args: &Args, text: &str) -> Result<(), String> {
    let rules = match &args.rules {
        Some(rules) => serde_json::from_str(rules).map_err(|e| format!("--rules: {e}"))?,
        None => TokenRules::new(args.context_length as usize),
    };
    let tokenizer = TextTokenizer::from_folder(folder, rules).map_err(|e| e.to_string())?;
    for line in text.lines() {
        let line = match line.strip_prefix('"') {
            Some(_) => serde_json::from_str(line).map_err(|e| format!("{line}: {e}"))?,
            None => line.to_string(),
        };
        let ids = tokenizer.encode(&[line]).map_err(|e| e.to_string())?;
        println!("{}", serde_json::to_string(ids.ids()).map_err(|e| e.to_string())?);
    }
    Ok(())
}

/// The trained tokenizer as JSON, and how many tokens it has.
fn train(text: &str, vocab_size: usize) -> tokenizers::Result<(String, usize)> {
    // The trainer takes the pieces inside of words in a random order, so that it would give other ids in each run. Named
    // beforehand, as if they were special, they have fixed ones; as tokens of their own the tokenizer never hears of them.
    let special = SPECIAL.map(String::from).into_iter().chain(inner_pieces());
    let mut trainer = WordPieceTrainer::builder()
        .vocab_size(vocab_size)
        .initial_alphabet(alphabet())
        .limit_alphabet(alphabet().len())
        .special_tokens(special.map(|token| AddedToken::from(token, true)).collect())
        .show_progress(false)
        .build();
    let normalizer = BertNormalizer::new(true, true, None, true);
    trainer.feed(text.lines(), |line| {
        let mut line = NormalizedString::from(line);
        normalizer.normalize(&mut line)?;
        let mut words = PreTokenizedString::from(line);
        BertPreTokenizer.pre_tokenize(&mut words)?;
        let splits = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(splits.into_iter().map(|(word, ..)| word.to_string()).collect())
    })?;
    let mut model = WordPiece::builder().unk_token("[UNK]".to_string()).build()?;
    trainer.train(&mut model)?;

    let template = TemplateProcessing::builder()
        .try_single("[CLS] $A [SEP]")?
        .try_pair("[CLS] $A [SEP] $B:1 [SEP]:1")?
        .special_tokens(vec![("[CLS]", 2), ("[SEP]", 3)])
        .build()?;
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(model)
        .with_normalizer(Some(normalizer))
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(Some(template))
        .with_decoder(Some(WordPieceDecoder::default()))
        .build()?;
    tokenizer.add_special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)))?;
    Ok((tokenizer.to_string(false)?, tokenizer.get_vocab_size(true)))
}

/// What lower-cased ASCII can print, apart from the space.
fn alphabet() -> HashSet<char> {
    ('!'..='~').filter(|c| !c.is_ascii_uppercase()).collect()
}

/// Letters and digits as pieces inside of a word (`##a`); punctuation always stands alone.
fn inner_pieces() -> impl Iterator<Item = String> {
    ('0'..='9').chain('a'..='z').map(|c| format!("##{c}"))
}
