//! Reading checkpoints as they come: types, shards, old spellings, damaged files; names and what is reported about them.

use std::sync::Arc;

use diptych::candle::{DType, Device};
use diptych::weights::{Checkpoint, CheckpointSource, Folder, Init, Layout, ParamSource, Params, Renames};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::{f32s, values, write};

/// A folder with one f32 tensor of each name, holding its place in the list.
fn folder_of(names: &[&str]) -> (TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<_> =
        names.iter().enumerate().map(|(i, name)| (*name, Dtype::F32, &[1_usize][..], f32s(&[i as f32]))).collect();
    write(&dir.path().join("model.safetensors"), &tensors);
    let folder = Folder::open(dir.path()).unwrap();
    (dir, folder)
}

fn open_error(folder: &Folder) -> String {
    Checkpoint::open(folder).err().expect("must not open").to_string()
}

#[test]
fn every_stored_type_is_read_as_f32() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    // 1.5, -2, 0.25 in half precision and in bfloat16.
    let f16 = [0x3e00_u16, 0xc000, 0x3400].iter().flat_map(|x| x.to_le_bytes()).collect();
    let bf16 = [0x3fc0_u16, 0xc000, 0x3e80].iter().flat_map(|x| x.to_le_bytes()).collect();
    let f64 = [1.5_f64, -2.0, 0.25].iter().flat_map(|x| x.to_le_bytes()).collect();
    let i64 = [3_i64, -2, 7].iter().flat_map(|x| x.to_le_bytes()).collect();
    write(
        &path,
        &[
            ("f16", Dtype::F16, &[3], f16),
            ("bf16", Dtype::BF16, &[3], bf16),
            ("f32", Dtype::F32, &[3], f32s(&[1.5, -2.0, 0.25])),
            ("f64", Dtype::F64, &[3], f64),
            ("i64", Dtype::I64, &[3, 1], i64),
            ("bool", Dtype::BOOL, &[3], vec![1, 0, 1]),
            ("none", Dtype::F32, &[0, 4], Vec::new()),
            ("scalar", Dtype::F32, &[], f32s(&[9.0])),
            ("i8", Dtype::I8, &[1], vec![1]),
        ],
    );
    let checkpoint = Checkpoint::open(&Folder::open(dir.path()).unwrap()).unwrap();
    let read = |name: &str| checkpoint.read(name, DType::F32, &Device::Cpu).unwrap();
    for name in ["f16", "bf16", "f32", "f64"] {
        assert_eq!(values(&read(name)), [1.5, -2.0, 0.25], "{name}");
        let half = checkpoint.read_var(name, DType::BF16, &Device::Cpu).unwrap();
        assert_eq!(half.dtype(), DType::BF16);
        assert_eq!(values(&half.to_dtype(DType::F32).unwrap()), [1.5, -2.0, 0.25], "{name}");
    }
    assert_eq!(values(&read("i64")), [3.0, -2.0, 7.0]);
    assert_eq!(read("i64").dims(), [3, 1]);
    assert_eq!(values(&read("bool")), [1.0, 0.0, 1.0]);
    assert_eq!(read("none").dims(), [0, 4]);
    assert_eq!(values(&read("scalar")), [9.0]);
    assert_eq!(checkpoint.read("i64", DType::I64, &Device::Cpu).unwrap().dtype(), DType::I64);
    let info = checkpoint.info("i64").unwrap();
    assert_eq!((info.dtype, info.shape), (Dtype::I64, &[3, 1][..]));
    let error = checkpoint.read("i8", DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("model.safetensors, tensor 'i8'") && error.contains("'I8' is not supported"), "{error}");
    let error = checkpoint.read("absent", DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("has no tensor 'absent'"), "{error}");
}

#[test]
fn a_tensor_longer_than_one_block_keeps_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let count = (1 << 19) + 3001;
    // Small numbers, which half precision represents exactly, with a period that divides no block.
    let numbers: Vec<f32> = (0..count).map(|i| (i % 2003) as f32).collect();
    let halves = numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    write(&path, &[("f32", Dtype::F32, &[count], f32s(&numbers)), ("f16", Dtype::F16, &[count], halves)]);
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    for name in ["f32", "f16"] {
        assert!(values(&checkpoint.read(name, DType::F32, &Device::Cpu).unwrap()) == numbers, "{name}");
    }
}

