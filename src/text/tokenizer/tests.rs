use super::*;

/// A tokenizer of whole words: [CLS] text [SEP], with truncation and padding that must be ignored.
const WORDS: &str = r###"{"version":"1.0",
    "truncation":{"max_length":2,"strategy":"LongestFirst","stride":0,"direction":"Right"},
    "padding":{"strategy":{"Fixed":9},"direction":"Left","pad_to_multiple_of":null,"pad_id":5,"pad_type_id":0,"pad_token":"[PAD]"},
    "added_tokens":[
        {"id":1,"content":"[CLS]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
        {"id":2,"content":"[SEP]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
    "normalizer":{"type":"Lowercase"},"pre_tokenizer":{"type":"WhitespaceSplit"},
    "post_processor":{"type":"BertProcessing","sep":["[SEP]",2],"cls":["[CLS]",1]},"decoder":null,
    "model":{"type":"WordLevel","unk_token":"[UNK]",
        "vocab":{"[PAD]":0,"[CLS]":1,"[SEP]":2,"[UNK]":3,"cat":4,"dog":5,"a":6,"[FILL]":7}}}"###;

fn words(rules: TokenRules) -> Result<TextTokenizer> {
    TextTokenizer::from_bytes(WORDS, rules)
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn from_files(files: &[(&str, &str)], rules: TokenRules) -> Result<TextTokenizer> {
    TextTokenizer::from_folder(folder(files).path(), rules)
}

#[test]
fn texts_are_padded_to_the_longest_and_what_the_file_says_about_length_is_ignored() {
    let tokens = words(TokenRules::new(77)).unwrap().encode(&["A cat", "dog", "a cat a bird"]).unwrap();
    assert_eq!((tokens.batch(), tokens.length()), (3, 6));
    assert_eq!(tokens.row(0).unwrap(), [1, 6, 4, 2, 5, 5]);
    assert_eq!(tokens.row(2).unwrap(), [1, 6, 4, 6, 3, 2]);
    assert_eq!(tokens.kept_lengths(), [4, 3, 6]);
}

#[test]
fn truncation_cuts_the_text_and_keeps_the_special_tokens() {
    for (context_length, expected) in [(5, vec![1, 6, 4, 6, 2]), (3, vec![1, 6, 2]), (2, vec![1, 2])] {
        let tokens = words(TokenRules::new(context_length)).unwrap().encode(&["a cat a dog"]).unwrap();
        assert_eq!(tokens.ids(), expected);
    }
    for context_length in [0, 1] {
        let message = words(TokenRules::new(context_length)).unwrap_err().to_string();
        assert_eq!(message, format!("context_length: {context_length} has no room for the 2 special tokens"));
    }
}

#[test]
fn rows_of_a_fixed_length_are_filled_up_to_it() {
    let rules = TokenRules { padding: Padding::ContextLength, pad_id: PadId::Fixed(7), ..TokenRules::new(6) };
    let tokens = words(rules).unwrap().encode(&["cat", ""]).unwrap();
    assert_eq!(tokens.ids(), [1, 4, 2, 7, 7, 7, 1, 2, 7, 7, 7, 7]);
    assert_eq!(tokens.kept_lengths(), [3, 2]);
}

#[test]
fn without_special_tokens_a_text_stands_alone_and_an_empty_one_is_refused() {
    let rules = TokenRules { special_tokens: SpecialTokens::Omit, ..TokenRules::new(2) };
    let tokenizer = words(rules).unwrap();
    assert_eq!(tokenizer.encode(&["a cat a dog"]).unwrap().ids(), [6, 4]);
    assert!(tokenizer.encode(&["a", ""]).unwrap_err().to_string().contains("text 1 gives no tokens"));
}

#[test]
fn an_empty_list_is_refused_by_name() {
    let none: [&str; 0] = [];
    let message = words(TokenRules::new(8)).unwrap().encode(&none).unwrap_err().to_string();
    assert_eq!(message, "texts: the list is empty; at least one text is needed");
}

#[test]
fn the_pad_token_of_the_config_comes_before_the_one_of_the_tokenizer_file() {
    let rules = || TokenRules::new(8);
    let (config, map) = (r#"{"pad_token":{"content":"[FILL]"}}"#, r#"{"pad_token":"[PAD]"}"#);
    let tokenizer_json = ("tokenizer.json", WORDS);
    let pad = |files: &[(&str, &str)]| from_files(files, rules()).unwrap().pad_id();
    assert_eq!(pad(&[tokenizer_json, (TOKENIZER_CONFIG, config), (SPECIAL_TOKENS_MAP, map)]), 7);
    assert_eq!(pad(&[tokenizer_json, (TOKENIZER_CONFIG, "{}"), (SPECIAL_TOKENS_MAP, map)]), 0);
    assert_eq!(pad(&[tokenizer_json]), 5);
    let mut bare: Value = serde_json::from_str(WORDS).unwrap();
    bare["padding"] = Value::Null;
    let otherwise = TokenRules { pad_id: PadId::FromFiles { otherwise: 6 }, ..rules() };
    assert_eq!(from_files(&[("tokenizer.json", &bare.to_string())], otherwise).unwrap().pad_id(), 6);
}

#[test]
fn model_max_length_only_lowers_the_context_length() {
    for (config, expected) in [
        (r#"{"model_max_length":1000000000000000019884624838656}"#, 16),
        (r#"{"model_max_length":8}"#, 8),
        (r#"{"model_max_length":null}"#, 16),
    ] {
        let files = [("tokenizer.json", WORDS), (TOKENIZER_CONFIG, config)];
        assert_eq!(from_files(&files, TokenRules::new(16)).unwrap().rules().context_length, expected);
    }
}

#[test]
fn the_files_are_written_back_byte_for_byte() {
    let config = "{ \"pad_token\" : \"[PAD]\",\r\n \"unknown\": 1.50 }\n";
    let source = folder(&[("tokenizer.json", WORDS), (TOKENIZER_CONFIG, config)]);
    let target = folder(&[]);
    TextTokenizer::from_folder(source.path(), TokenRules::new(8)).unwrap().save(target.path()).unwrap();
    assert_eq!(std::fs::read_to_string(target.path().join("tokenizer.json")).unwrap(), WORDS);
    assert_eq!(std::fs::read_to_string(target.path().join(TOKENIZER_CONFIG)).unwrap(), config);
    assert!(!target.path().join(SPECIAL_TOKENS_MAP).exists());
    assert!(TextTokenizer::from_bytes(WORDS, TokenRules::new(8)).unwrap().save(target.path().join("none")).is_err());
}

#[test]
fn a_folder_without_the_file_says_what_is_needed() {
    let message = |files: &[(&str, &str)]| from_files(files, TokenRules::new(8)).unwrap_err().to_string();
    assert!(message(&[]).contains("tokenizer.json: is missing, and so are vocab.json"));
    let clip = from_files(&[], TokenRules::open_clip(77)).unwrap_err().to_string();
    assert!(clip.contains("openai/clip-vit-base-patch32"), "{clip}");
    assert!(message(&[("tokenizer.json", "{")]).contains("is not a tokenizer"));
    assert!(message(&[("tokenizer.json", "")]).contains("is not a tokenizer"));
    assert!(message(&[("tokenizer.json", "\u{0}PNG")]).contains("is not a tokenizer"));
    assert!(
        message(&[("tokenizer.json", WORDS), (TOKENIZER_CONFIG, "nothing")]).contains("tokenizer_config.json: is not")
    );
    let gone = TextTokenizer::from_folder("no/such/folder", TokenRules::new(8)).unwrap_err().to_string();
    assert_eq!(gone, "no/such/folder: is no folder");
    assert!(TextTokenizer::from_file("no/such/file.json", TokenRules::new(8)).is_err());
}

#[test]
fn older_files_that_contradict_each_other_are_refused_by_name() {
    let message = |files: &[(&str, &str)]| from_files(files, TokenRules::new(8)).unwrap_err().to_string();
    for (files, expected) in [
        (vec![("vocab.json", "{\"a\":0}"), ("merges.txt", "a")], "merges.txt: line 1 is not two pieces"),
        (vec![("vocab.json", "[]"), ("merges.txt", "")], "is not a tokenizer"),
        (vec![("vocab.json", "{\"a\":0}"), ("merges.txt", "a b")], "is not a tokenizer"),
        (vec![("spiece.model", "\u{1}\u{2}")], "spiece.model: is not a SentencePiece model"),
        (
            vec![("vocab.txt", "[CLS]"), (TOKENIZER_CONFIG, "{\"tokenizer_class\":\"OtherTokenizer\"}")],
            "OtherTokenizer",
        ),
        (vec![("vocab.txt", "[CLS]"), (TOKENIZER_CONFIG, "{\"tokenizer_class\":\"T5Tokenizer\"}")], "no SentencePiece"),
        (
            vec![("vocab.txt", "[CLS]"), (TOKENIZER_CONFIG, "{\"added_tokens_decoder\":{\"x\":\"y\"}}")],
            "'x' is no token id",
        ),
    ] {
        let message = message(&files);
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn the_separator_becomes_zero_and_clips_rows_end_in_the_class_token() {
    let zero = TokenRules { separator: Separator::Zero, ..TokenRules::new(8) };
    assert_eq!(words(zero).unwrap().encode(&["cat [SEP] dog"]).unwrap().ids(), [1, 4, 0, 5, 0]);

    let config = r#"{"bos_token":"[FILL]","eos_token":"[SEP]","pad_token":"[PAD]"}"#;
    let files = [("tokenizer.json", WORDS), (TOKENIZER_CONFIG, config)];
    let clips = TokenRules { special_tokens: SpecialTokens::Clips, ..TokenRules::new(6) };
    let tokens = from_files(&files, clips.clone()).unwrap().encode(&["cat", "a cat a dog a"]).unwrap();
    assert_eq!(tokens.ids(), [7, 4, 2, 0, 0, 1, 7, 6, 4, 6, 2, 1]);
    assert_eq!(tokens.kept_lengths(), [4, 6]);
    assert!(words(clips).unwrap_err().to_string().contains("names no bos_token"));
}

#[test]
fn rows_are_filled_up_on_the_side_that_the_files_say() {
    let ids = |config: &str| {
        let rules = TokenRules { pad_id: PadId::Fixed(9), ..TokenRules::new(8) };
        let tokenizer = from_files(&[("tokenizer.json", WORDS), (TOKENIZER_CONFIG, config)], rules)?;
        let tokens = tokenizer.encode(&["cat", "a cat"])?;
        Ok::<_, Error>((tokens.row(0).unwrap_or_default().to_vec(), tokens.kept_lengths()))
    };
    assert_eq!(ids("{}").unwrap(), (vec![1, 4, 2, 9], vec![3, 4]));
    assert_eq!(ids(r#"{"padding_side":"left"}"#).unwrap(), (vec![9, 1, 4, 2], vec![3, 4]));
    assert_eq!(ids(r#"{"tokenizer_class":"GemmaTokenizerFast"}"#).unwrap().0, [9, 1, 4, 2]);
    assert!(ids(r#"{"padding_side":"both"}"#).unwrap_err().to_string().contains("padding_side 'both'"));
}

#[test]
fn lower_case_is_a_normalizer_that_leaves_special_tokens_alone() {
    let mut cased: Value = serde_json::from_str(WORDS).unwrap();
    cased["normalizer"] = Value::Null;
    let ids = |cleaning| {
        let rules = TokenRules { cleaning, special_tokens: SpecialTokens::Omit, ..TokenRules::new(8) };
        TextTokenizer::from_bytes(cased.to_string(), rules).unwrap().encode(&["A CAT [SEP]"]).unwrap().ids().to_vec()
    };
    assert_eq!(ids(Cleaning::None), [3, 3, 2]);
    assert_eq!(ids(Cleaning::Lowercase), [6, 4, 2]);
}

#[test]
fn rules_saved_before_there_were_cleanings_still_read() {
    let json =
        r#"{"context_length":77,"padding":"longest","pad_id":{"from_files":{"otherwise":0}},"special_tokens":"add"}"#;
    assert_eq!(serde_json::from_str::<TokenRules>(json).unwrap(), TokenRules::new(77));
    let rules = TokenRules::open_clip(77);
    let json = serde_json::to_string(&rules).unwrap();
    assert!(json.ends_with(r#""cleaning":"open_clip_lower","splitting":"open_clip"}"#), "{json}");
    assert_eq!(serde_json::from_str::<TokenRules>(&json).unwrap(), rules);
}

#[test]
fn rules_are_read_and_written_as_json() {
    let rules = TokenRules { pad_id: PadId::Fixed(1), padding: Padding::ContextLength, ..TokenRules::new(64) };
    let json = r#"{"context_length":64,"padding":"context_length","pad_id":{"fixed":1},"special_tokens":"add"}"#;
    assert_eq!(serde_json::to_string(&rules).unwrap(), json);
    assert_eq!(serde_json::from_str::<TokenRules>(json).unwrap(), rules);
}

#[test]
fn a_tokenizer_can_be_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<TextTokenizer>();
}
