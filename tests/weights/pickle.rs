//! Weights that `torch.save` wrote: its own files (`tests/python/make_pickle.py`), and hostile ones, which must give errors
//! without running anything, taking long or taking memory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diptych::candle::{DType, Device};
use diptych::weights::{Checkpoint, Folder};
use safetensors::Dtype;

use crate::values;

fn saved(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights/pickle").join(name)
}

fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    values(&checkpoint.read(name, DType::F32, &Device::Cpu).unwrap())
}

#[test]
fn state_dicts_of_every_age_give_pytorchs_numbers() {
    for file in ["zip.bin", "legacy.bin", "protocol_4.bin"] {
        let checkpoint = Checkpoint::open_file(saved(file)).unwrap();
        assert_eq!(checkpoint.len(), 16, "{file}");
        assert_eq!(read(&checkpoint, "f32"), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5], "{file}");
        for name in ["f16", "bf16", "f64"] {
            assert_eq!(read(&checkpoint, name), [0.0, 1.0, 2.0], "{file} {name}");
        }
        for name in ["i64", "i32"] {
            assert_eq!(read(&checkpoint, name), [3.0, -2.0, 7.0], "{file} {name}");
        }
        assert_eq!(read(&checkpoint, "u8"), [3.0, 2.0, 7.0], "{file}");
        assert_eq!(read(&checkpoint, "bool"), [1.0, 0.0, 1.0], "{file}");
        assert_eq!(read(&checkpoint, "scalar"), [9.0], "{file}");
        assert_eq!(read(&checkpoint, "empty"), [0.0; 0], "{file}");
        assert_eq!(read(&checkpoint, "parameter"), [0.0, 1.0], "{file}");
        assert_eq!(read(&checkpoint, "transposed"), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0], "{file}");
        assert_eq!(read(&checkpoint, "sliced"), [5.0, 6.0, 9.0, 10.0], "{file}");
        assert_eq!(read(&checkpoint, "channels_last"), (0..12).map(|i| i as f32).collect::<Vec<_>>(), "{file}");
        assert_eq!(read(&checkpoint, "tied_a"), read(&checkpoint, "tied_b"), "{file}");
        let info = checkpoint.info("bf16").unwrap();
        assert_eq!((info.dtype, info.shape, info.bytes()), (Dtype::BF16, &[3][..], 6));
        let half = checkpoint.read_var("f16", DType::F16, &Device::Cpu).unwrap();
        assert_eq!(half.dtype(), DType::F16);
    }
}

#[test]
fn the_state_dict_of_a_training_run_is_found_and_its_prefix_taken_off() {
    let checkpoint = Checkpoint::open_file(saved("training.pt")).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["0.bias", "0.weight"]);
    assert_eq!(checkpoint.info("0.bias").unwrap().file_name, "module.0.bias");
    assert_eq!(read(&checkpoint, "0.weight"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn a_torchscript_program_is_refused_by_name() {
    let error = Checkpoint::open_file(saved("script.pt")).err().unwrap().to_string();
    assert!(error.contains("script.pt") && error.contains("is a TorchScript program"), "{error}");
}

#[test]
fn folders_with_pickled_weights_open_and_safetensors_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    std::fs::copy(saved("zip.bin"), dir.path().join("pytorch_model-1.bin")).unwrap();
    let index = r#"{"weight_map": {"f32": "pytorch_model-1.bin", "f16": "pytorch_model-1.bin"}}"#;
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), index).unwrap();
    assert_eq!(Checkpoint::open(&folder).unwrap().len(), 2);
    std::fs::copy(saved("training.pt"), dir.path().join("pytorch_model.bin")).unwrap();
    assert!(Checkpoint::open(&folder).unwrap().info("0.bias").is_some());
    crate::write(&dir.path().join("model.safetensors"), &[("a", Dtype::F32, &[1], crate::f32s(&[1.0]))]);
    assert!(Checkpoint::open(&folder).unwrap().info("a").is_some());
}

/// An archive as PyTorch's, with files of these names, bytes and compression methods.
fn archive(files: &[(&str, &[u8], u16)]) -> Vec<u8> {
    let (mut bytes, mut list) = (Vec::new(), Vec::new());
    for (name, content, method) in files {
        let offset = bytes.len() as u32;
        let size = (content.len() as u32).to_le_bytes();
        // From the version on to the sizes; the checksum and the date are not looked at.
        let common =
            [&[20, 0, 0, 0][..], &method.to_le_bytes(), &[0; 8], &size, &size, &(name.len() as u16).to_le_bytes()];
        bytes.extend([&b"PK\x03\x04"[..], &common.concat(), &[0, 0], name.as_bytes(), content].concat());
        list.extend(
            [&b"PK\x01\x02\x14\x00"[..], &common.concat(), &[0; 12], &offset.to_le_bytes(), name.as_bytes()].concat(),
        );
    }
    let (start, size, count) = (bytes.len() as u32, list.len() as u32, (files.len() as u16).to_le_bytes());
    bytes.extend(list);
    bytes.extend(
        [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size.to_le_bytes(), &start.to_le_bytes(), &[0, 0]].concat(),
    );
    bytes
}

