//! The files that `torch.save` writes, as [`Stored`] tensors: which bytes of the file are which tensor.
//!
//! Since PyTorch 1.6: a zip archive without compression, with `NAME/data.pkl` (the pickled state dict) and `NAME/data/KEY`
//! (the bytes of a storage). Before: four pickles (a magic number, a version, facts of the machine, the state dict), a
//! fifth (the keys of the storages), then for each storage its length (8 bytes) and its bytes. (`torch/serialization.py`.)
//!
//! Tensors stay where they are and are read when asked for, so a file cannot cost more memory than the pickle in it; every
//! place that a tensor names is checked to lie inside of its storage, and its storage inside of the file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::pickle::{Id, Object, Objects, Result, TensorView, Unpickler};
use super::tensor_file::Stored;
use super::zip::ZipEntries;

/// What a training program calls the state dict among other things that it saves.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// The tensors of the file, which is `length` bytes long and read from its start.
pub(super) fn torch_tensors(path: &Path, file: &mut File, length: u64) -> crate::Result<BTreeMap<String, Stored>> {
    let mut start = [0; 2];
    let read = file.read_exact(&mut start).and_then(|()| file.rewind()).map_err(|e| format!("cannot be read: {e}"));
    let tensors = read.and_then(|()| if &start == b"PK" { zipped(file, length) } else { legacy(file, length) });
    tensors
        .map_err(|message| crate::Error::file(path, format!("is no state dict of PyTorch that can be read: {message}")))
}

fn zipped(file: &mut File, length: u64) -> Result<BTreeMap<String, Stored>> {
    let entries = ZipEntries::read(file, length)?;
    let mut pickles = entries.names().filter_map(|name| name.strip_suffix("data.pkl"));
    let folder = match (pickles.next(), pickles.next()) {
        (Some(folder), None) => folder.to_string(),
        _ => return Err("the archive has not exactly one data.pkl".into()),
    };
    if entries.find(&format!("{folder}constants.pkl")).is_some() {
        return Err(
            "it is a TorchScript program; in Python, torch.jit.load(file).state_dict() can be saved as safetensors"
                .into(),
        );
    }
    entries.check()?;
    let data_of = |name: &str| entries.find(&format!("{folder}{name}"));
    let mut bytes_of = |name: &str, limit: u64| -> Result<Option<Vec<u8>>> {
        let Some((start, size)) = data_of(name) else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(start))
            .and_then(|_| Read::by_ref(file).take(size.min(limit)).read_to_end(&mut bytes));
        read.map(|_| Some(bytes)).map_err(|e| format!("cannot be read: {e}"))
    };
    if bytes_of("byteorder", 16)?.is_some_and(|order| order.trim_ascii() != b"little") {
        return Err("its numbers are stored in big-endian order".into());
    }
    let (start, size) = data_of("data.pkl").ok_or("data.pkl is not there")?;
    file.seek(SeekFrom::Start(start)).map_err(|e| format!("cannot be read: {e}"))?;
    let mut unpickler = Unpickler::new(BufReader::new(file).take(size));
    let root = unpickler.load()?;
    let place = |key: &str| entries.find(&format!("{folder}data/{key}"));
    tensors(unpickler.objects(), root, &place)
}

fn legacy(file: &mut File, length: u64) -> Result<BTreeMap<String, Stored>> {
    let mut unpickler = Unpickler::new(BufReader::new(&mut *file));
    let magic = unpickler.load()?;
    let version = unpickler.load()?;
    let header = (unpickler.objects().get(magic), unpickler.objects().get(version));
    if header != (&Object::LegacyMagic, &Object::Int(1001)) {
        return Err("it is a pickle, but not one that torch.save wrote".into());
    }
    let machine = unpickler.load()?;
    if lookup(unpickler.objects(), machine, "little_endian").map(|id| unpickler.objects().get(id))
        == Some(&Object::Bool(false))
    {
        return Err("its numbers are stored in big-endian order".into());
    }
    let root = unpickler.load()?;
    let keys = unpickler.load()?;
    let (objects, mut at) = unpickler.finish();
    let Object::List(keys) = objects.get(keys) else { return Err("the list of its storages is missing".into()) };
    let mut widths: HashMap<&str, u64> = HashMap::new();
    widths.extend(objects.storages().map(|storage| (&*storage.key, storage.dtype.bitsize() as u64 / 8)));
    let mut places = HashMap::new();
    for &key in keys {
        let key = objects.text(key).ok_or("the key of a storage is no text")?;
        let mut count = [0; 8];
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut count));
        read.map_err(|_| "it is truncated")?;
        let width = widths.get(key).ok_or("it has a storage that no tensor uses")?;
        let size = u64::from_le_bytes(count).checked_mul(*width);
        let end = size.and_then(|size| (at + 8).checked_add(size)).filter(|&end| end <= length);
        let end = end.ok_or_else(|| format!("it is truncated: the storage '{key}' is not all there"))?;
        places.insert(key, (at + 8, end - at - 8));
        at = end;
    }
    tensors(&objects, root, &|key| places.get(key).copied())
}