#[test]
fn old_spellings_are_undone_and_layer_scales_keep_their_name() {
    let (_dir, folder) = folder_of(&[
        "module._orig_mod.bert.LayerNorm.gamma",
        "module._orig_mod.bert.LayerNorm.beta",
        "module._orig_mod.blocks.0.ls1.gamma",
        "module._orig_mod.grn_norm.gamma",
        "module._orig_mod.grn_norm.weight",
    ]);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let names: Vec<&str> = checkpoint.names().collect();
    assert_eq!(
        names,
        ["bert.LayerNorm.bias", "bert.LayerNorm.weight", "blocks.0.ls1.gamma", "grn_norm.gamma", "grn_norm.weight"]
    );
    assert_eq!(values(&checkpoint.read("bert.LayerNorm.weight", DType::F32, &Device::Cpu).unwrap()), [0.0]);
    assert_eq!(checkpoint.info("bert.LayerNorm.bias").unwrap().file_name, "module._orig_mod.bert.LayerNorm.beta");
}

#[test]
fn wrappers_go_in_whatever_order_they_were_put_on() {
    for prefix in ["module.", "model.", "module.model.", "model.module._orig_mod."] {
        let names = [format!("{prefix}visual.a"), format!("{prefix}text.b")];
        let (_dir, folder) = folder_of(&[&names[0], &names[1]]);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["text.b", "visual.a"], "{prefix}");
        assert_eq!(checkpoint.info("visual.a").unwrap().file_name, names[0]);
    }
}

#[test]
fn a_prefix_that_not_every_tensor_has_stays() {
    let (_dir, folder) = folder_of(&["module.a", "b"]);
    assert_eq!(Checkpoint::open(&folder).unwrap().names().collect::<Vec<_>>(), ["b", "module.a"]);
}

