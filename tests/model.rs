//! What a user does with a model: save and load, freeze, embed, classify, build from candle's variables.

mod common;

use common::{Golden, relative_error};
use diptych::candle::{DType, Device, Tensor};
use diptych::candle_nn::{VarBuilder, VarMap};
use diptych::families::ModelLayout;
use diptych::text::TextTokenizer;
use diptych::weights::{Params, VarBuilderSource};
use diptych::{ClipModel, Loaded, Loader, ProjectionConfig};

const DUAL: [&str; 11] = [
    "altclip",
    "blip_itm",
    "chinese_clip",
    "clip",
    "clip_gelu_eos2",
    "metaclip_2",
    "siglip",
    "siglip2_naflex",
    "vtde_vit_bert",
    "vtde_dinov2_xlmr",
    "vtde_siglip_bert",
];

fn load(name: &str) -> ClipModel {
    ClipModel::from_pretrained(Golden::named(name).dir()).expect(name)
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values").into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_saved_model_loads_again_with_equal_bits() {
    for name in DUAL {
        let golden = Golden::named(name);
        let original = load(name);
        for projection in [None, Some(ProjectionConfig::mlp(8)), Some(ProjectionConfig::linear(8))] {
            let model = match projection {
                None => original.clone(),
                Some(projection) => {
                    let (text, image) = (original.text_encoder().clone(), original.image_encoder().clone());
                    ClipModel::with_projection(text, image, projection, 3).expect(name)
                }
            };
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("saved");
            model.save_pretrained(&path).expect(name);
            let again = ClipModel::from_pretrained(path.to_str().expect("UTF-8")).expect(name);
            assert_eq!(again.config(), model.config(), "{name}");
            let (before, after) = (model.parameters(), again.parameters());
            assert_eq!(before.iter().count(), after.iter().count(), "{name}");
            for ((a_name, a), (b_name, b)) in before.iter().zip(after.iter()) {
                assert_eq!((a_name, a.dims(), bits(a)), (b_name, b.dims(), bits(b)), "{name}");
            }
            let sample = golden.path.join("sample.png");
            let (a, b) = (model.embed_images([&sample]).expect(name), again.embed_images([&sample]).expect(name));
            assert_eq!(a.rows().collect::<Vec<_>>(), b.rows().collect::<Vec<_>>(), "{name}");
            let (a, b) = (model.embed_texts(&["a cat"]).expect(name), again.embed_texts(&["a cat"]).expect(name));
            assert_eq!(a.rows().collect::<Vec<_>>(), b.rows().collect::<Vec<_>>(), "{name}");
        }
    }
}

#[test]
fn a_model_goes_back_in_the_layout_it_came_in_and_the_rest_in_ours() {
    let model_type = |model: &ClipModel| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("saved");
        model.save_pretrained(&path).expect("saved");
        let text = std::fs::read_to_string(path.join("config.json")).expect("config.json");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["model_type"].clone()
    };
    assert_eq!(model_type(&load("clip")), "clip");
    // Its processor makes 8 pixels where the tower's positions are for 16, which transformers would refuse.
    assert_eq!(model_type(&load("clip_gelu_eos2")), "diptych");
    assert_eq!(model_type(&load("vtde_vit_bert")), "vision-text-dual-encoder");
    let other_pooling = Loader::new().text_pooling(diptych::towers::TextPooling::Mean);
    assert_eq!(model_type(&other_pooling.clip(Golden::named("vtde_vit_bert").dir()).expect("loaded")), "diptych");
    let clip = load("clip");
    let origin = ClipModel::from_encoders(clip.text_encoder().clone(), clip.image_encoder().clone(), 256);
    assert_eq!(model_type(&origin.expect("the origin's design")), "diptych");
}