fn pickled(pickle: &[u8]) -> Vec<u8> {
    archive(&[("m/data.pkl", pickle, 0), ("m/data/0", &[0; 16], 0)])
}

/// `{"a": tensor}`, a tensor of the storage "0" that is said to have `len` numbers.
fn tensor(len: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let int = |n: i32| [&b"J"[..], &n.to_le_bytes()].concat();
    let tuple = |items: &[i32]| [b"(".to_vec(), items.iter().flat_map(|&n| int(n)).collect(), b"t".to_vec()].concat();
    let storage =
        [b"(".to_vec(), text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu"), int(len)];
    let arguments = [int(offset), tuple(shape), tuple(strides), b"\x89}t".to_vec()];
    let call = [b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(), storage.concat(), b"tQ".to_vec(), arguments.concat()];
    [b"\x80\x02}".to_vec(), text("a"), call.concat(), b"Rs.".to_vec()].concat()
}

/// What is said of a file of these bytes; in less than a second.
fn refusal(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    std::fs::write(&path, bytes).unwrap();
    let start = Instant::now();
    let error = Checkpoint::open_file(&path).err().map_or("no error".to_string(), |e| e.to_string());
    assert!(start.elapsed() < Duration::from_secs(10), "{error}");
    error
}

#[test]
fn what_the_tests_write_by_hand_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    std::fs::write(&path, pickled(&tensor(4, 1, &[3], &[1]))).unwrap();
    assert_eq!(read(&Checkpoint::open_file(&path).unwrap(), "a"), [0.0; 3]);
}

