//! [`Checkpoint`]: the named tensors of a folder, in one safetensors file or in several with an index.
//!
//! Opening reads headers only; [`Checkpoint::read`] reads the bytes of one tensor. Old spellings are undone at opening:
//! `LayerNorm.gamma` and `.beta` are `.weight` and `.bias`, and the prefixes `module.` (data parallel) and `_orig_mod.`
//! (compiled) go where every tensor has them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use safetensors::Dtype;

use super::decode::Values;
use super::folder::{Folder, WEIGHTS, WEIGHTS_INDEX, read_json};
use super::tensor_file::TensorFile;
use crate::{Error, Result};

/// Pickled weights, which this crate does not read: unpickling runs whatever program the file holds.
const PICKLED: [&str; 4] =
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "open_clip_pytorch_model.bin"];
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// What a checkpoint says about one of its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorDescription<'a> {
    /// The type of the numbers in the file.
    pub dtype: Dtype,
    /// The shape in the file.
    pub shape: &'a [usize],
    /// The name as the file spells it.
    pub file_name: &'a str,
}

/// The named tensors of a folder (or of one file), not yet read.
pub struct Checkpoint {
    source: PathBuf,
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    name: String,
}

impl Checkpoint {
    /// Opens `model.safetensors` of the folder, or the files that its `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// If there are no such files (with a hint where there are pickled weights only), one of them is damaged or cannot be
    /// read, the index names a file outside of the folder or one that is missing, or a tensor is not in the file the index names.
    pub fn open(folder: &Folder) -> Result<Self> {
        if let Some(path) = folder.file(WEIGHTS) {
            return Self::open_file(path);
        }
        if let Some(path) = folder.file(WEIGHTS_INDEX) {
            return Self::open_shards(folder, &path);
        }
        Err(match PICKLED.iter().find(|name| folder.file(name).is_some()) {
            Some(name) => Error::file(folder.path(), pickle_only(name)),
            None => {
                Error::file(folder.path(), format!("has no weights: neither {WEIGHTS} nor {WEIGHTS_INDEX} is there"))
            }
        })
    }

    /// Opens one safetensors file of any name.
    ///
    /// # Errors
    /// If the file is damaged or cannot be read.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self> {
        let file = TensorFile::open(path.as_ref())?;
        let tensors = file.names().into_iter().map(|name| (name.clone(), Entry { file: 0, name })).collect();
        Ok(Self { source: path.as_ref().to_path_buf(), files: vec![file], tensors: normalise(tensors) })
    }

    fn open_shards(folder: &Folder, index: &Path) -> Result<Self> {
        let weight_map = read_weight_map(index)?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let mut files = Vec::with_capacity(shards.len());
        let mut place = HashMap::new();
        for shard in shards {
            let path = folder
                .file(shard)
                .ok_or_else(|| Error::file(index, format!("names the file '{shard}', which is not in the folder")))?;
            place.insert(shard.clone(), files.len());
            files.push(TensorFile::open(&path)?);
        }
        let mut tensors = BTreeMap::new();
        for (name, shard) in &weight_map {
            let file = place[shard];
            if files[file].info(name).is_none() {
                return Err(Error::file(index, format!("says that tensor '{name}' is in '{shard}', but it is not")));
            }
            tensors.insert(name.clone(), Entry { file, name: name.clone() });
        }
        Ok(Self { source: folder.path().to_path_buf(), files, tensors: normalise(tensors) })
    }

    /// The file or the folder that was opened.
    #[must_use]
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Type and shape of the tensor `name`, or `None` if there is none of that name.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<TensorDescription<'_>> {
        let entry = self.tensors.get(name)?;
        let info = self.files[entry.file].info(&entry.name)?;
        Some(TensorDescription { dtype: info.dtype, shape: &info.shape, file_name: &entry.name })
    }

    /// The file that holds the tensor `name`, or `None` if there is no tensor of that name.
    #[must_use]
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        Some(self.files[self.tensors.get(name)?.file].path())
    }

    /// Reads the tensor `name` in its own shape, as numbers of type `dtype`.
    ///
    /// # Errors
    /// If there is no tensor of that name, its stored type is unknown to candle, or the file cannot be read.
    pub fn read(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = self.shape(name)?;
        Ok(self.values(name, dtype)?.into_tensor(shape, dtype, device)?)
    }

    /// Reads the tensor `name` as a trainable variable, without a second copy of it where no conversion is needed.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read_var(&self, name: &str, dtype: DType, device: &Device) -> Result<Var> {
        let shape = self.shape(name)?;
        Ok(self.values(name, dtype)?.into_var(shape, dtype, device)?)
    }

    fn shape(&self, name: &str) -> Result<&[usize]> {
        self.info(name)
            .map(|info| info.shape)
            .ok_or_else(|| Error::file(&self.source, format!("has no tensor '{name}'")))
    }

    pub(super) fn values(&self, name: &str, dtype: DType) -> Result<Values> {
        let missing = || Error::file(&self.source, format!("has no tensor '{name}'"));
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        let file = &self.files[entry.file];
        let info = file.info(&entry.name).ok_or_else(missing)?;
        // The header was checked: the product is that of a byte range inside of the file.
        let count = info.shape.iter().product();
        let read = |bytes: &mut [u8], offset: u64| file.read_at(bytes, offset);
        Values::read(&read, info.data_offsets.0 as u64, count, info.dtype, dtype)
            .map_err(|e| Error::file(file.path(), format!("tensor '{}' cannot be read: {e}", entry.name)))?
            .ok_or_else(|| {
                let supported = "F32, F16, BF16, F64, I64, I32, I16, U32, U8, BOOL";
                let context = format!("{}, tensor '{}'", file.path().display(), entry.name);
                Error::unsupported(context, "number type", info.dtype.to_string(), supported)
            })
    }
}

