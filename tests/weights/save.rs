//! Saved files and folders: what is in them, and that they are complete or absent.

use std::path::Path;

use diptych::candle::{DType, Device, Tensor, Var};
use diptych::weights::{Checkpoint, Folder, save_folder, save_safetensors, write_atomic};
use diptych::{Error, Result};

use crate::values;

fn arange(count: u32) -> Tensor {
    Tensor::arange(0.0_f32, count as f32, &Device::Cpu).unwrap()
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Saves a folder with these small files in it.
fn save(dir: &Path, files: &[(&str, &str)]) -> Result<()> {
    save_folder(dir, |staging| {
        files.iter().try_for_each(|(name, text)| {
            std::fs::write(staging.join(name), text).map_err(|e| diptych::candle::Error::from(e).into())
        })
    })
}

#[test]
fn tensors_come_back_as_they_were_saved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let long = arange(200_003);
    let slice = arange(12).reshape((3, 4)).unwrap().t().unwrap();
    let offset = arange(10).narrow(0, 4, 3).unwrap();
    let types = [DType::F16, DType::BF16, DType::F64, DType::I64, DType::U32, DType::U8];
    let mut tensors = vec![
        ("long".to_string(), long.clone()),
        ("transposed".to_string(), slice.clone()),
        ("offset".to_string(), offset),
        ("variable".to_string(), Var::from_tensor(&arange(2)).unwrap().into_inner()),
        ("scalar".to_string(), Tensor::new(7.0_f32, &Device::Cpu).unwrap()),
        ("none".to_string(), Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap()),
    ];
    tensors.extend(types.iter().map(|t| (t.as_str().to_string(), arange(5).to_dtype(*t).unwrap())));
    save_safetensors(&path, tensors.clone(), &[("made_by", "a test")]).unwrap();

    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let info = metadata.metadata().clone().unwrap();
    assert_eq!((info["format"].as_str(), info["made_by"].as_str()), ("pt", "a test"));
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    assert_eq!(checkpoint.len(), tensors.len());
    for (name, tensor) in &tensors {
        let read = checkpoint.read(name, tensor.dtype(), &Device::Cpu).unwrap();
        assert_eq!(read.dims(), tensor.dims(), "{name}");
        let as_f32 = |t: &Tensor| values(&t.to_dtype(DType::F32).unwrap());
        assert!(as_f32(&read) == as_f32(tensor), "{name}");
    }
    assert_eq!(values(&checkpoint.read("offset", DType::F32, &Device::Cpu).unwrap()), [4.0, 5.0, 6.0]);

    tensors.reverse();
    let again = dir.path().join("again.safetensors");
    save_safetensors(&again, tensors, &[("made_by", "a test")]).unwrap();
    assert!(std::fs::read(&again).unwrap() == bytes, "equal tensors give equal bytes in any order");
}

#[test]
fn two_tensors_of_one_name_and_impossible_places_are_errors_that_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let error = save_safetensors(&path, [("a", arange(1)), ("a", arange(2))], &[]).unwrap_err().to_string();
    assert!(error.contains("m.safetensors") && error.contains("two tensors would be called 'a'"), "{error}");
    let nowhere = dir.path().join("absent").join("m.safetensors");
    let error = save_safetensors(&nowhere, [("a", arange(1))], &[]).unwrap_err().to_string();
    assert!(error.contains("absent") && error.contains("cannot be written"), "{error}");
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write_atomic(&path, |out| out.write_all(b"old")).unwrap();
    let error = write_atomic(&path, |out| {
        out.write_all(b"new, but only half")?;
        Err(std::io::ErrorKind::StorageFull.into())
    });
    assert!(error.unwrap_err().to_string().contains("file: cannot be written"));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names_in(dir.path()), ["file"]);
}