#[test]
fn half_precision_halves_the_file_and_moves_the_numbers_little() {
    let (golden, model) = (Golden::named("clip"), load("clip"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("saved");
    model.save_pretrained_as(&path, DType::F16).expect("saved");
    let again = ClipModel::from_pretrained(path.to_str().expect("UTF-8")).expect("loaded");
    model.save_pretrained(folder.path().join("full")).expect("saved");
    let size = |name: &str| std::fs::metadata(folder.path().join(name).join("model.safetensors")).expect("file").len();
    // The header, which is the same in both, counts twice on the left.
    assert!(size("saved") * 2 < size("full") + 12_000, "{} and {}", size("saved"), size("full"));
    let (a, b) = (model.image_encoder().pooled(golden.pixels()), again.image_encoder().pooled(golden.pixels()));
    assert!(relative_error(&b.expect("pooled"), &a.expect("pooled")) < 5e-3);
}

#[test]
fn the_origins_design_starts_where_it_should() {
    let clip = load("vtde_vit_bert");
    let model =
        ClipModel::from_encoders(clip.text_encoder().clone(), clip.image_encoder().clone(), 256).expect("built");
    assert!((model.logit_scale().expect("scale") - 1.0 / 0.07).abs() < 1e-3);
    let names: Vec<String> = model.parameters().iter().map(|(name, _)| name.to_string()).collect();
    for part in ["linear.weight", "linear.bias", "layer_norm.weight", "layer_norm.bias"] {
        for side in ["text", "visual"] {
            assert!(names.contains(&format!("{side}_projection.{part}")), "{names:?}");
        }
    }
    assert_eq!(model.embed_texts(&["a dog", "a cat"]).expect("embedded").dim(), 256);
}

#[test]
fn the_scale_is_clamped_only_when_asked_and_only_if_trained() {
    let model = load("clip");
    let scale = model.logit_scale().expect("scale");
    model.clamp_logit_scale(10.0, 10.0).expect("clamped");
    assert!((model.logit_scale().expect("scale").ln() - 10.0).abs() < 1e-5);
    let frozen = load("clip").with_trainable(|_| false).expect("frozen");
    frozen.clamp_logit_scale(10.0, 10.0).expect("left alone");
    assert!((frozen.logit_scale().expect("scale") - scale).abs() < 1e-6);
}

#[test]
fn a_model_built_from_a_var_map_is_made_of_its_variables() {
    let golden = Golden::named("vtde_vit_bert");
    let original = load("vtde_vit_bert");
    let variables = VarMap::new();
    let builder = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let rules = original.text_encoder().tokenizer().rules().clone();
    let model = ClipModel::from_params(
        original.config(),
        TextTokenizer::from_folder(&golden.path, rules).expect("tokenizer"),
        original.image_encoder().processor().clone(),
        &Params::new(VarBuilderSource(builder)),
        &Device::Cpu,
    )
    .expect("built");
    assert_eq!(variables.all_vars().len(), model.trainable().len());
    // Setting the map's variables is setting the model: then it is the original.
    for (name, tensor) in original.parameters().iter() {
        let data = variables.data().lock().expect("lock");
        data[name].set(&tensor.detach()).expect("set");
    }
    let output = model.forward(golden.pixels(), &golden.tokens()).expect("forward");
    golden.check("logits_per_image", &output.logits_per_image);
    let grads = output.logits_per_image.sum_all().expect("sum").backward().expect("backward");
    assert!(variables.all_vars().iter().all(|var| grads.get(var).is_some()));
}

#[test]
fn random_weights_depend_on_the_seed_alone() {
    let golden = Golden::named("clip");
    let model = |seed| Loader::new().random_weights(seed).clip(golden.dir()).expect("built");
    let weight = |model: &ClipModel| bits(model.parameters().get("visual_projection.weight").expect("weight"));
    assert_eq!(weight(&model(1)), weight(&model(1)));
    assert_ne!(weight(&model(1)), weight(&model(2)));
}

#[test]
fn images_come_as_paths_bytes_or_decoded_and_give_the_same_row() {
    let model = load("clip");
    let path = Golden::named("clip").path.join("sample.png");
    let bytes = std::fs::read(&path).expect("bytes");
    let decoded = diptych::image::image_crate::load_from_memory(&bytes).expect("decoded");
    let from_path = model.embed_images([path]).expect("path");
    let from_bytes = model.embed_images([bytes]).expect("bytes");
    let from_image = model.embed_images([decoded]).expect("image");
    assert_eq!(from_path.row(0), from_bytes.row(0));
    assert_eq!(from_path.row(0), from_image.row(0));
    let length: f32 = from_path.row(0).expect("row").iter().map(|v| v * v).sum();
    assert!((length - 1.0).abs() < 1e-5);
}

#[test]
fn texts_keep_their_order_whatever_their_length() {
    let model = load("clip");
    let texts = ["a photo of a very long dog and cat", "cat", "a dog", "", "a photo"];
    let all = model.embed_texts(&texts).expect("embedded");
    for (i, text) in texts.iter().enumerate() {
        let alone = model.embed_texts(&[text]).expect("embedded");
        let error = all.row(i).expect("row").iter().zip(alone.row(0).expect("row")).map(|(a, b)| (a - b).abs());
        assert!(error.fold(0f32, f32::max) < 1e-5, "{text:?}");
    }
}

#[test]
fn a_new_model_of_a_published_design_is_written_in_hugging_faces_layout() {
    for (name, model_type) in [("clip", "clip"), ("siglip", "siglip"), ("siglip2_naflex", "siglip2")] {
        let golden = Golden::named(name);
        let model = Loader::new().random_weights(5).clip(golden.dir()).expect(name);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("saved");
        model.save_pretrained(&path).expect(name);
        let text = std::fs::read_to_string(path.join("config.json")).expect("config.json");
        let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(config["model_type"], model_type);
        // The files have the names and shapes that transformers gave them.
        let read = |path: &std::path::Path| {
            let tensors = diptych::candle::safetensors::load(path.join("model.safetensors"), &Device::Cpu).expect(name);
            tensors.into_iter().map(|(name, t)| (name, t.dims().to_vec())).collect::<std::collections::BTreeMap<_, _>>()
        };
        assert_eq!(read(&path), read(&golden.path), "{name}");
        let again = ClipModel::from_pretrained(path.to_str().expect("UTF-8")).expect(name);
        assert_eq!(again.config(), model.config(), "{name}");
        let (before, after) = (model.parameters(), again.parameters());
        for ((a_name, a), (b_name, b)) in before.iter().zip(after.iter()) {
            assert_eq!((a_name, a.dims(), bits(a)), (b_name, b.dims(), bits(b)), "{name}");
        }
    }
}

#[test]
fn a_model_comes_back_from_our_own_layout_byte_for_byte() {
    for name in ["clip", "siglip", "siglip2_naflex"] {
        let folder = tempfile::tempdir().expect("a folder");
        let (ours, theirs) = (folder.path().join("ours"), kept(&folder, &format!("{name}.through_ours")));
        load(name).save_pretrained_in(&ours, ModelLayout::Diptych).expect(name);
        let again = ClipModel::from_pretrained(ours.to_str().expect("UTF-8")).expect(name);
        again.save_pretrained_in(&theirs, ModelLayout::HuggingFace).expect(name);
        let bytes = |path: &std::path::Path| {
            let tensors = diptych::candle::safetensors::load(path.join("model.safetensors"), &Device::Cpu).expect(name);
            tensors
                .into_iter()
                .map(|(n, t)| (n, (t.dims().to_vec(), bits(&t))))
                .collect::<std::collections::BTreeMap<_, _>>()
        };
        assert!(bytes(&theirs) == bytes(&Golden::named(name).path), "{name}");
    }
}

/// A place in `folder`, or below DIPTYCH_SAVED, where `tests/python/check_saved.py` reads what was saved.
fn kept(folder: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
    std::env::var_os("DIPTYCH_SAVED")
        .map_or_else(|| folder.path().join(name), |kept| std::path::Path::new(&kept).join(name))
}

#[test]
fn siglips_probabilities_are_sigmoids_of_its_logits() {
    let model = load("siglip");
    let sample = Golden::named("siglip").path.join("sample.png");
    let labels = ["cat", "dog"];
    let classes = model.zero_shot(&labels).expect("head").classify(&sample).expect("classified");
    let images = model.embed_images([&sample]).expect("images");
    let texts = model.embed_texts(&labels.map(|label| format!("a photo of a {label}"))).expect("texts");
    let cosine = images.cosine(&texts).expect("cosines").to_vec2::<f32>().expect("values");
    let (scale, bias) = (model.logit_scale().expect("scale") as f32, model.logit_bias().expect("bias") as f32);
    for class in classes {
        let i = labels.iter().position(|label| *label == class.label).expect("a label");
        let expected = 1.0 / (1.0 + (-(scale * cosine[0][i] + bias)).exp());
        assert!((class.probability - expected).abs() < 1e-6, "{class:?}, expected {expected}");
    }
}

#[test]
fn a_text_tower_without_a_pooler_is_refused_as_transformers_refuses_it() {
    let folder = copy("vtde_vit_bert");
    change(&folder, "config.json", |config| config["text_config"]["model_type"] = "distilbert".into());
    let error = ClipModel::from_pretrained(folder.path().to_str().expect("UTF-8")).err().expect("an error").to_string();
    assert!(error.contains("distilbert") && error.contains("pooler"), "{error}");
}

#[test]
fn an_end_token_may_be_a_list_of_one() {
    let folder = copy("clip");
    let name = folder.path().to_str().expect("UTF-8").to_string();
    let pooled = |model: &ClipModel| model.text_encoder().pooled(&Golden::named("clip").tokens()).expect("pooled");
    change(&folder, "config.json", |config| {
        let id = config["text_config"]["eos_token_id"].clone();
        config["text_config"]["eos_token_id"] = serde_json::json!([id]);
    });
    let model = ClipModel::from_pretrained(&name).expect("a list of one");
    assert_eq!(bits(&pooled(&model)), bits(&pooled(&load("clip"))));
    change(&folder, "config.json", |config| config["text_config"]["eos_token_id"] = serde_json::json!([1, 2]));
    let error = ClipModel::from_pretrained(&name).err().expect("an error").to_string();
    assert!(error.contains("text_config.eos_token_id") && error.contains("one token id"), "{error}");
}

#[test]
fn zero_shot_sorts_classes_and_probabilities_sum_to_one() {
    let model = load("clip");
    let sample = Golden::named("clip").path.join("sample.png");
    let classes = model.zero_shot(&["cat", "dog", "photo"]).expect("head").classify(&sample).expect("classified");
    assert_eq!(classes.len(), 3);
    assert!(classes.windows(2).all(|pair| pair[0].probability >= pair[1].probability));
    assert!((classes.iter().map(|class| class.probability).sum::<f32>() - 1.0).abs() < 1e-5);
}

#[test]
fn one_model_serves_many_threads() {
    let model = load("clip");
    let expected = model.embed_texts(&["a cat"]).expect("embedded");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(model.embed_texts(&["a cat"]).expect("embedded"), expected));
        }
    });
}

