//! Images embedded as a stream: in order, in bounded memory, with errors that say where; and a model that keeps to its threads.

mod common;

use std::cell::Cell;
use std::path::PathBuf;

use common::Golden;
use diptych::candle::{DType, Device, Tensor};
use diptych::image::{ImageInput, image_crate};
use diptych::{ClipModel, Embeddings, ImageEncoder, Loaded, Loader, Quantization, Result};

/// The photos that come with the source code.
fn photos() -> Vec<PathBuf> {
    let names = ["astronaut", "cat", "coffee", "dahlia", "rocket", "temple"];
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/photos");
    names.map(|name| folder.join(format!("{name}.jpg"))).to_vec()
}

fn clip(loader: &Loader) -> ClipModel {
    loader.clip(Golden::named("clip").dir()).expect("a model")
}

fn bits(embeddings: &Embeddings) -> Vec<u32> {
    let values = embeddings.rows().flat_map(|row| row.iter().map(|value| value.to_bits()));
    values.collect()
}

fn image_encoder(name: &str, batch_size: usize) -> ImageEncoder {
    let encoder = match Loader::new().load(Golden::named(name).dir()).expect(name) {
        Loaded::Clip(model) => model.image_encoder().clone(),
        Loaded::Image(encoder) => *encoder,
        Loaded::Text(_) => panic!("{name} has no images"),
    };
    encoder.with_batch_size(batch_size)
}

#[test]
fn a_stream_gives_the_rows_of_the_whole_list_in_its_order() {
    let model = clip(&Loader::new().threads(3));
    let files: Vec<PathBuf> = photos().into_iter().cycle().take(70).collect();
    let whole = model.embed_images(&files).expect("embedded");
    let batches: Vec<Embeddings> = model.embed_images_iter(&files).collect::<Result<_>>().expect("embedded");
    assert_eq!(batches.iter().map(Embeddings::len).collect::<Vec<_>>(), [32, 32, 6]);
    let streamed: Vec<u32> = batches.iter().flat_map(bits).collect();
    assert_eq!(streamed, bits(&whole));
    let decoded = files.iter().map(|file| image_crate::open(file).expect("a photo"));
    assert_eq!(bits(&model.embed_images(decoded).expect("embedded")), bits(&whole));
    assert_ne!(whole.row(0), whole.row(1));
}

#[test]
fn naflex_images_are_streamed_with_their_own_proportions() {
    let encoder = image_encoder("siglip2_naflex", 4);
    let files = photos();
    let whole = encoder.encode(&files).expect("encoded");
    let naflex = encoder.naflex().expect("a NaFlex tower");
    let inputs: Vec<ImageInput> = files[4..].iter().map(ImageInput::from).collect();
    let batch = naflex.batch(&inputs, encoder.device()).expect("patches");
    let last = encoder.forward_patches(&batch, diptych::towers::Collect::Last).expect("forward").pooled;
    let rows = |t: &diptych::candle::Tensor| t.to_vec2::<f32>().expect("rows");
    assert_eq!(rows(&whole)[4..], rows(&last));
}

#[test]
fn an_error_names_the_file_and_its_index_and_ends_the_stream() {
    let encoder = image_encoder("clip", 4);
    let mut files: Vec<PathBuf> = photos().into_iter().cycle().take(20).collect();
    files[9] = "no/such/photo.jpg".into();
    let mut stream = encoder.encode_iter(&files);
    assert!(stream.next().expect("a batch").is_ok() && stream.next().expect("a batch").is_ok());
    let message = stream.next().expect("an error").expect_err("a missing file").to_string();
    assert!(message.contains("no/such/photo.jpg") && message.contains("index 9"), "{message}");
    assert!(stream.next().is_none());
    let message = encoder.encode(&files).expect_err("a missing file").to_string();
    assert!(message.contains("index 9"), "{message}");
    let inputs = [ImageInput::from(photos()[0].as_path()), ImageInput::Bytes(b"no image".to_vec())];
    let message = encoder.encode(&inputs).expect_err("no image").to_string();
    assert!(message.contains("at index 1"), "{message}");
}

