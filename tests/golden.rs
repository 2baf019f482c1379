//! Every golden checkpoint against the reference's numbers: hidden states, pooled outputs, features, embeddings, logits.
//! `tests/python/make_golden.py` wrote them.

mod common;

use common::{Golden, relative_error};
use diptych::image::NaflexBatch;
use diptych::towers::{Collect, TowerOutput};
use diptych::{ClipModel, ImageEncoder, Loaded, Loader, TextEncoder};

fn check_states(golden: &Golden, side: &str, output: &TowerOutput) {
    golden.check(&format!("{side}.last_hidden_state"), &output.last_hidden_state);
    golden.check(&format!("{side}.pooled"), &output.pooled);
    for (i, state) in output.hidden_states.iter().enumerate() {
        golden.check(&format!("{side}.hidden_states.{i}"), state);
    }
    let beyond = format!("{side}.hidden_states.{}", output.hidden_states.len());
    assert!(!golden.tensors.contains_key(&beyond), "{}: {beyond} was not computed", golden.name);
}

fn check_text(golden: &Golden, encoder: &TextEncoder) {
    let output = encoder.forward(&golden.tokens(), Collect::HiddenStates).expect(&golden.name);
    check_states(golden, "text", &output);
    golden.check("text.pooled", &encoder.pooled(&golden.tokens()).expect(&golden.name));
    let detached = encoder.pooled_detached(&golden.tokens()).expect(&golden.name);
    assert!(!detached.track_op(), "{}: a graph was kept", golden.name);
}

fn check_image(golden: &Golden, encoder: &ImageEncoder) {
    let output = golden.image_output(encoder, Collect::HiddenStates);
    check_states(golden, "image", &output);
    if golden.patches().is_some() {
        return;
    }
    golden.check("image.pooled", &encoder.pooled(golden.pixels()).expect(&golden.name));
    let detached = encoder.pooled_detached(golden.pixels()).expect(&golden.name);
    assert!(!detached.track_op(), "{}: a graph was kept", golden.name);
}

fn check_clip(golden: &Golden, model: &ClipModel) {
    check_text(golden, model.text_encoder());
    check_image(golden, model.image_encoder());
    let output = golden.clip_output(model);
    golden.check("image_features", &output.image_features);
    golden.check("text_features", &output.text_features);
    golden.check("image_embeds", &output.image_embeds);
    golden.check("text_embeds", &output.text_embeds);
    golden.check("logits_per_image", &output.logits_per_image);
}

#[test]
fn every_golden_checkpoint_gives_the_numbers_of_the_reference() {
    for golden in Golden::all() {
        match Loader::new().load(golden.dir()).unwrap_or_else(|e| panic!("{}: {e}", golden.name)) {
            Loaded::Clip(model) => check_clip(&golden, &model),
            Loaded::Text(encoder) => check_text(&golden, &encoder),
            Loaded::Image(encoder) => check_image(&golden, &encoder),
        }
    }
}

#[test]
fn half_of_a_dual_encoder_loads_alone() {
    let names = [
        "altclip",
        "blip_itm",
        "chinese_clip",
        "clip",
        "clipseg_decoder",
        "siglip",
        "siglip2_naflex",
        "vtde_vit_bert",
        "vtde_clip_v4",
        "vtde_dinov2_xlmr",
        "vtde_siglip_bert",
    ];
    for name in names {
        let golden = Golden::named(name);
        check_text(&golden, &TextEncoder::from_pretrained(golden.dir()).expect(name));
        check_image(&golden, &ImageEncoder::from_pretrained(golden.dir()).expect(name));
    }
}