/// The tensors of the state dict, which is the value itself or in it under a name that training programs use.
fn tensors(
    objects: &Objects,
    root: Id,
    place: &dyn Fn(&str) -> Option<(u64, u64)>,
) -> Result<BTreeMap<String, Stored>> {
    let mut dict = root;
    for _ in 0..WRAPPERS.len() {
        let inner = WRAPPERS.iter().filter_map(|name| lookup(objects, dict, name));
        let Some(inner) = inner.into_iter().find(|&id| matches!(objects.get(id), Object::Dict(_))) else { break };
        dict = inner;
    }
    let Object::Dict(items) = objects.get(dict) else { return Err("the value in it is no dict".into()) };
    let mut tensors = BTreeMap::new();
    for &(key, value) in items {
        let (Some(name), Object::Tensor(view)) = (objects.text(key), objects.get(value)) else { continue };
        let stored =
            stored(objects, view, place).map_err(|message| format!("tensor '{}': {message}", name.escape_debug()))?;
        tensors.insert(name.to_string(), stored);
    }
    if tensors.is_empty() {
        let keys: Vec<&str> = items.iter().filter_map(|(key, _)| objects.text(*key)).take(10).collect();
        return Err(format!("no tensors are in it; its keys are {keys:?}"));
    }
    Ok(tensors)
}

fn lookup(objects: &Objects, dict: Id, name: &str) -> Option<Id> {
    let Object::Dict(items) = objects.get(dict) else { return None };
    items.iter().rev().find(|(key, _)| objects.text(*key) == Some(name)).map(|(_, value)| *value)
}

/// The place of a tensor in the file, checked.
fn stored(objects: &Objects, view: &TensorView, place: &dyn Fn(&str) -> Option<(u64, u64)>) -> Result<Stored> {
    let Object::Storage(storage) = objects.get(view.storage) else { return Err("it has no storage".into()) };
    let (start, size) =
        place(&storage.key).ok_or_else(|| format!("its storage '{}' is missing", storage.key.escape_debug()))?;
    let width = storage.dtype.bitsize() as u64 / 8;
    let beyond = || {
        format!(
            "shape {:?} with strides {:?} from {} on lies outside of its storage '{}' of {size} bytes",
            view.shape,
            view.strides,
            view.offset,
            storage.key.escape_debug()
        )
    };
    let unsigned = |numbers: &[i64]| numbers.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
    let (shape, strides) = unsigned(&view.shape).zip(unsigned(&view.strides)).ok_or_else(beyond)?;
    let bytes_used = u64::try_from(storage.len).ok().and_then(|len| len.checked_mul(width));
    if bytes_used.is_none_or(|used| used > size) {
        return Err(format!(
            "its storage '{}' is said to have {} numbers in {size} bytes",
            storage.key.escape_debug(),
            storage.len
        ));
    }
    if shape.contains(&0) {
        return Ok(Stored { dtype: storage.dtype, shape, start, strides: None });
    }
    // The place of the last number, counted from the start of the storage.
    let offset = usize::try_from(view.offset).map_err(|_| beyond())?;
    let last = shape
        .iter()
        .zip(&strides)
        .try_fold(offset, |last, (&n, &stride)| last.checked_add((n - 1).checked_mul(stride)?));
    let end = last.and_then(|last| (last as u64).checked_add(1)?.checked_mul(width));
    if end.is_none_or(|end| end > size) {
        return Err(beyond());
    }
    let start = start + offset as u64 * width;
    let mut row_major = 1_usize;
    let mut contiguous = true;
    for (&n, &stride) in shape.iter().zip(&strides).rev() {
        contiguous &= n == 1 || stride == row_major;
        row_major = row_major.saturating_mul(n);
    }
    if !contiguous && overlaps(&shape, &strides) {
        return Err(format!("shape {shape:?} with strides {strides:?} names the same numbers more than once"));
    }
    Ok(Stored { dtype: storage.dtype, shape, start, strides: (!contiguous).then_some(strides) })
}

/// Whether two places of the tensor may be one: some axis takes shorter steps than the axes inside of it reach.
fn overlaps(shape: &[usize], strides: &[usize]) -> bool {
    let mut axes: Vec<(usize, usize)> =
        strides.iter().copied().zip(shape.iter().copied()).filter(|axis| axis.1 > 1).collect();
    axes.sort_unstable();
    let mut reach = 0_usize;
    axes.into_iter().any(|(stride, n)| {
        let short = stride <= reach;
        reach = reach.saturating_add(stride.saturating_mul(n - 1));
        short
    })
}