#[test]
fn programs_are_named_and_never_run() {
    let marker = std::env::temp_dir().join(format!("diptych-pickle-ran-{}", std::process::id()));
    let evil = |global: &str| {
        let command = format!("touch {}", marker.display());
        [format!("\u{63}{global}(X").as_bytes(), &(command.len() as u32).to_le_bytes(), command.as_bytes(), b"tR."]
            .concat()
    };
    for (global, named) in [
        ("os\nsystem\n", "'os.system'"),
        ("posix\nsystem\n", "'posix.system'"),
        ("builtins\neval\n", "'builtins.eval'"),
        ("torch.storage\n_load_from_bytes\n", "'torch.storage._load_from_bytes'"),
        ("torch\nNoStorage\n", "'torch.NoStorage'"),
        ("numpy.core.multiarray\nscalar\n", "'numpy.core.multiarray.scalar'"),
    ] {
        let error = refusal(&pickled(&evil(global)));
        assert!(error.contains(named) && error.contains("nothing was run"), "{error}");
    }
    // The same by the instruction of protocol 4, and in a file of before PyTorch 1.6.
    assert!(refusal(&pickled(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.")).contains("'os.system'"));
    let legacy = std::fs::read(saved("legacy.bin")).unwrap();
    assert!(refusal(&[&legacy[..15], b"cos\nsystem\n(tR."].concat()).contains("'os.system'"));
    assert!(!marker.exists());
}

#[test]
fn tensors_outside_of_their_storage_are_refused() {
    // Numbers of the storage, offset, shape, strides; what is said.
    type Case = (i32, i32, &'static [i32], &'static [i32], &'static str);
    let cases: [Case; 14] = [
        (4, 0, &[5], &[1], "lies outside of its storage '0' of 16 bytes"),
        (4, 2, &[3], &[1], "lies outside"),
        (4, -1, &[2], &[1], "lies outside"),
        (4, 0, &[-2], &[1], "lies outside"),
        (4, 0, &[2], &[-1], "lies outside"),
        (4, i32::MAX, &[1], &[1], "lies outside"),
        (4, 0, &[i32::MAX, i32::MAX, i32::MAX], &[i32::MAX, i32::MAX, 1], "lies outside"),
        (5, 0, &[2], &[1], "is said to have 5 numbers in 16 bytes"),
        (-1, 0, &[2], &[1], "is said to have -1 numbers"),
        (4, 0, &[i32::MAX, i32::MAX], &[0, 0], "the same numbers more than once"),
        (4, 0, &[2, 3], &[1, 1], "the same numbers more than once"),
        (4, 0, &[2, 2], &[0, 1], "the same numbers more than once"),
        (4, 0, &[2, 2], &[1], "arguments of other kinds"),
        (4, 0, &[1; 9], &[1; 9], "arguments of other kinds"),
    ];
    for (len, offset, shape, strides, expected) in cases {
        let error = refusal(&pickled(&tensor(len, offset, shape, strides)));
        assert!(error.contains(expected), "{len} {offset} {shape:?} {strides:?}: {error}");
    }
    let error = refusal(&archive(&[("m/data.pkl", &tensor(4, 0, &[4], &[1]), 0)]));
    assert!(error.contains("tensor 'a': its storage '0' is missing"), "{error}");
}

#[test]
fn pickles_that_lie_about_their_size_cost_nothing() {
    let cases: [(&[u8], &str); 20] = [
        (b"", "its pickle is truncated"),
        (b"}", "its pickle is truncated"),
        (b".", "empty stack"),
        (b"X\xff\xff\xff\xff.", "a text of 4294967295 bytes"),
        (b"X\xff\xff\x00\x00abc", "its pickle is truncated"),
        (b"\x8a\xffabc", "its pickle is truncated"),
        (b"ctorch", "ends in the middle of a name"),
        (b"h\x05.", "never stored"),
        (b"j\xff\xff\xff\xff.", "never stored"),
        (b"t.", "never opened"),
        (b"(\x85.", "empty stack"),
        (b"}(K\x01u.", "a key without a value"),
        (b"K\x01(K\x01K\x02u.", "of what is no dict"),
        (b"K\x01K\x02a.", "to what is no list"),
        (b"K\x01}b.", "attributes of what is no dict"),
        (b"K\x01)R.", "calls what is no function"),
        (b"K\x01Q.", "no storage of numbers"),
        (b"ctorch\nSize\nK\x01\x85R.", "arguments of other kinds"),
        (b"\x81.", "the instruction 0x81"),
        (b"}.", "no tensors are in it; its keys are []"),
    ];
    for (pickle, expected) in cases {
        let error = refusal(&pickled(pickle));
        assert!(error.contains(expected), "{pickle:?}: {error}");
    }
    // Nested a million deep; a list in itself; lists doubled again and again by reference.
    let deep = [&vec![b')'; 1][..], &vec![0x85; 1 << 20], b"."].concat();
    assert!(refusal(&pickled(&deep)).contains("more than 524288 objects"));
    assert!(refusal(&pickled(&[&vec![b'('; 1 << 20][..], b"."].concat())).contains("more than 524288 objects"));
    let nested = [&b")"[..], &vec![0x85; 1 << 18], b"."].concat();
    assert!(refusal(&pickled(&nested)).contains("the value in it is no dict"));
    assert!(refusal(&pickled(b"]q\x00h\x00a.")).contains("the value in it is no dict"));
    assert!(refusal(&pickled(b"}q\x00X\x05\x00\x00\x00modelh\x00s.")).contains("no tensors are in it"));
    let doubled = [&b"]q\x00"[..], &b"](h\x00h\x00h\x00eq\x00".repeat(10_000), b"."].concat();
    assert!(refusal(&pickled(&doubled)).contains("the value in it is no dict"));
    assert!(refusal(&pickled(&[&b"K\x010".repeat(12 << 20)[..], b"."].concat())).contains("objects"));
}

#[test]
fn damaged_archives_are_refused() {
    let good = pickled(&tensor(4, 0, &[4], &[1]));
    for length in (4..good.len()).step_by(7).chain([good.len() - 1]) {
        let error = refusal(&good[..length]);
        assert!(error.contains("model.bin"), "{length}: {error}");
    }
    let pickle = tensor(4, 0, &[4], &[1]);
    assert!(refusal(&archive(&[("m/data.pkl", &pickle, 8)])).contains("is compressed"));
    assert!(
        refusal(&archive(&[("m/data.pkl", &pickle, 0), ("n/data.pkl", &pickle, 0)])).contains("exactly one data.pkl")
    );
    assert!(
        refusal(&archive(&[("m/data.pkl", &pickle, 0), ("m/data.pkl", &pickle, 0)])).contains("two files 'm/data.pkl'")
    );
    assert!(refusal(&archive(&[("x", b"", 0)])).contains("exactly one data.pkl"));
    let big_endian = archive(&[("m/data.pkl", &pickle, 0), ("m/byteorder", b"big", 0), ("m/data/0", &[0; 16], 0)]);
    assert!(refusal(&big_endian).contains("big-endian"));
    // A list whose second file is the first.
    let mut overlapping = good.clone();
    let at = overlapping.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    overlapping[at + 42..at + 46].copy_from_slice(&4_u32.to_le_bytes());
    assert!(refusal(&overlapping).contains("overlaps another"));
    let mut huge = good.clone();
    huge[at + 20..at + 28].copy_from_slice(&[0xf0, 0xff, 0xff, 0xff, 0xf0, 0xff, 0xff, 0xff]);
    assert!(refusal(&huge).contains("is not all there"));
    // Bytes of a real file in turn: an error or a checkpoint, never a panic.
    for file in ["legacy.bin", "zip.bin"] {
        let real = std::fs::read(saved(file)).unwrap();
        for at in (0..real.len()).step_by(5) {
            let mut bytes = real.clone();
            bytes[at] ^= 0xff;
            refusal(&bytes);
        }
        for length in (16..real.len() - 1).step_by(37) {
            assert_ne!(refusal(&real[..length]), "no error", "{file} {length}");
        }
    }
}
