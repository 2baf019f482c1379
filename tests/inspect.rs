//! `inspect` says of every golden checkpoint what loading finds, without reading a weight; and of a broken one, what is wrong.

mod common;

use common::Golden;
use diptych::{Loaded, Loader};

#[test]
fn what_the_headers_say_is_what_loading_finds() {
    for golden in Golden::all() {
        let found = Loader::new().inspect(golden.dir()).unwrap_or_else(|error| panic!("{}: {error}", golden.name));
        assert!(found.problems.is_empty(), "{}: {:?}", golden.name, found.problems);
        let loaded = Loader::new().load(golden.dir()).expect(&golden.name);
        let (parameters, text, image) = match &loaded {
            Loaded::Clip(model) => (model.parameters(), Some(model.text_encoder()), Some(model.image_encoder())),
            Loaded::Text(encoder) => (encoder.parameters().clone(), Some(&**encoder), None),
            Loaded::Image(encoder) => (encoder.parameters().clone(), None, Some(&**encoder)),
        };
        assert_eq!(found.parameters, parameters.element_count(), "{}", golden.name);
        assert_eq!(found.text.as_ref().map(|text| &text.config), text.map(|text| text.config()), "{}", golden.name);
        assert_eq!(found.image.as_ref().map(|image| &image.config), image.map(|image| image.config()));
        let processor = found.image.as_ref().and_then(|image| image.processor.as_ref());
        assert_eq!(processor, image.map(|image| image.processor().config()), "{}", golden.name);
    }
}

#[test]
fn weights_cut_behind_the_header_do_not_matter_and_a_wrong_configuration_does() {
    let golden = Golden::named("clip");
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(&golden.path).expect("the golden folder") {
        let entry = entry.expect("readable");
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
    }
    let name = folder.path().to_str().expect("UTF-8");
    // Zeros in place of every weight: nothing reads them.
    let weights = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("a length")) as usize;
    bytes[header..].fill(0xff);
    std::fs::write(&weights, bytes).expect("written");
    assert!(Loader::new().inspect(name).expect("inspected").problems.is_empty());

    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).expect("config");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    value["projection_dim"] = 7.into();
    value["text_config"]["num_hidden_layers"] = 1.into();
    std::fs::write(&config, value.to_string()).expect("written");
    let found = Loader::new().inspect(name).expect("inspected");
    let all = found.problems.join("\n");
    for part in ["visual_projection.weight", "[7, 24]", "text_model.encoder.layers.1.mlp.fc1.weight: in the file"] {
        assert!(all.contains(part), "{all}");
    }
    assert!(found.to_string().contains("It does not load"), "{found}");
}