#[test]
fn every_error_names_the_thing() {
    let golden = Golden::named("clip");
    let copy = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(&golden.path).expect("readable") {
        let path = entry.expect("entry").path();
        std::fs::copy(&path, copy.path().join(path.file_name().expect("name"))).expect("copied");
    }
    let dir = copy.path().to_str().expect("UTF-8");
    let config = copy.path().join("config.json");
    let original = std::fs::read_to_string(&config).expect("config");
    let error = |dir: &str| Loader::new().offline(true).load(dir).err().expect("an error").to_string();
    let with = |from: &str, to: &str| {
        let changed = original.replacen(from, to, 1);
        assert_ne!(changed, original, "{from} is not in the configuration");
        std::fs::write(&config, changed).expect("written");
        error(dir)
    };
    assert!(error("/no/such/folder").contains("/no/such/folder"));
    let text = with("\"clip\"", "\"klip\"");
    assert!(text.contains("klip") && text.contains("vision-text-dual-encoder"), "{text}");
    let text = with("quick_gelu", "quicker_gelu");
    assert!(text.contains("quicker_gelu") && text.contains("gelu_pytorch_tanh"), "{text}");
    let text = with("\"intermediate_size\": 40", "\"intermediate_size\": 41");
    assert!(text.contains("fc1") && text.contains("41") && text.contains("40"), "{text}");
    let text = with("\"num_attention_heads\": 2", "\"num_attention_heads\": 0");
    assert!(text.contains("num_attention_heads") && text.contains("config.json"), "{text}");
    let text = with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert!(text.contains("layers.2"), "{text}");
    let text = with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert!(text.contains("layers.1"), "unused tensors are listed: {text}");
    std::fs::write(&config, "{").expect("written");
    assert!(error(dir).contains("config.json"));
    std::fs::remove_file(&config).expect("removed");
    assert!(error(dir).contains("config.json"));

    let model = load("clip");
    let text = model.embed_images([golden.path.join("config.json")]).expect_err("a text file").to_string();
    assert!(text.contains("config.json"), "{text}");
    let text = model.embed_images(["no.jpg"]).expect_err("no file").to_string();
    assert!(text.contains("no.jpg"), "{text}");
    assert!(model.embed_images(Vec::<String>::new()).is_err());
    assert!(model.embed_texts(&[] as &[&str]).is_err());
    assert!(model.zero_shot(&[] as &[&str]).is_err());
}