/// Says why pickled weights are not read and how to convert them.
pub(super) fn pickle_only(name: &str) -> String {
    format!(
        "only pickle weights ({name}), which are programs that run on loading; convert them to safetensors, in Python: \
         transformers.AutoModel.from_pretrained(folder).save_pretrained(folder), or pick a revision of the repository that has {WEIGHTS}"
    )
}

/// Tensor name → file name, from an index. File names are plain: an index never leads out of its folder.
pub(super) fn read_weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let value = read_json(index)?;
    let map = value.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.ok_or_else(|| Error::file(index, "has no object 'weight_map' from tensor to file names"))?;
    if map.is_empty() {
        return Err(Error::file(index, "lists no tensors: its 'weight_map' is empty"));
    }
    let checked = |(name, shard): (&String, &serde_json::Value)| match shard.as_str() {
        Some(shard) if is_plain_file_name(shard) => Ok((name.clone(), shard.to_string())),
        _ => Err(Error::file(
            index,
            format!("tensor '{name}': {shard} is not the name of a .safetensors file in this folder"),
        )),
    };
    map.iter().map(checked).collect()
}

fn is_plain_file_name(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ' | '+' | '=' | ',' | '@' | '(' | ')');
    name.ends_with(".safetensors") && !name.starts_with('.') && name.chars().all(plain)
}

fn normalise(tensors: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    let mut start = String::new();
    if !tensors.is_empty() {
        while let Some(wrapper) = WRAPPERS.iter().find(|w| {
            let wrapped = format!("{start}{w}");
            tensors.keys().all(|name| name.starts_with(&wrapped) && name.len() > wrapped.len())
        }) {
            start.push_str(wrapper);
        }
    }
    let rename = |name: &String| modern_spelling(name, &tensors)[start.len()..].to_string();
    let names: Vec<String> = tensors.keys().map(rename).collect();
    names.into_iter().zip(tensors.into_values()).collect()
}

/// `….LayerNorm.gamma` is `….LayerNorm.weight` and so on. A layer scale's `gamma` stays: its parent is no norm.
fn modern_spelling(name: &str, tensors: &BTreeMap<String, Entry>) -> String {
    let Some((parent, leaf)) = name.rsplit_once('.') else { return name.to_string() };
    let modern = match leaf {
        "gamma" => "weight",
        "beta" => "bias",
        _ => return name.to_string(),
    };
    let norm = parent.rsplit('.').next().is_some_and(|segment| segment.to_lowercase().contains("norm"));
    let renamed = format!("{parent}.{modern}");
    if norm && !tensors.contains_key(&renamed) { renamed } else { name.to_string() }
}
