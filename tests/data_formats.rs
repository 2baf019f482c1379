//! The same pairs in every form that `PairDataset::open` reads, and what each form says of its mistakes.

use std::path::Path;

use diptych::ErrorKind;
use diptych::data::{
    BatchLoader, LastBatch, LoaderConfig, PairDataset, PairFormat, PairOptions, Sampler, Split, Tolerance,
};
use diptych::image::image_crate::{Rgb, RgbImage};
use diptych::image::{ImageProcessor, ImageProcessorConfig, ImageSize, PixelArray};
use diptych::zero_shot::Template;

const COUNT: usize = 12;

/// The name of image `i`, its captions and its split.
fn pair(i: usize) -> (String, Vec<String>, &'static str) {
    let words = ["sea horse", "comma, inside", "\"quoted\"", "zwölf Boxkämpfer"];
    let mut captions = vec![format!("{} {i}", words[i % 4])];
    if i.is_multiple_of(3) {
        captions.push(format!("again {i}"));
    }
    (format!("{i:02}.png"), captions, if i < 8 { "train" } else { "test" })
}

fn png(i: usize) -> Vec<u8> {
    let image = RgbImage::from_fn(9, 7, |x, y| Rgb([x as u8 * 20, y as u8 * 30, i as u8 * 20]));
    let mut out = std::io::Cursor::new(Vec::new());
    image.write_to(&mut out, diptych::image::image_crate::ImageFormat::Png).unwrap();
    out.into_inner()
}

fn processor() -> ImageProcessor {
    let crop = Some(ImageSize::square(6));
    ImageProcessor::new(ImageProcessorConfig { resize: None, crop, ..ImageProcessorConfig::clip() }).unwrap()
}

fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    std::fs::write(path, contents).unwrap();
}

fn write_images(folder: &Path) {
    (0..COUNT).for_each(|i| write(folder.join(pair(i).0), png(i)));
}

fn tar(path: &Path, members: &[(String, Vec<u8>)]) {
    let mut archive = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    archive.finish().unwrap();
}

/// The members of pair `i`: its caption in a text, or its captions in JSON.
fn members(i: usize) -> Vec<(String, Vec<u8>)> {
    let (_, captions, _) = pair(i);
    let caption = match &captions[..] {
        [one] => (format!("{i:02}.txt"), format!("{one}\n").into_bytes()),
        many => (format!("{i:02}.json"), serde_json::json!({ "caption": many }).to_string().into_bytes()),
    };
    // Captions may stand before their image and after it.
    let image = (format!("{i:02}.png"), png(i));
    if i.is_multiple_of(2) { vec![image, caption] } else { vec![caption, image] }
}

fn table(separator: char, image: &str, caption: &str) -> String {
    let mut text = format!("{image}{separator}{caption}{separator}split\n");
    for (image, captions, split) in (0..COUNT).map(pair) {
        for caption in captions {
            text += &format!("{image}{separator}\"{}\"{separator}{split}\n", caption.replace('"', "\"\""));
        }
    }
    text
}

fn json_lines() -> String {
    let line = |(image, captions, split): (String, Vec<String>, &str)| match &captions[..] {
        [one] => serde_json::json!({ "filepath": image, "title": one, "split": split }).to_string(),
        many => serde_json::json!({ "image": image, "captions": many, "split": split, "width": 9 }).to_string(),
    };
    (0..COUNT).map(|i| line(pair(i)) + "\n\n").collect()
}

/// What training would see of a split: captions, and each image as pixel values.
fn seen(split: &Split, folder: &Path) -> Vec<(Vec<String>, PixelArray)> {
    split.check_images(folder).unwrap();
    let images = split.sources(folder).iter().map(|source| processor().preprocess(source).unwrap()).collect::<Vec<_>>();
    split.captions().iter().cloned().zip(images).collect()
}

/// Both splits of the data set at a path.
fn both(path: impl AsRef<Path>) -> [Vec<(Vec<String>, PixelArray)>; 2] {
    let data = PairDataset::open(path).unwrap();
    assert_eq!(data.split_names(), ["train", "test"]);
    assert!(data.skipped().is_empty());
    ["train", "test"].map(|name| {
        let split = data.split(name).unwrap();
        seen(&split, &split.image_folder(None))
    })
}