#[test]
fn a_folder_with_one_tower_says_so() {
    let golden = Golden::named("vit");
    assert!(matches!(Loader::new().load(golden.dir()), Ok(Loaded::Image(_))));
    let text = ClipModel::from_pretrained(golden.dir()).err().expect("an error").to_string();
    assert!(text.contains("one tower"), "{text}");
}

/// A copy of a golden folder, to be changed.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(Golden::named(name).path).expect("readable") {
        let path = entry.expect("entry").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("name"))).expect("copied");
    }
    folder
}

/// Changes the JSON file `name` of a folder.
fn change(folder: &tempfile::TempDir, name: &str, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = folder.path().join(name);
    let mut value = serde_json::from_str(&std::fs::read_to_string(&path).expect("read")).expect("JSON");
    edit(&mut value);
    std::fs::write(path, value.to_string()).expect("written");
}

#[test]
fn a_processor_file_that_names_no_class_is_the_architectures() {
    let folder = copy("vit");
    std::fs::write(folder.path().join("preprocessor_config.json"), r#"{"size": 8}"#).expect("written");
    let loaded = Loader::new().image_encoder(folder.path().to_str().expect("UTF-8")).expect("loaded");
    let config = loaded.processor().config();
    assert!(config.crop.is_none(), "ViT's processor does not crop: {config:?}");
    assert_eq!(config.output_size(), Some(diptych::image::ImageSize::square(8)));
}

#[test]
fn an_old_clip_files_dict_wins_with_its_defaults() {
    let folder = copy("clip");
    change(&folder, "config.json", |config| {
        let mut text = config["text_config"].clone();
        text["layer_norm_eps"] = 0.5.into();
        text["vocab_size"] = 7.into();
        let dict = config["text_config"].clone();
        config["text_config"] = text;
        config["text_config_dict"] = dict;
    });
    let golden = Golden::named("clip");
    let model = ClipModel::from_pretrained(folder.path().to_str().expect("UTF-8")).expect("the dict fits the weights");
    golden.check("text.pooled", &model.text_encoder().pooled(&golden.tokens()).expect("pooled"));
}

#[test]
fn random_weights_have_the_architecture_of_the_checkpoint() {
    let golden = Golden::named("vtde_vit_bert");
    let names = |model: &ClipModel| model.parameters().iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    let random = Loader::new().random_weights(0).clip(golden.dir()).expect("built");
    assert_eq!(names(&random), names(&load("vtde_vit_bert")));
}

#[test]
fn half_precision_towers_get_half_precision_heads() {
    let loader = Loader::new().dtype(DType::F16);
    let text = loader.text_encoder(Golden::named("bert").dir()).expect("text");
    let image = loader.image_encoder(Golden::named("vit").dir()).expect("image");
    let model = ClipModel::from_encoders(text, image, 8).expect("built");
    let rows = model.embed_texts(&["a cat"]).expect("embedded");
    assert!(rows.row(0).expect("row").iter().all(|v| v.is_finite()));
    let text = Loader::new().text_encoder(Golden::named("bert").dir()).expect("text");
    let mixed = ClipModel::from_encoders(text, model.image_encoder().clone(), 8).err().expect("an error").to_string();
    assert!(mixed.contains("F32") && mixed.contains("F16"), "{mixed}");
}

#[test]
fn absurd_sizes_are_errors_at_once() {
    for (field, value) in
        [("num_hidden_layers", 16_777_216u64), ("hidden_size", 1 << 40), ("vocab_size", 1 << 40), ("patch_size", 0)]
    {
        let folder = copy("clip");
        change(&folder, "config.json", |config| {
            let part = if field == "patch_size" { "vision_config" } else { "text_config" };
            config[part][field] = value.into();
        });
        let dir = folder.path().to_str().expect("UTF-8");
        assert!(ClipModel::from_pretrained(dir).is_err(), "{field}");
        let random = Loader::new().random_weights(0).clip(dir);
        assert!(random.is_err(), "{field}");
    }
}

#[test]
fn a_place_that_cannot_be_saved_to_is_known_before_training() {
    let folder = tempfile::tempdir().expect("a folder");
    let check = |name: &str| diptych::weights::check_save_target(folder.path().join(name));
    check("new/and/deeper").expect("it can be made");
    assert!(!folder.path().join("new").exists(), "checking makes nothing");
    std::fs::write(folder.path().join("file"), "x").expect("written");
    assert!(check("file").is_err());
    std::fs::create_dir(folder.path().join("other")).expect("made");
    std::fs::write(folder.path().join("other/notes.txt"), "x").expect("written");
    assert!(check("other").expect_err("no model folder").to_string().contains("other"));
}

#[test]
fn load_and_save_give_back_every_tensor_of_the_file_byte_for_byte() {
    // `position_ids`, a buffer, `mask_token`, of masked training, CLIPSeg's decoder and the cross-attention of a BLIP without a
    // matching head are not part of the model.
    let extra = |name: &str, tensor: &str| {
        tensor.ends_with("position_ids")
            || tensor.ends_with("mask_token")
            || name == "clipseg_decoder" && tensor.starts_with("decoder.")
            || name == "blip_model" && tensor.contains(".crossattention.")
    };
    let others = ["blip_model", "clipseg", "clipseg_decoder", "siglip_published", "vtde_clip_halves"];
    let others = others.into_iter().chain(["vtde_clip_roberta", "vtde_clip_v4", "vtde_registers_mpnet"]);
    // Whose processor makes another size than the tower's goes into our own layout.
    for name in DUAL.into_iter().filter(|name| *name != "clip_gelu_eos2").chain(others) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = kept(&folder, &format!("{name}.as_loaded"));
        load(name).save_pretrained(&path).expect(name);
        let read = |path: &std::path::Path| {
            diptych::candle::safetensors::load(path.join("model.safetensors"), &Device::Cpu).expect(name)
        };
        let (before, after) = (read(&Golden::named(name).path), read(&path));
        for (tensor_name, tensor) in before.iter().filter(|(tensor_name, _)| !extra(name, tensor_name)) {
            let saved = after.get(tensor_name).unwrap_or_else(|| panic!("{name}: {tensor_name} is gone"));
            assert_eq!((tensor.dims(), bits(tensor)), (saved.dims(), bits(saved)), "{name}: {tensor_name}");
        }
        assert!(after.keys().all(|tensor_name| before.contains_key(tensor_name)), "{name}");
    }
}