#[test]
fn naflex_images_are_the_same_in_any_batch() {
    for golden in Golden::all() {
        let (Some(batch), Ok(encoder)) = (golden.patches(), ImageEncoder::from_pretrained(golden.dir())) else {
            continue;
        };
        let all = encoder.forward_patches(&batch, Collect::Last).expect(&golden.name).pooled;
        for (i, &(rows, columns)) in batch.spatial_shapes.iter().enumerate() {
            // Alone, without its padding.
            let patches = batch.patches.narrow(0, i, 1).and_then(|t| t.narrow(1, 0, rows * columns)).expect("a row");
            let mask = batch.mask.narrow(0, i, 1).and_then(|t| t.narrow(1, 0, rows * columns)).expect("a row");
            let alone = NaflexBatch { patches, mask, spatial_shapes: vec![(rows, columns)] };
            let alone = encoder.forward_patches(&alone, Collect::Last).expect(&golden.name).pooled;
            let error = relative_error(&alone, &all.narrow(0, i, 1).expect("a row"));
            assert!(error < 1e-5, "{}: image {i} alone differs by {error:.1e}", golden.name);
        }
        // The sample, through the processor, and its patches in the layout of pixels: the same embedding.
        let naflex = encoder.naflex().expect("a NaFlex processor");
        let found = naflex.batch(&[golden.path.join("sample.png").into()], encoder.device()).expect(&golden.name);
        let error = relative_error(&found.patches, &golden.tensors["sample_patches"]);
        assert!(error < 1e-6, "{}: patches differ by {error:.1e}", golden.name);
        let pooled = encoder.forward_patches(&found, Collect::Last).expect(&golden.name).pooled;
        let encoded = encoder.encode([golden.path.join("sample.png")]).expect(&golden.name);
        assert!(relative_error(&encoded, &pooled) < 1e-6, "{}", golden.name);
        let (rows, columns) = found.spatial_shapes[0];
        let p = naflex.config().patch_size as usize;
        let cut = found.patches.narrow(1, 0, rows * columns).expect("patches");
        let pixels =
            cut.reshape(&[1, rows, columns, p, p, 3][..]).and_then(|t| t.permute([0, 5, 1, 3, 2, 4].as_slice()));
        let pixels = pixels.and_then(|t| t.contiguous()?.reshape((1, 3, rows * p, columns * p))).expect("pixels");
        assert!(relative_error(&encoder.pooled(&pixels).expect(&golden.name), &pooled) < 1e-5, "{}", golden.name);
    }
}

#[test]
fn the_matching_head_gives_the_references_numbers_and_ranks_a_short_list() {
    let golden = Golden::named("blip_itm");
    let model = ClipModel::from_pretrained(golden.dir()).expect("BLIP");
    let expected = &golden.tensors["match_logits"];
    let image_tokens = golden.image_output(model.image_encoder(), Collect::Last).last_hidden_state;
    let (texts, rows) = (golden.tokens(), image_tokens.dim(0).expect("images"));
    for i in 0..rows {
        let same = image_tokens.narrow(0, i, 1).and_then(|t| t.repeat((texts.batch(), 1, 1))).expect("tokens");
        let logits = model.match_logits(&same, &texts).expect("logits");
        let error = relative_error(&logits, &expected.get(i).expect("a row"));
        assert!(error < 2e-5, "image {i}: {error:.1e}");
    }
    let photo = golden.path.join("sample.png");
    let words: Vec<String> = (0..40).map(|i| format!("a photo of {i} dogs")).collect();
    let scores = model.match_scores([photo.clone(), photo.clone()], &words).expect("scores");
    assert_eq!((scores.len(), scores[0].len()), (2, 40));
    assert_eq!(scores[0], scores[1]);
    assert!(scores[0].iter().all(|p| (0.0..=1.0).contains(p)));
    // In pieces or at once: padding and neighbours change nothing.
    let alone = model.match_scores([photo.clone()], &words[39..]).expect("scores");
    assert!((alone[0][0] - scores[0][39]).abs() < 1e-5, "{} {}", alone[0][0], scores[0][39]);
    assert!(model.match_scores(Vec::<String>::new(), &words).is_err());
    assert!(model.match_scores([photo.clone()], &[] as &[&str]).is_err());
    let clip = ClipModel::from_pretrained(Golden::named("clip").dir()).expect("CLIP");
    let message = clip.match_scores([photo], &["a cat"]).expect_err("no head").to_string();
    assert!(message.contains("no matching head"), "{message}");
}