#[test]
fn every_form_gives_the_same_pairs() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write_images(root);
    write(root.join("a.csv"), table(',', "image", "caption"));
    let expected = both(root.join("a.csv"));
    assert_eq!((expected[0].len(), expected[1].len()), (8, 4));
    assert_eq!(expected[0][1].0, ["comma, inside 1"]);
    assert_eq!(expected[0][3].0.len(), 2);

    write(root.join("b.tsv"), table('\t', "filepath", "title"));
    write(root.join("c.csv"), table('\t', "filepath", "title"));
    write(root.join("d.jsonl"), json_lines());
    for name in ["b.tsv", "c.csv", "d.jsonl"] {
        assert!(both(root.join(name)) == expected, "{name}");
    }
    // A folder with a list, whose images lie in the folder `images`.
    write(root.join("e/metadata.csv"), table(',', "file_name", "text"));
    write_images(&root.join("e/images"));
    assert!(both(root.join("e")) == expected);
    // Shards named after their splits: a folder of them, and a brace range.
    let shards = root.join("f");
    std::fs::create_dir(&shards).unwrap();
    for (name, range) in
        [("train-008.tar", 0..3), ("train-009.tar", 3..7), ("train-010.tar", 7..8), ("test-0.tar", 8..12)]
    {
        tar(&shards.join(name), &range.flat_map(members).collect::<Vec<_>>());
    }
    let data = PairDataset::open(&shards).unwrap();
    for (name, expected) in ["train", "test"].into_iter().zip(&expected) {
        assert!(seen(&data.split(name).unwrap(), Path::new("")) == *expected);
    }
    let data = PairDataset::open(shards.join("train-{008..010}.tar")).unwrap();
    assert_eq!(data.split_names(), ["train"]);
    assert!(seen(&data.all(), Path::new("")) == expected[0], "shards come in the order of their numbers");
    let names = data.all().images().to_vec();
    assert!(names[0].ends_with("train-008.tar/00.png") && names[7].ends_with("train-010.tar/07.png"), "{names:?}");
}

#[test]
fn a_folder_per_class_gives_a_caption_per_template() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for (i, path) in ["train/sea_horse/b.png", "train/sea_horse/a.PNG", "train/cat/deep/c.png", "val/cat/d.png"]
        .into_iter()
        .enumerate()
    {
        write(root.join(path), png(i));
    }
    write(root.join("train/sea_horse/notes.txt"), "no image");
    write(root.join("train/cat/.hidden.png"), "no image");
    let data = PairDataset::open(root).unwrap();
    assert_eq!(data.split_names(), ["train", "val"]);
    let train = data.split("train").unwrap();
    assert_eq!(train.images(), ["train/cat/deep/c.png", "train/sea_horse/a.PNG", "train/sea_horse/b.png"]);
    assert_eq!(train.captions()[1], ["a photo of a sea horse"]);
    let found = seen(&train, &train.image_folder(None));
    assert_eq!(found[2].1, processor().preprocess(png(0)).unwrap());

    let templates = ["a {}", "one {} more"].map(|t| Template::new(t).unwrap()).to_vec();
    let data = PairOptions { templates, ..PairOptions::default() }.open(root.join("train")).unwrap();
    assert!(data.split_names().is_empty());
    assert_eq!(data.all().captions()[0], ["a cat", "one cat more"]);
    // A class may be called train, but a folder beside splits is a mistake.
    write(root.join("vehicles/train/1.png"), png(0));
    write(root.join("vehicles/bus/1.png"), png(0));
    assert_eq!(PairDataset::open(root.join("vehicles")).unwrap().all().images(), ["bus/1.png", "train/1.png"]);
    let error = PairDataset::open(root).unwrap_err().to_string();
    assert!(error.contains("vehicles"), "{error}");
}