fn sharded(weight_map: &str) -> (TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    for (file, name, value) in [("model-1.safetensors", "a", 1.0), ("model-2.safetensors", "b", 2.0)] {
        write(&dir.path().join(file), &[(name, Dtype::F32, &[1], f32s(&[value]))]);
    }
    let index = format!(r#"{{"metadata": {{"total_size": 8}}, "weight_map": {weight_map}}}"#);
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    (dir, folder)
}

#[test]
fn shards_are_read_through_their_index() {
    let (_dir, folder) = sharded(r#"{"a": "model-1.safetensors", "b": "model-2.safetensors"}"#);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.len(), 2);
    assert_eq!(values(&checkpoint.read("b", DType::F32, &Device::Cpu).unwrap()), [2.0]);
    assert_eq!(checkpoint.file_of("a").unwrap().file_name().unwrap(), "model-1.safetensors");
}

#[test]
fn an_index_cannot_lead_out_of_its_folder_or_to_what_is_not_there() {
    let cases = [
        (r#"{"a": "../model-1.safetensors"}"#, "\"../model-1.safetensors\" is not the name of a .safetensors file"),
        (r#"{"a": "/etc/x.safetensors"}"#, "is not the name of a .safetensors file"),
        (r#"{"a": "C:\\x.safetensors"}"#, "is not the name of a .safetensors file"),
        (r#"{"a": "C:x.safetensors"}"#, "is not the name of a .safetensors file"),
        (r#"{"a": "sub/x.safetensors"}"#, "is not the name of a .safetensors file"),
        (r#"{"a": ".."}"#, "is not the name of a .safetensors file"),
        (r#"{"a": 3}"#, "tensor 'a': 3 is not the name"),
        (
            r#"{"a": "model-8.safetensors", "b": "model-9.safetensors", "c": "model-1.safetensors"}"#,
            "names 3 files, of which 2 are not in the folder: 'model-8.safetensors', 'model-9.safetensors'",
        ),
        (r#"{"a": "model-9.safetensors"}"#, "names the file 'model-9.safetensors', which is not in the folder"),
        (r#"{"c": "model-1.safetensors"}"#, "says that tensor 'c' is in 'model-1.safetensors', but it is not"),
        ("{}", "lists no tensors"),
        ("[]", "has no object 'weight_map'"),
    ];
    for (weight_map, expected) in cases {
        let (_dir, folder) = sharded(weight_map);
        let error = open_error(&folder);
        assert!(error.contains(expected) && error.contains("model.safetensors.index.json"), "{weight_map}: {error}");
    }
}

#[test]
fn damaged_files_are_refused_before_anything_is_read_from_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, &[("a", Dtype::F32, &[2, 3], f32s(&[0.0; 6]))]);
    let good = std::fs::read(&path).unwrap();
    let with_header = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let lie = |length: u64| [&length.to_le_bytes()[..], &good[8..]].concat();
    let tensor = |name: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let cases = [
        (good[..good.len() - 1].to_vec(), "is truncated"),
        ([&good[..], &[0]].concat(), "has bytes that no tensor owns"),
        (good[..20].to_vec(), "its header is"),
        (Vec::new(), "only 0 bytes long"),
        (lie(u64::MAX), "its header is 18446744073709551615 bytes long"),
        (lie(good.len() as u64), "its header is"),
        (lie(3), "its header is invalid"),
        (with_header("{", 0), "its header is invalid"),
        (with_header(&"[".repeat(5000), 0), "its header is invalid"),
        (with_header(&format!("{{{}}}", tensor("a", "[2]", 0, 4)), 4), "its header is invalid"),
        (with_header(&format!("{{{}}}", tensor("a", "[1]", 4, 8)), 8), "its header is invalid"),
        (with_header(&format!("{{{}}}", tensor("a", "[4294967296,4294967296]", 0, 0)), 0), "its header is invalid"),
        (
            with_header(&format!("{{{},{}}}", tensor("a", "[2]", 0, 8), tensor("b", "[2]", 4, 12)), 12),
            "its header is invalid",
        ),
        (with_header(&format!("{{{}}}", tensor("a", "[72057594037927936]", 0, 1 << 58)), 4), "is truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n".to_vec(), "git lfs pull"),
    ];
    for (i, (bytes, expected)) in cases.into_iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        let error = open_error(&Folder::open(dir.path()).unwrap());
        assert!(error.contains(expected) && error.contains("model.safetensors"), "case {i}: {error}");
    }
}

#[test]
fn folders_without_weights_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    assert!(open_error(&folder).contains("has no weights: neither model.safetensors nor"));
}

#[cfg(not(feature = "pickle"))]
#[test]
fn pickled_weights_say_how_to_convert_them_and_which_feature_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    std::fs::write(dir.path().join("training_args.bin"), b"x").unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
    let error = open_error(&folder);
    assert!(error.contains("only pickle weights (pytorch_model.bin)") && error.contains("convert them"), "{error}");
    assert!(error.contains("build with the feature `pickle`"), "{error}");
    // A renamed one is told by its bytes.
    std::fs::write(dir.path().join("model.safetensors"), b"PK\x03\x04 and so on").unwrap();
    assert!(open_error(&folder).contains("holds only pickle weights (model.safetensors)"), "{}", open_error(&folder));
}

#[test]
fn each_layout_has_its_own_configuration_and_weights() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = |file: &str, name: &str| write(&dir.path().join(file), &[(name, Dtype::F32, &[1], f32s(&[1.0]))]);
    let folder = Folder::open(dir.path()).unwrap();
    let names = || Checkpoint::open(&folder).unwrap().names().map(str::to_string).collect::<Vec<_>>();
    assert!(folder.layout().unwrap_err().to_string().contains("config.json is missing"));
    tensor("open_clip_model.safetensors", "open_clip");
    assert_eq!(names(), ["open_clip"]);
    std::fs::write(dir.path().join("open_clip_config.json"), r#"{"model_cfg": {}}"#).unwrap();
    assert_eq!(folder.layout().unwrap(), Layout::OpenClip);
    assert!(folder.open_clip_config().unwrap()["model_cfg"].is_object());
    assert!(folder.config().unwrap_err().to_string().contains("config.json is missing"));
    // timm's: a configuration without a model type, and the image tower alone.
    std::fs::write(dir.path().join("config.json"), r#"{"architecture": "vit"}"#).unwrap();
    tensor("model.safetensors", "hugging_face");
    assert_eq!((folder.layout().unwrap(), &names()[0][..]), (Layout::OpenClip, "open_clip"));
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "clip"}"#).unwrap();
    assert_eq!((folder.layout().unwrap(), &names()[0][..]), (Layout::HuggingFace, "hugging_face"));
    let open_clip = Checkpoint::open_layout(&folder, Layout::OpenClip).unwrap();
    assert!(open_clip.info("open_clip").is_some());
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_eq!((folder.layout().unwrap(), &names()[0][..]), (Layout::OpenClip, "open_clip"));
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(folder.layout().unwrap_err().to_string().contains("is not valid JSON"));
}

#[test]
fn the_headers_alone_tell_names_types_sizes_and_files() {
    let (dir, folder) = sharded(r#"{"a": "model-1.safetensors", "b": "model-2.safetensors"}"#);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let infos: Vec<_> = checkpoint.infos().map(|info| (info.name, info.dtype, info.len(), info.bytes())).collect();
    assert_eq!(infos, [("a", Dtype::F32, 1, 4), ("b", Dtype::F32, 1, 4)]);
    assert_eq!(checkpoint.num_parameters(), 2);
    assert!(checkpoint.infos().all(|info| info.file.starts_with(dir.path()) && info.shape == [1] && !info.is_empty()));
    let length = std::fs::metadata(dir.path().join("model-1.safetensors")).unwrap().len();
    let files: Vec<_> = checkpoint.files().map(|(path, bytes)| (path.file_name().unwrap().to_owned(), bytes)).collect();
    assert_eq!(files, [("model-1.safetensors".into(), length), ("model-2.safetensors".into(), length)]);
}

/// A shard whose header describes a tensor of 8 TiB, with no bytes on the disk.
fn vast(path: &std::path::Path, name: &str) {
    let count = 1_u64 << 41;
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[{count}],"data_offsets":[0,{}]}}}}"#, count * 4);
    std::fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(8 + header.len() as u64 + count * 4).unwrap();
}

#[test]
fn of_a_dual_checkpoint_only_the_half_that_is_asked_for_is_read() {
    let (dir, folder) = sharded(r#"{"text_model.a": "model-1.safetensors", "vision_model.b": "model-2.safetensors"}"#);
    write(&dir.path().join("model-1.safetensors"), &[("text_model.a", Dtype::F32, &[1], f32s(&[1.0]))]);
    vast(&dir.path().join("model-2.safetensors"), "vision_model.b");
    let names = Renames::default().within("text_model");
    let source = CheckpointSource::new(Checkpoint::open(&folder).unwrap(), &names);
    assert_eq!(values(&source.get("a", &[1], Init::ZEROS).unwrap()), [1.0]);
    assert!(source.unused().is_empty() && source.checkpoint().num_parameters() == (1 << 41) + 1);
}

#[test]
fn one_tower_of_a_dual_model_does_not_touch_the_others_numbers() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip");
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&golden).unwrap().flatten() {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    // The image half in a number type that nobody can read: a header is all that is looked at.
    let weights = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| match name.starts_with("vision_model.") {
            true => (name, Dtype::I8, [view.shape(), &[4]].concat(), view.data().to_vec()),
            false => (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()),
        })
        .collect();
    let tensors: Vec<_> =
        tensors.iter().map(|(name, dtype, shape, data)| (*name, *dtype, &shape[..], data.clone())).collect();
    write(&weights, &tensors);
    let path = dir.path().to_str().unwrap();
    let loader = diptych::ClipModel::loader().offline(true);
    loader.text_encoder(path).unwrap();
    assert!(loader.image_encoder(path).is_err());
}

#[test]
fn a_folder_reads_its_json_and_names_what_is_wrong_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let error = folder.config().unwrap_err().to_string();
    assert!(error.contains("is no model folder: config.json is missing"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{\n  \"a\": 1,\n  b\n}").unwrap();
    let error = folder.config().unwrap_err().to_string();
    assert!(error.contains("config.json: is not valid JSON, line 3"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{\"a\": 1}").unwrap();
    assert_eq!(folder.config().unwrap()["a"], 1);
    assert_eq!(folder.json("absent.json").unwrap(), None);
    let error = Folder::open(dir.path().join("config.json")).unwrap_err().to_string();
    assert!(error.contains("is a file; name the folder"), "{error}");
    let error = Folder::open(dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("nowhere: the folder does not exist"), "{error}");
}

fn source(names: &[&str], rules: &[(&str, &str)], ignored: &[&str]) -> (TempDir, Arc<CheckpointSource>) {
    let (dir, folder) = folder_of(names);
    let renames = Renames::new(rules, ignored).unwrap();
    (dir, Arc::new(CheckpointSource::new(Checkpoint::open(&folder).unwrap(), &renames)))
}

#[test]
fn a_source_reports_every_missing_mis_shaped_and_unused_tensor_at_once() {
    let (_dir, source) =
        source(&["bert.norm.weight", "bert.norm.bias", "cls.bias", "other"], &[("^bert", "")], &["cls.*"]);
    let params = Params::new(source.clone());
    params.get("norm.weight", &[5], Init::ONES).unwrap();
    params.get("norm.bais", &[1], Init::ZEROS).unwrap();
    assert_eq!(source.unused(), ["bert.norm.bias", "other"]);
    for name in source.unused() {
        params.note_problem(format!("{name}: not used"));
    }
    let error = params.finish("folder").unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().map(str::trim).collect();
    assert!(lines[0].starts_with("folder: "), "{error}");
    assert!(lines[1].starts_with("norm.weight: expected shape [5] from the configuration, found [1] in "), "{error}");
    assert!(lines[1].ends_with("model.safetensors, where it is spelled 'bert.norm.weight'"), "{error}");
    let hint = "nearest name in the file: 'norm.bias' (spelled 'bert.norm.bias' there)";
    assert_eq!(lines[2], format!("norm.bais: missing; {hint}"));
    assert_eq!(lines[3..], ["bert.norm.bias: not used", "other: not used"]);
}

#[test]
fn two_tensors_of_one_name_are_a_problem_unless_one_is_a_known_extra() {
    let (_dir, source) =
        source(&["a.x", "b.x", "a.y", "extra.y"], &[("^a", ""), ("^b", ""), ("^extra", "")], &["extra.*"]);
    let error = source.get("x", &[1], Init::ZEROS).unwrap_err();
    assert!(error.starts_with("x: 'a.x' and 'b.x' of ") && error.ends_with("are all this tensor"), "{error}");
    assert_eq!(values(&source.get("y", &[1], Init::ZEROS).unwrap()), [2.0]);
    assert!(source.unused().is_empty(), "what was reported once is not reported again: {:?}", source.unused());
}

#[test]
fn axes_of_length_one_may_differ_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let six = f32s(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    write(&path, &[("cls", Dtype::F32, &[1, 1, 6], six.clone()), ("pos", Dtype::F32, &[1, 2, 3], six)]);
    let source = CheckpointSource::new(Checkpoint::open_file(&path).unwrap(), &Renames::default());
    assert_eq!(source.get("cls", &[6], Init::ZEROS).unwrap().dims(), [6]);
    let pos = source.get("pos", &[2, 3], Init::ZEROS).unwrap();
    assert_eq!(pos.to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    assert!(source.get("pos", &[3, 2], Init::ZEROS).is_err());
    assert!(source.get("pos", &[6], Init::ZEROS).is_err());
}

#[test]
fn a_source_hands_out_variables_where_it_is_told_to() {
    let (_dir, folder) = folder_of(&["a.w", "b.w"]);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let source = CheckpointSource::new(checkpoint, &Renames::default()).trainable(|name| name.starts_with("a."));
    assert!(source.get("a.w", &[1], Init::ZEROS).unwrap().is_variable());
    assert!(!source.get("b.w", &[1], Init::ZEROS).unwrap().is_variable());
    let half = source.dtype(DType::F16).get("a.w", &[1], Init::ZEROS).unwrap();
    assert!(half.is_variable() && half.dtype() == DType::F16);
}