#[test]
fn the_sample_photo_and_texts_give_the_references_inputs() {
    let (mut photos, mut texts_checked) = (0, 0);
    for golden in Golden::all() {
        let text = std::fs::read_to_string(golden.path.join("golden.json")).expect("golden.json");
        let facts: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        if let Some(expected) = golden.tensors.get("sample_pixel_values") {
            let encoder = ImageEncoder::from_pretrained(golden.dir()).expect(&golden.name);
            let inputs = [golden.path.join("sample.png").into()];
            let pixels = encoder.processor().pixel_values(&inputs, encoder.device()).expect(&golden.name);
            let error = relative_error(&pixels, expected);
            assert!(error < 1e-6, "{}: pixel values differ by {error:.1e}", golden.name);
            photos += 1;
        }
        if let (Some(texts), Some(ids)) = (facts["sample_texts"].as_array(), facts["sample_input_ids"].as_array()) {
            let texts: Vec<&str> = texts.iter().map(|t| t.as_str().expect("a text")).collect();
            let encoder = TextEncoder::from_pretrained(golden.dir()).expect(&golden.name);
            let tokens = encoder.tokenize(&texts).expect(&golden.name);
            for (i, row) in ids.iter().enumerate() {
                let row: Vec<u32> =
                    row.as_array().expect("ids").iter().map(|v| v.as_u64().expect("id") as u32).collect();
                assert_eq!(tokens.row(i), Some(&row[..]), "{}: {:?}", golden.name, texts[i]);
                texts_checked += 1;
            }
        }
    }
    assert!(photos >= 10 && texts_checked >= 30, "{photos} photos, {texts_checked} texts");
}

#[test]
fn a_batch_equals_its_rows_and_padding_changes_nothing() {
    for golden in Golden::all() {
        let loaded = Loader::new().load(golden.dir()).expect(&golden.name);
        let (text, image) = match &loaded {
            Loaded::Clip(model) => (Some(model.text_encoder()), Some(model.image_encoder())),
            Loaded::Text(encoder) => (Some(&**encoder), None),
            Loaded::Image(encoder) => (None, Some(&**encoder)),
        };
        if let Some(encoder) = image.filter(|_| golden.patches().is_none()) {
            let pixels = golden.pixels();
            let all = encoder.pooled(pixels).expect(&golden.name);
            for i in 0..pixels.dim(0).expect("a batch") {
                let alone = encoder.pooled(&pixels.narrow(0, i, 1).expect("row")).expect(&golden.name);
                let error = relative_error(&alone, &all.narrow(0, i, 1).expect("row"));
                assert!(error < 1e-5, "{}: image {i} alone differs by {error:.1e}", golden.name);
            }
        }
        if let Some(encoder) = text {
            let tokens = golden.tokens();
            let all = encoder.pooled(&tokens).expect(&golden.name);
            for i in 0..tokens.batch() {
                // One row alone, without its padding where the tower does not read it.
                let config = encoder.config();
                let reads_padding = config.tower.reads_padding(config.pooling);
                let kept = if reads_padding { tokens.length() } else { tokens.kept_lengths()[i] };
                let ids = tokens.row(i).expect("row")[..kept].to_vec();
                let alone = diptych::text::TokenBatch::from_rows(&[ids], 0).expect("row");
                let error =
                    relative_error(&encoder.pooled(&alone).expect(&golden.name), &all.narrow(0, i, 1).expect("row"));
                assert!(error < 1e-5, "{}: text {i} alone differs by {error:.1e}", golden.name);
            }
        }
    }
}
