//! [`Checkpoint`]: the named tensors of a folder, in one file or in several with an index.
//!
//! Opening reads headers only; [`Checkpoint::read`] reads the bytes of one tensor. Old spellings are undone at opening, in this
//! one place: `LayerNorm.gamma` and `.beta` are `.weight` and `.bias`, and the prefixes `module.` (data parallel), `model.`
//! (training frameworks) and `_orig_mod.` (compiled) go where every tensor has them. [`TensorDescription::file_name`] keeps
//! the spelling of the file.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use safetensors::Dtype;

use super::decode::Values;
use super::folder::Folder;
use super::layout::{Form, Layout, WeightsName};
use super::tensor_file::{Stored, TensorFile};
use crate::{Error, Result};

const WRAPPERS: [&str; 3] = ["module.", "model.", "_orig_mod."];

/// What a checkpoint says about one of its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorDescription<'a> {
    /// The checkpoint's name of it: the file's with old spellings undone.
    pub name: &'a str,
    /// The type of the numbers in the file.
    pub dtype: Dtype,
    /// The shape in the file.
    pub shape: &'a [usize],
    /// The name as the file spells it.
    pub file_name: &'a str,
    /// The file that holds it.
    pub file: &'a Path,
}

impl TensorDescription<'_> {
    /// How many numbers it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Whether it has no numbers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes its numbers take in the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len() * self.dtype.bitsize() as u64 / 8
    }
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

/// Floats of a tensor that are not yet read.
pub(super) struct Floats<'a> {
    file: &'a TensorFile,
    name: &'a str,
    stored: Stored,
}

impl Floats<'_> {
    /// Fills `out` from the `first` on.
    pub(super) fn read(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let read = self.file.floats(&self.stored, first, out);
        read.map_err(|error| Checkpoint::unreadable(self.file, self.name, &error))
    }
}

impl Checkpoint {
    /// Opens the weights of the folder's own layout ([`Folder::layout`]): one file, or those that its index lists.
    ///
    /// # Errors
    /// If there are no such files (with a hint where there are pickled weights that this build does not read), one of them is
    /// damaged or cannot be read, the index names a file outside of the folder or ones that are missing, or a tensor is not in
    /// the file the index names.
    pub fn open(folder: &Folder) -> Result<Self> {
        let without_configuration = || {
            let open_clip = folder.weights(Layout::HuggingFace).is_err() && folder.weights(Layout::OpenClip).is_ok();
            if open_clip { Layout::OpenClip } else { Layout::HuggingFace }
        };
        Self::open_layout(folder, folder.find_layout()?.unwrap_or_else(without_configuration))
    }

    /// Opens the weights that the folder holds in this layout.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_layout(folder: &Folder, layout: Layout) -> Result<Self> {
        let (weights, path) = folder.weights(layout)?;
        match weights.form {
            Form::Single => Self::open_file(path),
            Form::Index => Self::open_shards(folder, weights, &path),
        }
    }

    /// Opens one file of any name: safetensors, or with the feature `pickle` one that `torch.save` wrote.
    ///
    /// # Errors
    /// If the file is damaged or cannot be read.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self> {
        let file = TensorFile::open(path.as_ref())?;
        let tensors = file.names().map(|name| (name.to_string(), Entry { file: 0, name: name.to_string() })).collect();
        Ok(Self { source: path.as_ref().to_path_buf(), files: vec![file], tensors: normalise(tensors) })
    }

    fn open_shards(folder: &Folder, weights: WeightsName, index: &Path) -> Result<Self> {
        let weight_map = weights.read_map(index)?;
        let mut files = Vec::new();
        let mut place = HashMap::new();
        for shard in weights.shards(index, |shard| folder.file(shard).is_some())? {
            files.push(TensorFile::open(&folder.path().join(&shard))?);
            place.insert(shard, files.len() - 1);
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
        let (name, entry) = self.tensors.get_key_value(name)?;
        self.describe(name, entry)
    }

    /// What the headers say of each tensor, sorted by name. Nothing is read for it.
    pub fn infos(&self) -> impl Iterator<Item = TensorDescription<'_>> {
        self.tensors.iter().filter_map(|(name, entry)| self.describe(name, entry))
    }

    /// How many numbers all tensors have together.
    #[must_use]
    pub fn num_parameters(&self) -> u64 {
        self.infos().map(|info| info.len()).sum()
    }

    /// The files and how many bytes each is long.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.files.iter().map(|file| (file.path(), file.length()))
    }

    fn describe<'a>(&'a self, name: &'a str, entry: &'a Entry) -> Option<TensorDescription<'a>> {
        let file = &self.files[entry.file];
        let stored = file.info(&entry.name)?;
        let (dtype, shape) = (stored.dtype, &stored.shape[..]);
        Some(TensorDescription { name, dtype, shape, file_name: &entry.name, file: file.path() })
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
        Ok(self.values(name, None, dtype)?.into_tensor(shape, dtype, device)?)
    }

    /// Reads the tensor `name` as a trainable variable, without a second copy of it where no conversion is needed.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read_var(&self, name: &str, dtype: DType, device: &Device) -> Result<Var> {
        let shape = self.shape(name)?;
        Ok(self.values(name, None, dtype)?.into_var(shape, dtype, device)?)
    }

    fn shape(&self, name: &str) -> Result<&[usize]> {
        self.info(name)
            .map(|info| info.shape)
            .ok_or_else(|| Error::file(&self.source, format!("has no tensor '{name}'")))
    }

    /// The floats of a tensor, or of one of its equal parts, to be read some at a time; `None` where they have to be converted as
    /// a whole.
    pub(super) fn floats<'a>(&'a self, name: &'a str, part: Option<(usize, usize)>) -> Result<Option<Floats<'a>>> {
        let (file, stored) = self.find(name)?;
        let stored = part.map_or_else(|| stored.clone(), |(index, count)| stored.part(index, count));
        Ok(TensorFile::has_floats(&stored).then_some(Floats { file, name, stored }))
    }

    pub(super) fn find(&self, name: &str) -> Result<(&TensorFile, &Stored)> {
        let missing = || Error::file(&self.source, format!("has no tensor '{name}'"));
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        let file = &self.files[entry.file];
        Ok((file, file.info(&entry.name).ok_or_else(missing)?))
    }

    pub(super) fn unreadable(file: &TensorFile, name: &str, error: &dyn std::fmt::Display) -> Error {
        Error::file(file.path(), format!("tensor '{name}' cannot be read: {error}"))
    }

    /// The numbers of a tensor, or of the `index`-th of `count` equal parts of its first axis: no more than these are read.
    pub(super) fn values(&self, name: &str, part: Option<(usize, usize)>, dtype: DType) -> Result<Values> {
        let (file, stored) = self.find(name)?;
        let part = part.map(|(index, count)| stored.part(index, count));
        file.values(part.as_ref().unwrap_or(stored), dtype)
            .map_err(|error| Self::unreadable(file, name, &error))?
            .ok_or_else(|| {
                let supported = "F32, F16, BF16, F64, I64, I32, I16, U32, U8, BOOL";
                let context = format!("{}, tensor '{name}'", file.path().display());
                Error::unsupported(context, "number type", stored.dtype.to_string(), supported)
            })
    }
}

/// The tensors by names without the wrappers that all of them have, in today's spelling.
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
