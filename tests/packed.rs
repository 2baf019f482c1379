//! Weights that nothing trains are packed: the same numbers from every family, in less time; as integers, nearly the same.

mod common;

use common::{Golden, relative_error};
use diptych::candle::{DType, Tensor};
use diptych::ops::{Packing, Weight};
use diptych::towers::Collect;
use diptych::weights::Parameters;
use diptych::{ClipModel, ImageEncoder, Loaded, Loader, Quantization, TextEncoder};

/// The towers of a folder.
fn towers(loader: &Loader, golden: &Golden) -> (Option<TextEncoder>, Option<ImageEncoder>) {
    match loader.load(golden.dir()).unwrap_or_else(|e| panic!("{}: {e}", golden.name)) {
        Loaded::Clip(model) => (Some(model.text_encoder().clone()), Some(model.image_encoder().clone())),
        Loaded::Text(encoder) => (Some(*encoder), None),
        Loaded::Image(encoder) => (None, Some(*encoder)),
    }
}

fn packed(parameters: &Parameters, packing: Packing) -> usize {
    parameters.weights().filter(|(_, w)| matches!(w, Weight::Packed(w) if w.packing() == packing)).count()
}

/// Pooled outputs of both towers for the golden inputs, without a graph.
fn pooled(loader: &Loader, golden: &Golden) -> Vec<Tensor> {
    let (text, image) = towers(loader, golden);
    let text = text.map(|encoder| encoder.pooled_detached(&golden.tokens()).expect(&golden.name));
    let image = image.map(|encoder| match golden.patches() {
        Some(_) => golden.image_output(&encoder, Collect::Last).pooled.detach(),
        None => encoder.pooled_detached(golden.pixels()).expect(&golden.name),
    });
    text.into_iter().chain(image).collect()
}

#[test]
fn packed_weights_give_the_numbers_of_plain_ones_in_every_family() {
    for golden in Golden::all() {
        let plain = pooled(&Loader::new(), &golden);
        for (plain, packed) in plain.iter().zip(pooled(&Loader::new().trainable(false), &golden)) {
            let error = relative_error(&packed, plain);
            assert!(error < 1e-5, "{}: packed differs by {error:.1e}", golden.name);
        }
    }
}

#[test]
fn packed_weights_are_the_same_bits_when_they_are_asked_for() {
    for golden in Golden::all() {
        let (text, image) = towers(&Loader::new(), &golden);
        let (packed_text, packed_image) = towers(&Loader::new().trainable(false), &golden);
        let all = |text: &Option<TextEncoder>, image: &Option<ImageEncoder>| {
            let mut all = text.as_ref().map(|t| t.parameters().prefixed("text")).unwrap_or_default();
            all.extend(image.as_ref().map(|t| t.parameters().prefixed("image")).unwrap_or_default());
            all
        };
        let (plain, frozen) = (all(&text, &image), all(&packed_text, &packed_image));
        assert_eq!(packed(&plain, Packing::Float), 0, "{}", golden.name);
        assert!(packed(&frozen, Packing::Float) > 0, "{}", golden.name);
        assert_eq!(frozen.trainable().count(), 0);
        for ((name, a), (other, b)) in plain.iter().zip(frozen.iter()) {
            let numbers = |t: &Tensor| t.flatten_all().and_then(|t| t.to_dtype(DType::F32)?.to_vec1::<f32>());
            assert_eq!(name, other);
            assert_eq!(a.dims(), b.dims(), "{}: {name}", golden.name);
            assert_eq!(numbers(&a).expect(name), numbers(&b).expect(name), "{}: {name}", golden.name);
        }
    }
}

#[test]
fn what_was_packed_can_be_trained_again_and_gradients_flow_through_what_stays_packed() {
    let golden = Golden::named("clip");
    let loss = |model: &ClipModel| golden.clip_output(model).logits_per_image.sqr()?.sum_all();
    let first =
        |name: &str| name == "vision_model.embeddings.class_embedding" || name.ends_with("layers.0.mlp.fc1.bias");
    let plain = ClipModel::from_pretrained(golden.dir()).and_then(|m| m.with_trainable(first)).expect("plain");
    let packed =
        Loader::new().trainable(false).clip(golden.dir()).and_then(|m| m.with_trainable(first)).expect("packed");
    assert!(self::packed(&packed.parameters(), Packing::Float) > 10);
    let (expected, found) = (loss(&plain).expect("loss"), loss(&packed).expect("loss"));
    let (expected, found) = (expected.backward().expect("gradients"), found.backward().expect("gradients"));
    assert_eq!(packed.trainable().len(), 3);
    for ((name, a), (_, b)) in plain.trainable().iter().zip(packed.trainable()) {
        let error = relative_error(found.get(&b).expect(name), expected.get(a).expect(name));
        assert!(error < 1e-4, "{name}: {error:.1e}");
    }
    let everything = packed.with_trainable(|_| true).expect("unpacked");
    assert_eq!(self::packed(&everything.parameters(), Packing::Float), 0);
}

#[test]
fn integers_stay_close_in_every_family_and_cannot_be_trained() {
    let mut worst: f32 = 1.0;
    for golden in Golden::all() {
        let loader = Loader::new().quantize(Quantization::Int8);
        for (plain, found) in pooled(&Loader::new(), &golden).iter().zip(pooled(&loader, &golden)) {
            let cosine = |a: &Tensor, b: &Tensor| {
                let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum_all()?.to_scalar::<f32>();
                Ok::<f32, diptych::candle::Error>(dot(a, b)? / (dot(a, a)? * dot(b, b)?).sqrt())
            };
            let cosine = cosine(plain, &found).expect(&golden.name);
            println!("{}: {cosine:.5}", golden.name);
            worst = worst.min(cosine);
        }
    }
    // Rows of a dozen numbers: full-size towers are closer.
    assert!(worst > 0.97, "{worst}");
    let model = Loader::new().quantize(Quantization::Int8).clip(Golden::named("clip").dir()).expect("int8");
    assert!(packed(&model.parameters(), Packing::Int8) > 10);
    let message = model.with_trainable(|_| true).err().expect("an error").to_string();
    assert!(message.contains("quantised"), "{message}");
    assert!(Loader::new().quantize(Quantization::Int8).dtype(DType::F16).clip(Golden::named("clip").dir()).is_err());
}

#[test]
fn sixteen_threads_on_one_model_give_the_bits_of_one() {
    let golden = Golden::named("clip");
    for loader in [Loader::new().trainable(false), Loader::new().quantize(Quantization::Int8)] {
        let model = loader.clip(golden.dir()).expect("a model");
        let run = || {
            let image = model.image_encoder().pooled_detached(golden.pixels()).expect("images");
            let text = model.text_encoder().pooled_detached(&golden.tokens()).expect("texts");
            let bits = |t: Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
            [bits(image), bits(text)].concat().into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let serial = run();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(run)).collect();
            for thread in threads {
                assert_eq!(thread.join().expect("a thread"), serial);
            }
        });
    }
}