#[test]
fn an_endless_source_is_drawn_a_batch_ahead_and_no_further() {
    let model = clip(&Loader::new().threads(2));
    let drawn = Cell::new(0);
    let source = photos().into_iter().cycle().inspect(|_| drawn.set(drawn.get() + 1));
    let mut stream = model.embed_images_iter(source);
    assert_eq!(drawn.get(), 0);
    for batch in 1..=3 {
        stream.next().expect("endless").expect("embedded");
        // The batch, the one after it, and an image a thread.
        assert!(drawn.get() <= 32 * batch + 32 + 2, "{} after {batch}", drawn.get());
    }
    drop(stream);
    let after = drawn.get();
    assert_eq!(model.embed_images(photos()).expect("embedded").len(), 6);
    assert_eq!(drawn.get(), after);
    assert!(model.embed_images_iter(Vec::<PathBuf>::new()).next().is_none());
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let run = |loader: Loader| {
        let model = clip(&loader.trainable(false));
        let texts = model.embed_texts(&["a photo of a cat", "a dog"]).expect("texts");
        [bits(&model.embed_images(photos()).expect("images")), bits(&texts)].concat()
    };
    let expected = run(Loader::new());
    for threads in [1, 2, 5] {
        assert_eq!(run(Loader::new().threads(threads)), expected, "{threads} threads");
    }
    let model = clip(&Loader::new().threads(3));
    assert_eq!(model.install(rayon::current_num_threads), 3);
    let message = Loader::new().threads(0).clip(Golden::named("clip").dir()).err().expect("an error").to_string();
    assert!(message.starts_with("threads: "), "{message}");
}

#[test]
fn sixteen_threads_on_one_model_get_the_bits_of_one() {
    let golden = Golden::named("clip");
    let int8 = Loader::new().quantize(Quantization::Int8);
    for loader in [Loader::new().trainable(false), Loader::new().threads(2), int8.threads(1)] {
        let model = clip(&loader);
        let run = || {
            let images = model.embed_images(photos()).expect("images");
            let texts = model.embed_texts(&["a photo of a cat", "a dog", "two dogs in the snow"]).expect("texts");
            let logits = model.forward(golden.pixels(), &golden.tokens()).expect("forward").logits_per_image;
            let logits = logits.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("logits");
            [bits(&images), bits(&texts), logits.into_iter().map(f32::to_bits).collect()].concat()
        };
        let serial = run();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| (run(), run()))).collect();
            for thread in threads {
                assert_eq!(thread.join().expect("a thread"), (serial.clone(), serial.clone()));
            }
        });
    }
}

#[test]
fn a_model_works_inside_a_pool_of_one_thread() {
    use rayon::prelude::*;
    let expected = bits(&clip(&Loader::new()).embed_images(photos()).expect("images"));
    let callers = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    for loader in [Loader::new(), Loader::new().threads(1)] {
        let model = clip(&loader);
        let run = |_| bits(&model.embed_images(photos()).expect("images"));
        let all: Vec<Vec<u32>> = callers.install(|| (0..4).into_par_iter().map(run).collect());
        assert!(all.iter().all(|found| *found == expected));
        let all: Vec<Vec<u32>> = model.install(|| (0..4).into_par_iter().map(run).collect());
        assert!(all.iter().all(|found| *found == expected));
    }
}

/// The names of this process's threads, where the system tells (Linux).
fn thread_names() -> Option<Vec<String>> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    Some(tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect())
}

#[test]
fn embedding_does_not_start_candles_own_pool() {
    let spinning = || thread_names().map(|names| names.iter().filter(|name| name.starts_with("candle-bp")).count());
    if spinning().is_none() {
        return println!("skipped: this system does not name a process's threads");
    }
    let model = Loader::new().trainable(false).clip(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny")).expect("tiny");
    let files: Vec<PathBuf> = photos().into_iter().cycle().take(64).collect();
    model.embed_images(&files).expect("images");
    model.embed_texts(&["a photo of a cat on a mat"; 256]).expect("texts");
    model.zero_shot(&["cat", "dog"]).and_then(|classifier| classifier.classify(&files[0])).expect("classes");
    assert_eq!(spinning(), Some(0), "operations of candle's that run in its own pool");
    // What would have been found.
    let large = Tensor::ones(1 << 20, DType::F32, &Device::Cpu).expect("a tensor");
    (&large + &large).expect("a sum");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cores == 1 || spinning() > Some(0), "candle's pool has another name now");
}