#[test]
fn keys_may_be_chosen_and_missing_ones_are_named_with_those_there_are() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.csv");
    write(&path, "url,alt,caption\na.png,words,other\n");
    let error = PairDataset::open(&path).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("'filepath'") && error.contains("url, alt"), "{error}");
    let options = PairOptions {
        image_keys: vec![String::from("url")],
        caption_keys: vec![String::from("alt")],
        ..PairOptions::default()
    };
    assert_eq!(options.open(&path).unwrap().all().captions(), [["words"]]);
    write(root.path().join("x.txt"), "image,caption\na.png,words\n");
    let error = PairDataset::open(root.path().join("x.txt")).unwrap_err().to_string();
    assert!(error.contains(".jsonl") && error.contains("'txt'"), "{error}");
    let format = Some(PairFormat::Csv);
    assert_eq!(PairOptions { format, ..options }.open(&path).unwrap().all().images(), ["a.png"]);
}

#[test]
fn bad_rows_are_left_out_and_listed_and_too_many_are_an_error() {
    let root = tempfile::tempdir().unwrap();
    let lines = |bad: &[&str]| -> String {
        let good = (0..8).map(|i| format!("{{\"image\": \"{i}.png\", \"caption\": \"c\"}}\n"));
        bad.iter().map(|line| format!("{line}\n")).chain(good).collect()
    };
    let path = root.path().join("x.jsonl");
    let bad = ["{\"image\": \"x.png\"}", "[1]", "{\"image\": \"x.png\", \"caption\": [\"a\", 3]}"];
    write(&path, lines(&bad));
    let data = PairDataset::open(&path).unwrap();
    assert_eq!((data.all().image_count(), data.skipped().len()), (8, 3));
    assert!(data.skipped()[0].to_string().contains("line 1: has no caption"), "{}", data.skipped()[0]);
    assert_eq!(data.all().skipped(), data.skipped());
    write(&path, lines(&[&bad[..], &["{"]].concat()));
    let error = PairDataset::open(&path).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Data { .. }));
    let error = error.to_string();
    assert!(error.contains("4 of 12") && error.contains("3 allowed") && error.contains("line 4"), "{error}");
    let tolerance = Tolerance { share: 0.5, at_least: 0 };
    let data = PairOptions { tolerance, ..PairOptions::default() }.open(&path).unwrap();
    assert_eq!(data.skipped().len(), 4);
    // Where none is allowed, the first is the error.
    let tolerance = Tolerance::NONE;
    let error = PairOptions { tolerance, ..PairOptions::default() }.open(&path).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Data { line: Some(1), .. }), "{error}");

    write(root.path().join("y.csv"), "image,caption\n0.png,c\n1.png,a,b\n2.png,\n\n3.png,c\n");
    let data = PairDataset::open(root.path().join("y.csv")).unwrap();
    assert_eq!(data.all().images(), ["0.png", "3.png"]);
    let listed: Vec<String> = data.skipped().iter().map(ToString::to_string).collect();
    assert!(listed[0].contains("line 3: has 3 fields") && listed[1].contains("line 4: the caption"), "{listed:?}");
    // A quote that is never closed takes good rows with it.
    write(root.path().join("z.csv"), "image,caption\n0.png,c\n1.png,\"a\n2.png,b\n3.png,b\n");
    let error = PairDataset::open(root.path().join("z.csv")).unwrap_err().to_string();
    assert!(error.contains("line 3") && error.contains("quote"), "{error}");
}