#[cfg(unix)]
#[test]
fn a_saved_file_is_as_readable_as_any_other_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("plain"), b"").unwrap();
    write_atomic(dir.path().join("atomic"), |_| Ok(())).unwrap();
    let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode();
    assert_eq!(mode("atomic"), mode("plain"));
}

#[test]
fn a_new_folder_is_complete_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep").join("out");
    let failed = save_folder(&out, |staging| {
        std::fs::write(staging.join("config.json"), "{}").unwrap();
        Err(Error::from(diptych::candle::Error::Msg("stopped".into())))
    });
    assert!(failed.unwrap_err().to_string().contains("stopped"));
    assert_eq!(names_in(out.parent().unwrap()), Vec::<String>::new());
    let error = save(&out, &[("model.safetensors", "w")]).unwrap_err().to_string();
    assert!(error.contains("made no config.json"), "{error}");
    save(&out, &[("config.json", "{}"), ("model.safetensors", "w")]).unwrap();
    assert_eq!(names_in(&out), ["config.json", "model.safetensors"]);
    assert_eq!(names_in(out.parent().unwrap()), ["out"]);
}

#[test]
fn folders_that_are_no_model_are_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let error = save(dir.path(), &[("config.json", "{}")]).unwrap_err().to_string();
    assert!(error.contains("is not overwritten"), "{error}");
    assert_eq!(names_in(dir.path()), ["thesis.tex"]);
    let error = save(&dir.path().join("thesis.tex"), &[("config.json", "{}")]).unwrap_err().to_string();
    assert!(error.contains("thesis.tex: is a file"), "{error}");
}

#[test]
fn an_old_model_gives_way_to_the_new_one_and_other_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    save(out, &[("config.json", "old"), ("model.safetensors", "old")]).unwrap();
    for (name, text) in [
        ("README.md", "mine"),
        ("model.safetensors.index.json", "{}"),
        ("model-00001-of-00002.safetensors", "shard"),
        ("processor_config.json", "{}"),
    ] {
        std::fs::write(out.join(name), text).unwrap();
    }
    // What a save leaves that was cut off.
    std::fs::create_dir(out.join(".saving-abc")).unwrap();
    save(out, &[("config.json", "new"), ("model.safetensors", "new"), ("preprocessor_config.json", "{}")]).unwrap();
    assert_eq!(names_in(out), ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]);
    assert_eq!(std::fs::read_to_string(out.join("config.json")).unwrap(), "new");
    assert_eq!(std::fs::read_to_string(out.join("model.safetensors")).unwrap(), "new");
}

#[test]
fn a_save_that_fails_leaves_the_old_model_and_the_next_one_repairs_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    save(&out, &[("config.json", "old"), ("model.safetensors", "old")]).unwrap();
    let error = save(&out, &[("model.safetensors", "new")]).unwrap_err().to_string();
    assert!(error.contains("made no config.json"), "{error}");
    assert_eq!(names_in(&out), ["config.json", "model.safetensors"]);
    assert_eq!(std::fs::read_to_string(out.join("model.safetensors")).unwrap(), "old");
    // The state after a crash between two files: no configuration, and the staging folder still there.
    std::fs::remove_file(out.join("config.json")).unwrap();
    std::fs::create_dir(out.join(".saving-abc")).unwrap();
    assert!(Folder::open(&out).unwrap().config().is_err());
    save(&out, &[("config.json", "{}"), ("model.safetensors", "new")]).unwrap();
    assert_eq!(names_in(&out), ["config.json", "model.safetensors"]);
}

#[test]
fn an_empty_folder_that_is_there_already_is_filled() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &[("config.json", "{}")]).unwrap();
    assert_eq!(names_in(dir.path()), ["config.json"]);
}

#[test]
fn nothing_but_a_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let error = diptych::weights::write_atomic(folder.path(), |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("no file"), "{error}");
    #[cfg(target_os = "linux")]
    assert!(diptych::weights::write_atomic("/dev/null", |_| Ok(())).is_err());
}
