//! Time of each stage between an image file and its embedding, on one thread, and of the tower, on all.
//!
//! `cargo bench --bench images -- FOLDER_OF_PHOTOS [MODEL]`; without arguments the bundled photos and the bundled model. Prints
//! medians over the files of milliseconds a file, and their share of all processor time.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use diptych::image::{ImageInput, decode};
use diptych::{ClipModel, Result};

const FILES: usize = 128;
const BATCH: usize = 32;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let bundled = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(path).display().to_string();
    let folder = arguments.first().cloned().unwrap_or_else(|| bundled("assets/photos"));
    let model = arguments.get(1).cloned().unwrap_or_else(|| bundled("assets/tiny"));
    let model = ClipModel::loader().trainable(false).clip(&model)?;
    let files = photos(&folder);
    let mut stages: [(&str, Vec<f64>); 5] =
        ["read", "decode", "resize, normalise", "normalise alone", "all of it"].map(|name| (name, Vec::new()));
    let processor = model.image_encoder().processor();
    for file in &files {
        // The first time fills the caches.
        for keep in [false, true] {
            let mut record = |stage: usize, start: Instant| {
                if keep {
                    stages[stage].1.push(start.elapsed().as_secs_f64() * 1e3);
                }
            };
            let start = Instant::now();
            let bytes = black_box(std::fs::read(file).unwrap_or_default());
            record(0, start);
            let input = ImageInput::Bytes(bytes);
            let start = Instant::now();
            let image = black_box(decode(&input, processor.decode_options())?);
            record(1, start);
            let input = ImageInput::Decoded(image);
            let start = Instant::now();
            let array = black_box(processor.preprocess(&input)?);
            record(2, start);
            let same = ImageInput::Decoded(pixels(array.size().width, array.size().height));
            let start = Instant::now();
            black_box(processor.preprocess(&same)?);
            record(3, start);
            let start = Instant::now();
            black_box(processor.preprocess(file)?);
            record(4, start);
        }
    }
    let tower = tower(&model, &files)?;
    let threads = rayon::current_num_threads();
    let all = median(&mut stages[4].1) + tower * threads as f64;
    println!("{} files of {folder}, {threads} threads for the tower", files.len());
    for (name, times) in &mut stages {
        let ms = median(times);
        println!("{name:<20}{ms:>9.3} ms{:>8.2} %", 100.0 * ms / all);
    }
    println!("{:<20}{tower:>9.3} ms{:>8.2} %", "tower, batch 32", 100.0 * tower * threads as f64 / all);
    Ok(())
}

/// Milliseconds an image of the tower and the projection.
fn tower(model: &ClipModel, files: &[PathBuf]) -> Result<f64> {
    let encoder = model.image_encoder();
    let batch: Vec<ImageInput> = files.iter().cycle().take(BATCH).map(ImageInput::from).collect();
    let pixel_values = encoder.processor().pixel_values(&batch, encoder.device())?;
    let mut times = Vec::new();
    for _ in 0..6 {
        let start = Instant::now();
        black_box(model.project_image(&encoder.pooled_detached(&pixel_values)?)?);
        times.push(start.elapsed().as_secs_f64() * 1e3 / BATCH as f64);
    }
    Ok(median(&mut times[1..]))
}

/// An image of this size, which no processor of that size resizes.
fn pixels(width: u32, height: u32) -> diptych::image::image_crate::DynamicImage {
    diptych::image::image_crate::RgbImage::new(width, height).into()
}

/// The first image files of a folder, by name.
fn photos(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "jpg")).collect();
    files.sort();
    files.truncate(FILES);
    files
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}