#[test]
fn broken_shards_say_what_is_wrong_where() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("shard.tar");
    let mut all: Vec<_> = (0..8).flat_map(members).collect();
    all.push((String::from("only.txt"), b"a caption".to_vec()));
    all.push((String::from("bad.json"), b"{".to_vec()));
    all.push((String::from("bad.jpg"), png(0)));
    all.push((String::from("__pycache__/x.cls"), b"3".to_vec()));
    tar(&path, &all);
    let data = PairDataset::open(&path).unwrap();
    assert_eq!(data.all().image_count(), 8);
    let listed: Vec<String> = data.skipped().iter().map(ToString::to_string).collect();
    assert!(listed[0].contains("sample 'only' has no image") && listed[1].contains("'bad.json'"), "{listed:?}");

    let bytes = std::fs::read(&path).unwrap();
    // Within the first image.
    write(&path, &bytes[..600]);
    let error = PairDataset::open(&path).unwrap_err().to_string();
    assert!(error.contains("shard.tar") && error.contains("00.png"), "{error}");
    for junk in [&[][..], &[0x1f, 0x8b, 8, 0], &[b'x'; 2000]] {
        write(&path, junk);
        let error = PairDataset::open(&path).unwrap_err().to_string();
        assert!(error.contains("shard.tar"), "{error}");
    }
    let error = PairDataset::open(root.path().join("shard-{0..2}.tar")).unwrap_err().to_string();
    assert!(error.contains("shard-0.tar"), "{error}");
    // A shard that changes after it was scanned gives broken images, no wrong ones.
    write(&path, &bytes);
    let sources = PairDataset::open(&path).unwrap().all().sources("");
    write(&path, &bytes[..2048]);
    let error = processor().preprocess(&sources[7]).unwrap_err().to_string();
    assert!(error.contains("shard.tar/07.png"), "{error}");
}

#[test]
fn an_image_in_two_splits_or_in_none_is_an_error_in_every_form() {
    let root = tempfile::tempdir().unwrap();
    for (name, text, word) in [
        ("a.csv", "image,caption,split\na.png,x,train\na.png,y,test\n", "another split"),
        (
            "b.jsonl",
            "{\"image\":\"a\",\"caption\":\"x\",\"split\":\"train\"}\n{\"image\":\"a\",\"caption\":\"y\"}\n",
            "another split",
        ),
        (
            "c.jsonl",
            "{\"image\":\"a\",\"caption\":\"x\",\"split\":\"train\"}\n{\"image\":\"b\",\"caption\":\"y\"}\n",
            "have no split",
        ),
    ] {
        write(root.path().join(name), text);
        let error = PairDataset::open(root.path().join(name)).unwrap_err().to_string();
        assert!(error.contains(word), "{name}: {error}");
    }
}

#[test]
fn an_epoch_over_shards_comes_in_order_from_any_number_of_workers_and_holds_few_images() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("shard.tar");
    tar(&path, &(0..COUNT).flat_map(members).collect::<Vec<_>>());
    let split = PairDataset::open(&path).unwrap().all();
    let order = Sampler::new(3).order(0, COUNT);
    let whole = seen(&split, Path::new(""));
    let expected: Vec<PixelArray> = order.iter().map(|&i| whole[i].1.clone()).collect();
    for workers in [1, 4] {
        let (sources, processor) = (split.sources(""), processor());
        let alive = std::sync::Arc::new(());
        let held = alive.clone();
        let job = move |i: usize| Ok((processor.preprocess(&sources[i])?, held.clone()));
        let config = LoaderConfig { batch_size: 2, workers, prefetch: 1, last: LastBatch::Keep };
        let mut found = Vec::new();
        for batch in BatchLoader::new(order.clone(), config, job).unwrap() {
            std::thread::sleep(std::time::Duration::from_millis(5));
            // 2 · 1 ahead and 2 a worker as documented, 4 for rounding up, 2 here; `alive`, the job's.
            assert!(std::sync::Arc::strong_count(&alive) <= 2 + 2 * workers + 4 + 2 + 2);
            found.extend(batch.unwrap().into_iter().map(|(image, _)| image));
        }
        assert!(found == expected, "{workers} workers");
    }
}

#[cfg(feature = "parquet")]
mod parquet_files {
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// Columns of optional values, `None` for a list's further entries: (definition, repetition, value).
    type Column = Vec<(i16, i16, Option<Vec<u8>>)>;

