//! What a user does with a model: save and load, freeze, embed, classify, build from candle's variables.

mod common;

use common::{Golden, relative_error};
use diptych::candle::{DType, Device, Tensor};
use diptych::candle_nn::{VarBuilder, VarMap};
use diptych::text::TextTokenizer;
use diptych::weights::{Params, VarBuilderSource};
use diptych::{ClipModel, Loaded, Loader, ProjectionConfig};

const DUAL: [&str; 4] = ["clip", "clip_gelu_eos2", "vtde_vit_bert", "vtde_dinov2_xlmr"];

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
fn clip_is_saved_in_hugging_faces_layout_and_the_rest_in_ours() {
    let model_type = |model: &ClipModel| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("saved");
        model.save_pretrained(&path).expect("saved");
        let text = std::fs::read_to_string(path.join("config.json")).expect("config.json");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["model_type"].clone()
    };
    assert_eq!(model_type(&load("clip")), "clip");
    assert_eq!(model_type(&load("clip_gelu_eos2")), "clip");
    assert_eq!(model_type(&load("vtde_vit_bert")), "diptych");
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