    fn write_parquet(path: &Path, schema: &str, groups: Vec<Vec<Column>>) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_data_page_size_limit(300)
            .set_write_batch_size(1)
            .build();
        let file = std::fs::File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
        for columns in groups {
            let mut group = writer.next_row_group().unwrap();
            for column in columns {
                let mut out = group.next_column().unwrap().unwrap();
                let values: Vec<ByteArray> = column.iter().filter_map(|c| c.2.clone()).map(ByteArray::from).collect();
                let defined: Vec<i16> = column.iter().map(|c| c.0).collect();
                let repeated: Vec<i16> = column.iter().map(|c| c.1).collect();
                out.typed::<ByteArrayType>().write_batch(&values, Some(&defined), Some(&repeated)).unwrap();
                out.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    /// Images as Hugging Face's library writes them, captions as lists, in row groups of five.
    fn hugging_face(path: &Path) {
        let schema = "message m { optional group image { optional binary bytes; optional binary path (UTF8); }
            optional group caption (LIST) { repeated group list { optional binary element (UTF8); } }
            optional binary split (UTF8); }";
        let group = |range: std::ops::Range<usize>| {
            let mut columns: Vec<Column> = vec![Vec::new(); 4];
            for i in range {
                let (name, captions, split) = pair(i);
                columns[0].push((2, 0, Some(png(i))));
                columns[1].push((2, 0, Some(name.into_bytes())));
                for (place, caption) in captions.into_iter().enumerate() {
                    columns[2].push((3, i16::from(place > 0), Some(caption.into_bytes())));
                }
                columns[3].push((1, 0, Some(split.as_bytes().to_vec())));
            }
            columns
        };
        write_parquet(path, schema, vec![group(0..5), group(5..10), group(10..12)]);
    }

    fn csv(root: &Path) -> std::path::PathBuf {
        write_images(root);
        write(root.join("a.csv"), table(',', "image", "caption"));
        root.join("a.csv")
    }

    #[test]
    fn bytes_and_paths_in_parquet_files_give_the_same_pairs() {
        let root = tempfile::tempdir().unwrap();
        let expected = both(csv(root.path()));
        let path = root.path().join("hf.parquet");
        hugging_face(&path);
        assert!(both(&path) == expected);
        // Paths, a caption a row, the split in the file's name.
        let schema = "message m { required binary filepath (UTF8); required binary title (UTF8); }";
        for (name, range) in [("train-0.parquet", 0..8), ("test-0.parquet", 8..12)] {
            let pairs =
                range.map(pair).flat_map(|(image, captions, _)| captions.into_iter().map(move |c| (image.clone(), c)));
            let (images, captions): (Column, Column) = pairs
                .map(|(image, caption)| ((0, 0, Some(image.into_bytes())), (0, 0, Some(caption.into_bytes()))))
                .unzip();
            write_parquet(&root.path().join(name), schema, vec![vec![images, captions]]);
        }
        for (name, expected) in ["train", "test"].into_iter().zip(&expected) {
            let data = PairDataset::open(root.path().join(format!("{name}-{{0..0}}.parquet"))).unwrap();
            assert!(seen(&data.split(name).unwrap(), root.path()) == *expected);
        }
    }

    #[test]
    fn damaged_parquet_files_are_errors() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.parquet");
        hugging_face(&path);
        let bytes = std::fs::read(&path).unwrap();
        for end in [0, 3, 100, bytes.len() - 1] {
            write(&path, &bytes[..end]);
            assert!(PairDataset::open(&path).unwrap_err().to_string().contains("x.parquet"), "cut at {end}");
        }
        // Whatever a byte becomes, there is an answer.
        for at in (0..bytes.len()).step_by(7) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x55;
            write(&path, &bytes);
            if let Ok(data) = PairDataset::open(&path) {
                data.all().sources("").iter().for_each(|source| drop(processor().preprocess(source)));
            }
        }
        let schema = "message m { required binary picture; required binary title (UTF8); }";
        write_parquet(&path, schema, vec![]);
        let error = PairDataset::open(&path).unwrap_err().to_string();
        assert!(error.contains("'filepath'") && error.contains("picture, title"), "{error}");
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_parquet_file_says_which_feature_reads_it() {
    let root = tempfile::tempdir().unwrap();
    write(root.path().join("x.parquet"), "PAR1");
    let error = PairDataset::open(root.path().join("x.parquet")).unwrap_err().to_string();
    assert!(error.contains("--features parquet"), "{error}");
}
